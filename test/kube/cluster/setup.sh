#!/usr/bin/env bash
# Builds what the test cluster consists of into a cache folder outside the repository, keyed by what it is built from,
# and prints the folder: bin/, images/ (the pods' pause), crds/kuberay/ and kwok.yaml. A second run finds it complete and
# returns at once. What Debian packages is taken from there: see cluster.sh. Usage: test/kube/cluster/setup.sh [CACHE_DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mobula}

say() { printf '%s\n' "setup: $*" >&2; }

# One key for all that is built: another version is another folder.
key=$(cd "$here" && cat setup.sh programs/go.mod programs/go.sum programs/*.go programs/*/*.go | sha256sum | cut -c1-12)
dir=$cache/kube-$key
if [ -f "$dir/complete" ]; then
	printf '%s\n' "$dir"
	exit 0
fi
mkdir -p "$cache"
exec 9>"$cache/kube.lock"
flock 9 # two test runs on one machine: the second waits and finds it done
if [ -f "$dir/complete" ]; then
	printf '%s\n' "$dir"
	exit 0
fi

cd "$here/programs"
export CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=readonly
version() { go list -m -f '{{.Version}}' "$1"; }
folder() { go mod download -json "$1" | sed -nE 's/.*"Dir": "(.*)".*/\1/p'; }
kube=$(version k8s.io/kubernetes) helm=$(version helm.sh/helm/v4) kwok=$(version sigs.k8s.io/kwok)
kuberay=$(version github.com/ray-project/kuberay/ray-operator)
say "Kubernetes $kube, Helm $helm, KubeRay $kuberay and kwok $kwok into $dir (0.4 GB, about 8 minutes on two idle cores, once)"

# A build that was interrupted goes on where it was. Its cache is its own, for it is of use to nothing else.
mkdir -p "$dir/bin" "$dir/images"
export GOCACHE=$cache/kube-build
minor=${kube#v*.}
flags="-s -w -X helm.sh/helm/v4/internal/version.version=$helm"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do # else the API server says that it is v0.0.0
	flags+=" -X $p.gitVersion=$kube -X $p.gitMajor=1 -X $p.gitMinor=${minor%.*} -X $p.gitCommit=module -X $p.gitTreeState=clean -X $p.buildDate=2026-01-01T00:00:00Z"
done
build() { # PACKAGE NAME...: the first name is the binary, the others are links to it
	local package=$1 name=$2 from=$SECONDS
	shift 2
	nice go build -trimpath -buildvcs=false -gcflags=all=-dwarf=false -ldflags "$flags" -o "$dir/bin/$name" "$package" >&2
	for link; do ln -sf "$name" "$dir/bin/$link"; done
	say "built $name in $((SECONDS - from)) s, $(($(stat -c %s "$dir/bin/$name") / 1000000)) MB"
}
build ./kube kube kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl
build helm.sh/helm/v4/cmd/helm helm
build github.com/ray-project/kuberay/ray-operator ray-operator
build ./kwok kwok
build ./coredns coredns
build ./pause pause
(cd "$here/../../.." && go run ./test/image -name localhost/pause:1 -out "$dir/images/pause.tar" -path /pause -user 65535 "$dir/bin/pause") >&2

install -m 644 -Dt "$dir/crds/kuberay" "$(folder github.com/ray-project/kuberay/ray-operator)"/config/crd/bases/*.yaml
stages=$(folder sigs.k8s.io/kwok)/kustomize/stage
for f in "$stages"/{node/fast,node/heartbeat-with-lease,pod/fast}/*-*.yaml; do cat "$f"; printf '\n---\n'; done >"$dir/kwok.yaml"

rm -rf "$GOCACHE"
date -u +%FT%TZ >"$dir/complete"
printf '%s\n' "$dir"

#!/usr/bin/env bash
# A Kubernetes cluster of one real node for tests: etcd, API server, controllers, scheduler, containerd, kubelet, kube-proxy
# and CoreDNS, in namespaces of their own. No registry, no systemd, nothing of it reaches or is reached from another machine.
#
#   cluster.sh check          say what this machine lacks
#   cluster.sh up             bring it up, print "ready", and hold it until the input ends or ^C; then nothing is left
#   cluster.sh enter CMD...   run a command inside of it
#   cluster.sh start NAME     start a part: those above, dns, kwok or operator (of KubeRay)
#   cluster.sh kill NAME      kill a part
#   cluster.sh pause NAME     have a part say nothing, until: cluster.sh resume NAME
#   cluster.sh import TAR     give the node an OCI image
#
# MOBULA_KUBE_DIR is what setup.sh printed; in MOBULA_KUBE_LOGS, a folder, the logs stay. There is one cluster on a machine
# at a time. It lies in /var/tmp/mobula-kube: its kubeconfig is pki/admin.kubeconfig there, and logs/ has what its parts
# say. Pods and Services answer on the host too.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export run=/var/tmp/mobula-kube cgroup=mobula-kube link=mobula-kube
export host_ip=10.199.0.1 node_ip=10.199.0.2 pods=10.197.0.0/16 node_pods=10.197.0.0/24 services=10.198.0.0/16 service_ip=10.198.0.1 dns_ip=10.198.0.10

die() {
	printf '%s\n' "cluster: $*" >&2
	exit 1
}

# What a program that is missing comes from, by Debian's names.
tools="etcd:etcd-server containerd:containerd ctr:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins
iptables:iptables conntrack:conntrack ip:iproute2 openssl:openssl curl:curl nsenter:util-linux setpriv:util-linux flock:util-linux"
check() {
	[ "$(uname -s)" = Linux ] || die "a cluster needs Linux"
	[ "$(id -u)" = 0 ] || die "a cluster needs root: its node has namespaces, mounts and cgroups"
	local tool missing=()
	for tool in $tools; do command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}"); done
	[ ${#missing[@]} = 0 ] || die "install ${missing[*]} (Debian's names of the packages)"
	local net
	for net in "${pods%.0.0/16}" "${services%.0.0/16}" "${node_ip%.*}"; do
		! ip -o route | grep -v " dev $link " | grep -q "^$net\." || die "this machine has a route to $net.*, where the cluster would be"
	done
}

# In the namespaces of the cluster. unshare is in all but that of processes, in which its child is.
enter() {
	local pid
	pid=$(cat $run/pid 2>/dev/null) || die "no cluster is up"
	nsenter --target="$pid" --mount --net --uts --ipc --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

# Of what is left here when the last process of the namespaces has ended: folders. Links and routes have gone with it.
clean() {
	find /sys/fs/cgroup -maxdepth 2 -type d -name $cgroup -prune 2>/dev/null | while read -r root; do
		find "$root" -depth -type d -exec rmdir {} \; || true
	done
	rm -rf $run
}

up() {
	check
	[ -x "${MOBULA_KUBE_DIR:?is what setup.sh prints}/bin/kube-apiserver" ] || die "no Kubernetes in $MOBULA_KUBE_DIR: run setup.sh"
	exec 3<&0 9>/run/lock/mobula-kube.lock
	flock -w 30 9 || die "another cluster is up on this machine, or coming up"
	clean # of one whose keeper was killed
	mkdir -p $run/logs $run/etc/cni
	local file names='run cgroup host_ip node_ip pods node_pods services service_ip dns_ip' name edit=()
	for name in $names; do edit+=(-e "s|@${name^^}@|${!name}|g"); done
	for file in $(cd "$here/etc" && find . -type f); do sed "${edit[@]}" "$here/etc/$file" >"$run/etc/$file"; done
	bash "$here/certs.sh" $run/pki $node_ip $service_ip

	# The first process of the namespaces holds them: all that is in them, mounts too, ends with it, and it ends with this one.
	setpriv --pdeathsig KILL unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc \
		bash "$here/node.sh" up >$run/logs/node.log 2>&1 </dev/null 3<&- 9>&- &
	node=$!
	echo $node >$run/pid
	trap 'trap "" INT TERM; down' EXIT
	trap 'exit 130' INT TERM
	until [ "$(readlink "/proc/$node/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
		alive
		sleep 0.05
	done
	ip link add $link type veth peer name eth0 netns $node || { alive && die "no link into the node's network"; }
	ip addr add $host_ip/24 dev $link
	ip link set $link up
	ip route add $pods via $node_ip
	ip route add $services via $node_ip
	until [ -e $run/ready ]; do
		alive
		sleep 0.1
	done
	echo ready
	cat <&3 >/dev/null 9>&- & # until the input ends
	wait -n $! $node || true
	alive
}

# alive ends it all when the node has ended.
alive() { kill -0 $node 2>/dev/null || die "the node has ended; the end of its log:"$'\n'"$(tail -n 20 $run/logs/node.log)"; }

down() {
	# Its child is the first process of the namespaces: all of them end with it.
	kill -KILL $(cat /proc/$node/task/$node/children 2>/dev/null) 2>/dev/null || true
	wait $node 2>/dev/null || true
	if [ -n "${MOBULA_KUBE_LOGS:-}" ]; then
		mkdir -p "$MOBULA_KUBE_LOGS"
		cp -r $run/logs/. "$MOBULA_KUBE_LOGS"
		[ ! -d $run/pod-logs ] || cp -r $run/pod-logs "$MOBULA_KUBE_LOGS/pods"
	fi
	clean
}

case ${1:-} in
check) check ;;
up) up ;;
enter) shift && enter "$@" ;;
start | kill | pause | resume) enter bash "$here/node.sh" "$@" ;;
import) enter ctr -a $run/containerd.sock -n k8s.io images import "$(realpath "${2:?TAR}")" ;;
*)
	sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac

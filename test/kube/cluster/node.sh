#!/usr/bin/env bash
# The inside of a test cluster: cluster.sh runs it in the namespaces, with the variables that it exports.
# Usage: node.sh up | start NAME | kill NAME | pause NAME | resume NAME
set -euo pipefail
bin=$MOBULA_KUBE_DIR/bin pki=$run/pki etc=$run/etc
export PATH=$bin:$PATH KUBECONFIG=$pki/admin.kubeconfig KUBECACHEDIR=$run/cache NO_PROXY=* no_proxy=*

die() {
	printf '%s\n' "node: $*" >&2
	exit 1
}
since=${EPOCHREALTIME/./}
say() { printf '%6d ms %s\n' $(((${EPOCHREALTIME/./} - since) / 1000)) "$*"; }

# command sets argv to what the part of that name is.
command_of() {
	case $1 in
	etcd)
		argv=(etcd --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn
			--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
			--listen-peer-urls http://127.0.0.1:2380)
		;;
	apiserver)
		argv=(kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$node_ip" --secure-port=6443
			--service-cluster-ip-range="$services" --allow-privileged --authorization-mode=Node,RBAC
			--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement
			--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key"
			--service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/serviceaccount.pub"
			--service-account-signing-key-file="$pki/serviceaccount.key"
			--kubelet-client-certificate="$pki/apiserver-client.crt" --kubelet-client-key="$pki/apiserver-client.key"
			--kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP
			--audit-policy-file="$etc/audit.yaml" --audit-log-path="$run/logs/audit.log")
		;;
	manager)
		argv=(kube-controller-manager --kubeconfig="$pki/manager.kubeconfig" --use-service-account-credentials
			--service-account-private-key-file="$pki/serviceaccount.key" --root-ca-file="$pki/ca.crt"
			--cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
			--leader-elect=false --allocate-node-cidrs --cluster-cidr="$pods" --node-monitor-grace-period=60s)
		;;
	scheduler) argv=(kube-scheduler --kubeconfig="$pki/scheduler.kubeconfig" --leader-elect=false) ;;
	containerd) argv=(containerd -c "$etc/containerd.toml") ;;
	kubelet)
		argv=(kubelet --config="$etc/kubelet.yaml" --kubeconfig="$pki/kubelet.kubeconfig" --node-ip="$node_ip"
			--hostname-override=node0 --root-dir="$run/kubelet" --cert-dir="$run/kubelet-pki" -v=2)
		;;
	proxy) argv=(kube-proxy --config="$etc/proxy.yaml") ;;
	dns) argv=(coredns -conf "$etc/Corefile") ;;
	kwok) argv=(kwok "$KUBECONFIG" "$MOBULA_KUBE_DIR/kwok.yaml") ;;
	operator) argv=(ray-operator --use-kubernetes-proxy --enable-leader-election=false) ;;
	*) die "no part is called $1" ;;
	esac
}

alive() { [ -f "$run/$1.pid" ] && kill -0 "$(cat "$run/$1.pid")" 2>/dev/null; }

start() {
	alive "$1" && die "$1 runs"
	local argv
	command_of "$1"
	setsid "${argv[@]}" >>"$run/logs/$1.log" 2>&1 </dev/null &
	echo $! >"$run/$1.pid"
}

stop() {
	alive "$1" || die "$1 does not run"
	local pid
	pid=$(cat "$run/$1.pid")
	kill -KILL "$pid"
	while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
	rm "$run/$1.pid"
}

# pause and resume: a part that is paused is there, and says nothing.
signal() {
	alive "$2" || die "$2 does not run"
	kill -"$1" "$(cat "$run/$2.pid")"
}

# await NAME COMMAND...: until the command succeeds, which the part of that name makes true.
await() {
	local name=$1
	shift
	until "$@" >/dev/null 2>&1; do
		alive "$name" || die "$name has ended: $(tail -n 10 "$run/logs/$name.log")"
		((SECONDS < 300)) || die "after five minutes, still waiting for $name: $* ($(tail -n 10 "$run/logs/$name.log"))"
		sleep 0.1
	done
	say "$name: $*"
}

# What is written where no flag says, such as /var/lib/kubelet and /run/netns, lies on file systems of our own.
mounts() {
	mount --make-rshared / # of this namespace, whose mounts are nobody else's; kubelet wants it so
	local dir
	for dir in /run /var/lib /var/log; do mount -t tmpfs mobula-kube $dir; done
	mkdir -p /run/lock /run/netns
}

# The root of the pods' cgroups, for version 1 and 2: another kubelet's on this machine is another one.
cgroups() {
	local root=/sys/fs/cgroup dir
	if [ -f $root/cgroup.controllers ]; then
		for dir in $(cat $root/cgroup.controllers); do echo "+$dir" >$root/cgroup.subtree_control || true; done
		mkdir -p "$root/$cgroup"
		return
	fi
	for dir in "$root"/*/; do
		mkdir -p "$dir$cgroup" || continue
		[ -f "$dir/cpuset.cpus" ] || continue
		cat "$dir/cpuset.cpus" >"$dir$cgroup/cpuset.cpus"
		cat "$dir/cpuset.mems" >"$dir$cgroup/cpuset.mems"
	done
}

network() {
	until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done # cluster.sh puts it here
	ip link set lo up
	ip addr add "$node_ip/24" dev eth0
	ip link set eth0 up
	ip route add default via "$host_ip"
	# What comes for a Service that kube-proxy doesn't know yet is refused at once, instead of going back and forth.
	ip rule add iif eth0 to "$services" lookup 100
	ip route add unreachable "$services" table 100
	sysctl -qw net.ipv4.ip_forward=1 || echo 1 >/proc/sys/net/ipv4/ip_forward
	echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true
	hostname node0
}

up() {
	mounts
	cgroups
	network
	local image
	start etcd
	start containerd
	await etcd curl -sf http://127.0.0.1:2379/health
	start apiserver
	await containerd ctr -a "$run/containerd.sock" version
	for image in "$MOBULA_KUBE_DIR"/images/*.tar; do
		ctr -a "$run/containerd.sock" -n k8s.io images import "$image"
	done
	await apiserver kubectl get --raw /readyz
	start manager
	start scheduler
	start kubelet
	start proxy
	kubectl apply -f "$etc/dns.yaml"
	start dns
	await kubelet kubectl wait --for=condition=Ready node/node0 --timeout=1s
	await manager kubectl -n default get serviceaccount default
	await dns curl -sf "http://$node_ip:8182/ready"
	touch "$run/ready"
	while :; do sleep infinity & wait; done # reaps what the node's processes leave
}

case $1 in
up) up ;;
start) start "$2" ;;
kill) stop "$2" ;;
pause) signal STOP "$2" ;;
resume) signal CONT "$2" ;;
esac

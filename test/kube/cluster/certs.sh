#!/usr/bin/env bash
# Makes the CA, certificates and kubeconfigs of one test cluster. The keys are as good as admin's, for that cluster only.
# Usage: certs.sh DIR NODE_IP SERVICE_IP
set -euo pipefail
umask 077
dir=$1 ip=$2 service=$3
mkdir -p "$dir"
cd "$dir"

key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${key[@]}" -keyout ca.key -out ca.crt -subj /CN=test-ca -days 365 2>/dev/null
certificate() { # NAME SUBJECT EXTENSION...
	local name=$1 subject=$2
	shift 2
	openssl req "${key[@]}" -keyout "$name.key" -out "$name.csr" -subj "$subject" 2>/dev/null
	openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out "$name.crt" \
		-extfile <(printf '%s\n' "$@") 2>/dev/null
	rm "$name.csr"
}
names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver /CN=kube-apiserver "subjectAltName=$names,DNS:localhost,IP:127.0.0.1,IP:$ip,IP:$service" extendedKeyUsage=serverAuth
certificate node /CN=node "subjectAltName=DNS:node0,IP:127.0.0.1,IP:$ip" extendedKeyUsage=serverAuth
certificate apiserver-client /O=system:masters/CN=apiserver extendedKeyUsage=clientAuth
openssl ecparam -name prime256v1 -genkey -noout -out serviceaccount.key
openssl ec -in serviceaccount.key -pubout -out serviceaccount.pub 2>/dev/null

client() { # NAME SUBJECT: a certificate and the kubeconfig with it, all in one file
	certificate "$1" "$2" extendedKeyUsage=clientAuth
	data() { base64 -w0 <"$1"; }
	cat >"$1.kubeconfig" <<-YAML
		apiVersion: v1
		kind: Config
		clusters: [{name: test, cluster: {server: "https://$ip:6443", certificate-authority-data: $(data ca.crt)}}]
		users: [{name: $1, user: {client-certificate-data: $(data "$1.crt"), client-key-data: $(data "$1.key")}}]
		contexts: [{name: test, context: {cluster: test, user: $1}}]
		current-context: test
	YAML
}
client admin /O=system:masters/CN=admin
client manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client kubelet /O=system:nodes/CN=system:node:node0
client proxy /CN=system:kube-proxy

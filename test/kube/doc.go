// Package kube tests on a real Kubernetes: one node with API server, scheduler, kubelet, containerd, kube-proxy and cluster
// DNS, and as many nodes with GPUs as wanted that kwok makes up; KubeRay's operator runs beside it. The scripts under
// cluster build it from Go modules and hold it in namespaces of its own, so nothing of it is left, however a test ends.
//
// Its tests need the build tag "kube", Linux, root, and what cluster/setup.sh builds:
//
//	make test-kube
//
// MOBULA_KUBE_DIR names the folder that setup.sh prints. When a test fails, the logs of the cluster stay and the test says
// where. To look around in a cluster: MOBULA_KUBE_DIR=$(test/kube/cluster/setup.sh) test/kube/cluster/cluster.sh up
package kube

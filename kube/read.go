package kube

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
)

// Endpoint gives the endpoint that a serving pod of ours is: from when its engine has started (the container's started or the pod's Ready) until it
// is gone; Draining while it is annotated so or being deleted. Readiness that is lost later changes nothing: routers probe by themselves.
func Endpoint(pod *corev1.Pod) (mobula.Endpoint, bool) { return mobula.Endpoint{}, false }

// Replica tells how a replica fares by its pods, in any order, none or not all of them there. problem, if not empty, is why pods are missing.
func Replica(id string, e Engine, pods []*corev1.Pod, problem string, now time.Time) mobula.Replica {
	return mobula.Replica{ID: id}
}

package kube

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
)

// Endpoint gives the endpoint that a serving pod of ours is: from when its engine has started (the container's started or the pod's Ready) until it
// is gone; Draining while it is annotated so or being deleted. Readiness that is lost later changes nothing: routers probe by themselves.
func Endpoint(pod *corev1.Pod) (mobula.Endpoint, bool) {
	if pod.Labels[LabelServes] != "true" || ended(pod) || !started(pod) {
		return mobula.Endpoint{}, false
	}
	url := address(pod)
	_, drained := pod.Annotations[AnnotationDrain]
	return mobula.Endpoint{
		ID:       cmp.Or(pod.Labels[LabelReplica], pod.Name),
		URL:      url,
		Draining: drained || pod.DeletionTimestamp != nil,
		Labels: map[string]string{
			"model":    cmp.Or(pod.Annotations[AnnotationModel], pod.Labels[LabelModel]),
			"revision": pod.Labels[LabelRevision],
			"host":     pod.Spec.NodeName,
		},
	}, url != ""
}

// Replica tells how a replica fares by its pods, in any order, none or not all of them there. problem, if not empty, is why pods are missing.
// A replica of one pod is Gone once that pod has ended for good: what controls it makes another one. Its state tells nothing of AnnotationDrain.
// Since comes from the pods, so that it stays as it is while the state does; without pods it is now.
func Replica(id string, e Engine, pods []*corev1.Pod, problem string, now time.Time) mobula.Replica {
	pods = inOrder(pods)
	r := mobula.Replica{ID: id, Model: e.Model.Name, Revision: e.Revision}
	names := make([]string, 0, len(pods))
	for _, pod := range pods {
		names = append(names, pod.Name)
		if pod.Spec.NodeName != "" {
			r.Hosts = append(r.Hosts, pod.Spec.NodeName)
		}
		if r.URL == "" && pod.Labels[LabelServes] == "true" {
			r.URL = address(pod)
		}
		for i := range pod.Status.ContainerStatuses {
			r.Restarts += int(pod.Status.ContainerStatuses[i].RestartCount)
		}
	}
	switch len(names) {
	case 0:
	case 1:
		r.Detail = "pod " + names[0]
	default:
		r.Detail = "pods " + strings.Join(names, ", ")
	}
	s := e.gang(pods, problem)
	r.State, r.Reason, r.NoRoom, r.Since = s.state, s.reason, s.noRoom, s.since
	if r.Since.IsZero() {
		r.Since = now
	}
	return r
}

// inOrder sorts the pods of a replica: the one that serves, then by rank, as their names count.
func inOrder(pods []*corev1.Pod) []*corev1.Pod {
	serves := func(p *corev1.Pod) int {
		if p.Labels[LabelServes] == "true" {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(pods), func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(serves(a), serves(b)), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
}

// ended tells that no process of the pod will ever run again.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// started tells whether the engine has once answered since its process began.
func started(pod *corev1.Pod) bool {
	if s := engineStatus(pod); s != nil && s.Started != nil {
		return *s.Started
	}
	c := condition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// address is the engine's URL, empty while the pod has no IP.
func address(pod *corev1.Pod) string {
	if pod.Status.PodIP == "" {
		return ""
	}
	port := Port
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == Container {
			for _, p := range c.Ports {
				if p.Name == PortName {
					port = int(p.ContainerPort)
				}
			}
		}
	}
	return "http://" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port))
}

// engineStatus is that of the engine's container, nil while there is none.
func engineStatus(pod *corev1.Pod) *corev1.ContainerStatus {
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == Container {
			return s
		}
	}
	return nil
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == kind {
			return c
		}
	}
	return nil
}

package kubernetes

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula/kube"
)

// hurryGrace is what is left of the grace period to a pod without requests: time to look away, as all have, and to end by itself.
const hurryGrace = 10 // seconds

// hurry has pods end soon that are being deleted while their engines start: there are no requests to wait for, and vLLM, which does not
// hear SIGTERM while it loads a model, would keep its GPUs for the whole of the grace period. It is asked for once: a shorter one stays.
func (p *planner) hurry() {
	for _, pod := range p.pods {
		if grace := pod.DeletionGracePeriodSeconds; pod.DeletionTimestamp != nil && grace != nil && *grace > hurryGrace && p.idle(pod) {
			p.kill = append(p.kill, podKill{
				name: pod.Name, uid: pod.UID, grace: hurryGrace,
				why: "it goes, and its engine has not started: it has no requests to end and need not keep its GPUs for so long",
			})
		}
	}
}

// idle tells of a pod whose engine can have no requests: its process has not answered yet, or that of the pod that serves for it has not,
// or is gone.
func (p *planner) idle(pod *corev1.Pod) bool {
	if pod.Labels[kube.LabelServes] == "true" {
		return starts(pod)
	}
	id := pod.Labels[kube.LabelReplica]
	return id != "" && !slices.ContainsFunc(p.pods, func(first *corev1.Pod) bool {
		return first.Labels[kube.LabelReplica] == id && first.Labels[kube.LabelServes] == "true" &&
			!over(first) && (first.DeletionTimestamp == nil || !starts(first))
	})
}

// starts tells of a pod whose engine runs and has not answered since its process began. That it has started is not always told truly of a
// pod that is being deleted, as its probes have stopped by then: Ready must tell the same.
func starts(pod *corev1.Pod) bool {
	i := slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == kube.Container })
	if i < 0 {
		return false
	}
	s := &pod.Status.ContainerStatuses[i]
	return s.State.Running != nil && (s.Started == nil || !*s.Started) && !wasReady(pod)
}

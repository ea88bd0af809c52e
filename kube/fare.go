package kube

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
)

// maxCrashes in a row, and an engine has failed.
const maxCrashes = 3

// fare is how a pod fares.
type fare struct {
	state  mobula.State
	reason string
	noRoom bool
	since  time.Time
}

// gang tells how a replica fares by all of its pods: as the worst of them.
func (e Engine) gang(pods []*corev1.Pod, problem string) fare {
	missing := e.Size() - len(pods)
	if len(pods) == 0 {
		return fare{state: mobula.StatePending, reason: cmp.Or(problem, "its pod has not been made yet")}
	}
	fares := make([]fare, 0, len(pods)+1)
	leaving := 0
	for _, pod := range pods {
		f := e.pod(pod)
		if len(pods) > 1 {
			f.reason = prefixed("pod "+pod.Name+": ", f.reason)
		}
		if f.state == mobula.StateDraining {
			leaving++
		}
		fares = append(fares, f)
	}
	if leaving == len(pods) || len(pods) == 1 && missing <= 0 {
		return fares[0]
	}
	if missing > 0 {
		fares = append(fares, fare{
			state: mobula.StatePending, since: pods[0].CreationTimestamp.Time,
			reason: cmp.Or(problem, fmt.Sprintf("%d of its %d pods have not been made yet", missing, e.Size())),
		})
	}
	for i := range fares { // the others stay, and can't go on without it
		if f := &fares[i]; f.state == mobula.StateDraining || f.state == mobula.StateGone {
			f.state = mobula.StateSuspect
		}
	}
	return slices.MaxFunc(fares, func(a, b fare) int { return cmp.Compare(severity(a), severity(b)) })
}

// severity orders how pods of one replica fare: the others can't work, and may fail, while one is not there yet.
func severity(f fare) int {
	switch f.state {
	case mobula.StatePending:
		if f.noRoom {
			return 6
		}
		return 5
	case mobula.StateFailed:
		return 4
	case mobula.StateSuspect:
		return 3
	case mobula.StateStarting:
		return 2
	default:
		return 0
	}
}

// Size is the number of pods of a replica.
func (e Engine) Size() int {
	if e.Workload() == KindRayCluster && e.KubeRay != nil && e.KubeRay.HeadWithoutGPUs && !e.simulated() {
		return e.hosts() + 1
	}
	return e.hosts()
}

// pod tells how one pod fares.
func (e Engine) pod(pod *corev1.Pod) fare {
	ready := condition(pod, corev1.PodReady)
	switch {
	case pod.DeletionTimestamp != nil:
		return fare{state: mobula.StateDraining, reason: leaving(pod), since: asked(pod)}
	case ended(pod):
		return fare{state: mobula.StateGone, reason: "its pod has ended" + told(pod.Status.Reason, pod.Status.Message), since: lastFinish(pod)}
	case pod.Status.Reason == "NodeLost", lost(pod, ready):
		f := fare{state: mobula.StateSuspect, reason: "its node " + pod.Spec.NodeName + " does not answer: it may serve or not; look at the node with kubectl describe node " + pod.Spec.NodeName}
		if ready != nil {
			f.since = ready.LastTransitionTime.Time
		}
		return f
	case pod.Spec.NodeName == "":
		return e.unscheduled(pod)
	}
	pending := fare{state: mobula.StatePending, since: pod.CreationTimestamp.Time}
	if pending.reason = e.initializing(pod); pending.reason != "" {
		return pending
	}
	s := engineStatus(pod)
	switch {
	case s == nil:
		pending.reason = "node " + pod.Spec.NodeName + " has not begun with it"
		return pending
	case s.State.Running != nil:
		return e.running(pod, s)
	case s.State.Terminated != nil:
		return e.crashed(pod, s, s.State.Terminated, int(s.RestartCount)+1)
	case s.LastTerminationState.Terminated != nil && (s.State.Waiting == nil || !stuck(s.State.Waiting.Reason)):
		return e.crashed(pod, s, s.LastTerminationState.Terminated, int(s.RestartCount)+1)
	}
	pending.reason = e.waiting(pod, s.Image, s.State.Waiting)
	return pending
}

// lost tells that a pod's node does not answer: Kubernetes has taken the pod's readiness back, which a kubelet does with a reason, and as one of its
// containers is not ready.
func lost(pod *corev1.Pod, ready *corev1.PodCondition) bool {
	if ready == nil || ready.Status == corev1.ConditionUnknown {
		return ready != nil
	}
	containers := condition(pod, corev1.ContainersReady)
	return ready.Status == corev1.ConditionFalse && ready.Reason == "" && containers != nil && containers.Status == corev1.ConditionTrue
}

// running tells how a pod fares whose engine's process runs.
func (e Engine) running(pod *corev1.Pod, s *corev1.ContainerStatus) fare {
	since := s.State.Running.StartedAt.Time
	ready := condition(pod, corev1.PodReady)
	turned := time.Time{} // when it was last seen to be ready, or not
	if ready != nil {
		turned = ready.LastTransitionTime.Time
	}
	switch {
	case s.Ready:
		return fare{state: mobula.StateReady, since: cmp.Or(turned, since)}
	case s.Started != nil && *s.Started && turned.After(since): // since its process began
		return fare{
			state: mobula.StateSuspect, since: turned,
			reason: "its engine no longer answers at /health as it should: look at its log; Kubernetes starts it again after a minute of that",
		}
	case s.LastTerminationState.Terminated != nil && (s.Started == nil || !*s.Started):
		return e.crashed(pod, s, s.LastTerminationState.Terminated, int(s.RestartCount))
	}
	return fare{state: mobula.StateStarting, since: since, reason: "its engine has not answered at /health yet"}
}

// crashed tells how a pod fares whose engine has ended so often since the pod was made, at last as t says. Pods don't
// tell how often in a row: a run before the last one that was well counts as a crash too, unless the last one was well.
func (e Engine) crashed(pod *corev1.Pod, s *corev1.ContainerStatus, t *corev1.ContainerStateTerminated, crashes int) fare {
	f := fare{state: mobula.StateStarting, since: t.FinishedAt.Time, reason: e.ending(pod, t)}
	wasReady := false
	if c := condition(pod, corev1.PodReady); c != nil {
		// A pod without probes is ready as soon as it runs, which tells nothing.
		wasReady = pod.Labels[LabelServes] == "true" && !t.StartedAt.IsZero() && c.LastTransitionTime.After(t.StartedAt.Time)
		f.since = c.LastTransitionTime.Time // each crash after it is part of the same trouble
	}
	if crashes >= maxCrashes && !wasReady {
		f.state = mobula.StateFailed
		f.reason = fmt.Sprintf("it crashed %d times; at last %s", crashes, f.reason)
		return f
	}
	if s.State.Running != nil {
		f.reason = "it is started again: " + f.reason
	} else {
		f.reason = "it will be started again: " + f.reason
	}
	return f
}

// asked is when the pod's deletion was asked for: what it bears is when it will be enforced.
func asked(pod *corev1.Pod) time.Time {
	at := pod.DeletionTimestamp.Time
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		at = at.Add(-time.Duration(*g) * time.Second)
	}
	return at
}

// lastFinish is when the engine's container ended, zero if the pod does not tell.
func lastFinish(pod *corev1.Pod) time.Time {
	if s := engineStatus(pod); s != nil && s.State.Terminated != nil {
		return s.State.Terminated.FinishedAt.Time
	}
	return time.Time{}
}

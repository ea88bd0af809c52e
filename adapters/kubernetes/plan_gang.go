package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

const (
	// annotationWorld names the lives of the pods that make up an engine of several, on the StatefulSet of rank 0.
	annotationWorld = kube.Group + "/world"
	// annotationFalls is there beside it while the engine has not been ready again: how often all of it was made anew for a crash, and when last.
	annotationFalls = kube.Group + "/falls"

	// maxFalls, and an engine has failed, as one of one pod that crashes so often.
	maxFalls = 3
	// fallRest is how long the others are left alone after the second fall, doubled each time up to fallRestMost: as kubelets do it.
	fallRest     = 10 * time.Second
	fallRestMost = 5 * time.Minute
)

// gang has all pods of an engine live and die together: when one of them has begun another life, is gone or about to be, those that were
// together with it begin another one too. They are deleted, so that no more requests come, and that none waits for another one's end.
func (p *planner) gang(r *record, id string) {
	first := p.known[ident{kube.KindStatefulSet, id}]
	if first == nil {
		return
	}
	var now []string
	var old []*corev1.Pod // that live
	world := strings.FieldsFunc(first.GetAnnotations()[annotationWorld], func(c rune) bool { return c == ',' })
	remains, complete, crashed, ready := false, true, false, false // remains: a member of the world is there, be it to its end
	for _, pod := range p.pods {
		if pod.Labels[kube.LabelReplica] != id {
			continue
		}
		now = append(now, life(pod))
		lives := pod.DeletionTimestamp == nil && !over(pod)
		complete = complete && lives
		crashed = crashed || slices.ContainsFunc(world, func(was string) bool { return fell(was, life(pod)) })
		ready = ready || lives && pod.Labels[kube.LabelServes] == "true" && wasReady(pod)
		if slices.Contains(world, life(pod)) {
			remains = true
			if lives {
				old = append(old, pod)
			}
		}
	}
	slices.Sort(now)
	hosts := r.engine().Size()
	complete = complete && len(now) == hosts
	falls := readFalls(first)
	switch {
	case !remains && complete:
		p.annotate(id, annotationWorld, strings.Join(now, ","))
	case len(old) == hosts:
		if falls.times > 0 && ready {
			p.annotate(id, annotationFalls, nil)
		}
	case len(old) > 0:
		if crashed && !ready {
			if p.now.Before(falls.until()) {
				return
			}
			p.annotate(id, annotationFalls, fall{falls.times + 1, p.now}.String())
		}
		for _, pod := range old {
			p.kill = append(p.kill, podKill{name: pod.Name, uid: pod.UID, why: "another pod of its engine ended: all of them start anew"})
		}
	}
}

func (p *planner) annotate(set, annotation string, value any) {
	body := map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotation: value}}}
	p.patch = append(p.patch, objectPatch{ident{kube.KindStatefulSet, set}, body})
}

// broken tells of an engine of several pods that is about to end, for one of them is: it must get no more requests. It is for workloads
// whose operator makes such an engine anew.
func broken(pods []*corev1.Pod, size int) bool {
	return len(pods) < size || slices.ContainsFunc(pods, over)
}

// fall tells how often a gang was made anew since it was ready.
type fall struct {
	times int
	at    time.Time
}

func (f fall) String() string { return strconv.Itoa(f.times) + " " + f.at.UTC().Format(time.RFC3339) }

// until is when it may be made anew again.
func (f fall) until() time.Time {
	if f.times < 2 {
		return f.at
	}
	return f.at.Add(min(fallRest<<min(f.times-2, 10), fallRestMost))
}

// readFalls gives the falls of a gang by its object; what can't be read is none.
func readFalls(o *unstructured.Unstructured) fall {
	times, at, _ := strings.Cut(o.GetAnnotations()[annotationFalls], " ")
	n, err := strconv.Atoi(times)
	when, errAt := time.Parse(time.RFC3339, at)
	if err != nil || errAt != nil || n < 1 {
		return fall{}
	}
	return fall{n, when}
}

// told has a replica have failed whose gang was made anew too often.
func (f fall) told(x *mobula.Replica) {
	x.Restarts += f.times
	if f.times < maxFalls || x.NoRoom {
		return
	}
	switch x.State {
	case mobula.StateStarting, mobula.StateSuspect, mobula.StatePending:
		x.Reason = strings.TrimSuffix(fmt.Sprintf("its pods crashed and were made anew %d times; now: %s", f.times, x.Reason), "; now: ")
		x.State = mobula.StateFailed
	}
}

// wasReady tells whether a pod's engine is ready, or was in the run that ended last.
func wasReady(pod *corev1.Pod) bool {
	var began time.Time
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == kube.Container {
			switch {
			case s.Ready:
				return true
			case s.State.Running != nil:
				began = s.State.Running.StartedAt.Time
			case s.State.Terminated != nil:
				began = s.State.Terminated.StartedAt.Time
			case s.LastTerminationState.Terminated != nil:
				began = s.LastTerminationState.Terminated.StartedAt.Time
			}
		}
	}
	return !began.IsZero() && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.LastTransitionTime.After(began)
	})
}

// life names one life of a pod's engine.
func life(pod *corev1.Pod) string {
	restarts := int32(0)
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == kube.Container {
			restarts = s.RestartCount
		}
	}
	return fmt.Sprintf("%s=%s:%d", pod.Name, pod.UID, restarts)
}

// fell tells whether one life of a pod follows on another one, of another process in the same pod.
func fell(was, now string) bool {
	pod, run, _ := strings.Cut(was, ":")
	same, next, _ := strings.Cut(now, ":")
	return pod == same && run != next
}

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
// together with it begin another one too. They are deleted, so that no more requests come, and that none waits for another one's end: but for
// the one that serves, when it is told to go while all is well. It finishes its requests, which takes the others.
func (p *planner) gang(r *record, id string) {
	first := p.known[ident{kube.KindStatefulSet, id}]
	if first == nil {
		return
	}
	hosts := r.engine().Size()
	world := strings.FieldsFunc(first.GetAnnotations()[annotationWorld], func(c rune) bool { return c == ',' })
	g := p.members(id, world)
	falls := readFalls(first)
	switch {
	case !g.remains && g.complete && len(g.lives) == hosts:
		p.annotate(id, annotationWorld, strings.Join(g.lives, ","))
	case len(g.old) == hosts:
		if falls.times > 0 && g.ready {
			p.annotate(id, annotationFalls, nil)
		}
	case g.finishes && !g.crashed && len(g.old) == hosts-1:
	case len(g.old) > 0:
		if g.crashed && !g.ready {
			if p.now.Before(falls.until()) {
				return
			}
			p.annotate(id, annotationFalls, fall{falls.times + 1, p.now}.String())
		}
		for _, pod := range g.old {
			p.kill = append(p.kill, podKill{name: pod.Name, uid: pod.UID, why: "another pod of its engine ended: all of them start anew"})
		}
	}
}

// members are the pods of an engine of several.
type members struct {
	lives    []string      // of all of them, sorted
	old      []*corev1.Pod // those of the world that live
	remains  bool          // one of the world is there, be it to its end
	complete bool          // all live
	crashed  bool          // one of the world is another process now
	ready    bool          // the one that serves, or was
	finishes bool          // the one that serves is told to go, and has requests to finish
}

func (p *planner) members(id string, world []string) members {
	g := members{complete: true}
	for _, pod := range p.pods {
		if pod.Labels[kube.LabelReplica] != id {
			continue
		}
		own := life(pod)
		g.lives = append(g.lives, own)
		lives, served := pod.DeletionTimestamp == nil && !over(pod), pod.Labels[kube.LabelServes] == "true" && wasReady(pod)
		g.complete = g.complete && lives
		g.crashed = g.crashed || slices.ContainsFunc(world, func(was string) bool { return fell(was, own) })
		g.ready = g.ready || lives && served
		if slices.Contains(world, own) {
			g.remains = true
			g.finishes = g.finishes || served && pod.DeletionTimestamp != nil && !over(pod)
			if lives {
				g.old = append(g.old, pod)
			}
		}
	}
	slices.Sort(g.lives)
	return g
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

package kubernetes

import (
	"cmp"
	"reflect"
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
	// gapGrace is how long a pod may be missing before it is told of as a replica that has none.
	gapGrace = 5 * time.Second
	// stuckGrace is how long a replica may wait for what a person has to mend (its image, a Secret) before it has failed: the kubelet
	// tries to pull an image four times in it.
	stuckGrace = 2 * time.Minute
	maxNotes   = 32
	noteTime   = 10 * time.Minute
)

// account says how the replicas of a group fare. It changes nothing.
type account struct {
	now      time.Time
	records  []*record
	objects  []*unstructured.Unstructured
	pods     []*corev1.Pod
	workload func(kind string) kube.Workload
	trouble  string
	before   map[string]mobula.Replica
	gaps     map[string]time.Time // since when pods are missing, by name
	stuck    map[string]time.Time // since when replicas are stuck, by ID
}

// replicas gives all of them, sorted by ID, the pods that are missing, and the replicas that are stuck.
func (a *account) replicas() (all []mobula.Replica, gaps, stuck map[string]time.Time) {
	gaps, stuck = map[string]time.Time{}, map[string]time.Time{}
	told := map[string]bool{}
	for _, r := range a.records {
		if w := a.workload(r.Kind); w != nil && w.Counted() {
			all = append(all, a.counted(r, w, told, gaps, stuck)...)
		} else {
			all = append(all, a.named(r, w, told, stuck)...)
		}
	}
	all = append(all, a.strays(told)...)
	for i := range all {
		a.settle(&all[i])
	}
	slices.SortFunc(all, func(a, b mobula.Replica) int { return strings.Compare(a.ID, b.ID) })
	return all, gaps, stuck
}

// wait has a replica fail that has been stuck for too long.
func (a *account) wait(x *mobula.Replica, pods []*corev1.Pod, stuck map[string]time.Time) {
	if x.State != mobula.StatePending || !kube.Stuck(pods) {
		return
	}
	since, known := a.stuck[x.ID]
	if !known {
		since = a.now
	}
	stuck[x.ID] = since
	if a.now.Sub(since) >= stuckGrace {
		x.State, x.Since = mobula.StateFailed, since.Add(stuckGrace)
		x.Reason = "for more than " + mobula.Duration(stuckGrace).String() + ": " + x.Reason
	}
}

// counted gives those of a record whose pods are replicas.
func (a *account) counted(r *record, w kube.Workload, told map[string]bool, gaps, stuck map[string]time.Time) (all []mobula.Replica) {
	e, living := r.engine(), 0
	for _, pod := range a.pods {
		if pod.Labels[labelRecord] != r.Base {
			continue
		}
		told[pod.Name] = true
		if over(pod) {
			continue
		}
		x := kube.Replica(pod.Name, e, []*corev1.Pod{pod}, "", a.now)
		switch {
		case pod.DeletionTimestamp != nil:
		case r.Removed || slices.Contains(r.Victims, pod.Name):
			x.State, x.Reason, x.NoRoom = mobula.StateDraining, "it is taken away", false
		default:
			a.wait(&x, []*corev1.Pod{pod}, stuck)
			living++
		}
		all = append(all, x)
	}
	problem := ""
	for _, o := range a.objects {
		if o.GetLabels()[labelRecord] == r.Base {
			problem = cmp.Or(problem, w.Problem(o))
		}
	}
	problem = cmp.Or(a.trouble, problem)
	for n := range r.Replicas - living {
		id := r.Base + "-missing-" + strconv.Itoa(n)
		since, known := a.gaps[id]
		if !known {
			since = a.now
		}
		gaps[id] = since
		if problem == "" && a.now.Sub(since) < gapGrace {
			continue
		}
		x := kube.Replica(id, e, nil, problem, since)
		x.NoRoom = strings.Contains(problem, "exceeded quota")
		all = append(all, x)
	}
	return all
}

// named gives those of a record whose replicas have objects of their own. w is nil for a workload that the platform does not have.
func (a *account) named(r *record, w kube.Workload, told map[string]bool, stuck map[string]time.Time) (all []mobula.Replica) {
	e := r.engine()
	for _, id := range slices.Concat(r.Names, r.Victims) {
		problem, objects, falls := "", 0, fall{}
		for _, o := range a.objects {
			if o.GetLabels()[kube.LabelReplica] == id && !r.sleeps(o.GetName()) {
				objects++
				if f := readFalls(o); f.times > 0 {
					falls = f
				}
				if w != nil {
					problem = cmp.Or(problem, w.Problem(o))
				}
			}
		}
		var pods []*corev1.Pod
		for _, pod := range a.pods {
			if pod.Labels[kube.LabelReplica] == id {
				pods = append(pods, pod)
				told[pod.Name] = true
			}
		}
		leaves := r.Removed || slices.Contains(r.Victims, id)
		if leaves && len(pods) == 0 && objects == 0 {
			continue
		}
		x := kube.Replica(id, e, pods, cmp.Or(a.trouble, problem), a.now)
		switch {
		case leaves:
			x.State, x.Reason, x.NoRoom = mobula.StateDraining, "it is taken away", false
		case x.State == mobula.StateGone: // its controller makes another pod
			x.State = mobula.StatePending
		case x.State == mobula.StateDraining: // so it is not taken away: its pods are made anew
			x.State, x.Reason = mobula.StateSuspect, cmp.Or(x.Reason, "its pods are being deleted, and made anew")
		default:
			a.wait(&x, pods, stuck)
		}
		if !leaves {
			falls.told(&x)
		}
		all = append(all, x)
	}
	return all
}

// strays gives the replicas of pods that no record knows: what owned them is gone, and they go too.
func (a *account) strays(told map[string]bool) (all []mobula.Replica) {
	by := map[string][]*corev1.Pod{}
	for _, pod := range a.pods {
		if id := cmp.Or(pod.Labels[kube.LabelReplica], pod.Name); !told[pod.Name] && !over(pod) {
			by[id] = append(by[id], pod)
		}
	}
	for id, pods := range by {
		e := kube.Engine{Fleet: pods[0].Labels[kube.LabelFleet], Revision: pods[0].Labels[kube.LabelRevision]}
		e.Model.Name = cmp.Or(pods[0].Annotations[kube.AnnotationModel], pods[0].Labels[kube.LabelModel])
		x := kube.Replica(id, e, pods, "", a.now)
		x.State, x.Reason, x.NoRoom = mobula.StateDraining, "nothing asks for it any more", false
		all = append(all, x)
	}
	return all
}

// settle has what is told of a replica not change by itself.
func (a *account) settle(x *mobula.Replica) {
	was, known := a.before[x.ID]
	if known && was.State == x.State && !x.Since.Before(a.now) {
		x.Since = was.Since
	}
	if x.Since.IsZero() {
		x.Since = a.now
	}
	if x.Reason == "" && slices.Contains([]mobula.State{mobula.StatePending, mobula.StateSuspect, mobula.StateFailed}, x.State) {
		x.Reason = "Kubernetes does not say why: look at kubectl describe of " + cmp.Or(x.Detail, x.ID)
	}
}

// refresh says anew how a group's replicas fare.
func (s *keeper) refresh(group string) {
	in := s.situation(group, &pace{})
	in.pods = s.crashes.worded(in.pods)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := account{
		now: in.now, records: in.records, objects: in.objects, pods: in.pods, workload: in.workload,
		trouble: s.troubles[group], before: map[string]mobula.Replica{}, gaps: s.gaps[group], stuck: s.stuck[group],
	}
	was := s.statuses[group]
	for _, x := range was {
		a.before[x.ID] = x
	}
	all, gaps, stuck := a.replicas()
	if len(stuck) > 0 {
		s.stuck[group] = stuck
		for _, since := range stuck {
			if wait := since.Add(stuckGrace).Sub(in.now); wait > 0 {
				s.queue.AddAfter(group, wait)
			}
		}
	} else {
		delete(s.stuck, group)
	}
	for _, o := range in.objects {
		if wait := readFalls(o).until().Sub(in.now); wait > 0 {
			s.queue.AddAfter(group, wait)
		}
	}
	if len(gaps) > 0 {
		s.gaps[group] = gaps
		for _, since := range gaps {
			if wait := since.Add(gapGrace).Sub(in.now); wait > 0 {
				s.queue.AddAfter(group, wait)
				break
			}
		}
	} else {
		delete(s.gaps, group)
	}
	if len(all) == 0 {
		delete(s.statuses, group)
	} else {
		s.statuses[group] = all
	}
	if !reflect.DeepEqual(was, all) && len(was)+len(all) > 0 {
		s.tell()
	}
}

// Problems gives what keeps the cluster from being looked after.
func (c *Cluster) Problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	if c.discovery != nil {
		all = c.discovery.Problems()
	}
	if c.keeper != nil {
		for _, w := range append(slices.Clone(c.keeper.watches), c.keeper.nodesOn) {
			if err, _ := w.failing(); err != nil && w.refused() {
				all = append(all, "watching "+w.what+": "+err.Error())
			}
		}
	}
	for _, why := range c.troubles {
		all = append(all, why)
	}
	for _, n := range c.notes {
		if c.now().Sub(n.at) < noteTime {
			all = append(all, n.text)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

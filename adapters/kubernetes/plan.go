package kubernetes

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/kube"
)

// Costs of deleting a pod, for a ReplicaSet that is scaled down: the lowest goes first. Other pods have none, which is 0.
const (
	costVictim  = "-2"
	costDrained = "-1"

	annotationCost = "controller.kubernetes.io/pod-deletion-cost"

	drainReason  = "drained by the control plane"
	brokenReason = "another pod of its engine ends: drained by the control plane"
)

// ident names an object.
type ident struct{ Kind, Name string }

// situation is all that the plan for one model follows from. plan changes none of it.
type situation struct {
	now     time.Time
	records []*record // by base
	objects []*unstructured.Unstructured
	pods    []*corev1.Pod
	// owner is the model's own object, nil for none.
	owner *metav1.OwnerReference
	// workload gives a kind's; nil for one that is not known.
	workload func(kind string) kube.Workload
	// shape names what render gives. Replica is empty for a workload that is Counted.
	shape  func(r *record, replica string) ([]ident, error)
	render func(r *record, replica string) ([]*unstructured.Unstructured, error)
	// budget is that of the model's pods, complete; nil for none.
	budget func(r *record) (*unstructured.Unstructured, error)
	// stored tells whether there is a record of that base in the cluster, be it one that can't be read.
	stored func(base string) bool
	// held tells of an object that is left as others have made it for a while: we have put it back often.
	held func(ident) bool
	// lost are objects that others have deleted since.
	lost map[ident]bool
}

// actions is what is to be done for a model, in the order of its fields.
type actions struct {
	adopt   []*record // to be written with the model's owner
	resize  []*record // to name those who go: there are more than were seen when it was written
	apply   []*unstructured.Unstructured
	marks   []podPatch
	patch   []objectPatch
	kill    []podKill
	remove  []*unstructured.Unstructured
	forget  []*record
	putBack []putBack
}

// objectPatch is a merge patch.
type objectPatch struct {
	ident
	body map[string]any
}

// podPatch sets annotations of a pod, and removes those that are nil.
type podPatch struct {
	name        string
	annotations map[string]*string
}

// podKill deletes one pod. grace, if not 0, is for how long it may go on, in seconds.
type podKill struct {
	name  string
	uid   types.UID
	why   string
	grace int64
}

// putBack tells that others have changed an object.
type putBack struct {
	ident
	text string
}

func (a *actions) none() bool {
	return len(a.adopt)+len(a.resize)+len(a.apply)+len(a.patch)+len(a.marks)+len(a.kill)+len(a.remove)+len(a.forget) == 0
}

// planner is a plan in the making.
type planner struct {
	*situation
	actions
	known map[ident]*unstructured.Unstructured
	bases map[string]*record
}

// plan compares what is asked for of one model with what is there. The error is the first model that can't be made; the
// rest of the plan stands.
func plan(s *situation) (actions, error) {
	p := &planner{situation: s, known: map[ident]*unstructured.Unstructured{}, bases: map[string]*record{}}
	for _, o := range s.objects {
		p.known[ident{o.GetKind(), o.GetName()}] = o
	}
	for _, r := range s.records {
		p.bases[r.Base] = r
	}
	var first error
	for _, r := range s.records {
		if err := p.record(r); err != nil && first == nil {
			first = err
		}
	}
	if err := p.shared(); err != nil && first == nil {
		first = err
	}
	p.leftovers()
	p.hurry()
	return p.actions, first
}

func (p *planner) record(r *record) error {
	if p.owner != nil && (r.owner == nil || r.owner.UID != p.owner.UID) {
		p.adopt = append(p.adopt, r)
	}
	w := p.workload(r.Kind)
	switch {
	case r.Removed:
		p.clear(r)
		return nil
	case w == nil:
		return fmt.Errorf("model %s is held by a %s, which this platform does not have: set the platform to kuberay, or delete the model", r.Key.Model, r.Kind)
	case w.Counted():
		return p.counted(r)
	}
	gang, _ := w.(interface{ Gang() bool })
	for _, id := range r.Names {
		whole, err := p.ensure(r, id, -1)
		if err != nil {
			return err
		}
		pods := p.podsOf(func(pod *corev1.Pod) bool { return pod.Labels[kube.LabelReplica] == id })
		together := gang != nil && gang.Gang()
		ends := !together && broken(pods, r.engine().Size())
		for _, pod := range pods {
			switch _, serves := kube.Endpoint(pod); {
			case slices.Contains(r.Drain, id):
				p.mark(pod, drainReason, "")
			case ends && serves:
				p.mark(pod, brokenReason, "")
			default:
				p.mark(pod, "", "")
			}
		}
		if together && whole {
			p.gang(r, id)
		}
	}
	if sleeper, ok := w.(kube.Sleeper); ok {
		p.asleep(r, sleeper)
	}
	return nil
}

// clear takes a record's objects away, and then the record.
func (p *planner) clear(r *record) {
	left := false
	for _, o := range p.objects {
		if o.GetLabels()[labelRecord] == r.Base {
			left = true
			p.drop(o)
		}
	}
	for _, pod := range p.pods {
		left = left || p.recordOf(pod) == r
	}
	if !left {
		p.forget = append(p.forget, r)
	}
}

// recordOf finds the record that a pod is of, nil for none.
func (s *situation) recordOf(pod *corev1.Pod) *record {
	base, id := pod.Labels[labelRecord], pod.Labels[kube.LabelReplica]
	for _, r := range s.records {
		if base == r.Base || base == "" && id != "" && (slices.Contains(r.Names, id) || slices.Contains(r.Victims, id)) {
			return r
		}
	}
	return nil
}

// former leaves only what was removed, and what all of the model share if nothing else is asked for.
func (s *situation) former() {
	all := len(s.records)
	s.records = slices.DeleteFunc(s.records, func(r *record) bool { return !r.Removed })
	shared := len(s.records) == all
	s.objects = slices.DeleteFunc(s.objects, func(o *unstructured.Unstructured) bool {
		base := o.GetLabels()[labelRecord]
		return (base != "" || !shared) && !slices.ContainsFunc(s.records, func(r *record) bool { return r.Base == base })
	})
	s.pods = slices.DeleteFunc(s.pods, func(pod *corev1.Pod) bool { return s.recordOf(pod) == nil })
}

// drop deletes an object unless it is being deleted.
func (p *planner) drop(o *unstructured.Unstructured) {
	if o.GetDeletionTimestamp() == nil {
		p.remove = append(p.remove, o)
	}
}

// leftovers drops objects of replicas that were taken away, and of records that are gone.
func (p *planner) leftovers() {
	for _, o := range p.objects {
		base := o.GetLabels()[labelRecord]
		r := p.bases[base]
		switch replica := o.GetLabels()[kube.LabelReplica]; {
		case base == "": // shared by all of the model
		case r == nil && !p.stored(base): // one that can't be read keeps what it has
			p.drop(o)
		case r == nil:
		case !r.Removed && replica != "" && !slices.Contains(r.Names, replica) && !r.sleeps(o.GetName()) && !p.takes(r, o):
			p.drop(o)
		}
	}
}

// podsOf gives the pods that are not being deleted.
func (p *planner) podsOf(of func(*corev1.Pod) bool) []*corev1.Pod {
	var all []*corev1.Pod
	for _, pod := range p.pods {
		if pod.DeletionTimestamp == nil && of(pod) {
			all = append(all, pod)
		}
	}
	return all
}

// over tells of a pod whose processes have ended for good: evicted, say. Its controller has made another one.
func over(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// mark has a pod that serves bear the drain mark, if there is a reason for it, and the cost. A cost that others have set stays.
func (p *planner) mark(pod *corev1.Pod, drain, cost string) {
	if pod.Labels[kube.LabelServes] != "true" {
		return
	}
	set := map[string]*string{}
	_, marked := pod.Annotations[kube.AnnotationDrain]
	switch {
	case drain != "" && !marked:
		set[kube.AnnotationDrain] = &drain
	case drain == "" && marked:
		set[kube.AnnotationDrain] = nil
	}
	switch have := pod.Annotations[annotationCost]; {
	case cost != "" && have != cost:
		set[annotationCost] = &cost
	case cost == "" && (have == costVictim || have == costDrained):
		set[annotationCost] = nil
	}
	if len(set) > 0 {
		p.marks = append(p.marks, podPatch{pod.Name, set})
	}
}

// body is the patch as it is sent.
func (p podPatch) body() ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{"annotations": p.annotations}})
}

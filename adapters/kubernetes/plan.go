package kubernetes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	// annotationWorld names the lives of the pods that make up an engine of several, on the StatefulSet of rank 0.
	annotationWorld = kube.Group + "/world"

	drainReason = "drained by the control plane"
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
	// held tells of an object that is left as others have made it for a while: we have put it back often.
	held func(ident) bool
}

// actions is what is to be done for a model, in the order of its fields.
type actions struct {
	adopt   []*record // to be written with the model's owner
	resize  []*record // to name those who go: there are more than were seen when it was written
	apply   []*unstructured.Unstructured
	patch   []objectPatch
	marks   []podPatch
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

// podKill deletes one pod.
type podKill struct {
	name string
	uid  types.UID
	why  string
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
		for _, pod := range pods {
			p.mark(pod, slices.Contains(r.Drain, id), "")
		}
		if gang != nil && gang.Gang() && whole {
			p.gang(r, id, pods)
		}
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
func (p *planner) recordOf(pod *corev1.Pod) *record {
	if base := pod.Labels[labelRecord]; base != "" {
		return p.bases[base]
	}
	id := pod.Labels[kube.LabelReplica]
	for _, r := range p.records {
		if id != "" && (slices.Contains(r.Names, id) || slices.Contains(r.Victims, id)) {
			return r
		}
	}
	return nil
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
		case r == nil:
			p.drop(o)
		case !r.Removed && replica != "" && !slices.Contains(r.Names, replica):
			p.drop(o)
		}
	}
}

// ensure has a replica's objects be there as they should be; count is the number of replicas, less than 0 for one that has objects of its own.
// It tells whether all of them are there.
func (p *planner) ensure(r *record, replica string, count int) (bool, error) {
	shape, err := p.shape(r, replica)
	if err != nil {
		return false, err
	}
	owner, hash := ownerOf(r, p.owner), fingerprint(r)
	all, anew := true, map[ident]bool{}
	for _, id := range shape {
		o := p.known[id]
		switch {
		case o == nil:
			all, anew[id] = false, true
		case o.GetDeletionTimestamp() != nil: // it comes again when this one is gone
			all = false
		case o.GetAnnotations()[kube.AnnotationSpec] != hash:
			anew[id] = true
		case len(strangers(o)) > 0:
			anew[id] = p.disturbed(r, replica, id, o, count)
		}
		if o == nil || o.GetDeletionTimestamp() != nil || anew[id] {
			continue
		}
		if !slices.ContainsFunc(o.GetOwnerReferences(), func(have metav1.OwnerReference) bool { return have.UID == owner.UID }) {
			p.patch = append(p.patch, objectPatch{id, map[string]any{"metadata": map[string]any{"ownerReferences": []any{asMap(owner)}}}})
		}
	}
	if !slices.Contains(slices.Collect(maps.Values(anew)), true) {
		return all, nil
	}
	objects, err := p.render(r, replica)
	if err != nil {
		return false, err
	}
	for _, o := range objects {
		id := ident{o.GetKind(), o.GetName()}
		if !anew[id] {
			continue
		}
		if have := p.known[id]; count >= 0 && have != nil { // scaling is a step of its own
			if replicas, ok := replicasOf(have); ok {
				_ = unstructured.SetNestedField(o.Object, replicas, "spec", "replicas")
			}
		}
		p.apply = append(p.apply, o)
	}
	return all, nil
}

// disturbed tells whether others have changed what we set of an object, and whether that is to be put back now. How many replicas there
// are is looked at elsewhere.
func (p *planner) disturbed(r *record, replica string, id ident, o *unstructured.Unstructured, count int) bool {
	objects, err := p.render(r, replica)
	if err != nil {
		return false
	}
	for _, wish := range objects {
		if wish.GetKind() != id.Kind || wish.GetName() != id.Name {
			continue
		}
		all := changes(o, wish)
		if count >= 0 {
			all = slices.DeleteFunc(all, func(c change) bool { return c.field == "replicas" })
		}
		if len(all) == 0 || p.held(id) {
			return false
		}
		for _, c := range all {
			p.note(id, c)
		}
		return true
	}
	return false
}

func (p *planner) note(id ident, c change) {
	p.putBack = append(p.putBack, putBack{id, fmt.Sprintf("%s %s: spec.%s was changed by %s and is put back: change the fleet or the Model instead", id.Kind, id.Name, c.field, c.manager)})
}

// counted looks after a record whose replicas are the pods of one object.
func (p *planner) counted(r *record) error {
	whole, err := p.ensure(r, "", r.Replicas)
	if err != nil {
		return err
	}
	var living, victims []*corev1.Pod
	for _, pod := range p.podsOf(func(pod *corev1.Pod) bool { return pod.Labels[labelRecord] == r.Base }) {
		if over(pod) {
			p.kill = append(p.kill, podKill{pod.Name, pod.UID, cmp.Or(pod.Status.Message, pod.Status.Reason, "it has ended: "+string(pod.Status.Phase))})
			continue
		}
		living = append(living, pod)
		if slices.Contains(r.Victims, pod.Name) {
			victims = append(victims, pod)
		}
	}
	if len(living)-len(victims) > r.Replicas {
		p.resize = append(p.resize, r)
		return nil
	}
	told := true
	for _, pod := range living {
		victim, drained := slices.Contains(r.Victims, pod.Name), slices.Contains(r.Drain, pod.Name)
		cost := ""
		if victim {
			cost = costVictim
			told = told && pod.Annotations[annotationCost] == costVictim
		} else if drained {
			cost = costDrained
		}
		p.mark(pod, victim || drained, cost)
	}
	if !whole {
		return nil
	}
	shape, err := p.shape(r, "")
	if err != nil {
		return err
	}
	for _, id := range shape {
		if o := p.known[id]; o != nil {
			p.scale(r, id, o, told, len(living), victims)
		}
	}
	return nil
}

// scale sets the number of replicas once those who go are marked, and ends those who were to go and did not.
func (p *planner) scale(r *record, id ident, o *unstructured.Unstructured, told bool, living int, victims []*corev1.Pod) {
	have, ok := replicasOf(o)
	if !ok {
		return
	}
	if want := int64(r.Replicas); have != want {
		if want < have && !told {
			return
		}
		for _, m := range strangers(o) {
			if !strings.Contains(string(m.FieldsV1.GetRawBytes()), `"f:replicas"`) {
				continue
			}
			if p.held(id) {
				return
			}
			p.note(id, change{"replicas", m.Manager})
		}
		p.patch = append(p.patch, objectPatch{id, map[string]any{"spec": map[string]any{"replicas": want}}})
		return
	}
	// A ReplicaSet takes pods that are not ready before all others. What it took wrongly it makes again.
	if settled(o, living) && living <= r.Replicas {
		for _, pod := range victims {
			p.kill = append(p.kill, podKill{pod.Name, pod.UID, "it is not needed, and the ReplicaSet took another one"})
		}
	}
}

// settled tells whether the controllers have seen an object as it is now, and its pods as we do.
func settled(o *unstructured.Unstructured, living int) bool {
	observed, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration")
	replicas, _, _ := unstructured.NestedInt64(o.Object, "status", "replicas")
	return observed >= o.GetGeneration() && replicas == int64(living)
}

func replicasOf(o *unstructured.Unstructured) (int64, bool) {
	n, ok, err := unstructured.NestedInt64(o.Object, "spec", "replicas")
	return n, ok && err == nil
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

// mark has a pod that serves bear the drain mark, or not, and the cost. A cost that others have set stays.
func (p *planner) mark(pod *corev1.Pod, drain bool, cost string) {
	if pod.Labels[kube.LabelServes] != "true" {
		return
	}
	set := map[string]*string{}
	_, marked := pod.Annotations[kube.AnnotationDrain]
	switch {
	case drain && !marked:
		set[kube.AnnotationDrain] = new(drainReason)
	case !drain && marked:
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

// gang has all pods of an engine live and die together: when one of them has begun another life, or is gone, those that were
// together with it begin another one too.
func (p *planner) gang(r *record, id string, pods []*corev1.Pod) {
	first := p.known[ident{kube.KindStatefulSet, id}]
	if first == nil {
		return
	}
	members := slices.Clone(pods)
	for _, pod := range p.pods { // one that is being deleted is a member to its end
		if pod.DeletionTimestamp != nil && pod.Labels[kube.LabelReplica] == id {
			members = append(members, pod)
		}
	}
	hosts := max(1, r.engine().Model.Resources.Hosts)
	world := strings.FieldsFunc(first.GetAnnotations()[annotationWorld], func(c rune) bool { return c == ',' })
	var now []string
	var old []*corev1.Pod
	for _, pod := range members {
		now = append(now, life(pod))
		if slices.Contains(world, life(pod)) {
			old = append(old, pod)
		}
	}
	slices.Sort(now)
	switch {
	case len(old) == 0 && len(members) == hosts && len(pods) == hosts:
		body := map[string]any{"metadata": map[string]any{"annotations": map[string]any{annotationWorld: strings.Join(now, ",")}}}
		p.patch = append(p.patch, objectPatch{ident{kube.KindStatefulSet, id}, body})
	case len(old) > 0 && len(old) < hosts:
		for _, pod := range old {
			if pod.DeletionTimestamp == nil {
				p.kill = append(p.kill, podKill{pod.Name, pod.UID, "another pod of its engine ended: all of them start anew"})
			}
		}
	}
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

// shared looks after what all revisions of a model have in common. The newest record says how it is.
func (p *planner) shared() error {
	var newest *record
	for _, r := range p.records {
		if !r.Removed && (newest == nil || cmp.Or(r.since.Compare(newest.since), strings.Compare(r.Base, newest.Base)) > 0) {
			newest = r
		}
	}
	wish := (*unstructured.Unstructured)(nil)
	if newest != nil {
		var err error
		if wish, err = p.budget(newest); err != nil {
			return err
		}
	}
	for _, o := range p.objects {
		if o.GetLabels()[labelRecord] == "" && (wish == nil || o.GetKind() != wish.GetKind() || o.GetName() != wish.GetName()) {
			p.drop(o)
		}
	}
	if wish == nil {
		return nil
	}
	id := ident{wish.GetKind(), wish.GetName()}
	have := p.known[id]
	switch {
	case have == nil || have.GetAnnotations()[kube.AnnotationSpec] != wish.GetAnnotations()[kube.AnnotationSpec]:
		p.apply = append(p.apply, wish)
	case have.GetDeletionTimestamp() != nil:
	default:
		if all := changes(have, wish); len(all) > 0 && !p.held(id) {
			for _, c := range all {
				p.note(id, c)
			}
			p.apply = append(p.apply, wish)
		}
	}
	return nil
}

// fingerprint is the hash of what a record's objects are made from.
func fingerprint(r *record) string {
	if r.Print != "" {
		return r.Print
	}
	return kube.Hash([]any{r.Base, r.engine()})
}

func asMap(o metav1.OwnerReference) map[string]any {
	m := map[string]any{"apiVersion": o.APIVersion, "kind": o.Kind, "name": o.Name, "uid": string(o.UID)}
	if o.Controller != nil {
		m["controller"] = *o.Controller
	}
	if o.BlockOwnerDeletion != nil {
		m["blockOwnerDeletion"] = *o.BlockOwnerDeletion
	}
	return m
}

// body is the patch as it is sent.
func (p podPatch) body() ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{"annotations": p.annotations}})
}

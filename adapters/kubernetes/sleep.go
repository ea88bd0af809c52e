package kubernetes

import (
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula/kube"
)

// annotationAsleep is on objects whose pods we have had taken away: those that others have put to sleep are theirs to wake.
const annotationAsleep = kube.Group + "/asleep"

// sleeper is an object without pods, and the replica that it held last.
type sleeper struct {
	Name string `json:"name"`
	Held string `json:"held"`
}

// sleep keeps the objects of the replicas that were the last to leave a model, as many as these and no more.
func (s *keeper) sleep(r *record, leaving []string) {
	if r.Replicas > 0 || len(leaving) == 0 {
		return
	}
	for _, id := range leaving {
		if shape, err := s.shape(r, id); err == nil && len(shape) == 1 {
			r.Asleep = append(r.Asleep, sleeper{Name: shape[0].Name, Held: id})
		}
	}
	r.Asleep = slices.Delete(r.Asleep, 0, max(0, len(r.Asleep)-len(leaving)))
}

// wake gives a new replica the object that was the last to fall asleep, none whose pods still end.
func (r *record) wake(id string) {
	for i, a := range slices.Backward(r.Asleep) {
		if !slices.Contains(r.Victims, a.Held) {
			r.Asleep = slices.Delete(r.Asleep, i, i+1)
			if r.Taken == nil {
				r.Taken = map[string]string{}
			}
			r.Taken[id] = a.Name
			return
		}
	}
}

// sleeps tells whether an object is one that is kept without pods.
func (r *record) sleeps(name string) bool {
	return slices.ContainsFunc(r.Asleep, func(a sleeper) bool { return a.Name == name })
}

// asleep has the objects that sleep have no pods, and wakes those that a replica has taken. One that others have woken goes: nobody asks
// for its pods.
func (p *planner) asleep(r *record, w kube.Sleeper) {
	for _, o := range p.objects {
		if o.GetLabels()[labelRecord] != r.Base || o.GetDeletionTimestamp() != nil {
			continue
		}
		marked := o.GetAnnotations()[annotationAsleep] != ""
		switch sleeps := r.sleeps(o.GetName()); {
		case sleeps && !marked:
			p.put(o, w, true)
		case sleeps && !w.Asleep(o):
			p.drop(o)
		case !sleeps && marked && p.takes(r, o):
			p.put(o, w, false)
		}
	}
}

// takes tells whether an object is that of a replica.
func (p *planner) takes(r *record, o *unstructured.Unstructured) bool {
	return slices.ContainsFunc(r.Names, func(id string) bool { return r.Taken[id] == o.GetName() })
}

// put has an object sleep, or wake up.
func (p *planner) put(o *unstructured.Unstructured, w kube.Sleeper, asleep bool) {
	mark := any(nil)
	if asleep {
		mark = "true"
	}
	p.patch = append(p.patch, objectPatch{ident{o.GetKind(), o.GetName()}, map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{annotationAsleep: mark}}, "spec": w.Sleep(asleep),
	}})
}

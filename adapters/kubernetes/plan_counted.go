package kubernetes

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// counted looks after a record whose replicas are the pods of one object.
func (p *planner) counted(r *record) error {
	whole, err := p.ensure(r, "", r.Replicas)
	if err != nil {
		return err
	}
	var living, victims []*corev1.Pod
	for _, pod := range p.podsOf(func(pod *corev1.Pod) bool { return pod.Labels[labelRecord] == r.Base }) {
		if over(pod) {
			p.kill = append(p.kill, podKill{name: pod.Name, uid: pod.UID, why: cmp.Or(pod.Status.Message, pod.Status.Reason, "it has ended: "+string(pod.Status.Phase))})
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
		drain, cost := "", ""
		switch {
		case victim:
			drain, cost = drainReason, costVictim
			told = told && pod.Annotations[annotationCost] == costVictim
		case drained:
			drain, cost = drainReason, costDrained
		}
		p.mark(pod, drain, cost)
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
			p.kill = append(p.kill, podKill{name: pod.Name, uid: pod.UID, why: "it is not needed, and the ReplicaSet took another one"})
		}
	}
}

// settled tells whether the controllers have seen an object as it is now, and its pods as we do.
func settled(o *unstructured.Unstructured, living int) bool {
	observed, _, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration")
	replicas, _, _ := unstructured.NestedInt64(o.Object, "status", "replicas")
	return observed >= o.GetGeneration() && replicas == int64(living)
}

package kubernetes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula/kube"
)

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
			p.noteLost(id, r)
		case o.GetDeletionTimestamp() != nil: // it comes again when this one is gone
			all = false
		case o.GetAnnotations()[kube.AnnotationSpec] != hash, replica != "" && o.GetLabels()[kube.LabelReplica] != replica:
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

// noteLost tells of an object that is made again because others have deleted it; what goes with its Model is none.
func (p *planner) noteLost(id ident, r *record) {
	if p.lost[id] && (r.owner == nil || p.owner != nil) {
		p.putBack = append(p.putBack, putBack{id, fmt.Sprintf("%s %s was deleted by somebody else and is made again: scale or delete the Model instead", id.Kind, id.Name)})
	}
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
		p.noteLost(id, newest)
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

func replicasOf(o *unstructured.Unstructured) (int64, bool) {
	n, ok, err := unstructured.NestedInt64(o.Object, "spec", "replicas")
	return n, ok && err == nil
}

package resources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// ErrForeign is of an object that somebody else looks after: it has to be changed there.
var ErrForeign = errors.New("looked after by somebody else")

// labelManagedBy tells who writes an object: Helm sets it too.
const labelManagedBy = "app.kubernetes.io/managed-by"

// byApply is its value for objects that Write has made.
const byApply = "mobula-apply"

// Write makes the fleet's objects be what a fleet file says, which has been checked: Fleet and Models by server-side apply; Models that an earlier
// Write has made and that the file has no more are deleted. Objects of others, such as Helm's, fail with ErrForeign before anything is
// changed; with force they are overwritten, stay theirs, and are never deleted. Those of another fleet are never touched.
func (s *Source) Write(ctx context.Context, file []byte, force bool) error {
	fleet, err := mobula.Load(file, "fleet file")
	if err != nil {
		return err
	}
	if fleet.Name != s.o.Fleet {
		return fmt.Errorf("this control plane looks after the fleet %s of namespace %s, not after %s: %w", s.o.Fleet, s.o.Namespace, fleet.Name, ErrForeign)
	}
	doc, models, err := split(file)
	if err != nil {
		return err
	}
	if len(models) != len(fleet.Models) {
		return errors.New("two models of the file would have the same Model object: let their names differ in more than capitals and punctuation")
	}
	for _, each := range s.stores[KindModel].List() {
		if u := each.(*unstructured.Unstructured); models[u.GetName()] != nil && fleetOf(u) != s.o.Fleet {
			return fmt.Errorf("the Model object %s is of the fleet %s, and a namespace has one of a name: give this model another name, or the fleet another namespace: %w", u.GetName(), fleetOf(u), ErrForeign)
		}
	}
	now := s.objects()
	if !force {
		if err := foreign(now); err != nil {
			return err
		}
	}
	if err := s.apply(ctx, Fleets(), KindFleet, s.o.Fleet, doc, force); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(models)) {
		if err := s.apply(ctx, Models(), KindModel, name, models[name], force); err != nil {
			return err
		}
	}
	for _, m := range now.Models {
		if models[m.GetName()] == nil && m.GetLabels()[labelManagedBy] == byApply {
			if err := s.delete(ctx, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete deletes the Model object of a model, or for "" the Fleet object and all its Models. Those of others fail with ErrForeign.
func (s *Source) Delete(ctx context.Context, model string) error {
	now := s.objects()
	if model != "" {
		now.Fleet = nil
		now.Models = slices.DeleteFunc(now.Models, func(m *unstructured.Unstructured) bool { return modelID(m) != model })
	}
	if err := foreign(now); err != nil {
		return err
	}
	for _, m := range now.Models {
		if err := s.delete(ctx, m); err != nil {
			return err
		}
	}
	if now.Fleet != nil {
		return s.client(Fleets()).Delete(ctx, now.Fleet.GetName(), metav1.DeleteOptions{})
	}
	return nil
}

// foreign finds an object that Write has not made.
func foreign(o Objects) error {
	all := o.Models
	if o.Fleet != nil {
		all = append([]*unstructured.Unstructured{o.Fleet}, all...)
	}
	for _, u := range all {
		switch by := u.GetLabels()[labelManagedBy]; by {
		case byApply:
		case "Helm":
			return fmt.Errorf("%s %s belongs to the Helm release %s: change its values and run helm upgrade: %w", u.GetKind(), u.GetName(), u.GetAnnotations()["meta.helm.sh/release-name"], ErrForeign)
		default:
			return fmt.Errorf("%s %s was not made by mobula apply: change it with kubectl, or where it comes from: %w", u.GetKind(), u.GetName(), ErrForeign)
		}
	}
	return nil
}

func (s *Source) client(gvr schema.GroupVersionResource) dynamic.ResourceInterface {
	return s.o.Client.Resource(gvr).Namespace(s.o.Namespace)
}

func (s *Source) apply(ctx context.Context, gvr schema.GroupVersionResource, kind, name string, spec map[string]any, force bool) error {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	o.SetAPIVersion(kube.Group + "/" + Version)
	o.SetKind(kind)
	o.SetName(name)
	o.SetNamespace(s.o.Namespace)
	if !force || s.ours(kind, name) { // what an apply leaves out that it sent before is taken away
		o.SetLabels(map[string]string{labelManagedBy: byApply})
	}
	if _, err := s.client(gvr).Apply(ctx, name, o, metav1.ApplyOptions{FieldManager: byApply, Force: force}); err != nil {
		return fmt.Errorf("write %s %s: %w", kind, name, err)
	}
	return nil
}

// ours tells whether an object is nobody else's: Write has made it or will.
func (s *Source) ours(kind, name string) bool {
	for _, each := range s.stores[kind].List() {
		if u := each.(*unstructured.Unstructured); u.GetName() == name {
			return u.GetLabels()[labelManagedBy] == byApply
		}
	}
	return true
}

// Whole gives a fleet file with what objects of others add to it, which Write leaves there: the LoRAs of LoRA objects, and Models.
func (s *Source) Whole(file []byte) ([]byte, error) {
	doc, err := document(file)
	if err != nil {
		return nil, err
	}
	now := s.objects()
	s.mu.Lock()
	used := s.composed.Good
	s.mu.Unlock()
	models, _ := doc["models"].([]any)
	entries := map[string]map[string]any{}
	for _, each := range models {
		if m, ok := each.(map[string]any); ok {
			name, _ := m["name"].(string)
			entries[name] = m
		}
	}
	objects := map[string]map[string]any{} // entries by Model object
	for _, m := range now.Models {
		entry := entries[modelID(m)]
		if spec := used[goodKey(m)]; entry == nil && spec != nil && m.GetLabels()[labelManagedBy] != byApply {
			entry = entryOf(KindModel, m.GetName(), spec)
			models = append(models, entry)
		}
		objects[m.GetName()] = entry
	}
	slices.SortFunc(now.LoRAs, byAge) // as Compose has them
	for _, l := range now.LoRAs {
		spec := used[goodKey(l)]
		of, _ := spec["model"].(string)
		entry := objects[of]
		if spec == nil || entry == nil { // it is not in use
			continue
		}
		lora := entryOf(KindLoRA, l.GetName(), spec)
		loras, _ := entry["loras"].([]any)
		if !slices.ContainsFunc(loras, func(each any) bool { m, _ := each.(map[string]any); return m["name"] == lora["name"] }) {
			entry["loras"] = append(slices.Clone(loras), lora)
		}
	}
	if len(models) > 0 {
		doc["models"] = models
	}
	return yaml.Marshal(doc)
}

func (s *Source) delete(ctx context.Context, m *unstructured.Unstructured) error {
	if err := s.client(Models()).Delete(ctx, m.GetName(), metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete Model %s: %w", m.GetName(), err)
	}
	return nil
}

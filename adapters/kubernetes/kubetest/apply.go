package kubetest

import (
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
)

// Types of patches.
const (
	applyPatch     = "application/apply-patch+yaml"
	mergePatch     = "application/merge-patch+json"
	jsonPatch      = "application/json-patch+json"
	strategicPatch = "application/strategic-merge-patch+json"
)

// patch changes an object as the type of the patch says. A server-side apply creates what is not there.
func (c *Cluster) patch(q *call) (int, tree, error) {
	live := q.table.objects[q.key]
	if q.Apply {
		return c.apply(q, live)
	}
	if live == nil {
		return 0, nil, apierrors.NewNotFound(q.table.GroupResource(), q.Name)
	}
	o, err := q.patched(live.tree)
	if err != nil {
		return 0, nil, err
	}
	if o, err = c.prepare(q, o); err != nil {
		return 0, nil, err
	}
	answer, err := c.replace(q, live, o, func(m *fieldManager, live, o tree) (tree, error) { return m.update(live, o, q.Manager) })
	return http.StatusOK, answer, err
}

// patched gives the live object with the request's patch in it.
func (q *call) patched(live tree) (tree, error) {
	o := copyTree(live)
	switch q.media {
	case jsonPatch:
		var steps []tree
		if err := utiljson.Unmarshal(q.raw, &steps); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		return patchJSON(o, steps)
	case mergePatch, strategicPatch:
		var change tree
		if err := utiljson.Unmarshal(q.raw, &change); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if q.media == mergePatch {
			return merged(o, change), nil
		}
		typed, err := scheme.Scheme.New(q.table.kind())
		if err != nil {
			break
		}
		out, err := strategicpatch.StrategicMergeMapPatch(o, change, typed)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		return out, nil
	}
	return nil, &apierrors.StatusError{ErrStatus: statusOf(apierrors.NewGenericServerResponse(
		http.StatusUnsupportedMediaType, "patch", q.table.GroupResource(), q.Name,
		"the body of the request was in an unknown format - accepted media types do not include "+q.media, 0, false))}
}

// apply merges what a manager wants of an object with what others do.
func (c *Cluster) apply(q *call, live *object) (int, tree, error) {
	var want tree
	err := yamlInto(q.raw, &want)
	if err != nil {
		return 0, nil, apierrors.NewBadRequest("error decoding YAML: " + err.Error())
	}
	if q.query.Get("fieldManager") == "" {
		return 0, nil, apierrors.NewBadRequest("PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch")
	}
	if want, err = c.prepare(q, want); err != nil {
		return 0, nil, err
	}
	force := q.query.Get("force") == "true"
	if live != nil {
		answer, err := c.replaceApplied(q, live, want, force)
		return http.StatusOK, answer, err
	}
	if q.Subresource != "" || text(want, "metadata", "resourceVersion") != "" || text(want, "metadata", "uid") != "" {
		return 0, nil, apierrors.NewNotFound(q.table.GroupResource(), q.Name)
	}
	manager, err := c.manager(q.table.Resource, "")
	if err != nil {
		return 0, nil, err
	}
	if q.table.has("status") {
		delete(want, "status")
	}
	o, err := manager.apply(tree{"apiVersion": want["apiVersion"], "kind": want["kind"]}, want, q.Manager, force)
	if err != nil {
		return 0, nil, err
	}
	answer, err := c.insert(q, o)
	return http.StatusCreated, answer, err
}

// yamlInto reads YAML, of which JSON is a part.
func yamlInto(raw []byte, o *tree) error {
	raw, err := yaml.ToJSON(raw)
	if err != nil {
		return err
	}
	if err := utiljson.Unmarshal(raw, o); err != nil {
		return err
	}
	pruned(*o)
	return nil
}

func (c *Cluster) replaceApplied(q *call, live *object, want tree, force bool) (tree, error) {
	gr := q.table.GroupResource()
	if v := text(want, "metadata", "resourceVersion"); v != "" && v != decimal(live.version) {
		return nil, apierrors.NewConflict(gr, q.Name, errModified)
	}
	if uid := text(want, "metadata", "uid"); uid != "" && uid != live.uid() {
		return nil, apierrors.NewConflict(gr, q.Name, errors.New("the UID in the request is not that of the object"))
	}
	switch {
	case q.Subresource == "status":
		for field := range want {
			if field != "apiVersion" && field != "kind" && field != "metadata" && field != "status" {
				delete(want, field)
			}
		}
	case q.table.has("status"):
		delete(want, "status")
	}
	manager, err := c.manager(q.table.Resource, q.Subresource)
	if err != nil {
		return nil, err
	}
	o, err := manager.apply(copyTree(live.tree), want, q.Manager, force)
	if err != nil {
		return nil, err
	}
	return c.commit(q, live, q.keep(live, o))
}

// fieldManager keeps who manages which fields of one resource's objects, with the API server's own code.
type fieldManager struct {
	*managedfields.FieldManager
	name string
}

// manager gives the field manager of a resource or its subresource.
func (c *Cluster) manager(r Resource, subresource string) (*fieldManager, error) {
	name := r.String() + "/" + subresource
	if m := c.managers[name]; m != nil {
		return m, nil
	}
	var m *managedfields.FieldManager
	var err error
	if scheme.Scheme.Recognizes(r.kind()) {
		m, err = managedfields.NewDefaultFieldManager(applyconfigurations.NewTypeConverter(scheme.Scheme), oneVersion{}, oneVersion{}, oneVersion{},
			r.kind(), r.GroupVersion(), subresource, nil)
	} else {
		m, err = managedfields.NewDefaultCRDFieldManager(managedfields.NewDeducedTypeConverter(), oneVersion{}, oneVersion{}, oneVersion{},
			r.kind(), r.GroupVersion(), subresource, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", name, err)
	}
	c.managers[name] = &fieldManager{m, name}
	return c.managers[name], nil
}

// update gives o with the fields that differ from the live object as the manager's. It may change both.
func (m *fieldManager) update(live, o tree, manager string) (tree, error) {
	out, err := m.Update(&unstructured.Unstructured{Object: live}, &unstructured.Unstructured{Object: o}, manager)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return treeOf(out)
}

// apply gives the live object with what a manager wants. It may change both. Conflicts are a Status.
func (m *fieldManager) apply(live, want tree, manager string, force bool) (tree, error) {
	out, err := m.Apply(&unstructured.Unstructured{Object: live}, &unstructured.Unstructured{Object: want}, manager, force)
	if err != nil {
		if _, ok := errors.AsType[*apierrors.StatusError](err); ok {
			return nil, err
		}
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return treeOf(out)
}

func treeOf(o runtime.Object) (tree, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("an object is a %T", o))
	}
	return u.Object, nil
}

// oneVersion converts between the versions of a resource: each has one.
type oneVersion struct{}

func (oneVersion) Convert(_, _, _ any) error { return nil }

func (oneVersion) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}

func (oneVersion) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (oneVersion) Default(runtime.Object) {}

func (oneVersion) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	return u, nil
}

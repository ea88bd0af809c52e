package kubetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// errModified is why a write with an old resourceVersion is refused.
var errModified = errors.New("the object has been modified; please apply your changes to the latest version and try again")

// create stores the object of a request, o, as the manager's.
func (c *Cluster) create(q *call, o tree) (tree, error) {
	if q.Subresource != "" || q.Name != "" {
		return nil, apierrors.NewMethodNotSupported(q.table.GroupResource(), q.Verb)
	}
	o, err := c.prepare(q, o)
	if err != nil {
		return nil, err
	}
	if q.table.has("status") && !q.table.is("", "nodes") {
		delete(o, "status")
	}
	manager, err := c.manager(q.table.Resource, "")
	if err != nil {
		return nil, err
	}
	if o, err = manager.update(tree{"apiVersion": o["apiVersion"], "kind": o["kind"]}, o, q.Manager); err != nil {
		return nil, err
	}
	return c.insert(q, o)
}

// prepare checks the object of a request, and fills in what it says of itself.
func (c *Cluster) prepare(q *call, o tree) (tree, error) {
	if o == nil {
		return nil, apierrors.NewBadRequest("the request has no object")
	}
	o = copyTree(o)
	for field, want := range map[string]string{"apiVersion": q.table.apiVersion(), "kind": q.table.Kind} {
		if have := text(o, field); have != "" && have != want {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized: its %s is %q, not %q", field, have, want))
		}
		o[field] = want
	}
	meta := sub(o, "metadata")
	if meta == nil {
		meta = tree{}
		o["metadata"] = meta
	}
	if have := text(meta, "namespace"); have != "" && have != q.Namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the namespace of the provided object does not match the namespace sent on the request: %q, %q", have, q.Namespace))
	}
	delete(meta, "namespace")
	if q.Namespace != "" {
		meta["namespace"] = q.Namespace
	}
	if have := text(meta, "name"); q.Name != "" && have != q.Name {
		if have != "" {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", have, q.Name))
		}
		meta["name"] = q.Name
	}
	return o, decodes(q.table, o)
}

// insert gives a new object what the API server gives it, and stores it.
func (c *Cluster) insert(q *call, o tree) (tree, error) {
	gr := q.table.GroupResource()
	meta := sub(o, "metadata")
	if text(meta, "resourceVersion") != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	name := text(meta, "name")
	if prefix := text(meta, "generateName"); name == "" && prefix != "" {
		for name == "" || q.table.objects[key{q.Namespace, name}] != nil {
			name = prefix + rand.String(5)
		}
		meta["name"] = name
	}
	if err := c.inNamespace(q.Namespace); err != nil {
		return nil, err
	}
	if q.table.objects[key{q.Namespace, name}] != nil {
		return nil, apierrors.NewAlreadyExists(gr, name)
	}
	c.store.stamp(q.table, o)
	if err := valid(q.table, nil, o); err != nil {
		return nil, err
	}
	if q.table.is("", "pods") && c.podRefusal != "" {
		return nil, apierrors.NewForbidden(gr, name, errors.New(c.podRefusal))
	}
	if q.dry() {
		return o, nil
	}
	stored := c.store.put(q.table, o)
	c.orphaned(ref{q.table, stored.key})
	return stored.tree, nil
}

// stamp fills in what the API server says of a new object, and its defaults.
func (s *store) stamp(t *table, o tree) {
	meta := sub(o, "metadata")
	meta["uid"], meta["creationTimestamp"] = string(uuid.NewUUID()), s.timestamp()
	for _, field := range []string{"deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"} {
		delete(meta, field)
	}
	if _, ok := o["spec"]; ok || t.has("status") {
		meta["generation"] = int64(1)
	}
	defaults(t, o)
}

// inNamespace checks that a namespace is there, or brings it about where none is forbidden.
func (c *Cluster) inNamespace(name string) error {
	namespaces := c.store.core("", "v1", "namespaces")
	ns := namespaces.objects[key{name: name}]
	switch {
	case name == "" || ns != nil && !ns.deleting():
		return nil
	case ns == nil && len(c.opts.Namespaces) == 0:
		c.namespace(name)
		return nil
	}
	return apierrors.NewNotFound(namespaces.GroupResource(), name)
}

func (c *Cluster) namespace(name string) {
	namespaces := c.store.core("", "v1", "namespaces")
	if namespaces.objects[key{name: name}] == nil {
		c.add(namespaces, tree{
			"metadata": tree{"name": name, "labels": tree{"kubernetes.io/metadata.name": name}},
			"status":   tree{"phase": "Active"},
		})
	}
}

// update replaces an object, or its status.
func (c *Cluster) update(q *call) (tree, error) {
	live := q.table.objects[q.key]
	if live == nil {
		return nil, apierrors.NewNotFound(q.table.GroupResource(), q.Name)
	}
	o, err := c.prepare(q, q.body)
	if err != nil {
		return nil, err
	}
	if text(o, "metadata", "resourceVersion") == "" && q.table.conditional() {
		return nil, apierrors.NewInvalid(q.table.kind().GroupKind(), q.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "resourceVersion"), 0, "must be specified for an update"),
		})
	}
	return c.replace(q, live, o, func(m *fieldManager, live, o tree) (tree, error) { return m.update(live, o, q.Manager) })
}

// replace stores o in place of a live object. own says who manages its fields.
func (c *Cluster) replace(q *call, live *object, o tree, own func(m *fieldManager, live, o tree) (tree, error)) (tree, error) {
	gr := q.table.GroupResource()
	if v := text(o, "metadata", "resourceVersion"); v != "" && v != decimal(live.version) {
		return nil, apierrors.NewConflict(gr, q.Name, errModified)
	}
	if uid := text(o, "metadata", "uid"); uid != "" && uid != live.uid() {
		return nil, apierrors.NewConflict(gr, q.Name, fmt.Errorf("Precondition failed: UID in precondition: %s, UID in object meta: %s", uid, live.uid())) //nolint:staticcheck // as the API server says it
	}
	manager, err := c.manager(q.table.Resource, q.Subresource)
	if err != nil {
		return nil, err
	}
	o = q.keep(live, o)
	if o, err = own(manager, copyTree(live.tree), o); err != nil {
		return nil, err
	}
	o = q.keep(live, o)
	return c.commit(q, live, o)
}

// keep gives o with what this request may not change as the live object has it.
func (q *call) keep(live *object, o tree) tree {
	meta := sub(o, "metadata")
	managed := meta["managedFields"]
	switch {
	case q.Subresource == "status":
		status := o["status"]
		o = copyTree(live.tree)
		meta = sub(o, "metadata")
		if delete(o, "status"); status != nil {
			o["status"] = status
		}
	case q.table.has("status"):
		if delete(o, "status"); live.tree["status"] != nil {
			o["status"] = copied(live.tree["status"])
		}
	}
	if delete(meta, "managedFields"); managed != nil {
		meta["managedFields"] = managed
	}
	for _, field := range []string{
		"name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generateName",
		"deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink",
	} {
		if was, ok := sub(live.tree, "metadata")[field]; ok {
			meta[field] = was
		} else {
			delete(meta, field)
		}
	}
	return o
}

// commit stores the next version of an object, unless nothing has changed.
func (c *Cluster) commit(q *call, live *object, o tree) (tree, error) {
	defaults(q.table, o)
	if err := valid(q.table, live.tree, o); err != nil {
		return nil, err
	}
	meta := sub(o, "metadata")
	if was, ok := meta["generation"].(int64); ok && !reflect.DeepEqual(generational(live.tree), generational(o)) {
		meta["generation"] = was + 1
	}
	if sameButTimes(live.tree, o) {
		return live.tree, nil
	}
	if q.dry() {
		return o, nil
	}
	o["metadata"] = meta
	stored := c.store.put(q.table, o)
	if stored.deleting() && len(list(o, "metadata", "finalizers")) == 0 && !q.table.is("", "pods") {
		c.store.drop(q.table, stored.key)
	}
	return stored.tree, nil
}

// generational gives the part of an object whose changes are counted.
func generational(o tree) tree {
	out := tree{}
	for field, v := range o {
		if field != "metadata" && field != "status" {
			out[field] = v
		}
	}
	return out
}

// sameButTimes tells that two versions differ in nothing but the times of managed fields.
func sameButTimes(a, b tree) bool {
	timeless := func(o tree) tree {
		var entries []any
		for _, e := range trees(list(o, "metadata", "managedFields")) {
			entries = append(entries, without(e, "time"))
		}
		return with(o, entries, "metadata", "managedFields")
	}
	return reflect.DeepEqual(timeless(a), timeless(b))
}

// deletion is what a delete asks for.
type deletion struct {
	grace       int64 // -1 is the object's own
	uid         string
	version     string
	propagation string
	dry         bool
}

func deleteOptions(body tree) deletion {
	d := deletion{
		grace: number(body, -1, "gracePeriodSeconds"), uid: text(body, "preconditions", "uid"),
		version: text(body, "preconditions", "resourceVersion"), propagation: text(body, "propagationPolicy"),
	}
	if text(body, "kind") == "DeleteOptions" {
		d.dry = slices.Contains(list(body, "dryRun"), any(metav1.DryRunAll))
	}
	return d
}

// remove deletes the object of a request.
func (c *Cluster) remove(q *call) (tree, error) {
	live, err := c.get(q)
	if err != nil {
		return nil, err
	}
	d := deleteOptions(q.body)
	if p := q.query.Get("propagationPolicy"); p != "" {
		d.propagation = p
	}
	if n := q.query.Get("gracePeriodSeconds"); n != "" {
		_, _ = fmt.Sscan(n, &d.grace) // no number is no grace period
	}
	gr := q.table.GroupResource()
	switch {
	case d.uid != "" && d.uid != live.uid():
		return nil, apierrors.NewConflict(gr, q.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", d.uid, live.uid()))
	case d.version != "" && d.version != decimal(live.version):
		return nil, apierrors.NewConflict(gr, q.Name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%d). The object might have been modified", d.version, live.version))
	case q.dry():
		return live.tree, nil
	}
	if still := c.erase(ref{q.table, live.key}, d); still != nil {
		return still.tree, nil
	}
	return tree{
		"kind": "Status", "apiVersion": "v1", "metadata": tree{}, "status": "Success",
		"details": tree{"name": q.Name, "group": q.Group, "kind": q.Resource, "uid": live.uid()},
	}, nil
}

// erase deletes an object, or has it end. It gives what is still there.
func (c *Cluster) erase(r ref, d deletion) *object {
	live := r.table.objects[r.key]
	if live == nil {
		return nil
	}
	switch d.propagation {
	case string(metav1.DeletePropagationOrphan):
		c.disown(live.uid())
	case string(metav1.DeletePropagationForeground):
		for dependent := range c.store.byOwner[live.uid()] {
			c.erase(dependent, deletion{grace: -1, propagation: d.propagation})
		}
	}
	grace := int64(0)
	if r.table.is("", "pods") {
		grace = c.grace(live, d.grace)
	}
	if grace == 0 && len(list(live.tree, "metadata", "finalizers")) == 0 {
		c.store.drop(r.table, r.key)
		return nil
	}
	asked := c.opts.Now()
	if live.deleting() {
		was := number(live.tree, 0, "metadata", "deletionGracePeriodSeconds")
		if d.grace < 0 || was <= grace { // it may only be shortened
			return live
		}
		if until, err := time.Parse(time.RFC3339, text(live.tree, "metadata", "deletionTimestamp")); err == nil {
			asked = until.Add(-time.Duration(was) * time.Second)
		}
	}
	next := live.draft()
	meta := sub(next, "metadata")
	meta["deletionTimestamp"] = asked.Add(time.Duration(grace) * time.Second).UTC().Format(time.RFC3339)
	meta["deletionGracePeriodSeconds"] = grace
	if g, ok := meta["generation"].(int64); ok {
		meta["generation"] = g + 1
	}
	return c.store.put(r.table, next)
}

// removeAll deletes what a request selects.
func (c *Cluster) removeAll(q *call) (tree, error) {
	chosen, err := q.selection()
	if err != nil {
		return nil, err
	}
	items := []any{}
	for _, o := range chosen.of(q.table.objects) {
		items = append(items, o.tree)
		if !q.dry() {
			c.erase(ref{q.table, o.key}, deleteOptions(q.body))
		}
	}
	return tree{
		"kind": q.table.Kind + "List", "apiVersion": q.table.apiVersion(),
		"metadata": tree{"resourceVersion": decimal(c.store.version)}, "items": items,
	}, nil
}

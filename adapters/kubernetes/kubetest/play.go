package kubetest

import (
	"fmt"
	"maps"
)

// maxSteps bounds what may follow from one write: controllers that never come to rest are a mistake.
const maxSteps = 10_000_000

// play is what stands behind the API server: controllers, scheduler, kubelets.
type play struct {
	queue     []ref
	queued    map[ref]bool
	settling  bool
	paused    bool
	waiting   map[key]bool // pods that no node has room for
	used      map[string]map[string]int64
	lost      map[string]bool   // nodes that are not heard of
	badImages map[string]string // images that can't be pulled → why
	// podRefusal is why pods are refused, empty if they are not.
	podRefusal string
	logged     map[key]*podLog
	addresses  uint32
	running    map[key]*object // pods with an address, as they were when they got it
	adopted    map[ref]bool    // objects that a test put there, whatever their owners
}

func newPlay() play {
	return play{
		queued: map[ref]bool{}, waiting: map[key]bool{}, used: map[string]map[string]int64{}, lost: map[string]bool{},
		badImages: map[string]string{}, logged: map[key]*podLog{}, running: map[key]*object{}, adopted: map[ref]bool{},
	}
}

func (c *Cluster) enqueue(r ref) {
	if !c.queued[r] {
		c.queued[r] = true
		c.queue = append(c.queue, r)
	}
}

// observe has those look who care about a change.
func (c *Cluster) observe(t *table, old, now *object) {
	o := now
	if now == nil {
		o = old
		for r := range c.store.byOwner[old.uid()] {
			c.enqueue(r)
		}
		delete(c.adopted, ref{t, o.key})
		if t.is("", "pods") {
			c.forget(o.key)
		}
	}
	c.enqueue(ref{t, o.key})
	for _, version := range []*object{old, now} {
		if version == nil {
			continue
		}
		for _, owner := range version.owners() {
			if r, ok := c.store.byUID[text(owner, "uid")]; ok && flag(owner, "controller") {
				c.enqueue(r)
			}
		}
	}
	switch {
	case t.is("", "pods"):
		c.account(old, now)
		c.enqueueServices(old)
		c.enqueueServices(now)
	case t.is("", "nodes"):
		c.retry()
		if now == nil {
			for at := range c.store.onNode[o.name] {
				c.enqueue(ref{c.pods(), at})
			}
		}
	case t.is("", "persistentvolumeclaims"):
		c.retry()
	}
}

func (c *Cluster) pods() *table { return c.store.core("", "v1", "pods") }

// settle lets all controllers act until nothing follows any more.
func (c *Cluster) settle() {
	if c.paused || c.settling {
		return
	}
	c.settling = true
	for steps := 0; len(c.queue) > 0; steps++ {
		if steps == maxSteps {
			panic(fmt.Sprintf("kubetest: controllers do not come to rest; next is %s %v", c.queue[0].table.Kind, c.queue[0].key))
		}
		r := c.queue[0]
		c.queue = c.queue[1:]
		delete(c.queued, r)
		c.reconcile(r)
	}
	c.queue, c.settling = nil, false
}

func (c *Cluster) reconcile(r ref) {
	o := r.table.objects[r.key]
	switch {
	case o == nil && r.table.is("", "services"):
		c.sliceOf(r.key, nil)
	case o == nil && r.table.is("", "namespaces"):
		c.emptied(r.key.name)
	}
	if o == nil || c.collected(r, o) {
		return
	}
	switch {
	case r.table.is("", "pods"):
		c.pod(o)
	case r.table.is("", "services"):
		c.sliceOf(r.key, o)
	case r.table.is("apps", "deployments"):
		c.deployment(o)
	case r.table.is("apps", "replicasets"):
		c.replicaSet(o)
	case r.table.is("apps", "statefulsets"):
		c.statefulSet(o)
	case r.table.is("ray.io", "rayclusters"):
		c.rayCluster(o)
	}
}

// collected is the garbage collector: what no owner is left of is deleted.
func (c *Cluster) collected(r ref, o *object) bool {
	owners := o.owners()
	var left []any
	for _, owner := range owners {
		if c.isThere(o, owner) {
			left = append(left, owner)
		}
	}
	switch {
	case len(owners) == 0 || len(left) == len(owners) || !c.strict(r):
		return false
	case len(left) == 0:
		if !o.deleting() {
			c.erase(r, deletion{grace: -1})
		}
		return !o.deleting()
	}
	c.store.put(r.table, with(o.draft(), left, "metadata", "ownerReferences"))
	return true
}

// isThere tells whether the owner of an object exists: of its name and kind, in its namespace or of the cluster.
func (c *Cluster) isThere(o *object, owner tree) bool {
	r, ok := c.store.byUID[text(owner, "uid")]
	return ok && r.table.Kind == text(owner, "kind") && r.key.name == text(owner, "name") &&
		(!r.table.Namespaced || r.key.namespace == o.namespace)
}

// strict tells whether an object is subject to the garbage collector: all but those that a test put there with owners that never were.
func (c *Cluster) strict(r ref) bool { return !c.adopted[r] }

// orphaned has the garbage collector look at a new object.
func (c *Cluster) orphaned(r ref) { c.enqueue(r) }

// disown has an object's dependents own themselves.
func (c *Cluster) disown(uid string) {
	for r := range maps.Clone(c.store.byOwner[uid]) {
		o := r.table.objects[r.key]
		var left []any
		for _, owner := range o.owners() {
			if text(owner, "uid") != uid {
				left = append(left, owner)
			}
		}
		next := o.draft()
		if delete(sub(next, "metadata"), "ownerReferences"); len(left) > 0 {
			sub(next, "metadata")["ownerReferences"] = left
		}
		c.store.put(r.table, next)
	}
}

// emptied deletes what is in a namespace that is gone.
func (c *Cluster) emptied(namespace string) {
	for _, t := range c.store.tables {
		for at := range t.objects {
			if t.Namespaced && at.namespace == namespace {
				c.store.drop(t, at)
			}
		}
	}
}

// add stores an object that no client sent: of a test or a controller.
func (c *Cluster) add(t *table, o tree) *object {
	o["apiVersion"], o["kind"] = t.apiVersion(), t.Kind
	c.store.stamp(t, o)
	return c.store.put(t, o)
}

// ownedBy makes the metadata of an object that a controller makes for its owner.
func ownedBy(t *table, owner *object) []any {
	return []any{tree{
		"apiVersion": t.apiVersion(), "kind": t.Kind, "name": owner.name, "uid": owner.uid(),
		"controller": true, "blockOwnerDeletion": true,
	}}
}

// status stores the status of an object, unless it is what it was.
func (c *Cluster) status(t *table, o *object, status tree) {
	if now := t.objects[o.key]; now != nil && !same(sub(now.tree, "status"), status) {
		next := now.draft()
		next["status"] = status
		c.store.put(t, next)
	}
}

// condition makes one, with the time of its last transition as it was if its status is.
func (c *Cluster) condition(was []any, kind, status, reason, message string) tree {
	out := tree{"type": kind, "status": status, "lastTransitionTime": c.store.timestamp()}
	if reason != "" {
		out["reason"] = reason
	}
	if message != "" {
		out["message"] = message
	}
	for _, have := range trees(was) {
		if text(have, "type") == kind && text(have, "status") == status {
			out["lastTransitionTime"] = have["lastTransitionTime"]
		}
	}
	return out
}

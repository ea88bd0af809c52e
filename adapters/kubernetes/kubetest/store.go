package kubetest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxEvents bounds the history that is kept of each resource. Watches that begin before it are told to list again.
const maxEvents = 1 << 16

// key is where an object lies within its resource. The namespace is empty for objects of the cluster.
type key struct{ namespace, name string }

func (k key) compare(other key) int {
	if c := strings.Compare(k.namespace, other.namespace); c != 0 {
		return c
	}
	return strings.Compare(k.name, other.name)
}

// object is one version of an object.
type object struct {
	key
	tree     tree // never changed
	labels   labels.Set
	version  uint64
	born     uint64 // version at which the object was created
	encoded  sync.Once
	jsonText []byte
}

func (o *object) uid() string    { return text(o.tree, "metadata", "uid") }
func (o *object) deleting() bool { return at(o.tree, "metadata", "deletionTimestamp") != nil }

// draft gives a tree to make the next version of: its top and its metadata are copies.
func (o *object) draft() tree { return with(o.tree, decimal(o.version), "metadata", "resourceVersion") }

// json gives the object encoded, once for all who read it.
func (o *object) json() []byte {
	o.encoded.Do(func() {
		encoded, err := json.Marshal(o.tree)
		if err != nil {
			panic(err) // it came from JSON
		}
		o.jsonText = encoded
	})
	return o.jsonText
}

// owners gives the references to an object's owners.
func (o *object) owners() []tree { return trees(list(o.tree, "metadata", "ownerReferences")) }

// event is a change of an object: created without old, deleted without new. gone is the last version of a deleted one.
type event struct {
	version  uint64
	old, new *object
	gone     *object
}

// table holds the objects of one resource.
type table struct {
	Resource
	objects map[key]*object
	events  []event
	trimmed uint64        // versions up to it are no longer in events
	first   uint64        // versions before it are not to be asked for any more
	changed chan struct{} // closed on the next event
}

// ref names an object of any resource.
type ref struct {
	table *table
	key   key
}

// store holds all objects and tells what changes. Its owner locks it.
type store struct {
	version  uint64
	tables   map[schema.GroupVersionResource]*table
	byUID    map[string]ref
	byOwner  map[string]map[ref]bool          // uid of an owner → its dependents
	onNode   map[string]map[key]bool          // node → pods
	byLabel  map[key]map[key]bool             // namespace and one pair of a selector → services
	labelled map[key]map[key]bool             // namespace and a label → pods
	observer func(t *table, old, now *object) // of each change
	now      func() time.Time
}

func newStore(now func() time.Time) *store {
	return &store{
		version: 1, now: now,
		tables: map[schema.GroupVersionResource]*table{}, byUID: map[string]ref{}, byOwner: map[string]map[ref]bool{},
		onNode: map[string]map[key]bool{}, byLabel: map[key]map[key]bool{}, labelled: map[key]map[key]bool{},
	}
}

func (s *store) register(r Resource) {
	s.tables[r.GroupVersionResource] = &table{
		Resource: r, objects: map[key]*object{}, trimmed: s.version, first: s.version, changed: make(chan struct{}),
	}
}

// core gives a table of the resources that are always there.
func (s *store) core(group, version, resource string) *table {
	return s.tables[schema.GroupVersionResource{Group: group, Version: version, Resource: resource}]
}

// put stores a version of an object, whose tree from then on is the store's.
func (s *store) put(t *table, now tree) *object {
	at := key{namespace: text(now, "metadata", "namespace"), name: text(now, "metadata", "name")}
	old := t.objects[at]
	s.version++
	sub(now, "metadata")["resourceVersion"] = decimal(s.version)
	o := version(at, now, s.version)
	if old != nil {
		o.born = old.born
	}
	t.objects[at] = o
	s.changed(t, event{version: s.version, old: old, new: o})
	return o
}

// drop removes an object.
func (s *store) drop(t *table, at key) {
	old := t.objects[at]
	if old == nil {
		return
	}
	s.version++
	last := old.draft()
	sub(last, "metadata")["resourceVersion"] = decimal(s.version)
	delete(t.objects, at)
	s.changed(t, event{version: s.version, old: old, gone: version(at, last, s.version)})
}

// version makes one version of an object.
func version(at key, t tree, number uint64) *object {
	return &object{key: at, tree: t, labels: texts(sub(t, "metadata", "labels")), version: number, born: number}
}

func (s *store) changed(t *table, e event) {
	if len(t.events) >= maxEvents {
		t.events = slices.Clone(t.events[maxEvents/2:])
		t.trimmed = t.events[0].version - 1
		t.first = max(t.first, t.trimmed)
	}
	t.events = append(t.events, e)
	t.wake()
	s.index(t, e.old, false)
	s.index(t, e.new, true)
	if s.observer != nil {
		s.observer(t, e.old, e.new)
	}
}

// wake has all watches look.
func (t *table) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// index keeps the ways to find objects, other than by their keys.
func (s *store) index(t *table, o *object, there bool) {
	if o == nil {
		return
	}
	uid := o.uid()
	if there {
		s.byUID[uid] = ref{t, o.key}
	} else if s.byUID[uid] == (ref{t, o.key}) {
		delete(s.byUID, uid)
	}
	for _, owner := range o.owners() {
		mark(s.byOwner, text(owner, "uid"), ref{t, o.key}, there)
	}
	switch {
	case t.is("", "pods"):
		if node := text(o.tree, "spec", "nodeName"); node != "" {
			mark(s.onNode, node, o.key, there)
		}
		for k, v := range o.labels {
			mark(s.labelled, key{o.namespace, k + "=" + v}, o.key, there)
		}
	case t.is("", "services"):
		if pair := firstPair(texts(sub(o.tree, "spec", "selector"))); pair != "" {
			mark(s.byLabel, key{o.namespace, pair}, o.key, there)
		}
	}
}

// firstPair gives one pair of a selector, by which services are found from a pod.
func firstPair(selector map[string]string) string {
	first := ""
	for k, v := range selector {
		if pair := k + "=" + v; first == "" || pair < first {
			first = pair
		}
	}
	return first
}

func mark[K, V comparable](index map[K]map[V]bool, at K, value V, there bool) {
	switch {
	case there && index[at] == nil:
		index[at] = map[V]bool{value: true}
	case there:
		index[at][value] = true
	default:
		delete(index[at], value)
		if len(index[at]) == 0 {
			delete(index, at)
		}
	}
}

// dependents gives the objects that an object owns, of one resource, in order of their keys; those with controller only.
func (s *store) dependents(uid string, of *table) []*object {
	var out []*object
	for r := range s.byOwner[uid] {
		if o := r.table.objects[r.key]; r.table == of && o != nil && controller(o) == uid {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return a.compare(b.key) })
	return out
}

// controller gives the uid of the owner that looks after an object.
func controller(o *object) string {
	for _, owner := range o.owners() {
		if flag(owner, "controller") {
			return text(owner, "uid")
		}
	}
	return ""
}

// asOf gives the objects of a table at a version that its history still holds.
func (t *table) asOf(version uint64) map[key]*object {
	later := t.since(version)
	if len(later) == 0 {
		return t.objects
	}
	past := maps.Clone(t.objects)
	for _, e := range slices.Backward(later) {
		if e.old != nil {
			past[e.old.key] = e.old
		} else {
			delete(past, e.new.key)
		}
	}
	return past
}

// timestamp is a time as objects have it.
func (s *store) timestamp() string { return s.now().UTC().Format(time.RFC3339) }

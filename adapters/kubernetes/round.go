package kubernetes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/mobula-serve/mobula/kube"
)

const (
	workers    = 8               // groups that are looked after at once
	resync     = 5 * time.Minute // each group is looked at this often though nothing changes
	firstRetry = 200 * time.Millisecond
	lastRetry  = time.Minute
	// lagMost is how long a group waits until what was written shows in the watches.
	lagMost = 5 * time.Second
	// calm is how long what others change is left alone after it was put back once, doubled each time up to calmMost.
	calm     = time.Second
	calmMost = 5 * time.Minute
)

// keeper looks after the cluster of one link. Models are groups: each is looked after by itself, and by one worker at a time.
type keeper struct {
	*Cluster
	link     *link
	queue    workqueue.TypedRateLimitingInterface[string]
	pods     *shelf
	maps     *shelf // the records as they are stored
	nodes    *shelf
	objects  map[schema.GroupVersionResource]*shelf
	watches  []*watched // all but the nodes'
	nodesOn  *watched
	crashes  *crashes
	pace     map[string]pace   // by group; one worker at a time has each entry
	lost     map[string][]lost // by group: what has gone since it was looked at last
	paceLock sync.Mutex        // of pace and lost

	looked atomic.Bool // all watches have shown what there is, and Status tells of it

	memo   sync.Mutex
	shapes map[string]map[string][]ident // by record and replica
}

// pace is what keeps a group from being looked at too soon.
type pace struct {
	awaited []awaited
	until   time.Time
	fights  map[ident]fight
	claimed []types.UID // of the records for which the model's claim was made
	removed []types.UID // of the objects that we have deleted and that are not gone yet
}

// lost is an object that has gone.
type lost struct {
	ident
	uid types.UID
}

// awaited is a write that the watches have not shown yet: a version, or that an object is gone, or goes within a grace period.
type awaited struct {
	on      *shelf
	name    string
	version string
	gone    types.UID
	grace   int64 // 0 for any
}

// fight counts how often an object was put back.
type fight struct {
	times int
	until time.Time
}

func newKeeper(c *Cluster, l *link) *keeper {
	s := &keeper{
		Cluster: c, link: l, crashes: newCrashes(), objects: map[schema.GroupVersionResource]*shelf{}, pace: map[string]pace{}, lost: map[string][]lost{}, shapes: map[string]map[string][]ident{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry)),
	}
	ours := labels.Set{kube.LabelManagedBy: kube.ManagedBy}.String() + "," + kube.LabelModel
	core := l.Client.CoreV1()
	s.pods = newShelf(groupByLabels, slimPod, func(o metav1.Object, gone bool) {
		if gone {
			s.crashes.forget(o.GetName())
		}
		s.touch(o)
	})
	s.watches = append(s.watches, newWatched("pods", &corev1.Pod{}, core.Pods(l.Namespace), ours, s.pods, s.turned))
	s.maps = newShelf(groupByLabels, nil, s.recordTouched)
	s.watches = append(s.watches, newWatched("configmaps", &corev1.ConfigMap{}, core.ConfigMaps(l.Namespace), ours+","+labelRecord, s.maps, s.turned))
	for _, gvr := range c.resources(l.platform) {
		s.objects[gvr] = newShelf(groupByLabels, slimObject, s.objectTouched)
		s.watches = append(s.watches, newWatched(gvr.Resource, &unstructured.Unstructured{}, l.Dynamic.Resource(gvr).Namespace(l.Namespace), ours, s.objects[gvr], s.turned))
	}
	s.nodes = newShelf(nil, slimNode, func(o metav1.Object, _ bool) {
		if o == nil { // the first list: heartbeats are no news
			s.turned()
		}
	})
	s.nodesOn = newWatched("nodes", &corev1.Node{}, core.Nodes(), "", s.nodes, s.turned)
	return s
}

// run watches and works until ctx ends.
func (s *keeper) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range append(slices.Clone(s.watches), s.nodesOn) {
		wg.Go(func() { w.run(ctx) })
	}
	wg.Go(func() {
		if !s.first(ctx) {
			return
		}
		for range workers {
			wg.Go(func() { s.work(ctx) })
		}
		for range crashReaders {
			wg.Go(func() { s.readCrashes(ctx) })
		}
		s.again(ctx)
	})
	<-ctx.Done()
	s.queue.ShutDown()
	s.crashes.queue.ShutDown()
	wg.Wait()
}

// first waits until all watches have shown what there is: nothing is told or done before. It fails when ctx ends.
func (s *keeper) first(ctx context.Context) bool {
	for _, w := range s.watches {
		for changed := s.Changed(); !w.items.synced(); changed = s.Changed() {
			select {
			case <-ctx.Done():
				return false
			case <-changed:
			case <-time.After(firstRetry): // a list that is filled tells nobody
			}
		}
	}
	for _, group := range s.groups() {
		s.refresh(group)
	}
	s.looked.Store(true)
	s.turned()
	return true
}

// groups are those of which there is anything. Those of other fleets are passed over, but for what was removed: it may be of
// a former fleet of ours, which nobody else ends, and to end it twice does no harm.
func (s *keeper) groups() []string {
	all := map[string]bool{}
	s.mu.Lock()
	for group := range s.records {
		all[group] = true
	}
	s.mu.Unlock()
	for _, on := range append(slices.Collect(maps.Values(s.objects)), s.pods) {
		for _, o := range on.every() {
			all[groupByLabels(o)] = true
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(group string) bool { return !s.ours(group) && !anyRemoved(s.of(group)) })
}

// again has each group be looked at now and then.
func (s *keeper) again(ctx context.Context) {
	for {
		for _, group := range s.groups() {
			s.queue.Add(group)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(resync):
		}
	}
}

// away gives why the cluster can't be asked, nil if it can or could a moment ago.
func (s *keeper) away(longer time.Duration) error {
	for _, w := range s.watches {
		if err, since := w.failing(); err != nil && time.Since(since) >= longer {
			return fmt.Errorf("watching %s: %w", w.what, err)
		}
	}
	return nil
}

// turned tells that a watch fails, or does no longer.
func (s *keeper) turned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell()
}

func (s *keeper) touch(o metav1.Object) {
	if o == nil {
		return
	}
	s.queue.Add(groupByLabels(o))
}

func (s *keeper) objectTouched(o metav1.Object, gone bool) {
	if u, ok := o.(*unstructured.Unstructured); ok && gone {
		group := groupByLabels(u)
		s.paceLock.Lock()
		s.lost[group] = append(s.lost[group], lost{ident{u.GetKind(), u.GetName()}, u.GetUID()})
		s.paceLock.Unlock()
	}
	s.touch(o)
}

func (s *keeper) recordTouched(o metav1.Object, gone bool) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok {
		return
	}
	base := m.Labels[labelRecord]
	if gone {
		s.unlearn(groupByLabels(m), base, m.UID)
		s.forgetShapes(base)
	} else if r, err := readRecord(m); err != nil {
		s.log.Error("a record can't be read", "error", err)
	} else {
		s.learn(r)
	}
	s.touch(o)
}

func (s *keeper) work(ctx context.Context) {
	for {
		group, over := s.queue.Get()
		if over {
			return
		}
		s.look(ctx, group)
		s.queue.Done(group)
	}
}

// look looks after a group once.
func (s *keeper) look(ctx context.Context, group string) {
	if ctx.Err() != nil {
		return
	}
	s.refresh(group)
	p := s.paceOf(group)
	if wait := p.lag(s.now()); wait > 0 {
		s.setPace(group, p)
		s.queue.AddAfter(group, wait)
		return
	}
	situation := s.situation(group, &p)
	situation.lost = s.taken(group, &p)
	todo, err := plan(situation)
	for _, b := range todo.putBack {
		p.fought(b.ident, s.now())
		s.log.Warn("somebody else has changed or deleted an object", "problem", b.text)
	}
	done := s.perform(ctx, situation, &todo, &p)
	s.told(situation, &todo)
	s.setPace(group, p)
	s.keepShapes(situation.records)
	s.outcome(ctx, group, lasting(err, done))
	if wait := p.rest(s.now()); wait > 0 {
		s.queue.AddAfter(group, wait)
	}
}

// outcome remembers why a group is not as it should be, and looks at it again then.
func (s *keeper) outcome(ctx context.Context, group string, err error) {
	if ctx.Err() != nil {
		return
	}
	why := ""
	if err == nil {
		s.queue.Forget(group)
	} else {
		if !transient(err) {
			why = err.Error()
		}
		s.queue.AddRateLimited(group)
	}
	s.mu.Lock()
	was := s.troubles[group]
	if why == "" {
		delete(s.troubles, group)
	} else {
		s.troubles[group] = why
	}
	s.mu.Unlock()
	if was != why {
		if why != "" {
			s.log.Warn("a model's objects can't be made as they should be, trying again", "model", group, "error", why)
		}
		s.refresh(group)
	}
}

// paceOf gives a copy, which setPace puts back.
func (s *keeper) paceOf(group string) pace {
	s.paceLock.Lock()
	defer s.paceLock.Unlock()
	p := s.pace[group]
	p.awaited, p.claimed, p.removed = slices.Clone(p.awaited), slices.Clone(p.claimed), slices.Clone(p.removed)
	if p.fights = maps.Clone(p.fights); p.fights == nil {
		p.fights = map[ident]fight{}
	}
	return p
}

func (s *keeper) setPace(group string, p pace) {
	s.paceLock.Lock()
	defer s.paceLock.Unlock()
	if len(p.awaited)+len(p.fights)+len(p.claimed)+len(p.removed) == 0 {
		delete(s.pace, group)
	} else {
		s.pace[group] = p
	}
}

// taken gives what others have deleted since the group was looked at last.
func (s *keeper) taken(group string, p *pace) map[ident]bool {
	s.paceLock.Lock()
	gone := s.lost[group]
	delete(s.lost, group)
	s.paceLock.Unlock()
	all := map[ident]bool{}
	for _, o := range gone {
		if at := slices.Index(p.removed, o.uid); at >= 0 {
			p.removed = slices.Delete(p.removed, at, at+1)
		} else {
			all[o.ident] = true
		}
	}
	return all
}

// lag drops what the watches have shown, and tells how long to wait for the rest.
func (p *pace) lag(now time.Time) time.Duration {
	p.awaited = slices.DeleteFunc(p.awaited, awaited.shown)
	if len(p.awaited) == 0 {
		return 0
	}
	if wait := p.until.Sub(now); wait > 0 {
		return wait
	}
	p.awaited = nil
	return 0
}

func (a awaited) shown() bool {
	o := a.on.get(a.name)
	if a.gone != "" {
		return o == nil || o.GetUID() != a.gone || o.GetDeletionTimestamp() != nil && a.soon(o.GetDeletionGracePeriodSeconds())
	}
	return o != nil && !newer(a.version, o.GetResourceVersion())
}

func (a awaited) soon(grace *int64) bool { return a.grace == 0 || grace != nil && *grace <= a.grace }

func (p *pace) await(a awaited, now time.Time) {
	p.awaited, p.until = append(p.awaited, a), now.Add(lagMost)
}

func (p *pace) fought(id ident, now time.Time) {
	f := p.fights[id]
	f.times++
	f.until = now.Add(min(calm<<min(f.times-1, 10), calmMost))
	p.fights[id] = f
}

// held tells whether an object is left alone for now.
func (p *pace) held(id ident, now time.Time) bool { return now.Before(p.fights[id].until) }

// rest is how long to leave alone what was put back, 0 for nothing that was. Fights that are long over are forgotten.
func (p *pace) rest(now time.Time) time.Duration {
	least := time.Duration(0)
	for id, f := range p.fights {
		switch wait := f.until.Sub(now); {
		case wait > 0 && (least == 0 || wait < least):
			least = wait
		case wait < -calmMost:
			delete(p.fights, id)
		}
	}
	return least
}

func anyRemoved(all []*record) bool {
	return slices.ContainsFunc(all, func(r *record) bool { return r.Removed })
}

// situation is what the plan for a group follows from. Of other fleets it has only what was removed.
func (s *keeper) situation(group string, p *pace) *situation {
	in := &situation{
		now: s.now(), records: s.of(group), shape: s.shape, render: s.render, budget: s.budget,
		workload: func(kind string) kube.Workload {
			if kind == kube.KindRayCluster && s.link.platform.KubeRay == nil {
				return nil // its objects are not watched
			}
			return s.workloads[kind]
		},
		stored: func(base string) bool { return s.maps.get(recordPrefix+base) != nil },
		held:   func(id ident) bool { return p.held(id, s.now()) },
	}
	ours := s.ours(group)
	if !ours && !anyRemoved(in.records) {
		in.records = nil
		return in
	}
	for _, o := range s.pods.of(group) {
		in.pods = append(in.pods, o.(*corev1.Pod)) //nolint:forcetypeassert // the watch is of pods
	}
	for _, gvr := range slices.SortedFunc(maps.Keys(s.objects), func(a, b schema.GroupVersionResource) int { return strings.Compare(a.String(), b.String()) }) {
		for _, o := range s.objects[gvr].of(group) {
			in.objects = append(in.objects, o.(*unstructured.Unstructured)) //nolint:forcetypeassert // the watch is dynamic
		}
	}
	if !ours {
		in.former() // its model's own object, which is asked for by name, may be that of another fleet's
		return in
	}
	if len(in.records) > 0 {
		in.owner = s.options.Owner(in.records[0].Key.Model)
	}
	return in
}

// shape names what render gives.
func (s *keeper) shape(r *record, replica string) ([]ident, error) {
	s.memo.Lock()
	all, ok := s.shapes[r.Base][replica]
	s.memo.Unlock()
	if ok {
		return all, nil
	}
	objects, err := s.render(r, replica)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		all = append(all, ident{o.GetKind(), o.GetName()})
	}
	s.memo.Lock()
	if s.shapes[r.Base] == nil {
		s.shapes[r.Base] = map[string][]ident{}
	}
	s.shapes[r.Base][replica] = all
	s.memo.Unlock()
	return all, nil
}

// render gives the objects of a replica as they are sent.
func (s *keeper) render(r *record, replica string) ([]*unstructured.Unstructured, error) {
	return render(s.workloads[r.Kind], r, replica, s.options.Owner(r.Key.Model))
}

func render(w kube.Workload, r *record, replica string, model *metav1.OwnerReference) ([]*unstructured.Unstructured, error) {
	count := 1
	if w.Counted() {
		count = r.Replicas
	}
	objects, err := w.Objects(r.engine(), replica, count)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if name := r.Taken[replica]; name != "" {
			o.SetName(name)
		}
		if w.Counted() {
			o.SetName(r.Base)
			for _, at := range [][]string{{"spec", "selector", "matchLabels"}, {"spec", "template", "metadata", "labels"}} {
				if err := unstructured.SetNestedField(o.Object, r.Base, append(at, labelRecord)...); err != nil {
					return nil, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
				}
			}
		}
		add := map[string]string{labelRecord: r.Base}
		if replica != "" {
			add[kube.LabelReplica] = replica
		}
		finish(o, add, fingerprint(r), ownerOf(r, model))
	}
	return objects, nil
}

// finish gives an object what all of ours have.
func finish(o *unstructured.Unstructured, add map[string]string, hash string, owner metav1.OwnerReference) {
	l, a := o.GetLabels(), o.GetAnnotations()
	if l == nil {
		l = map[string]string{}
	}
	if a == nil {
		a = map[string]string{}
	}
	maps.Copy(l, add)
	a[kube.AnnotationSpec] = hash
	o.SetLabels(l)
	o.SetAnnotations(a)
	o.SetOwnerReferences([]metav1.OwnerReference{owner})
}

// budget gives a model's PodDisruptionBudget, nil for none.
func (s *keeper) budget(r *record) (*unstructured.Unstructured, error) {
	e := r.engine()
	e.Model = r.Model
	e.Model.Kubernetes.Workload = r.Kind
	b, ok := e.Budget()
	if !ok {
		return nil, nil //nolint:nilnil // none is an answer
	}
	b.Name = kube.Label(r.Key.Fleet + "/" + r.Key.Model) // fleets may have models of one name
	o, err := toObject(b)
	if err != nil {
		return nil, err
	}
	finish(o, nil, kube.Hash(b), ownerOf(r, s.options.Owner(r.Key.Model)))
	return o, nil
}

// forgetShapes forgets those of a record.
func (s *keeper) forgetShapes(base string) {
	s.memo.Lock()
	defer s.memo.Unlock()
	delete(s.shapes, base)
}

// keepShapes forgets those of replicas that records have no longer.
func (s *keeper) keepShapes(all []*record) {
	s.memo.Lock()
	defer s.memo.Unlock()
	for _, r := range all {
		maps.DeleteFunc(s.shapes[r.Base], func(id string, _ []ident) bool {
			return id != "" && !slices.Contains(r.Names, id) && !slices.Contains(r.Victims, id)
		})
	}
}

// told tells people what was done that nobody has asked for.
func (s *keeper) told(in *situation, todo *actions) {
	if s.options.Tell == nil || len(in.records) == 0 {
		s.noted(todo.putBack)
		return
	}
	model := in.records[0].Key.Model
	for _, b := range todo.putBack {
		s.options.Tell(Event{Model: model, Warning: true, Reason: "PutBack", Message: b.text})
	}
	pods := map[string][]string{}
	for _, k := range todo.kill {
		pods[k.why] = append(pods[k.why], k.name)
	}
	for _, why := range slices.Sorted(maps.Keys(pods)) {
		s.options.Tell(Event{Model: model, Reason: "PodsDeleted", Message: "deleted " + strings.Join(pods[why], ", ") + ": " + why})
	}
}

// noted keeps for people what was put back.
func (s *keeper) noted(all []putBack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range all {
		s.notes = slices.DeleteFunc(s.notes, func(n putNote) bool { return n.ident == b.ident })
		s.notes = append(s.notes, putNote{b.ident, s.now(), b.text})
	}
	if len(s.notes) > maxNotes {
		s.notes = s.notes[len(s.notes)-maxNotes:]
	}
}

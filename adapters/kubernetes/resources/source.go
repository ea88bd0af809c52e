package resources

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/mobula-serve/mobula/kube"
)

// settle is waited after a change for others that belong to it: a chart's objects come one by one.
const settle = 50 * time.Millisecond

// Options are of a Source.
type Options struct {
	Client    dynamic.Interface
	Namespace string
	// Fleet is the name of the Fleet object, and of the fleet.
	Fleet string
	// Previous is the fleet file that was applied last, if one was: it stands in for objects that are wrong already at the start.
	Previous []byte
	// Recall, if not nil, finds out Previous. It is called when objects are wrong at the start, and again as long as they make no fleet.
	Recall func(context.Context) ([]byte, error)
	// Logger is told of objects that are wrong. Required.
	Logger *slog.Logger
	// Wrong, if not nil, is told of each object that has become wrong. It does not wait.
	Wrong func(Event)
	// Came, if not nil, is told of each model whose Model object has come, or is another one of the same name. It does not wait.
	Came func(model string)
}

// State is the fleet that the objects make, at one moment.
type State struct {
	// Version grows with each change.
	Version int64
	// File is the fleet file, YAML; nil while there is no Fleet object that is right.
	File []byte
	// Why File is nil, a sentence for people.
	Why string
	// Gone tells that there is no Model object either: nobody wants any of the fleet.
	Gone bool
}

// Source keeps up with the objects of one fleet. It writes their status when it is told how the fleet fares.
type Source struct {
	o         Options
	informers dynamicinformer.DynamicSharedInformerFactory
	stores    map[string]cache.Store // by kind
	dirty     chan struct{}          // holds one
	writing   chan struct{}          // holds one: statuses are to be written

	mu       sync.Mutex
	state    State
	composed Composed
	offered  offer         // what state was composed of
	handed   offer         // what was offered when Next gave a file
	good     Good          // of what the control plane has taken
	judged   bool          // there is a control plane: it takes and refuses
	changed  chan struct{} // closed when state changes
	veto     map[string]vetoed
	astray   map[string]string // Models of no fleet, and why
	taken    int64             // version that the control plane has applied
	takenAs  int64             // and as which generation of the fleet
	refused  string            // why it did not take a later one
	status   *Status           // newest that was reported
}

// New makes a Source that does nothing before Run.
func New(o Options) (*Source, error) {
	s := &Source{
		o: o, stores: map[string]cache.Store{}, changed: make(chan struct{}), dirty: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		state: State{Why: "the cluster has not told yet"},
	}
	s.informers = dynamicinformer.NewFilteredDynamicSharedInformerFactory(o.Client, 0, o.Namespace, nil)
	for kind, gvr := range map[string]schema.GroupVersionResource{KindFleet: Fleets(), KindModel: Models(), KindLoRA: LoRAs()} {
		informer := s.informers.ForResource(gvr).Informer()
		if err := informer.SetTransform(slim); err != nil {
			return nil, fmt.Errorf("watch %s: %w", gvr.Resource, err)
		}
		if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			s.unwatched(gvr.Resource, err)
		}); err != nil {
			return nil, fmt.Errorf("watch %s: %w", gvr.Resource, err)
		}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) { s.came(o.(*unstructured.Unstructured)); s.touch() }, DeleteFunc: func(any) { s.touch() },
			UpdateFunc: func(before, after any) {
				a, b := before.(*unstructured.Unstructured), after.(*unstructured.Unstructured)
				if a.GetUID() != b.GetUID() {
					s.came(b)
				}
				if a.GetGeneration() != b.GetGeneration() || a.GetUID() != b.GetUID() {
					s.touch()
				} else if a.GetResourceVersion() != b.GetResourceVersion() {
					poke(s.writing) // somebody's status, maybe not ours
				}
			},
		}); err != nil {
			return nil, fmt.Errorf("watch %s: %w", gvr.Resource, err)
		}
		s.stores[kind] = informer.GetStore()
	}
	s.remember(o.Previous)
	return s, nil
}

// remember has the fleet file that was applied last stand in for objects that are wrong.
func (s *Source) remember(previous []byte) {
	if len(previous) > 0 {
		s.good = goodOf(previous, s.o.Fleet)
		s.composed.Good = s.good
	}
}

// unwatched says why nothing is known of a resource. Once the first state has come it stays.
func (s *Source) unwatched(resource string, err error) {
	why := fmt.Sprintf("%s of namespace %s can't be read: %v", resource, s.o.Namespace, err)
	switch {
	case apierrors.IsNotFound(err):
		why = fmt.Sprintf("the cluster has no %s.%s: install the custom resources (kubectl apply --server-side -f charts/mobula/crds)", resource, kube.Group)
	case apierrors.IsForbidden(err):
		why = fmt.Sprintf("%s of namespace %s may not be read: grant get, list and watch of fleets, models and loras in %s there, by a Role and a RoleBinding to who asks "+
			"(the chart makes them with rbac.create): %v", resource, s.o.Namespace, kube.Group, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Version == 0 && s.state.Why != why {
		s.state.Why = why
		s.o.Logger.Warn("the fleet's objects can't be read", "err", why)
	}
}

// slim drops what nobody here reads and what takes most of the memory.
func slim(o any) (any, error) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
		if notes := u.GetAnnotations(); notes["kubectl.kubernetes.io/last-applied-configuration"] != "" {
			delete(notes, "kubectl.kubernetes.io/last-applied-configuration")
			u.SetAnnotations(notes)
		}
	}
	return o, nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// came tells of a Model object that was not there.
func (s *Source) came(o *unstructured.Unstructured) {
	if s.o.Came != nil && o.GetKind() == KindModel && fleetOf(o) == s.o.Fleet {
		s.o.Came(modelID(o))
	}
}

func (s *Source) touch() { poke(s.dirty) }

// Run watches until ctx ends. When the API server can't be asked the last state stays.
func (s *Source) Run(ctx context.Context) error {
	s.informers.Start(ctx.Done())
	defer s.informers.Shutdown()
	var workers sync.WaitGroup
	defer workers.Wait()
	if !s.synced(ctx) {
		return ctx.Err()
	}
	workers.Go(func() { s.writeStatuses(ctx) })
	again := s.compose(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.dirty:
		case <-again:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		select { // what came meanwhile is seen too
		case <-s.dirty:
		default:
		}
		again = s.compose(ctx)
	}
}

func (s *Source) synced(ctx context.Context) bool {
	for _, done := range s.informers.WaitForCacheSync(ctx.Done()) {
		if !done {
			return false
		}
	}
	return true
}

// objects are those of the fleet. They are shared with the informers: nobody changes them.
func (s *Source) objects() Objects {
	var o Objects
	for _, each := range s.stores[KindFleet].List() {
		if u := each.(*unstructured.Unstructured); u.GetName() == s.o.Fleet && u.GetDeletionTimestamp() == nil {
			o.Fleet = u
		}
	}
	models := map[string]bool{}
	for _, each := range s.stores[KindModel].List() {
		u := each.(*unstructured.Unstructured)
		if fleetOf(u) == s.o.Fleet && u.GetDeletionTimestamp() == nil {
			o.Models = append(o.Models, u)
			models[u.GetName()] = true
		}
	}
	foreign := func(name string) bool { // of a Model of another fleet, which looks after it
		for _, each := range s.stores[KindModel].List() {
			if each.(*unstructured.Unstructured).GetName() == name {
				return !models[name]
			}
		}
		return false
	}
	for _, each := range s.stores[KindLoRA].List() {
		u := each.(*unstructured.Unstructured)
		if of, _, _ := unstructured.NestedString(u.Object, "spec", "model"); u.GetDeletionTimestamp() == nil && !foreign(of) {
			o.LoRAs = append(o.LoRAs, u)
		}
	}
	return o
}

// fleetOf names the fleet of a Model object.
func fleetOf(m *unstructured.Unstructured) string {
	of, _, _ := unstructured.NestedString(m.Object, "spec", "fleet")
	return cmp.Or(of, DefaultFleet)
}

// strays are the Model objects of fleets that have no Fleet object, and why each of them is one: nobody else would say so.
func (s *Source) strays() map[*unstructured.Unstructured]string {
	fleets := []string{s.o.Fleet}
	for _, each := range s.stores[KindFleet].List() {
		fleets = append(fleets, each.(*unstructured.Unstructured).GetName())
	}
	all := map[*unstructured.Unstructured]string{}
	for _, each := range s.stores[KindModel].List() {
		if u := each.(*unstructured.Unstructured); u.GetDeletionTimestamp() == nil && !slices.Contains(fleets, fleetOf(u)) {
			all[u] = s.noFleet(fleetOf(u))
		}
	}
	return all
}

// noFleet says that there is no Fleet object of a name, and which there are.
func (s *Source) noFleet(name string) string {
	var others []string
	for _, each := range s.stores[KindFleet].List() {
		others = append(others, each.(*unstructured.Unstructured).GetName())
	}
	why := fmt.Sprintf("there is no Fleet object %q in namespace %s", name, s.o.Namespace)
	if len(others) > 0 {
		slices.Sort(others)
		why += "; it has " + strings.Join(others, ", ") + ": name one in the Models' spec.fleet, or make that Fleet"
	}
	return why
}

// tellStrays tells of Model objects that have become strays. s.mu is held.
func (s *Source) tellStrays(ctx context.Context) {
	now := map[string]string{}
	for m, why := range s.strays() {
		now[m.GetName()] = why
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if s.astray[name] == now[name] || s.o.Wrong == nil {
			continue
		}
		s.o.Logger.WarnContext(ctx, "a Model has no fleet", "object", KindModel+"/"+name, "err", now[name])
		s.o.Wrong(Event{Warning: true, Object: "fleet", Reason: "NoFleet", Message: "Model " + name + " is nobody's: " + now[name]})
	}
	s.astray = now
}

// recallPause is waited before it is asked again what was applied last.
const recallPause = time.Second

// recall asks what was applied last when objects are wrong and it is not known what they were before: others go by that. Where all is right nobody is asked.
// again is when to ask anew, nil where there is no need.
func (s *Source) recall(ctx context.Context) (again <-chan time.Time) {
	s.mu.Lock()
	known, first := s.composed.Good != nil, s.state.Version == 0
	s.mu.Unlock()
	objects := s.objects()
	if s.o.Recall == nil || known || objects.Fleet == nil {
		return nil
	}
	now := Compose(objects, nil, nil)
	if len(now.Bad) == 0 {
		return nil
	}
	previous, err := s.o.Recall(ctx)
	if err != nil && first {
		s.o.Logger.InfoContext(ctx, "objects are wrong, and what was applied last is not known", "err", err)
	}
	if len(previous) == 0 && now.File == nil { // there is nothing to go on with
		again = time.After(recallPause)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remember(previous)
	return again
}

// compose makes the state anew. again is when to do so next though nothing may have changed, nil for never.
func (s *Source) compose(ctx context.Context) (again <-chan time.Time) {
	again = s.recall(ctx)
	objects := s.objects()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.composed
	s.composed = Compose(objects, s.lastGood(), s.vetoes(objects))
	for key, what := range s.composed.Bad {
		if before.Bad[key] != what {
			s.o.Logger.WarnContext(ctx, "an object is wrong, what it was before stays", "object", key, "err", what)
			if s.o.Wrong != nil {
				s.o.Wrong(s.invalid(key, what))
			}
		}
	}
	s.tellStrays(ctx)
	next := State{Version: s.state.Version + 1, File: s.composed.File}
	if next.File == nil {
		key := KindFleet + "/" + s.o.Fleet
		next.Why = s.noFleet(s.o.Fleet)
		if bad := s.composed.Bad[key]; bad != "" {
			next.Why = key + ": " + bad
		}
	}
	next.Gone = objects.Fleet == nil && len(objects.Models) == 0
	if !bytes.Equal(next.File, s.state.File) || next.Why != s.state.Why || next.Gone != s.state.Gone {
		s.state = next
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.offered = offer{s.state.Version, objects, s.composed.Good}
	poke(s.writing) // what is wrong is told, whether or not there is something to apply
	return again
}

// offer is what was composed of which objects.
type offer struct {
	version int64
	objects Objects
	good    Good
}

// lastGood are the specs that objects fall back to: those that the control plane has taken, which may refuse what was composed. Who has none goes by what
// was composed. s.mu is held.
func (s *Source) lastGood() Good {
	if s.judged {
		return s.good
	}
	return s.composed.Good
}

// vetoed is why a Model object as it was can't be, in a Fleet as that was.
type vetoed struct {
	model, fleet version
	objection
}

// version is that of an object.
type version struct {
	uid        types.UID
	generation int64
}

func versionOf(o *unstructured.Unstructured) version { return version{o.GetUID(), o.GetGeneration()} }

// vetoes are those against objects that have not changed since. s.mu is held.
func (s *Source) vetoes(o Objects) Veto {
	veto := Veto{}
	for _, m := range o.Models {
		if v, ok := s.veto[m.GetName()]; ok && o.Fleet != nil && v.model == versionOf(m) && v.fleet == versionOf(o.Fleet) {
			veto[goodKey(m)] = v.objection
		}
	}
	return veto
}

// Refuse has the Model objects of these models be what they were before, until they or the Fleet are changed: the platform can never run them. One that is what
// it was before has the Fleet be what that was. why is by the models' ids, and of a version that Next gave: of one that is not the newest any more it says nothing.
func (s *Source) Refuse(version int64, why map[string]string) {
	now := s.objects()
	s.mu.Lock()
	if s.veto == nil {
		s.veto = map[string]vetoed{}
	}
	for name := range s.veto { // those of objects that are gone
		if !slices.ContainsFunc(now.Models, func(m *unstructured.Unstructured) bool { return m.GetName() == name }) {
			delete(s.veto, name)
		}
	}
	s.judged = true
	if s.handed.version != version {
		s.mu.Unlock()
		return
	}
	o, used := s.handed.objects, s.handed.good
	wasGood := func(o *unstructured.Unstructured) bool {
		last := s.good.of(o)
		return last != nil && !changed(o, used[goodKey(o)], last)
	}
	for _, m := range o.Models {
		spec := used[goodKey(m)]
		if spec == nil {
			continue
		}
		id, _ := spec["name"].(string)
		if reason := why[cmp.Or(id, m.GetName())]; reason != "" {
			older := wasGood(m)
			s.veto[m.GetName()] = vetoed{versionOf(m), versionOf(o.Fleet), objection{reason, older, older && wasGood(o.Fleet)}}
		}
	}
	s.mu.Unlock()
	s.touch()
}

// invalid is the event of an object that is wrong. s.mu is held.
func (s *Source) invalid(key, what string) Event {
	e := Event{Warning: true, Reason: "Invalid", Message: what}
	kind, name, _ := strings.Cut(key, "/")
	switch kind {
	case KindFleet:
		e.Object = "fleet"
	case KindModel:
		id := s.composed.Names[key]
		e.Object = "model/" + id
		if has, found := s.Object(id); found && has.GetName() != name { // it is about the one that can't have the name
			e.Message = "Model object " + name + ": " + what
		}
	default:
		e.Object = strings.ToLower(kind) + "/" + name
	}
	return e
}

// Next gives the state, as soon as its Version is another one than after. When ctx ends it gives what there is.
func (s *Source) Next(ctx context.Context, after int64) State {
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		news := state.Version != after && state.Version > 0
		if news && state.File != nil {
			s.handed = s.offered
		}
		s.mu.Unlock()
		if news {
			return state
		}
		select {
		case <-ctx.Done():
			return state
		case <-changed:
		}
	}
}

// Took tells that the control plane has applied a state, and as which generation of the fleet, or, with err, why it has not: the objects' conditions say so,
// once there is a Status of that generation.
func (s *Source) Took(version, generation int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.judged = true
	if s.refused = ""; err != nil {
		s.refused = err.Error()
	} else {
		s.taken, s.takenAs = version, generation
	}
	if err == nil && s.handed.version == version {
		s.good = s.handed.good
	}
	poke(s.writing)
}

// Object gives the Model object of a model, for objects that it is to own; false when there is none.
func (s *Source) Object(model string) (*unstructured.Unstructured, bool) {
	var found *unstructured.Unstructured
	for _, each := range s.stores[KindModel].List() {
		u := each.(*unstructured.Unstructured)
		if modelID(u) != model || fleetOf(u) != s.o.Fleet || u.GetDeletionTimestamp() != nil {
			continue
		}
		if found == nil || byAge(u, found) < 0 { // of two of one name the older one has it
			found = u
		}
	}
	return found, found != nil
}

// Rejected says of models whose objects, or whose LoRAs' objects, are not in use as they are, why, by their ids.
func (s *Source) Rejected() map[string]string {
	objects := s.objects()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]string{}
	add := func(model, text string) {
		all[model] = strings.TrimPrefix(all[model]+"; "+text, "; ")
	}
	for _, m := range objects.Models {
		key := goodKey(m)
		why := cmp.Or(s.composed.Bad[key], s.refused)
		if why == "" && s.state.File == nil {
			why = s.state.Why
		}
		if why != "" {
			add(modelID(m), s.unused(m, why))
		}
	}
	for _, l := range objects.LoRAs {
		of, _, _ := unstructured.NestedString(l.Object, "spec", "model")
		if why := s.composed.Bad[goodKey(l)]; why != "" && s.composed.Names[KindModel+"/"+of] != "" {
			add(s.composed.Names[KindModel+"/"+of], s.unused(l, why))
		}
	}
	return all
}

// unused says that an object is not in use as it is. s.mu is held.
func (s *Source) unused(o *unstructured.Unstructured, why string) string {
	what := "the " + o.GetKind() + " object " + o.GetName() + " is not in use"
	if s.composed.Good[goodKey(o)] != nil {
		what += " as it is now, what it was before stays"
	}
	return what + ": " + why
}

// Owner gives the owner reference to the Model object of a model, nil when there is none.
func (s *Source) Owner(model string) *metav1.OwnerReference {
	u, ok := s.Object(model)
	if !ok {
		return nil
	}
	// It does not block the object's deletion: to ask for that takes the right to set finalizers of Models.
	return &metav1.OwnerReference{APIVersion: u.GetAPIVersion(), Kind: KindModel, Name: u.GetName(), UID: u.GetUID(), Controller: new(true)}
}

// goodOf gives the specs that a fleet file was composed of.
func goodOf(file []byte, fleet string) Good {
	good := Good{}
	doc, models, err := split(file)
	if err != nil {
		return good
	}
	good[KindFleet+"/"+fleet] = doc
	for _, spec := range models {
		if id, _ := spec["name"].(string); id != "" {
			good[appliedKey(id)] = spec
		}
	}
	return good
}

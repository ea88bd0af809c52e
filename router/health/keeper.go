// Package health keeps the endpoints: it probes what discovery reports, listens to how
// requests end, and gives requests the snapshot of what can serve them.
package health

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// Prober asks an engine about itself; *engine.Client is one. Its errors are told apart by
// engine.Refused, engine.Status and context.DeadlineExceeded.
type Prober interface {
	// Health says whether the server is alive.
	Health(ctx context.Context, e mobula.Endpoint) error
	// Models says what it serves.
	Models(ctx context.Context, e mobula.Endpoint) ([]mobula.Card, error)
	// Metrics says how it fares.
	Metrics(ctx context.Context, e mobula.Endpoint) (engine.Metrics, error)
	// Complete has it infer a token, which proves that it can.
	Complete(ctx context.Context, e mobula.Endpoint, model string) error
}

// Options set up a Keeper.
type Options struct {
	// Client asks the engines. Required.
	Client Prober
	// Logger is told of state changes. Default: none.
	Logger *slog.Logger
	// Registerer takes the room's metrics. Default: none.
	Registerer prometheus.Registerer
	// Health is the pace; what is zero has the fleet file's default.
	Health mobula.Health
	// Models are the fleet's, for their aliases.
	Models []mobula.Model
	// OnChange is called with each new snapshot after Snapshot gives it, by the goroutine
	// of Run, so it should be quick.
	OnChange func(*pick.Snapshot)
}

// Keeper owns the endpoints. Its methods may be called by many goroutines at once.
type Keeper struct {
	client   Prober
	log      *slog.Logger
	metrics  *metrics
	onChange func(*pick.Snapshot)

	settings atomic.Pointer[settings]
	snapshot atomic.Pointer[pick.Snapshot]
	ready    atomic.Bool
	members  atomic.Pointer[members] // replaced by Run only
	dirty    chan struct{}           // holds one: the snapshot is to be made anew

	leaving atomic.Pointer[map[string]*pick.Live] // departed, as others may see it
	sought  atomic.Pointer[map[string]bool]       // models with a LoRA that is to be loaded and that no engine has

	// Of Run's goroutine.
	departed map[string]*pick.Live
	known    known
	reported bool // discovery has spoken
	settled  bool // every endpoint of the first state has been asked
	watchers sync.WaitGroup
}

// settings are immutable.
type settings struct {
	health mobula.Health
	models []mobula.Model
	// dropped are the names that earlier settings placed and these do not: nobody is to wait for what an engine that is gone
	// had of them. The oldest are forgotten beyond maxKnown.
	dropped []string
}

// members is immutable.
type members struct {
	byID   map[string]*member
	byLive map[*pick.Live]*member
}

// New makes a Keeper without endpoints; Run brings them.
func New(o Options) *Keeper {
	k := &Keeper{
		client:   o.Client,
		log:      o.Logger,
		metrics:  newMetrics(o.Registerer),
		onChange: o.OnChange,
		dirty:    make(chan struct{}, 1),
		departed: map[string]*pick.Live{},
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.onChange == nil {
		k.onChange = func(*pick.Snapshot) {}
	}
	k.settings.Store(&settings{health: withDefaults(o.Health), models: o.Models})
	k.members.Store(&members{})
	k.leaving.Store(&map[string]*pick.Live{})
	k.sought.Store(&map[string]bool{})
	k.snapshot.Store(pick.NewSnapshot(nil, o.Models, nil))
	return k
}

func withDefaults(h mobula.Health) mobula.Health {
	return mobula.Health{
		Interval:        max(cmp.Or(h.Interval, mobula.Duration(time.Second)), mobula.Duration(time.Millisecond)),
		Timeout:         max(cmp.Or(h.Timeout, mobula.Duration(2*time.Second)), mobula.Duration(time.Millisecond)),
		EjectAfter:      max(cmp.Or(h.EjectAfter, 3), 1),
		ModelsInterval:  max(cmp.Or(h.ModelsInterval, mobula.Duration(10*time.Second)), mobula.Duration(time.Millisecond)),
		MetricsInterval: max(cmp.Or(h.MetricsInterval, mobula.Duration(5*time.Second)), mobula.Duration(time.Millisecond)),
	}
}

// Run keeps the endpoints that up reports, until ctx ends; then it returns ctx's error and
// nothing of it goes on. When up is closed the last state stays. It is called once.
func (k *Keeper) Run(ctx context.Context, up <-chan []mobula.Endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	defer k.watchers.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case endpoints, open := <-up:
			if !open {
				up = nil
				continue
			}
			k.apply(ctx, endpoints)
			k.publish()
		case <-k.dirty:
			k.publish()
		}
	}
}

// Snapshot gives the fleet as it is now. It is never nil and costs one atomic load.
func (k *Keeper) Snapshot() *pick.Snapshot { return k.snapshot.Load() }

// Ready tells that some model can be served, or has its requests wait for engines, and at the start that every endpoint has been
// asked: the first one to answer must not get the requests of all.
func (k *Keeper) Ready() bool { return k.ready.Load() }

// next gives the settings that come after s.
func (s *settings) next(h mobula.Health, models []mobula.Model) *settings {
	dropped := without(slices.Concat(s.dropped, placed(s.models)), placed(models))
	return &settings{health: h, models: models, dropped: dropped[max(0, len(dropped)-maxKnown):]}
}

// placed are the names that requests may wait for: of placed models and their LoRAs.
func placed(models []mobula.Model) []string {
	var names []string
	for i := range models {
		m := &models[i]
		if !m.Placed() {
			continue
		}
		names = append(names, m.Name)
		for _, l := range m.LoRAs {
			names = append(names, l.Name)
		}
	}
	return names
}

// without gives those of names that are not among others. It changes neither.
func without(names, others []string) []string {
	if len(others) == 0 {
		return names
	}
	other := make(map[string]bool, len(others))
	for _, name := range others {
		other[name] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return other[name] })
}

// Update changes pace, aliases and what is placed, without a pause. It is called by one goroutine.
func (k *Keeper) Update(h mobula.Health, models []mobula.Model) {
	k.settings.Store(k.settings.Load().next(withDefaults(h), models))
	k.touch()
	for _, m := range k.members.Load().byID {
		m.poke()
	}
}

// Report takes in how an attempt at e ended. It is for every request: when all is well it
// costs a map look-up and two atomic loads; it never waits for anything but, after a
// failure, another report on the same endpoint.
func (k *Keeper) Report(e *pick.Endpoint, o proxy.Outcome) {
	if o.Cause == proxy.CauseMissing {
		k.missing(e)
		return
	}
	if o.Cause != proxy.CauseOK && !o.Cause.Failed() {
		return // the client's doing, or a busy engine: says neither good nor bad
	}
	m := k.memberOf(e)
	if m == nil {
		return
	}
	if o.Cause.Failed() {
		m.take(input{event: requestBad, cause: o.Cause}, nil)
		return
	}
	if !m.succeeded.Load() {
		m.succeeded.Store(true)
	}
	if !m.calm.Load() {
		m.take(input{event: requestGood, late: e.Serving}, nil)
	}
}

// missing has the models read again of e, which has one no more, and of all that serve the same base model: another
// one may have it now.
func (k *Keeper) missing(e *pick.Endpoint) {
	for _, m := range k.members.Load().byID {
		m.mu.Lock()
		asked := !m.ended && slices.ContainsFunc(m.cards, func(c mobula.Card) bool {
			return slices.ContainsFunc(e.Cards, func(own mobula.Card) bool { return own.ID == c.ID && own.Parent == "" })
		})
		m.missing = m.missing || asked
		m.mu.Unlock()
		if asked {
			m.poke()
		}
	}
}

// Overdue takes in that e has answered nobody for as long as a first byte may take, while
// an answer is waited for. It never blocks.
func (k *Keeper) Overdue(e *pick.Endpoint) {
	if e.Provider != nil {
		return // nothing can be asked of it but requests
	}
	if m := k.memberOf(e); m != nil {
		m.take(input{event: requestOverdue}, nil)
	}
}

// memberOf gives who watches e, nil when it is gone or has moved to another address: what a request met with at the former one
// says nothing about the new one.
func (k *Keeper) memberOf(e *pick.Endpoint) *member {
	if m := k.members.Load().byLive[e.Live]; m != nil && m.url == e.URL {
		return m
	}
	return nil
}

// Scraped gives what an endpoint's /metrics said last; false when that is too long ago or
// the endpoint is unknown.
func (k *Keeper) Scraped(id string) (engine.Metrics, bool) {
	m := k.members.Load().byID[id]
	if m == nil {
		return engine.Metrics{}, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.scrapedAt.IsZero() || time.Since(m.scrapedAt) > 3*time.Duration(k.settings.Load().health.MetricsInterval) {
		return engine.Metrics{}, false
	}
	return m.scraped, true
}

// Status is what is thought of an endpoint, for people.
type Status struct {
	ID      string
	State   string // new, up, down or hung
	Since   time.Time
	Reason  string // of the last ejection
	Problem string // what the last failed probe met with, empty when none failed last
	Models  int    // how many it lists
}

// Statuses are those of all endpoints, sorted by ID.
func (k *Keeper) Statuses() []Status {
	var all []Status
	for id, m := range k.members.Load().byID {
		m.mu.Lock()
		s := Status{ID: id, State: m.machine.state.String(), Since: m.since, Reason: m.machine.reason, Models: len(m.cards)}
		if err := cmp.Or(m.healthErr, m.modelsErr); err != nil {
			s.Problem = err.Error()
		}
		m.mu.Unlock()
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// touch has the snapshot made anew soon.
func (k *Keeper) touch() {
	select {
	case k.dirty <- struct{}{}:
	default:
	}
}

// apply takes discovery's full state.
func (k *Keeper) apply(ctx context.Context, endpoints []mobula.Endpoint) {
	old := k.members.Load()
	now := &members{
		byID:   make(map[string]*member, len(endpoints)),
		byLive: make(map[*pick.Live]*member, len(endpoints)),
	}
	for _, e := range endpoints {
		if now.byID[e.ID] != nil {
			k.log.WarnContext(ctx, "endpoint reported twice", "endpoint", e.ID)
			continue
		}
		m := old.byID[e.ID]
		if m == nil || !m.change(e) {
			m = k.newMember(ctx, e, m)
		}
		now.byID[e.ID], now.byLive[m.live] = m, m
	}
	k.members.Store(now)
	for id, m := range old.byID {
		if now.byID[id] == m {
			continue
		}
		m.end()
		if now.byID[id] == nil {
			k.remove(ctx, id, m)
		}
	}
	for id, live := range k.departed {
		if live.InFlight.Load() == 0 {
			delete(k.departed, id)
		}
	}
	leaving := maps.Clone(k.departed)
	k.leaving.Store(&leaving)
	k.reported = true
}

// maxDeparted bounds the endpoints that are gone but for their running requests.
const maxDeparted = 4096

func (k *Keeper) remove(ctx context.Context, id string, m *member) {
	k.log.InfoContext(ctx, "endpoint removed", "endpoint", id)
	k.metrics.remove(id)
	m.live.Draining.Store(true) // retries whose list has it go elsewhere
	e := m.endpoint()
	for _, c := range e.Cards {
		if e.Allows(c) {
			k.known.add(c.ID)
		}
	}
	if len(k.departed) < maxDeparted {
		k.departed[id] = m.live
	}
}

// Departed are the endpoints that are gone and had requests running when discovery spoke last.
func (k *Keeper) Departed() map[string]*pick.Live { return *k.leaving.Load() }

// newMember starts to watch e, in place of an earlier endpoint of the same ID.
func (k *Keeper) newMember(ctx context.Context, e mobula.Endpoint, earlier *member) *member {
	live := k.departed[e.ID]
	delete(k.departed, e.ID)
	if earlier != nil {
		live = earlier.live
	}
	if live == nil {
		live = &pick.Live{}
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &member{keeper: k, url: e.URL, live: live, cancel: cancel, wake: make(chan struct{}, 1), spec: e, since: time.Now()}
	live.Draining.Store(e.Draining)
	if e.Provider != nil {
		m.machine, m.cards, m.learned, m.heard = machine{state: stateUp}, configured(e), true, true
		m.calm.Store(true)
		live.Ejected.Store(false)
		live.Hung.Store(false)
	}
	k.watchers.Go(func() { m.watch(ctx) })
	return m
}

// publish makes the snapshot anew.
func (k *Keeper) publish() {
	all := k.members.Load()
	endpoints := make([]*pick.Endpoint, 0, len(all.byID))
	heard := true
	for _, m := range all.byID {
		e := m.endpoint()
		heard = heard && m.isHeard()
		endpoints = append(endpoints, e)
		k.metrics.setUp(e.ID, e.Serving)
	}
	set := k.settings.Load()
	s := pick.NewSnapshot(endpoints, set.models, without(k.known.names, set.dropped))
	k.snapshot.Store(s)
	// A placed model is served without engines too: requests wait for them, and have them made.
	placed := slices.ContainsFunc(s.Models(), func(g *pick.Group) bool { return g.Placed && g.Held > 0 })
	k.settled = k.settled || heard && k.reported && (len(endpoints) > 0 || placed)
	k.ready.Store(k.settled && (placed || slices.ContainsFunc(s.Models(), serves)))
	k.seek(s)
	k.onChange(s)
}

// seek has engines read more often whose model has a LoRA that is to be loaded and that none is known to have: requests
// wait for it.
func (k *Keeper) seek(s *pick.Snapshot) {
	now := map[string]bool{}
	for _, g := range s.Models() {
		if g.Placed && g.Base != g.Model && len(g.Endpoints) == 0 {
			now[g.Base] = true
		}
	}
	if maps.Equal(now, *k.sought.Load()) {
		return
	}
	k.sought.Store(&now)
	for _, m := range k.members.Load().byID {
		m.poke()
	}
}

// serves tells whether some endpoint of g is in service.
func serves(g *pick.Group) bool {
	return len(g.Endpoints) > 0 && !g.Ejected || slices.ContainsFunc(g.Providers, func(e *pick.Endpoint) bool { return e.Serving })
}

// known holds the models of endpoints that are gone, the latest last.
type known struct{ names []string }

// maxKnown bounds them; the oldest is forgotten.
const maxKnown = 1024

func (k *known) add(name string) {
	if i := slices.Index(k.names, name); i >= 0 {
		k.names = slices.Delete(k.names, i, i+1)
	} else if len(k.names) >= maxKnown {
		k.names = slices.Delete(k.names, 0, 1)
	}
	k.names = append(k.names, name)
}

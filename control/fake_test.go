package control

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// bench is a control plane over a platform in memory, with a router that drains. It lives in a synctest bubble.
type bench struct {
	t      *testing.T
	store  state.Store
	placer *adapters.InMemoryPlacer
	*Control
	router  *fakeRouter
	engines Engines
	wrap    adapters.Placer // in place of placer
	found   time.Duration   // Options.RouterStart
	stop    func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, store: state.NewInMemory(), placer: adapters.NewInMemoryPlacer(nil)}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// start makes the control plane, anew over the same store after a stop.
func (b *bench) start() {
	b.t.Helper()
	o := Options{Store: b.store, Placer: b.placer, Engines: b.engines, RouterStart: b.found}
	if b.wrap != nil {
		o.Placer = b.wrap
	}
	c, err := New(o)
	require.NoError(b.t, err)
	b.Control = c
	ctx, cancel := context.WithCancel(b.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	if b.router != nil {
		wg.Go(func() { b.router.run(ctx, c, b.placer) })
	}
	b.stop = func() { cancel(); wg.Wait() }
}

// withRouter has a router report each second.
func (b *bench) withRouter() *fakeRouter {
	b.stop()
	b.router = &fakeRouter{name: "router-1", inFlight: map[string]int{}, down: map[string]bool{}}
	b.start()
	return b.router
}

func (b *bench) apply(file string) *Change {
	b.t.Helper()
	c, err := b.Apply(b.t.Context(), []byte(file), "test", false, false)
	require.NoError(b.t, err)
	return c
}

// pass lets time pass.
func (b *bench) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) view() *View {
	v, err := b.View(b.t.Context(), 0)
	require.NoError(b.t, err)
	return v
}

func (b *bench) model(name string) ModelStatus {
	b.t.Helper()
	for _, m := range b.view().Models {
		if m.Name == name {
			return m
		}
	}
	b.t.Fatalf("no model %s in the view", name)
	return ModelStatus{}
}

// replicas gives those of the view that are in a state.
func (b *bench) replicas(in mobula.State) (ids []string) {
	for _, r := range b.view().Replicas {
		if r.State == in {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// reasons gives the reasons of all events so far.
func (b *bench) reasons() (all []string) {
	events, err := b.Events(b.t.Context(), 0, false)
	require.NoError(b.t, err)
	for _, e := range events {
		all = append(all, e.Reason)
	}
	return all
}

// fleetFile gives a fleet of models, each as "name: replicas" with more lines of YAML after it.
func fleetFile(models ...string) string {
	var b strings.Builder
	b.WriteString("apiVersion: mobula/v1\nkind: Fleet\nname: lab\nplatform:\n  static: {}\nmodels:\n")
	for _, m := range models {
		b.WriteString(m)
	}
	return b.String()
}

func simModel(name, replicas string, more ...string) string {
	var m strings.Builder
	fmt.Fprintf(&m, "  - name: %s\n    replicas: %s\n", name, replicas)
	if len(more) == 0 || !strings.HasPrefix(more[0], "engine:") {
		more = append([]string{"engine: {kind: sim}"}, more...)
	}
	for _, line := range more {
		m.WriteString("    " + line + "\n")
	}
	return m.String()
}

// fakeRouter sees a platform's endpoints and reports them each second.
type fakeRouter struct {
	name     string
	mu       sync.Mutex
	inFlight map[string]int
	down     map[string]bool
	models   []mobula.ModelReport
}

func (f *fakeRouter) load(id string, inFlight int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight[id] = inFlight
}

func (f *fakeRouter) lose(id string, down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down[id] = down
}

func (f *fakeRouter) run(ctx context.Context, c *Control, d adapters.Discoverer) {
	up := make(chan []mobula.Endpoint)
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx, up) })
	defer wg.Wait()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	known := map[string]mobula.Endpoint{}
	for {
		select {
		case <-ctx.Done():
			return
		case all := <-up:
			clear(known)
			for _, e := range all {
				known[e.ID] = e
			}
		case <-tick.C:
			_ = c.Report(ctx, f.report(known))
		}
	}
}

func (f *fakeRouter) report(known map[string]mobula.Endpoint) mobula.Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := mobula.Report{Router: f.name, At: time.Now(), Models: f.models}
	for id := range maps.Keys(known) {
		e := mobula.EndpointReport{ID: id, State: "up", Draining: known[id].Draining, InFlight: f.inFlight[id]}
		if f.down[id] {
			e.State, e.Reason = "down", "connection refused"
		}
		r.Endpoints = append(r.Endpoints, e)
	}
	return r
}

package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/state"
)

// fakeEngines are engines in memory, by replica.
type fakeEngines struct {
	mu     sync.Mutex
	loras  map[string]map[string]string // replica → LoRA → path
	asleep map[string]bool
	fails  error
	calls  []string // that load and unload LoRAs
	mute   string   // a replica that does not tell what it has
}

func newFakeEngines() *fakeEngines {
	return &fakeEngines{loras: map[string]map[string]string{}, asleep: map[string]bool{}}
}

func (f *fakeEngines) Models(_ context.Context, e mobula.Endpoint) (all []mobula.Card, err error) {
	time.Sleep(50 * time.Millisecond) // others are asked, or told, meanwhile
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.ID == f.mute {
		return nil, errors.New("it does not tell")
	}
	all = append(all, mobula.Card{ID: "a"})
	for name := range f.loras[e.ID] {
		all = append(all, mobula.Card{ID: name, Parent: "a"})
	}
	return all, nil
}

func (f *fakeEngines) LoadLoRA(_ context.Context, e mobula.Endpoint, name, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loras[e.ID] == nil {
		f.loras[e.ID] = map[string]string{}
	}
	f.calls = append(f.calls, "load "+name+" on "+e.ID)
	if path == "/bad" {
		return errors.New("rank too high")
	}
	if f.fails == nil {
		f.loras[e.ID][name] = path
	}
	return f.fails
}

func (f *fakeEngines) UnloadLoRA(_ context.Context, e mobula.Endpoint, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "unload "+name+" on "+e.ID)
	delete(f.loras[e.ID], name)
	return f.fails
}

func (f *fakeEngines) Sleep(_ context.Context, e mobula.Endpoint, _ int) error {
	return f.set(e.ID, true)
}

func (f *fakeEngines) Wake(_ context.Context, e mobula.Endpoint) error { return f.set(e.ID, false) }

func (f *fakeEngines) set(id string, asleep bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails == nil {
		f.asleep[id] = asleep
	}
	return f.fails
}

func (f *fakeEngines) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = err
}

// forget is a new process of an engine.
func (f *fakeEngines) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.loras, id)
}

func (f *fakeEngines) sleeps(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asleep[id]
}

// have gives the replicas that have a LoRA, and its path there.
func (f *fakeEngines) have(lora string) (ids, paths []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, loras := range f.loras {
		if path, ok := loras[lora]; ok {
			ids, paths = append(ids, id), append(paths, path)
		}
	}
	slices.Sort(ids)
	return ids, slices.Compact(paths)
}

// since gives the calls made since it was asked last, but for those about one LoRA.
func (f *fakeEngines) since(but string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := slices.DeleteFunc(f.calls, func(call string) bool { return strings.Fields(call)[1] == but })
	f.calls = nil
	return calls
}

// withEngines starts the bench over with engines.
func (b *bench) withEngines() *fakeEngines {
	b.stop()
	f := newFakeEngines()
	b.engines = f
	b.start()
	return f
}

// ask has the router report load on a model.
func (f *fakeRouter) ask(m mobula.ModelReport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.models = []mobula.ModelReport{m}
}

func TestFromZeroAndBack(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "0-2", "scaling: {zeroAfter: 2m, downAfter: 30s}")))
		b.pass(time.Minute)
		require.Empty(t, b.placer.Replicas())
		r.ask(mobula.ModelReport{Model: "a", Held: 1, Requests: 1, HeldTokens: 10, LastRequest: time.Now()})
		b.pass(5 * time.Second)
		require.Equal(t, 1, b.model("a").Ready)
		require.NotEmpty(t, b.model("a").ScaleReason)
		require.Contains(t, b.reasons(), "Scaled")
		r.ask(mobula.ModelReport{Model: "a", LastRequest: time.Now()})
		b.pass(5 * time.Minute)
		require.Empty(t, b.placer.Replicas())
		require.Equal(t, 0, b.model("a").Wanted)
	})
}

func TestUnneededReplicasSleep(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		engines := b.withEngines()
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "1-3", "scaling: {sleep: true}")))
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(30 * time.Second)
		ids := b.replicas(mobula.StateReady)
		require.Len(t, ids, 3)
		r.load(ids[0], 1)
		r.load(ids[1], 1)
		b.pass(2 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 2))
		b.pass(10 * time.Second)
		require.Equal(t, ids[2:], b.replicas(mobula.StateAsleep))
		require.True(t, engines.sleeps(ids[2]))
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
		b.stop() // asleep is remembered
		b.start()
		b.pass(20 * time.Second)
		require.Equal(t, ids[2:], b.replicas(mobula.StateAsleep))
		b.placer.Crash(ids[2]) // a new process is awake, and not needed
		b.pass(10 * time.Second)
		require.Equal(t, ids[2:], b.replicas(mobula.StateAsleep))
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(10 * time.Second)
		require.Equal(t, ids, b.replicas(mobula.StateReady))
		require.False(t, engines.sleeps(ids[2]))

		engines.fail(errors.New("no sleep mode"))
		require.NoError(t, b.Scale(t.Context(), "a", 2))
		b.pass(time.Minute)
		require.Len(t, b.placer.Replicas(), 2, "what can't sleep stops")
		require.Contains(t, b.reasons(), "SleepFailed")
	})
}

func TestSleepersMakeWayForANewRevision(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withEngines()
		b.withRouter()
		b.apply(fleetFile(simModel("a", "1-3", "scaling: {sleep: true}")))
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(30 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 1))
		b.pass(10 * time.Second)
		require.Len(t, b.replicas(mobula.StateAsleep), 2)
		require.NoError(t, b.Restart(t.Context(), "a"))
		b.pass(30 * time.Second)
		require.Empty(t, b.replicas(mobula.StateAsleep))
		require.Len(t, b.placer.Replicas(), 1)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
	})
}

// countingStore counts writes.
type countingStore struct {
	state.Store
	writes atomic.Int64
}

func (s *countingStore) Write(changes ...state.Change) error {
	s.writes.Add(1)
	return s.Store.Write(changes...)
}

func TestSteadyStateWritesNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		store := &countingStore{Store: b.store}
		b.store = store
		b.placer.Auto(true)
		b.withEngines()
		b.withRouter()
		b.apply(fleetFile(simModel("a", "1-3", "scaling: {sleep: true}", "loras: [{name: l, source: /l}]"), simModel("b", "0-2"), simModel("c", "2")))
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(30 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 2))
		b.pass(time.Minute)
		require.Len(t, b.replicas(mobula.StateAsleep), 1)
		writes, applies := store.writes.Load(), b.placer.Applies()
		b.pass(10 * time.Minute)
		require.Equal(t, writes, store.writes.Load())
		require.Equal(t, applies, b.placer.Applies())
	})
}

func TestLoRAsFollowTheReplicas(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		engines := b.withEngines()
		b.withRouter()
		file := fleetFile(simModel("a", "3", "loras: [{name: everywhere, source: /loras/e}, {name: one, source: 'https://x/one.tar', replicas: 1}]"))
		b.apply(file)
		b.pass(30 * time.Second)
		ids, paths := engines.have("everywhere")
		require.Equal(t, b.replicas(mobula.StateReady), ids)
		require.Equal(t, []string{"/loras/e"}, paths)
		one, paths := engines.have("one")
		require.Len(t, one, 1)
		require.Equal(t, []string{"/fetched/https-x-one-tar"}, paths)
		loras := b.model("a").LoRAs
		require.Len(t, loras, 2)
		require.Equal(t, ids, loras[0].Loaded)

		require.NoError(t, b.Drain(t.Context(), one[0], true)) // it moves before its replica goes
		b.pass(30 * time.Second)
		moved, _ := engines.have("one")
		moved = slices.DeleteFunc(moved, func(id string) bool { return id == one[0] })
		require.Len(t, moved, 1)

		engines.fail(errors.New("rank too high"))
		b.apply(fleetFile(simModel("a", "3", "loras: [{name: everywhere, source: /loras/e}, {name: bad, source: /loras/b}]")))
		b.pass(30 * time.Second)
		require.Contains(t, b.model("a").LoRAs[1].Error, "rank too high")
		require.Contains(t, b.reasons(), "LoRAFailed")
		engines.fail(nil)
		b.pass(2 * time.Minute)
		require.Empty(t, b.model("a").LoRAs[1].Error)
		left, _ := engines.have("one")
		left = slices.DeleteFunc(left, func(id string) bool { return id == one[0] })
		require.Empty(t, left, "one that the fleet has no more is unloaded")
	})
}

// A call to one replica, or a control plane that starts anew, leaves open for a moment what a replica has.
func TestLoRAsStayWhereTheyAre(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		engines := b.withEngines()
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2", "loras: [{name: one, source: /one, replicas: 1}, {name: two, source: /two, replicas: 1}, {name: bad, source: /bad}]")))
		b.pass(30 * time.Second)
		one, _ := engines.have("one")
		require.Len(t, one, 1)
		engines.since("bad")
		for range 20 {
			b.pass(30 * time.Second)
			require.Empty(t, engines.since("bad"))
			for _, l := range b.model("a").LoRAs[:2] {
				require.Len(t, l.Loaded, 1, l.Name)
			}
		}
		b.stop()
		b.start()
		b.pass(30 * time.Second)
		require.Empty(t, engines.since("bad"))
		still, _ := engines.have("one")
		require.Equal(t, one, still)

		b.stop()
		engines.mute = one[0]
		b.start()
		b.pass(30 * time.Second)
		both, _ := engines.have("one")
		require.Len(t, both, 2, "one that never tells may have lost it")
		require.NotEqual(t, one, b.model("a").LoRAs[0].Loaded)
	})
}

// A platform that moves a replica by itself keeps its ID: its engine is a new one all the same.
func TestAReplicaThatIsMovedIsANewEngine(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		engines := b.withEngines()
		b.withRouter()
		b.apply(fleetFile(simModel("a", "1", "loras: [{name: everywhere, source: /loras/e}]")))
		b.pass(30 * time.Second)
		id := b.replicas(mobula.StateReady)[0]
		before := b.view().Replicas[0]
		host := map[string]string{"host-1": "host-2", "host-2": "host-1"}[before.Hosts[0]]

		engines.forget(id)
		b.placer.Move(id, host)
		b.pass(3 * time.Second)
		loaded, _ := engines.have("everywhere")
		require.Equal(t, []string{id}, loaded)
		after := b.view().Replicas[0]
		require.Equal(t, id, after.ID)
		require.Equal(t, []string{host}, after.Hosts)
		require.NotEqual(t, before.URL, after.URL)
		require.Contains(t, b.reasons(), "ReplicaMoved")
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
	})
}

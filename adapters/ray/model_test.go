package ray

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// machine drives a Cluster step by step, without its goroutine and by its own clock.
type machine struct {
	t     *rapid.T
	c     *Cluster
	ray   *fakeRay
	store *failingStore
	now   time.Time
	mode  string
	want  map[string]int // replicas by model
}

func (m *machine) start() {
	c, err := New(Options{
		Store: m.store, Control: "abcdefghij", Now: func() time.Time { return m.now },
		Dial: func(mobula.Ray) (API, error) { return m.ray, nil },
	})
	require.NoError(m.t, err)
	m.c = c
	if !c.Configured() {
		r := settings()
		r.Mode = m.mode
		err := c.Configure(m.t.Context(), "f", mobula.Platform{Ray: &r}, false)
		require.True(m.t, err == nil || errors.Is(err, adapters.ErrUnavailable), err)
	}
}

// step is one round, of whose deeds only the first so many are carried out.
func (m *machine) step(deeds int) {
	m.now = m.now.Add(time.Second)
	all, _ := m.c.round(context.Background())
	for _, d := range all[:min(deeds, len(all))] {
		m.c.carry(context.Background(), d)
	}
	m.check()
}

// check holds at any time.
func (m *machine) check() {
	busy := map[string]string{}
	for _, o := range m.c.view.orders {
		for _, id := range o.replicas() {
			require.Empty(m.t, busy[id], "replica %s is in two orders", id)
			busy[id] = o.job
		}
	}
	require.LessOrEqual(m.t, len(m.c.view.orders), ordersAtOnce)
	for _, e := range m.c.serving() {
		rec := m.c.records.replicas[e.ID]
		require.NotNil(m.t, rec)
		require.False(m.t, rec.Leaving)
	}
	for id, r := range m.c.statuses {
		if slices.Contains([]mobula.State{mobula.StatePending, mobula.StateFailed, mobula.StateSuspect}, r.State) {
			require.NotEmpty(m.t, r.Reason, id)
		}
		require.False(m.t, r.Since.IsZero(), id)
	}
}

func (m *machine) may(err error) bool {
	if err != nil {
		require.ErrorIs(m.t, err, adapters.ErrUnavailable)
	}
	return err == nil
}

func (m *machine) deployment(i, n int) adapters.Deployment {
	model := sim(fmt.Sprintf("m%d", i))
	model.Resources.GPUs = new(1)
	if i == 2 {
		model.Resources.Hosts, model.Resources.GPUs = 2, new(2)
	}
	return deployment(model, "r", n)
}

// chance has calls fail, before or after they had an effect, one in so many.
func (m *machine) faults(on bool) {
	m.ray.set(func() {
		if m.ray.fail, m.ray.lose = nil, nil; on {
			fail := func(kind string) func(string) error {
				n := 0
				return func(method string) error {
					if n++; n%7 == 3 {
						return fmt.Errorf("%s %s: %w", kind, method, adapters.ErrUnavailable)
					}
					return nil
				}
			}
			m.ray.fail, m.ray.lose = fail("before"), fail("after")
		}
	})
}

func (m *machine) act() {
	some := rapid.SampledFrom([]string{
		"apply", "apply", "apply", "remove", "crash", "lose node", "node back", "session", "faults", "no faults", "fuse", "hold", "no hold",
		"disk", "kill", "kill between", "partial", "whole", "engine fails", "engine works", "cordon", "uncordon", "later", "step", "step", "step", "step", "step",
	}).Draw(m.t, "act")
	ids := m.ray.running()
	switch some {
	case "apply":
		i, n := rapid.IntRange(0, 2).Draw(m.t, "model"), rapid.IntRange(0, 2).Draw(m.t, "n")
		d := m.deployment(i, n)
		if len(ids) > 0 {
			d.Drain = ids[:1]
		}
		if err := m.c.Apply(m.t.Context(), d); !errors.Is(err, adapters.ErrImpossible) && m.may(err) {
			m.want[d.Key.Model] = n
		}
	case "remove":
		d := m.deployment(rapid.IntRange(0, 2).Draw(m.t, "model"), 0)
		if m.may(m.c.Remove(m.t.Context(), d.Key)) {
			delete(m.want, d.Key.Model)
		}
	case "crash":
		if len(ids) > 0 {
			m.ray.crash(rapid.SampledFrom(ids).Draw(m.t, "which"))
		}
	case "lose node":
		m.ray.loseNode("10.77.0.2")
	case "node back":
		m.ray.set(func() { m.ray.nodes[1].Alive = true })
	case "session":
		m.ray.restart()
	case "faults", "no faults":
		m.faults(some == "faults")
	case "fuse":
		m.ray.set(func() { m.ray.fuse = rapid.IntRange(1, 4).Draw(m.t, "steps") })
	case "hold", "no hold":
		m.ray.set(func() { m.ray.hold = some == "hold" })
	case "disk":
		at, kept := rapid.IntRange(1, 4).Draw(m.t, "write"), rapid.Bool().Draw(m.t, "kept")
		m.store.broken(func(n int) (bool, bool) { return n == at, kept })
	case "kill":
		m.start()
		m.step(9)
	case "kill between":
		m.step(rapid.IntRange(0, 2).Draw(m.t, "deeds"))
		m.start()
		m.step(9)
	case "partial", "whole":
		m.ray.set(func() { m.ray.partial = map[bool]string{true: "too many actors"}[some == "partial"] })
	case "engine fails":
		if len(ids) > 0 {
			m.ray.set(func() { m.ray.failure[rapid.SampledFrom(ids).Draw(m.t, "which")] = "no command vllm" })
		}
	case "engine works":
		m.ray.set(func() { clear(m.ray.failure) })
	case "cordon", "uncordon":
		err := m.c.Cordon(m.t.Context(), "10.77.0.2", some == "cordon")
		require.True(m.t, err == nil || errors.Is(err, adapters.ErrUnavailable) || errors.Is(err, adapters.ErrUnknownHost), err)
	case "later":
		m.now = m.now.Add(10 * time.Minute)
	default:
		m.step(9)
	}
}

// calm ends all that is wrong.
func (m *machine) calm() {
	m.faults(false)
	m.store.broken(nil)
	m.ray.set(func() {
		m.ray.hold, m.ray.partial, m.ray.fuse, m.ray.nodes[1].Alive = false, "", 0, true
		clear(m.ray.failure)
	})
	m.now = m.now.Add(time.Hour) // back-offs are over
	for range 3 {
		m.step(9)
	}
	require.NoError(m.t, m.c.Cordon(m.t.Context(), "10.77.0.2", false))
}

func (m *machine) until(what string, ok func() bool) {
	for range 300 {
		if ok() {
			return
		}
		m.step(9)
		m.now = m.now.Add(time.Minute)
	}
	require.Fail(m.t, "never "+what, "statuses %+v\nleft %v\nrunning %v", m.c.statuses, m.ray.left(), m.ray.running())
}

// TestAnyHistoryEndsAsWanted lets everything go wrong, and then nothing any more.
func TestAnyHistoryEndsAsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{
			t: t, ray: newFakeRay(), store: &failingStore{Store: state.NewInMemory()}, now: time.Now(), want: map[string]int{},
			mode: rapid.SampledFrom([]string{"actors", "jobs"}).Draw(t, "mode"),
		}
		strangers := []*fakeActor{
			{Actor: Actor{ID: "s1", Name: "mobula/other/m0-r-xxxxx", Class: "MobulaEngine", State: "ALIVE"}, stranger: true},
			{Actor: Actor{ID: "s2", Name: "mobula/abcdefghij-2/m0-r-xxxxx", Class: "MobulaEngine", State: "ALIVE"}, stranger: true},
			{Actor: Actor{ID: "s3", Name: "mobula/abcdefghij/theirs", Class: "Theirs", State: "ALIVE"}, stranger: true},
			{Actor: Actor{ID: "s4", Name: "theirs", Class: "Theirs", State: "ALIVE"}, stranger: true},
		}
		m.ray.actors = slices.Clone(strangers)
		m.start()
		m.step(9)
		for range rapid.IntRange(5, 60).Draw(t, "acts") {
			m.act()
		}
		m.calm()
		total := 0
		for i := range 3 {
			d := m.deployment(i, m.want[fmt.Sprint("m", i)])
			if _, wanted := m.want[d.Key.Model]; wanted {
				require.NoError(t, m.c.Apply(t.Context(), d))
				total += d.Replicas
			} else { // what could not be removed then
				require.NoError(t, m.c.Remove(t.Context(), d.Key))
			}
		}
		m.until("as wanted", func() bool {
			ready := []string{}
			for id, r := range m.c.statuses {
				if r.State == mobula.StateReady {
					ready = append(ready, id)
				}
			}
			running := m.ray.running()
			slices.Sort(ready)
			slices.Sort(running)
			return len(ready) == total && len(m.c.statuses) == total && slices.Equal(ready, slices.Concat([]string{}, running)) && len(m.c.serving()) == total
		})
		for i := range 3 {
			require.NoError(t, m.c.Remove(t.Context(), m.deployment(i, 0).Key))
		}
		m.until("empty", func() bool {
			return len(m.ray.left()) == 0 && len(m.c.records.deployments) == 0 && len(m.c.records.replicas) == 0
		})
		m.step(9)
		require.Empty(t, m.c.view.orders)
		require.Empty(t, m.c.view.tries)
		for _, s := range strangers {
			require.True(t, slices.Contains(m.ray.actors, s), "%s was touched", s.Name)
		}
		r, err := load(m.store)
		require.NoError(t, err)
		require.Empty(t, r.deployments)
		require.Empty(t, r.replicas)
	})
}

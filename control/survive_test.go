package control

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// dyingStore fails for good after a number of writes, as it looks to a process that is killed there.
type dyingStore struct {
	state.Store
	mu   sync.Mutex
	left int
}

var errDead = errors.New("killed")

func (s *dyingStore) Write(changes ...state.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return errDead
	}
	s.left--
	return s.Store.Write(changes...)
}

func (s *dyingStore) dead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left == 0
}

// TestKilledAtAnyWriteItConverges runs a life of a fleet over a store that dies at the n-th write, for each n,
// starts anew over what was written, and repeats the command that failed, as its user would.
func TestKilledAtAnyWriteItConverges(t *testing.T) {
	first := fleetFile(simModel("a", "2"), simModel("b", "1"))
	second := fleetFile(simModel("a", "3", "source: other"))
	for n := 1; ; n++ {
		died := true
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			bubble(t, func(b *bench) {
				t := b.t
				b.placer.Auto(true)
				b.withRouter()
				b.stop()
				store := &dyingStore{Store: b.store, left: n}
				b.store = store
				revive := func() {
					if store.dead() {
						b.stop()
						b.store = store.Store
						b.start()
					}
				}
				must := func(command func() error) {
					if err := command(); err != nil {
						require.ErrorIs(t, err, errDead)
						revive()
						require.NoError(t, command())
					}
					b.pass(20 * time.Second)
					revive()
				}
				b.start()
				apply := func(file string) func() error {
					return func() error {
						_, err := b.Apply(t.Context(), []byte(file), "test", false, false)
						return err
					}
				}
				must(apply(first))
				must(func() error { return b.Scale(t.Context(), "b", 2) })
				must(func() error { return b.Restart(t.Context(), "b") })
				must(apply(second))
				b.pass(2 * time.Minute)
				revive()
				b.pass(2 * time.Minute)
				died = b.store != state.Store(store)
				require.Equal(t, RolloutComplete, b.model("a").Rollout)
				require.Len(t, b.placer.Replicas(mobula.StateReady), 3)
				require.Len(t, b.placer.Replicas(), 3)
				deployments, err := b.placer.Deployments(t.Context(), "lab")
				require.NoError(t, err)
				require.Len(t, deployments, 1)
				require.Len(t, b.view().Models, 1)
			})
		})
		if t.Failed() || !died {
			require.Greater(t, n, 10, "the store was written to")
			return
		}
	}
}

func TestRestartKeepsWhatWasDecided(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(5 * time.Second)
		ids := b.replicas(mobula.StateReady)
		r.load(ids[1], 1)
		require.NoError(t, b.Drain(t.Context(), ids[1], true))
		b.pass(5 * time.Second)
		before, applies := b.view(), b.placer.Applies()
		events, err := b.Events(t.Context(), 0, false)
		require.NoError(t, err)
		b.stop()
		b.start()
		after := b.view()
		require.Equal(t, before.Control, after.Control)
		require.Equal(t, before.Generation, after.Generation)
		again, err := b.Events(t.Context(), 0, false)
		require.NoError(t, err)
		require.Len(t, again, len(events))
		b.pass(8 * time.Second)
		require.Equal(t, ids[1:2], b.replicas(mobula.StateDraining), "routers have not been heard for long enough")
		require.Equal(t, applies, b.placer.Applies(), "nothing is told twice")
		r.load(ids[1], 0)
		b.pass(8 * time.Second)
		require.Empty(t, b.replicas(mobula.StateDraining))
		require.Len(t, b.replicas(mobula.StateReady), 3)
		file, err := b.Fleet(t.Context())
		require.NoError(t, err)
		require.Equal(t, fleetFile(simModel("a", "2")), string(file))
	})
}

// Routers that have not found the control plane that takes over may have requests anywhere.
func TestWhoTakesOverWaitsForRouters(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.stop()
		b.found = 45 * time.Second
		b.start()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 1))
		b.pass(10 * time.Second)
		require.Len(t, b.placer.Replicas(), 1, "no control plane was there before the first one")
		require.NoError(t, b.Scale(t.Context(), "a", 2))
		b.pass(20 * time.Second)
		id := b.replicas(mobula.StateReady)[0]
		require.NoError(t, b.Drain(t.Context(), id, true))
		b.stop()
		b.start()
		b.pass(44 * time.Second)
		require.Equal(t, []string{id}, b.replicas(mobula.StateDraining))
		b.pass(10 * time.Second)
		require.Empty(t, b.replicas(mobula.StateDraining))
		require.Contains(t, b.reasons(), "Drained")
	})
}

func TestLostMemoryTakesOver(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		file := fleetFile(simModel("a", "2"))
		b.apply(fleetFile(simModel("a", "2"), simModel("gone", "1")))
		b.pass(20 * time.Second)
		require.NoError(t, b.Restart(t.Context(), "a"))
		b.pass(20 * time.Second)
		ids := b.model("a").Revision
		var kept []string
		for _, r := range b.placer.Replicas() {
			if r.Model == "a" {
				kept = append(kept, r.ID)
			}
		}
		b.stop()
		b.store = state.NewInMemory()
		b.start()
		b.apply(file)
		b.pass(30 * time.Second)
		require.Equal(t, ids, b.model("a").Revision)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
		require.Equal(t, kept, b.replicas(mobula.StateReady), "adopted as they are; the orphan is gone")
		require.Len(t, b.placer.Replicas(), 2)
	})
}

func TestUnavailablePlatformIsStaleAndNothingMoves(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		b.placer.Down(true)
		b.pass(3 * time.Second)
		b.apply(fleetFile(simModel("a", "3"), simModel("b", "1")))
		b.pass(time.Hour)
		v := b.view()
		require.Contains(t, v.Stale, "unavailable")
		require.Len(t, v.Replicas, 2, "what was known stays")
		require.Equal(t, 1, b.model("b").Wanted)
		require.Equal(t, RolloutProgressing, b.model("b").Rollout)
		require.Len(t, b.placer.Replicas(), 2)
		require.Contains(t, b.reasons(), "PlatformUnavailable")
		b.stop() // and killed meanwhile
		b.start()
		b.pass(5 * time.Second)
		b.placer.Down(false)
		b.pass(20 * time.Second)
		require.Empty(t, b.view().Stale)
		require.Equal(t, 3, b.model("a").Ready)
		require.Equal(t, 1, b.model("b").Ready)
	})
}

func TestApplyIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		file, source string
		want         error
		says         string
	}{
		"not a fleet":               {"nonsense: 1", "test", nil, "nonsense"},
		"a fleet of another name":   {strings.Replace(fleetFile(simModel("a", "2")), "lab", "other", 1), "test", ErrConflict, "fleet lab"},
		"fewer models from another": {fleetFile(simModel("a", "2")), "elsewhere", ErrConflict, "lacks b"},
		"one that can't fit": {
			fleetFile(simModel("a", "2", "source: x"), simModel("b", "1"), simModel("c", "1", "resources: {gpus: 64}")),
			"test", adapters.ErrImpossible, "model c",
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				t := b.t
				b.placer.Auto(true)
				b.apply(fleetFile(simModel("a", "2"), simModel("b", "1")))
				b.pass(20 * time.Second)
				before, replicas := b.view(), b.placer.Replicas()
				_, err := b.Apply(t.Context(), []byte(tc.file), tc.source, false, false)
				require.ErrorContains(t, err, tc.says)
				if tc.want != nil {
					require.ErrorIs(t, err, tc.want)
				} else {
					var bad *mobula.FileError
					require.ErrorAs(t, err, &bad)
				}
				b.pass(time.Minute)
				require.Equal(t, before.Generation, b.view().Generation)
				require.Equal(t, before.Models, b.view().Models)
				require.Equal(t, replicas, b.placer.Replicas(), "the running fleet is untouched")
			})
		})
	}
}

func TestForceReplacesTheFleet(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "2"), simModel("b", "1")))
		b.pass(20 * time.Second)
		file := []byte(strings.Replace(fleetFile(simModel("a", "1")), "lab", "other", 1))
		change, err := b.Apply(t.Context(), file, "test", true, true)
		require.NoError(t, err)
		require.Len(t, change.Warnings, 1)
		require.Equal(t, "lab", b.view().Fleet, "a dry run changes nothing")
		_, err = b.Apply(t.Context(), file, "test", false, true)
		require.NoError(t, err)
		b.pass(20 * time.Second)
		require.Equal(t, "other", b.view().Fleet)
		require.Equal(t, 1, b.model("a").Ready)
		require.Len(t, b.placer.Replicas(), 1)
		require.Len(t, b.view().Models, 1)
	})
}

func TestHistoryKeepsTheLastApplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 15 {
			b.apply(fleetFile(simModel("a", strconv.Itoa(i))))
		}
		all, err := b.History()
		require.NoError(t, err)
		require.Len(t, all, 10)
		require.Equal(t, int64(15), all[0].Generation)
		require.Equal(t, fleetFile(simModel("a", "14")), string(all[0].File))
	})
}

// latePlacer changes right after it has answered.
type latePlacer struct {
	*adapters.InMemoryPlacer
	change chan func() // nobody waits for it
}

func (p *latePlacer) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	all, err := p.InMemoryPlacer.Status(ctx, fleet)
	select {
	case change := <-p.change:
		change()
	default:
	}
	return all, err
}

func TestAChangeDuringARoundIsSeenInTheNext(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.stop()
		late := &latePlacer{b.placer, make(chan func(), 1)}
		b.wrap = late
		b.start()
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "1")))
		b.pass(20 * time.Second)
		id := b.replicas(mobula.StateReady)[0]
		for range 20 { // Run chooses at random among what wakes it
			late.change <- func() { b.placer.Suspect(id, "away"); b.wakeUp() }
			for len(late.change) > 0 {
				b.pass(100 * time.Millisecond)
			}
			b.pass(2 * time.Second)
			require.Equal(t, []string{id}, b.replicas(mobula.StateSuspect))
			b.placer.Ready(id)
			b.pass(20 * time.Second)
			require.Equal(t, []string{id}, b.replicas(mobula.StateReady))
		}
	})
}

// refusingStore refuses what is written while it is told to.
type refusingStore struct {
	state.Store
	mu  sync.Mutex
	why error
}

func (s *refusingStore) refuse(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why = why
}

func (s *refusingStore) Write(changes ...state.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return s.why
	}
	return s.Store.Write(changes...)
}

func TestNothingIsToldThatCouldNotBeWritten(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.stop()
		store := &refusingStore{Store: b.store}
		b.store = store
		b.start()
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(5 * time.Second)
		told := func() (all []Event) {
			events, err := b.Events(t.Context(), 0, false)
			require.NoError(t, err)
			return slices.DeleteFunc(events, func(e Event) bool { return e.Reason == "ReplicaReady" }) // as it is, whatever is written
		}
		complete := func() float64 { return testutil.ToFloat64(b.metrics.rollouts.WithLabelValues("a", "complete")) }
		before := told()

		store.refuse(errors.New("secrets are forbidden"))
		b.placer.Auto(true) // the rollout would be complete
		b.pass(20 * time.Second)
		require.Error(t, b.Scale(t.Context(), "a", 3))
		require.Error(t, b.Restart(t.Context(), "a"))
		require.Error(t, b.Delete(t.Context(), "a"))
		require.Error(t, b.Delete(t.Context(), ""))
		for range 3 {
			_, err := b.Apply(t.Context(), []byte(fleetFile(simModel("a", "1"))), "test", false, false)
			require.ErrorContains(t, err, "forbidden")
		}
		after := told()
		require.Len(t, after, len(before)+1)
		require.Equal(t, before, after[:len(before)])
		last := after[len(before)]
		require.Equal(t, "StateNotWritten", last.Reason)
		require.Contains(t, last.Message, "secrets are forbidden")
		require.True(t, last.Warning)
		require.Greater(t, last.Count, 7)
		require.Zero(t, complete())
		require.Equal(t, RolloutProgressing, b.model("a").Rollout)

		store.refuse(nil)
		b.pass(5 * time.Second)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
		require.InDelta(t, 1, complete(), 0)
		require.NoError(t, b.Scale(t.Context(), "a", 3))
		b.pass(20 * time.Second)
		require.Equal(t, 3, b.model("a").Ready)
		require.Contains(t, b.reasons(), "Scaled")
		b.stop()
		b.start()
		require.Contains(t, b.reasons(), "StateNotWritten")
	})
}

// smallStore holds so many bytes.
type smallStore struct {
	state.Store
	most int
}

func (s *smallStore) Write(changes ...state.Change) error {
	n, next := 0, map[string][]byte{}
	err := s.Each(bucket, func(key string, value []byte) error {
		next[key] = value
		return nil
	})
	for _, c := range changes {
		next[c.Key] = c.Value
	}
	for key := range next {
		n += len(next[key])
	}
	if n > s.most {
		err = state.ErrFull
	}
	if err != nil {
		return err
	}
	return s.Store.Write(changes...)
}

func TestAFullStoreKeepsWhatMatters(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.stop()
		b.store = &smallStore{b.store, 16 << 10}
		b.start()
		for i := range 60 {
			b.apply(fleetFile(simModel("a", strconv.Itoa(1+i%3)), simModel("b", "1", "source: x"+strconv.Itoa(i))))
			b.pass(time.Minute)
			require.Equal(t, 1+i%3, b.model("a").Ready)
			require.Equal(t, RolloutComplete, b.model("b").Rollout)
		}
		require.NotContains(t, b.reasons(), "StateNotWritten")
		before := b.view().Generation
		_, err := b.Apply(t.Context(), []byte(fleetFile(simModel("a", "2"), simModel("b", "1", "source: "+strings.Repeat("x", 16<<10)))), "test", false, false)
		require.ErrorIs(t, err, state.ErrFull)
		require.Contains(t, b.reasons(), "StateNotWritten")
		require.Equal(t, before, b.view().Generation)
		require.NoError(t, b.Scale(t.Context(), "a", 4), "the old state stays in use")
		b.pass(time.Minute)
		require.Equal(t, 4, b.model("a").Ready)
		b.stop()
		b.start()
		require.Equal(t, before, b.view().Generation)
	})
}

func TestWhatSomebodyElseTakesAwayIsMadeAgainAtOnce(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		held, err := b.placer.Deployments(t.Context(), "lab")
		require.NoError(t, err)
		require.Len(t, held, 1)
		require.NoError(t, b.placer.Remove(t.Context(), held[0].Key))
		b.pass(askEvery / 4)
		held, err = b.placer.Deployments(t.Context(), "lab")
		require.NoError(t, err)
		require.Len(t, held, 1, "the platform was asked before its time")
		require.Equal(t, 2, held[0].Replicas)
	})
}

package ray

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/state"
)

const patience = 60 * time.Second

// lab is a Cluster over a store and a Ray that outlive it.
type lab struct {
	*Cluster
	t     testing.TB
	ray   *fakeRay
	store *failingStore
	opts  Options
	end   func()
	skew  atomic.Int64 // of the Cluster's clock
}

// later has its clock go forward.
func (l *lab) later(d time.Duration) { l.skew.Add(int64(d)) }

func settings() mobula.Ray {
	return mobula.Ray{Address: "http://ray:8265", Poll: mobula.Duration(2 * time.Millisecond), Mode: "actors"}
}

func newLab(tb testing.TB, f *fakeRay, change ...func(*mobula.Ray)) *lab {
	tb.Helper()
	l := &lab{t: tb, ray: f, store: &failingStore{Store: state.NewInMemory()}}
	now := func() time.Time { return time.Now().Add(time.Duration(l.skew.Load())) }
	l.opts = Options{Now: now, Store: l.store, Control: "abcdefghij", Dial: func(mobula.Ray) (API, error) { return f, nil }}
	l.run()
	tb.Cleanup(func() { l.end() })
	r := settings()
	for _, c := range change {
		c(&r)
	}
	err := l.Configure(tb.Context(), "f", mobula.Platform{Ray: &r}, false)
	if err != nil {
		require.ErrorIs(tb, err, adapters.ErrUnavailable)
	}
	return l
}

// run starts the Cluster, again as after a kill.
func (l *lab) run() {
	l.t.Helper()
	if l.end != nil {
		l.end()
	}
	c, err := New(l.opts)
	require.NoError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	l.Cluster = c
	l.end = sync.OnceFunc(func() {
		cancel()
		require.ErrorIs(l.t, <-done, context.Canceled)
	})
}

func (l *lab) await(ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			all, err := l.Status(l.t.Context(), "f")
			require.FailNow(l.t, "it did not come", "status %+v, error %v, left %v", all, err, l.ray.left())
		}
	}
}

// status gives the replicas of fleet f.
func (l *lab) status() []mobula.Replica {
	l.t.Helper()
	var all []mobula.Replica
	l.await(func() bool {
		var err error
		all, err = l.Status(l.t.Context(), "f")
		if err != nil {
			require.ErrorIs(l.t, err, adapters.ErrUnavailable)
		}
		return err == nil
	})
	return all
}

// one waits until all replicas, which are n, are in a state, and gives them.
func (l *lab) all(n int, s mobula.State) (all []mobula.Replica) {
	l.t.Helper()
	l.await(func() bool {
		all = l.status()
		return len(all) == n && !slices.ContainsFunc(all, func(r mobula.Replica) bool { return r.State != s })
	})
	return all
}

func (l *lab) apply(d adapters.Deployment) {
	l.t.Helper()
	l.retry(func() error { return l.Apply(l.t.Context(), d) })
}

// retry does it until the cluster can be asked.
func (l *lab) retry(f func() error) {
	l.t.Helper()
	l.await(func() bool {
		err := f()
		if err != nil {
			require.ErrorIs(l.t, err, adapters.ErrUnavailable)
		}
		return err == nil
	})
}

func sim(name string) mobula.Model {
	m := mobula.NewModel(name)
	m.Engine.Kind = "sim"
	return m
}

func deployment(m mobula.Model, revision string, n int, drain ...string) adapters.Deployment {
	return adapters.Deployment{Key: adapters.Key{Fleet: "f", Model: m.Name, Revision: revision}, Model: m, Replicas: n, Drain: drain}
}

func ids(all []mobula.Replica) (ids []string) {
	for i := range all {
		ids = append(ids, all[i].ID)
	}
	return ids
}

var errDisk = errors.New("disk full")

// failingStore fails where a test wants.
type failingStore struct {
	state.Store
	mu     sync.Mutex
	writes int
	// fails tells whether the n-th write fails, and whether it has come true all the same.
	fails func(n int) (fail, kept bool)
}

func (s *failingStore) Write(changes ...state.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	fail, kept := false, true
	if s.fails != nil {
		fail, kept = s.fails(s.writes)
	}
	if fail && !kept {
		return errDisk
	}
	if err := s.Store.Write(changes...); err != nil {
		return err
	}
	if fail {
		return errDisk
	}
	return nil
}

func (s *failingStore) broken(f func(n int) (fail, kept bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes, s.fails = 0, f
}

func TestConformance(t *testing.T) {
	for _, mode := range []string{"actors", "jobs"} {
		t.Run(mode, func(t *testing.T) {
			conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
				tb.Helper()
				l := newLab(tb, newFakeRay(), func(r *mobula.Ray) { r.Mode = mode })
				impossible := sim("big")
				impossible.Resources.GPUs = new(9)
				return conformance.PlacerSubject{
					Placer: l.Cluster, Discoverer: l.Discoverer(), Model: sim("org/model-1"), Impossible: &impossible,
					Crash: l.ray.crash, Lose: l.ray.down, Running: l.ray.running,
					Restart: func() (adapters.Placer, adapters.Discoverer) {
						l.run()
						return l.Cluster, l.Discoverer()
					},
				}
			})
		})
	}
}

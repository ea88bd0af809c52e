package ray_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/ray"
	"github.com/mobula-serve/mobula/adapters/ray/raytest"
	"github.com/mobula-serve/mobula/state"
)

// placer runs Clusters over one store and one twin of a Ray cluster, one after the other.
type placer struct {
	*ray.Cluster
	t     testing.TB
	store state.Store
	end   func()
}

func (p *placer) start() {
	p.t.Helper()
	if p.end != nil {
		p.end()
	}
	c, err := ray.New(ray.Options{Store: p.store, Control: "abcdefghij"})
	require.NoError(p.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	p.Cluster = c
	p.end = sync.OnceFunc(func() {
		cancel()
		require.ErrorIs(p.t, <-done, context.Canceled)
	})
}

func section(twin *raytest.Cluster, mode string) *mobula.Ray {
	return &mobula.Ray{Address: twin.URL(), Namespace: "mobula", Mode: mode, Poll: mobula.Duration(10 * time.Millisecond)}
}

func newPlacer(tb testing.TB, twin *raytest.Cluster, mode string) *placer {
	tb.Helper()
	p := &placer{t: tb, store: state.NewInMemory()}
	p.start()
	tb.Cleanup(func() {
		p.end()
		require.NoError(tb, p.Configure(context.Background(), "nobody", mobula.Platform{}, false))
	})
	require.NoError(tb, p.Configure(tb.Context(), "conformance", mobula.Platform{Ray: section(twin, mode)}, false))
	return p
}

func simulated(name string) mobula.Model {
	m := mobula.NewModel(name)
	m.Engine.Kind = "sim"
	return m
}

func TestConformanceOverHTTP(t *testing.T) {
	for _, mode := range []string{"actors", "jobs"} {
		t.Run(mode, func(t *testing.T) {
			conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
				tb.Helper()
				twin := raytest.New(tb, raytest.Options{})
				p := newPlacer(tb, twin, mode)
				impossible := simulated("big")
				impossible.Resources.GPUs = new(9)
				return conformance.PlacerSubject{
					Placer: p.Cluster, Discoverer: p.Discoverer(), Model: simulated("org/model-1"), Impossible: &impossible,
					Crash: twin.Crash, Lose: twin.Down, Running: twin.Running,
					Restart: func() (adapters.Placer, adapters.Discoverer) {
						p.start()
						return p.Cluster, p.Discoverer()
					},
				}
			})
		})
	}
}

func TestNothingIsLeftAndNothingOfOthersIsTouched(t *testing.T) {
	for _, mode := range []string{"actors", "jobs"} {
		t.Run(mode, func(t *testing.T) {
			twin := raytest.New(t, raytest.Options{})
			twin.Foreign()
			ours := func() []string { // what others have is there too
				return slices.DeleteFunc(slices.Concat(twin.Actors(), twin.Groups(), twin.Jobs()), func(name string) bool { return !strings.Contains(name, "abcdefghij") })
			}
			p := newPlacer(t, twin, mode)
			wide := simulated("wide")
			wide.Resources.Hosts, wide.Resources.GPUs = 2, new(2)
			wait := func(ok func() bool) {
				t.Helper()
				require.Eventually(t, ok, time.Minute, 5*time.Millisecond)
			}
			for _, m := range []mobula.Model{simulated("one"), wide} {
				key := adapters.Key{Fleet: "conformance", Model: m.Name, Revision: "r"}
				wait(func() bool {
					err := p.Apply(t.Context(), adapters.Deployment{Key: key, Model: m, Replicas: 2})
					return err == nil || !errors.Is(err, adapters.ErrUnavailable)
				})
			}
			ready := func() (n int) {
				all, _ := p.Status(t.Context(), "conformance")
				for _, r := range all {
					if r.State == mobula.StateReady {
						n++
					}
				}
				return n
			}
			wait(func() bool { return ready() == 4 })
			twin.Interrupt(1) // the launcher that comes next dies half-way
			for _, name := range []string{"one", "wide"} {
				wait(func() bool {
					return p.Remove(t.Context(), adapters.Key{Fleet: "conformance", Model: name, Revision: "r"}) == nil
				})
			}
			wait(func() bool { return len(ours()) == 0 })
			require.Empty(t, twin.Touched())
			wait(func() bool {
				all, err := p.Status(t.Context(), "conformance")
				return err == nil && len(all) == 0
			})
		})
	}
}

func TestWrongClustersAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		options raytest.Options
		want    error
	}{
		"a token is missing": {raytest.Options{Token: "secret"}, ray.ErrDenied},
		"too old":            {raytest.Options{Version: "2.9.0"}, ray.ErrTooOld},
	} {
		t.Run(name, func(t *testing.T) {
			twin := raytest.New(t, tc.options)
			c, err := ray.New(ray.Options{Store: state.NewInMemory(), Control: "abcdefghij"})
			require.NoError(t, err)
			require.ErrorIs(t, c.Configure(t.Context(), "f", mobula.Platform{Ray: section(twin, "actors")}, false), tc.want)
			require.False(t, c.Configured())
		})
	}
}

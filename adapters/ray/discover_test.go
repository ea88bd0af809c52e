package ray

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/state"
)

// endpointsOf gives what a look at the fake finds.
func (f *fakeRay) endpointsOf(tb testing.TB) []mobula.Endpoint {
	tb.Helper()
	s, err := f.State(context.Background(), "mobula")
	require.NoError(tb, err)
	return published(s, "f", "")
}

func TestDiscoveryConformance(t *testing.T) {
	t.Run("without a control plane", func(t *testing.T) {
		conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
			tb.Helper()
			l := newLab(tb, newFakeRay())
			l.apply(deployment(sim("m"), "r", 2))
			l.all(2, mobula.StateReady)
			l.end()
			d, err := NewDiscovery("f", settings(), DiscoveryOptions{Dial: l.opts.Dial})
			require.NoError(tb, err)
			port := 100
			return conformance.Subject{Discoverer: d, Want: l.ray.endpointsOf(tb), Change: func(tb testing.TB) []mobula.Endpoint {
				tb.Helper()
				port++
				l.ray.set(func() {
					a := l.ray.actors[0]
					a.PID = port
					a.Repr = fmt.Sprintf(`mobula {"v":1,"url":"http://10.77.0.1:%d","fleet":"f","model":"m","revision":"r","replica":%q,"pid":%d}`, port, replicaOf(a.Name), port)
				})
				return l.ray.endpointsOf(tb)
			}}
		})
	})
	t.Run("of a cluster", func(t *testing.T) {
		conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
			tb.Helper()
			l := newLab(tb, newFakeRay())
			l.apply(deployment(sim("m"), "r", 2))
			id := l.all(2, mobula.StateReady)[0].ID
			want := l.ray.endpointsOf(tb)
			i := 0
			return conformance.Subject{Discoverer: l.Discoverer(), Want: want, Change: func(tb testing.TB) []mobula.Endpoint {
				tb.Helper()
				d := deployment(sim("m"), "r", 2)
				if i++; i%2 == 1 {
					d.Drain = []string{id}
				}
				l.apply(d)
				now := l.ray.endpointsOf(tb)
				for n := range now {
					now[n].Draining = i%2 == 1 && now[n].ID == id
				}
				return now
			}}
		})
	})
}

func TestDiscoveryOnlyLooks(t *testing.T) {
	one, two := newFakeRay(), newFakeRay()
	two.session = "two"
	a := newLab(t, one, func(r *mobula.Ray) { r.Owner = "a" })
	b := newLab(t, one, func(r *mobula.Ray) { r.Owner = "b" })
	a.apply(deployment(sim("m"), "r", 1))
	b.apply(deployment(sim("m"), "r", 1))
	foreign := deployment(sim("m"), "r", 1)
	foreign.Fleet = "another"
	b.apply(foreign)
	ofA, ofB := a.all(1, mobula.StateReady)[0], b.all(1, mobula.StateReady)[0]
	a.end()
	b.end()
	d, err := NewDiscovery("f", settings(), DiscoveryOptions{Dial: func(r mobula.Ray) (API, error) {
		if r.Address == "http://two" {
			return two, nil
		}
		return one, nil
	}})
	require.NoError(t, err)
	before := one.submissions
	one.down(true)
	up := make(chan []mobula.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx, up) }()
	select {
	case all := <-up:
		require.Fail(t, "nothing is known yet", "%v", all)
	case <-time.After(20 * time.Millisecond):
	}
	one.down(false)
	got := func(want ...mobula.Replica) {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case all := <-up:
				urls, wanted := map[string]string{}, map[string]string{}
				for _, e := range all {
					urls[e.ID] = e.URL
				}
				for _, r := range want {
					wanted[r.ID] = r.URL
				}
				if fmt.Sprint(urls) == fmt.Sprint(wanted) {
					return
				}
			case <-deadline:
				require.Fail(t, "it did not come")
			}
		}
	}
	got(ofA, ofB)
	r := settings()
	r.Owner = "a"
	require.NoError(t, d.Update("f", r))
	got(ofA)
	one.down(true)
	r.Address = "http://two"
	require.NoError(t, d.Update("f", r))
	got()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, before, one.submissions)
}

// BenchmarkRound is one look at a cluster of 200 nodes and 1,000 replicas, all as they should be.
func BenchmarkRound(b *testing.B) {
	for _, changed := range []bool{false, true} {
		b.Run(fmt.Sprintf("changed %t", changed), func(b *testing.B) {
			nodes := make([]Node, 200)
			for i := range nodes {
				nodes[i] = node(fmt.Sprintf("10.0.%d.%d", i/100, i%100), 64, 8)
			}
			f := newFakeRay(nodes...)
			c, err := New(Options{Store: state.NewInMemory(), Control: "abcdefghij", Dial: func(mobula.Ray) (API, error) { return f, nil }})
			require.NoError(b, err)
			r := settings()
			require.NoError(b, c.Configure(b.Context(), "f", mobula.Platform{Ray: &r}, false))
			look := func() {
				deeds, _ := c.round(b.Context())
				for _, d := range deeds {
					c.carry(b.Context(), d)
				}
			}
			look()
			m := sim("m")
			m.Resources.GPUs = new(1)
			for i := range 10 {
				d := deployment(m, fmt.Sprint("r", i), 100)
				require.NoError(b, c.Apply(b.Context(), d))
			}
			for len(f.running()) < 1000 {
				look()
			}
			for range 3 {
				look()
			}
			canned, err := f.State(b.Context(), "mobula")
			require.NoError(b, err)
			c.link = &link{ray: c.link.ray, owner: c.link.owner, serving: c.link.serving, api: &cannedRay{fakeRay: f, state: canned}}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if changed {
					canned.Actors = slices.Clone(canned.Actors)
					canned.Actors[n%1000].State = []string{"RESTARTING", "ALIVE"}[n/1000%2]
				}
				look()
			}
			require.Len(b, c.statuses, 1000)
		})
	}
}

// cannedRay has one State, so that a benchmark does not measure the fake.
type cannedRay struct {
	*fakeRay
	state *State
}

func (c *cannedRay) State(context.Context, string) (*State, error) {
	s := *c.state
	return &s, nil
}

var _ adapters.Discoverer = (*Discovery)(nil)

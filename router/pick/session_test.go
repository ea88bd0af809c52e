package pick

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func home(p Policy, g *Group, session string) (*Endpoint, string) {
	r := &Request{Model: g.Model, Session: session, Depth: 1}
	return p.Order(r, g, nil)[0], r.Reason
}

func TestSession(t *testing.T) {
	p := mustNew(t, "session")
	g := testGroup(0, 0, 0, 0)
	first, reason := home(p, g, "alice")
	require.Equal(t, "session", reason)
	for _, c := range []struct {
		name        string
		load, other int64
		stays       bool
		reason      string
	}{
		{"idle", 0, 0, true, "session"},
		{"a few more than the mean", 4, 0, true, "session"},
		{"many more than the mean", 20, 0, false, "overload"},
		{"all as loaded", 100, 100, true, "session"},
		{"within the factor", 120, 100, true, "session"},
		{"beyond the factor", 140, 100, false, "overload"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, e := range g.Endpoints {
				e.Live.InFlight.Store(c.other)
			}
			first.Live.InFlight.Store(c.load)
			got, reason := home(p, g, "alice")
			require.Equal(t, c.stays, got == first)
			require.Equal(t, c.reason, reason)
		})
	}
	t.Run("no session goes by load", func(t *testing.T) {
		got, reason := home(p, testGroup(3, 1, 2), "")
		require.Equal(t, "e1", got.ID)
		require.Equal(t, "load", reason)
	})
	t.Run("sessions spread", func(t *testing.T) {
		g := testGroup(0, 0, 0, 0)
		count := map[string]int{}
		for i := range 4000 {
			e, _ := home(p, g, fmt.Sprint("user-", i))
			count[e.ID]++
		}
		for id, n := range count {
			require.InDelta(t, 1000, n, 150, id)
		}
	})
}

// Row 5 of the defects of production-stack: alternating models rebuilt the ring each time.
func TestRow05AlternatingModelsCostNothing(t *testing.T) {
	p := mustNew(t, "session")
	a, b := testGroup(0, 0, 0), testGroup(0, 0, 0, 0, 0)
	b.Model = "other"
	x, _ := home(p, a, "s")
	y, _ := home(p, b, "s")
	for range 10 {
		gotA, _ := home(p, a, "s")
		gotB, _ := home(p, b, "s")
		require.Same(t, x, gotA)
		require.Same(t, y, gotB)
	}
}

func TestLosingAnEngineMovesOnlyItsSessions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := mustNew(t, "session")
		g := testGroup(make([]int64, rapid.IntRange(2, 12).Draw(t, "n"))...)
		lost := rapid.SampledFrom(g.Endpoints).Draw(t, "lost")
		less := &Group{Model: g.Model, Endpoints: slices.DeleteFunc(slices.Clone(g.Endpoints), func(e *Endpoint) bool { return e == lost })}
		seed := rapid.Uint64().Draw(t, "seed")
		for i := range 100 {
			id := fmt.Sprint(seed, i)
			all := p.Order(&Request{Session: id, Depth: 2}, g, nil)
			after, _ := home(p, less, id)
			if all[0] == lost { // to the one that a retry would have tried next
				require.Same(t, all[1], after)
			} else { // the other way round: a new engine takes only what it gets
				require.Same(t, all[0], after)
			}
		}
	})
}

// Row H6 of the defects of production-stack: its routers keep sessions in memory, each for itself.
func TestRowH6SessionsAreTheSameInEveryRouter(t *testing.T) {
	g := testGroup(0, 0, 0, 0, 0)
	other := testGroup(0, 0, 0, 0, 0)
	slices.Reverse(other.Endpoints) // as another router may have found them
	for i := range 200 {
		id := fmt.Sprint("user-", i)
		a, _ := home(mustNew(t, "session"), g, id)
		b, _ := home(mustNew(t, "session"), other, id)
		require.Equal(t, a.ID, b.ID)
	}
}

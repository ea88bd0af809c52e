package pick

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kv"
)

func TestPrefix(t *testing.T) {
	for _, c := range []struct {
		name   string
		held   int // blocks of the prompt's 6 that e1 holds
		loads  []int64
		want   string
		reason string
	}{
		{"nobody has it: least load", 0, []int64{1, 2, 0}, "e2", "load"},
		{"the one that has it", 6, []int64{0, 0, 0}, "e1", "prefix"},
		{"a part is better than nothing", 1, []int64{0, 0, 0}, "e1", "prefix"},
		{"outweighs two more in flight", 6, []int64{0, 2, 0}, "e1", "prefix"},
		{"does not outweigh four more", 6, []int64{9, 4, 0}, "e2", "load"},
		{"a short one does not outweigh one more", 1, []int64{9, 1, 0}, "e2", "load"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustNew(t, "prefix").(*prefix)
			g := testGroup(c.loads...)
			r := &Request{Model: testModel, Blocks: text(6, "w"), Tokens: 1600, Depth: 1, Explain: &Explanation{}}
			p.Sent(&Request{Blocks: r.Blocks[:c.held], Tokens: 1600}, g.Endpoints[1], &Ticket{})
			require.Equal(t, c.want, p.Order(r, g, nil)[0].ID)
			require.Equal(t, c.reason, r.Reason)
			require.InDelta(t, float64(c.held)/6.5, r.Explain.Scores[1].Hit, 0.01)
		})
	}
	t.Run("an engine at its bound is passed over however much it has", func(t *testing.T) {
		p := mustNew(t, "prefix").(*prefix)
		g := testGroup(0, 7, 0)
		r := &Request{Model: testModel, Blocks: text(60, "w"), Tokens: 15000, Depth: 3}
		p.Sent(r, g.Endpoints[1], &Ticket{})
		require.Equal(t, "e1", p.Order(r, g, nil)[2].ID)
	})
	t.Run("what failed is not counted on", func(t *testing.T) {
		p := mustNew(t, "prefix").(*prefix)
		g := testGroup(0, 0)
		r := &Request{Model: testModel, Blocks: text(6, "w"), Tokens: 1600, Depth: 1}
		var first, second Ticket
		p.Sent(&Request{Blocks: r.Blocks[:2], Tokens: 600}, g.Endpoints[0], &first)
		p.Done(&first, Outcome{OK: true, Completion: 1})
		p.Sent(r, g.Endpoints[0], &second)
		require.InDelta(t, 1600*2/6.5, second.Cached, 1)
		p.Done(&second, Outcome{Cached: -1})
		p.Done(&second, Outcome{Cached: -1}) // once more does nothing
		require.EqualValues(t, 2, p.engines.match(r)[p.engines.get(g.Endpoints[0]).slot].Blocks)
	})
	t.Run("engines that are gone are forgotten, their tickets harmless", func(t *testing.T) {
		p := mustNew(t, "prefix").(*prefix)
		g := testGroup(0, 0)
		r := &Request{Model: testModel, Blocks: text(6, "w"), Tokens: 1600, Depth: 1}
		var ticket Ticket
		p.Sent(r, g.Endpoints[0], &ticket)
		p.Keep(NewSnapshot(g.Endpoints[1:], nil, nil))
		p.Done(&ticket, Outcome{OK: true})
		p.Done(&Ticket{}, Outcome{})
		require.Len(t, p.engines.byID, 1)
		p.Keep(NewSnapshot(g.Endpoints, nil, nil))
		require.EqualValues(t, 0, p.engines.match(r)[p.engines.get(g.Endpoints[0]).slot].Blocks)
	})
}

func TestPrefixKeepsToTheBoundOfLoad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := mustNew(t, "prefix").(*prefix)
		loads := rapid.SliceOfN(rapid.Int64Range(0, 60), 1, 9).Draw(t, "loads")
		g := testGroup(loads...)
		r := &Request{Model: testModel, Blocks: text(40, "w"), Tokens: 10000, Depth: len(loads), Rand: rapid.Uint64().Draw(t, "rand")}
		for _, e := range g.Endpoints {
			p.Sent(&Request{Blocks: r.Blocks[:rapid.IntRange(0, 40).Draw(t, "held")], Tokens: 1}, e, &Ticket{})
		}
		order := p.Order(r, g, nil)
		limit := p.limit(g)
		require.Less(t, order[0].Live.InFlight.Load(), limit, "one is always below the bound")
		for i, e := range order[1:] {
			if order[i].Live.InFlight.Load() >= limit {
				require.GreaterOrEqual(t, e.Live.InFlight.Load(), limit, "those at their bound are last")
			}
		}
	})
}

func TestCapacityFollowsTheEngineAndTheTokens(t *testing.T) {
	s := newEngines(1 << 20)
	e := testEndpoint("e")
	e.CacheTokens = 10 * 256
	room := func(e *Endpoint) int { return int(s.index.Match(nil, nil)[s.get(e).slot].Room) }
	s.keep(NewSnapshot([]*Endpoint{e}, nil, nil))
	require.Equal(t, 10, room(e))
	grown := *e
	grown.CacheTokens = 20 * 256
	s.keep(NewSnapshot([]*Endpoint{&grown}, nil, nil))
	require.Equal(t, 20, room(e))
	for range 200 { // 512 tokens a block: half as many fit
		s.learn(s.get(e), make([]uint64, 8), Outcome{OK: true, Prompt: 512*8 + 256, Cached: -1})
	}
	require.InDelta(t, 10, room(e), 1)
	for range 200 { // an answer of 256 tokens each
		s.learn(s.get(e), nil, Outcome{OK: true, Completion: 256, Cached: -1})
	}
	require.Zero(t, room(e), "answers fill caches too")
	for range 1000 { // no engine says sense always
		s.learn(s.get(e), make([]uint64, 8), Outcome{OK: true, Prompt: 1 << 40, Cached: -1, Completion: -5})
	}
	require.LessOrEqual(t, s.blockTokens, float64(blockTokensMax))
}

func TestGroupsAreFollowed(t *testing.T) {
	s := newEngines(1 << 20)
	g := testGroup(0, 0)
	require.Len(t, s.of(g), 2)
	g.Endpoints = append(g.Endpoints, testEndpoint("late"))
	require.Len(t, s.of(g), 3, "a group that was changed")
	for range 2 * maxGroups {
		s.of(testGroup(0))
	}
	require.LessOrEqual(t, len(s.groups), maxGroups)
	s.keep(NewSnapshot([]*Endpoint{testEndpoint("x")}, []mobula.Model{{Name: "nobody serves it"}}, nil))
	require.Len(t, s.byID, 1)
	require.Len(t, s.groups, 1)
}

func TestFadeIsNearlyExponential(t *testing.T) {
	for _, c := range []struct {
		since time.Duration
		want  float64
	}{{-time.Second, 1}, {0, 1}, {time.Second, 0.905}, {10 * time.Second, 0.4}, {time.Hour, 0}} {
		require.InDelta(t, c.want, fade(c.since, 10*time.Second), 0.005, c.since)
	}
}

func TestLongPromptsAreCut(t *testing.T) {
	s := newEngines(kv.DefaultMemory)
	e := testEndpoint("e")
	s.insert(s.get(e), make([]uint64, 100_000))
	require.LessOrEqual(t, s.index.Len(), maxBlocks)
	require.Len(t, head(make([]uint64, 100_000)), maxBlocks)
}

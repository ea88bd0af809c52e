package pick

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kv"
)

const testModel = "m"

// testEndpoint is an engine that serves testModel with these many requests in flight.
func testEndpoint(id string, inFlight ...int64) *Endpoint {
	e := NewEndpoint(mobula.Endpoint{ID: id}, new(Live))
	e.Serving = true
	e.Cards = []mobula.Card{{ID: testModel}}
	for _, n := range inFlight {
		e.Live.InFlight.Add(n)
	}
	return e
}

// testGroup is a group of engines e0, e1, ... with these requests in flight.
func testGroup(inFlight ...int64) *Group {
	g := &Group{Model: testModel}
	for i, n := range inFlight {
		g.Endpoints = append(g.Endpoints, testEndpoint(fmt.Sprint("e", i), n))
	}
	return g
}

func ids(list []*Endpoint) (s []string) {
	for _, e := range list {
		s = append(s, e.ID)
	}
	return s
}

// text is the blocks of a text of n blocks that repeats a word.
func text(n int, word string) []uint64 {
	return kv.Blocks(nil, kv.Seed(word), 1, make([]byte, n))
}

func mustNew(t require.TestingT, name string) Policy {
	p, err := New(Options{Name: name, IndexMemory: 1 << 20})
	require.NoError(t, err)
	return p
}

// requireIdle checks that nothing is left of requests that are all done.
func requireIdle(t require.TestingT, p Policy, endpoints []*Endpoint) {
	for _, e := range endpoints {
		require.Zero(t, e.Live.InFlight.Load())
	}
	c, ok := p.(*cost)
	if !ok {
		return
	}
	require.Len(t, c.attempts.free, max(0, len(c.attempts.list)-1))
	for id, n := range c.engines.byID {
		require.Zero(t, n.load.queued, id)
		require.Zero(t, n.load.active, id)
		require.Equal(t, chain{}, n.load.queue, id)
		require.Equal(t, chain{}, n.load.plain, id)
	}
}

func TestNew(t *testing.T) {
	for _, name := range Names() {
		p, err := New(Options{Name: name})
		require.NoError(t, err)
		require.NotNil(t, p, name)
	}
	p, err := New(Options{})
	require.NoError(t, err)
	require.IsType(t, (*cost)(nil), p, "the default")
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"unknown name lists the known ones", Options{Name: "magic"}, `policy "magic" is unknown; known are cost, roundrobin, random, p2c, leastload, session, prefix`},
		{"load factor below 1", Options{Name: "session", LoadFactor: 0.5}, "load factor 0.5 of policy session is below 1"},
		{"negative memory", Options{Name: "cost", IndexMemory: -1}, "index memory -1 of policy cost is negative"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(c.o)
			require.EqualError(t, err, c.want)
		})
	}
}

func TestEveryPolicyOrdersDistinctEndpointsOfTheGroup(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				p := mustNew(t, name)
				g := testGroup(rapid.SliceOfN(rapid.Int64Range(0, 50), 1, 20).Draw(t, "in flight")...)
				for range rapid.IntRange(1, 10).Draw(t, "requests") {
					x := &Explanation{}
					r := &Request{
						Model: testModel, Tokens: rapid.IntRange(1, 1<<20).Draw(t, "tokens"), Rand: rapid.Uint64().Draw(t, "rand"),
						Depth: rapid.IntRange(0, 25).Draw(t, "depth"), Now: time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "now")),
						Session: rapid.StringN(0, 3, -1).Draw(t, "session"), Blocks: text(rapid.IntRange(0, 5).Draw(t, "blocks"), "w"),
						Stream: rapid.Bool().Draw(t, "stream"), Explain: x,
					}
					before := testEndpoint("before")
					got := p.Order(r, g, []*Endpoint{before})
					require.Same(t, before, got[0], "dst is appended to")
					got = got[1:]
					require.Len(t, got, min(max(1, r.Depth), len(g.Endpoints)))
					for i, e := range got {
						require.Contains(t, g.Endpoints, e)
						require.NotContains(t, got[:i], e)
					}
					require.NotEmpty(t, r.Reason)
					require.Equal(t, name, x.Policy)
					require.Equal(t, ids(g.Endpoints), scored(x))
					for _, s := range x.Scores {
						require.False(t, s.Hit < 0 || s.Hit > 1, s.Hit)
					}
					r.Explain = nil
					if o, ok := p.(Observer); ok && rapid.Bool().Draw(t, "send") {
						o.Sent(r, got[len(got)-1], &Ticket{})
					}
				}
			})
		})
	}
}

func scored(x *Explanation) (s []string) {
	for _, c := range x.Scores {
		s = append(s, c.Endpoint)
	}
	return s
}

func TestNoPolicyAllocates(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			p := mustNew(t, name)
			g := testGroup(make([]int64, 64)...)
			o, _ := p.(Observer)
			r := &Request{Model: testModel, Session: "s", Blocks: text(8, "w"), Tokens: 2048, Depth: 3, Stream: true}
			dst := make([]*Endpoint, 0, 8)
			var ticket Ticket
			rnd := rand.New(rand.NewPCG(1, 2))
			run := func() {
				r.Rand = rnd.Uint64()
				r.Now += time.Millisecond
				dst = p.Order(r, g, dst[:0])
				if o == nil {
					return
				}
				ticket = Ticket{}
				o.Sent(r, dst[0], &ticket)
				o.First(&ticket, r.Now)
				o.Done(&ticket, Outcome{Now: r.Now, OK: true, Prompt: 2048, Completion: 10})
			}
			for range 200 { // engines, records and index chunks are made once
				run()
			}
			require.Zero(t, testing.AllocsPerRun(200, run))
		})
	}
}

// draws are the first choices of n requests.
func draws(p Policy, g *Group, n int) map[string]int {
	count := map[string]int{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range n {
		r := &Request{Model: g.Model, Tokens: 1, Rand: rnd.Uint64(), Depth: 1}
		count[p.Order(r, g, nil)[0].ID]++
	}
	return count
}

func BenchmarkPolicy(b *testing.B) {
	for _, name := range Names() {
		for _, engines := range []int{4, 64, 1000} {
			for _, c := range []struct {
				name   string
				blocks int
				unique bool
			}{{"noblocks", 0, false}, {"same", 32, false}, {"unique", 32, true}} {
				if c.blocks > 0 && !slices.Contains([]string{"cost", "prefix"}, name) {
					continue
				}
				b.Run(fmt.Sprintf("%s/%d/%s", name, engines, c.name), func(b *testing.B) {
					benchmarkPolicy(b, name, engines, c.blocks, c.unique)
				})
			}
		}
	}
}

func benchmarkPolicy(b *testing.B, name string, engines, blocks int, unique bool) {
	b.Helper()
	p, err := New(Options{Name: name})
	require.NoError(b, err)
	var list []*Endpoint
	for i := range engines {
		e := testEndpoint(fmt.Sprint("http://10.0.0.", i, ":8000"))
		e.CacheTokens = 500_000
		list = append(list, e)
	}
	s := NewSnapshot(list, nil, nil)
	g := s.Lookup(testModel)
	o, _ := p.(Observer)
	if o != nil {
		o.Keep(s)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	r := &Request{Model: testModel, Session: "user-1", Tokens: 8000, Depth: 3, Stream: true}
	r.Blocks = text(blocks, "w")
	dst := make([]*Endpoint, 0, 8)
	var open [16]Ticket // in flight
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		r.Rand = rnd.Uint64()
		r.Now += 5 * time.Millisecond
		if unique {
			for i := range r.Blocks {
				r.Blocks[i] = mix(r.Rand + uint64(i))
			}
		}
		dst = p.Order(r, g, dst[:0])
		if o == nil {
			continue
		}
		t := &open[n%len(open)]
		n++
		if t.Endpoint != nil {
			t.Endpoint.Live.InFlight.Add(-1)
			o.First(t, r.Now)
			o.Done(t, Outcome{Now: r.Now, OK: true, Prompt: 8000, Cached: t.Cached, Completion: 100})
		}
		*t = Ticket{}
		dst[0].Live.InFlight.Add(1)
		o.Sent(r, dst[0], t)
	}
}

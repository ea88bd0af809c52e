package pick

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func providerOf(id, kind string, order int, models ...string) *Endpoint {
	e := NewEndpoint(mobula.Endpoint{ID: id, Models: models, Provider: &mobula.ProviderTarget{Kind: kind, Order: order, InFlight: 10, SpillAfter: 10 * time.Second}}, &Live{})
	e.Serving = true
	for _, m := range models {
		e.Cards = append(e.Cards, mobula.Card{ID: m})
	}
	return e
}

func engineOf(id string, models ...string) *Endpoint {
	e := NewEndpoint(mobula.Endpoint{ID: id}, &Live{})
	e.Serving = true
	for _, m := range models {
		e.Cards = append(e.Cards, mobula.Card{ID: m, Raw: []byte("{}")})
	}
	return e
}

func idsOf(list []*Endpoint) []string {
	names := []string{}
	for _, e := range list {
		names = append(names, e.ID)
	}
	return names
}

// fixed is a policy with an estimate: engines in the order of the group.
type fixed struct{ wait time.Duration }

func (fixed) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	r.Reason = "load"
	return circle(dst, len(dst), g, 0, r.Depth)
}
func (fixed) Needs() Needs                                           { return Needs{} }
func (f fixed) Soonest(*Request, *Group) time.Duration               { return f.wait }
func (fixed) Queue(string, time.Duration) (w int, r float64, k bool) { return 0, 0, false }

func TestOrderWithProviders(t *testing.T) {
	spill := func(e *Endpoint) *Endpoint {
		e.Provider.Spill = true
		return e
	}
	ejected := func(e *Endpoint) *Endpoint {
		e.Serving = false
		return e
	}
	full := func(e *Endpoint) *Endpoint {
		e.Live.InFlight.Store(10)
		return e
	}
	a, b, c := engineOf("a", "m"), engineOf("b", "m"), engineOf("c", "m")
	for name, tc := range map[string]struct {
		all    []*Endpoint
		wait   time.Duration
		depth  int
		want   []string
		reason string
	}{
		"engines come first":           {[]*Endpoint{providerOf("0", "openai", 0, "m"), a, b}, time.Hour, 5, []string{"a", "b", "0"}, "load"},
		"the fleet's order":            {[]*Endpoint{providerOf("0", "openai", 1, "m"), providerOf("1", "openai", 0, "m"), a}, 0, 5, []string{"a", "1", "0"}, "load"},
		"the last place":               {[]*Endpoint{providerOf("0", "openai", 0, "m"), a, b, c}, 0, 3, []string{"a", "b", "0"}, "load"},
		"one place is the engine's":    {[]*Endpoint{providerOf("0", "openai", 0, "m"), a}, 0, 1, []string{"a"}, "load"},
		"busy":                         {[]*Endpoint{providerOf("0", "openai", 0, "m"), spill(providerOf("1", "openai", 1, "m")), a, b}, time.Minute, 4, []string{"1", "a", "b", "0"}, reasonSpill},
		"busy, and one place":          {[]*Endpoint{spill(providerOf("1", "openai", 1, "m")), a}, time.Minute, 1, []string{"1"}, reasonSpill},
		"not so busy":                  {[]*Endpoint{spill(providerOf("1", "openai", 1, "m")), a}, 10 * time.Second, 3, []string{"a", "1"}, "load"},
		"full":                         {[]*Endpoint{full(spill(providerOf("1", "openai", 1, "m"))), a}, time.Minute, 3, []string{"a"}, "load"},
		"no engine":                    {[]*Endpoint{providerOf("0", "openai", 0, "m"), providerOf("1", "azure", 1, "m")}, 0, 3, []string{"0"}, reasonFallback},
		"no engine and none that fits": {[]*Endpoint{providerOf("1", "azure", 1, "m")}, 0, 3, []string{}, reasonFallback},
		"ejected engines come last":    {[]*Endpoint{providerOf("0", "openai", 0, "m"), ejected(engineOf("a", "m"))}, 0, 3, []string{"0", "a"}, reasonFallback},
		"ejected providers are left":   {[]*Endpoint{ejected(providerOf("0", "openai", 0, "m")), a}, 0, 3, []string{"a"}, "load"},
		"ejected, but nothing else":    {[]*Endpoint{ejected(providerOf("0", "openai", 0, "m"))}, 0, 3, []string{"0"}, reasonFallback},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewSnapshot(tc.all, nil, nil).Lookup("m")
			r := &Request{Model: "m", Tokens: 1, Depth: tc.depth, Kinds: []string{"openai"}}
			require.Equal(t, tc.want, idsOf(Order(fixed{tc.wait}, r, g, nil)))
			require.Equal(t, tc.reason, r.Reason)
			require.Equal(t, tc.depth, r.Depth)
		})
	}
}

// TestProvidersNeverGoBeforeEngines: whatever the policy and the fleet, a provider stands before an engine
// that serves only if it spills; nobody is there twice, none that is full, and engines are not lost.
func TestProvidersNeverGoBeforeEngines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, err := New(Options{Name: rapid.SampledFrom(Names()).Draw(t, "policy")})
		require.NoError(t, err)
		var all []*Endpoint
		engines, takers := 0, 0
		for i := range rapid.IntRange(0, 5).Draw(t, "engines") {
			e := engineOf(fmt.Sprintf("e%d", i), "m")
			e.Serving = rapid.Bool().Draw(t, "serving")
			e.Live.InFlight.Store(rapid.Int64Range(0, 20).Draw(t, "load"))
			e.Live.Waiting.Store(rapid.Int64Range(0, 2).Draw(t, "waiting"))
			e.Live.TTFT.Store(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "ttft"))
			if e.Serving {
				engines++
			}
			all = append(all, e)
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "providers") {
			e := providerOf(fmt.Sprintf("p%d", i), rapid.SampledFrom([]string{"openai", "azure", "anthropic"}).Draw(t, "kind"), i, "m")
			e.Provider.Spill = rapid.Bool().Draw(t, "spill")
			e.Live.InFlight.Store(rapid.SampledFrom([]int64{0, 9, 10, 11}).Draw(t, "load"))
			if e.Provider.Kind != "azure" && e.Live.InFlight.Load() < 10 {
				takers++
			}
			all = append(all, e)
		}
		g := NewSnapshot(all, []mobula.Model{{Name: "m"}}, nil).Lookup("m")
		r := &Request{Model: "m", Tokens: 10, Now: time.Hour, Rand: rapid.Uint64().Draw(t, "rand"), Depth: rapid.IntRange(1, 8).Draw(t, "depth"), Kinds: []string{"openai", "anthropic"}}
		list := Order(p, r, g, nil)
		require.LessOrEqual(t, len(list), r.Depth)
		require.Equal(t, len(list) > 0, len(g.Endpoints)+takers > 0)
		last := -1 // the last place of an engine that serves
		for i, e := range list {
			require.Equal(t, i, slices.Index(list, e), "twice")
			if e.Provider == nil && e.Serving {
				last = i
			}
		}
		order := -1
		for i, e := range list {
			if e.Provider == nil {
				order = -1
				continue
			}
			require.Contains(t, r.Kinds, e.Provider.Kind)
			require.Less(t, e.Live.InFlight.Load(), int64(10))
			require.Greater(t, e.Provider.Order, order, "in the fleet's order")
			order = e.Provider.Order
			if i < last {
				require.True(t, e.Provider.Spill)
				require.Equal(t, reasonSpill, r.Reason)
			}
		}
		if engines > 0 && takers == 0 {
			require.Nil(t, list[0].Provider)
			require.Len(t, list, min(r.Depth, engines))
		}
	})
}

func TestPlacedModelsAndTheirLoRAsAreKnown(t *testing.T) {
	m := mobula.NewModel("m")
	m.Replicas = &mobula.Range{}
	m.Aliases = []string{"alias"}
	m.LoRAs = []mobula.LoRA{{Name: "lora"}}
	s := NewSnapshot(nil, []mobula.Model{m, mobula.NewModel("other")}, nil)
	for name, base := range map[string]string{"m": "m", "alias": "m", "lora": "m"} {
		g := s.Lookup(name)
		require.True(t, g.Placed && g.Offered(), name)
		require.Equal(t, base, g.Base)
		require.Equal(t, 1000, g.Held)
		require.Equal(t, 10*time.Minute, g.HeldFor)
		require.False(t, g.Serves([]string{"openai"}))
	}
	require.False(t, s.Lookup("other").Offered())

	e := engineOf("a", "m")
	g := NewSnapshot([]*Endpoint{e}, []mobula.Model{m}, nil).Lookup("m")
	require.True(t, g.Serves(nil))
	e.Live.Ejected.Store(true) // the snapshot does not say so yet
	require.False(t, g.Serves(nil))
	e.Live.Ejected.Store(false)
	e.Live.Draining.Store(true)
	require.False(t, g.Serves(nil))
}

func TestAnEnginesCardIsShownBeforeAProviders(t *testing.T) {
	s := NewSnapshot([]*Endpoint{providerOf("0", "openai", 0, "m"), engineOf("a", "m")}, nil, nil)
	require.NotEmpty(t, s.Lookup("m").Card.Raw)
}

func TestCostTellsWhatWaits(t *testing.T) {
	p := newCost(0)
	e := engineOf("a", "m")
	g := NewSnapshot([]*Endpoint{e}, nil, nil).Lookup("m")
	_, _, known := p.Queue("a", 0)
	require.False(t, known)
	idle := p.Soonest(&Request{Tokens: 1000}, g)
	require.Positive(t, idle)
	var tickets [3]Ticket
	for i := range tickets {
		p.Sent(&Request{Tokens: 1000, Stream: true}, e, &tickets[i])
	}
	waiting, rate, known := p.Queue("a", 0)
	require.True(t, known)
	require.Equal(t, 3000, waiting)
	require.Zero(t, rate, "it has not been seen at work")
	require.Greater(t, p.Soonest(&Request{Tokens: 1000}, g), 3*idle)
	for i := range tickets {
		now := time.Duration(i+1) * time.Second
		p.First(&tickets[i], now)
		p.Done(&tickets[i], Outcome{Now: now, OK: true, Cached: -1})
	}
	waiting, rate, _ = p.Queue("a", 3*time.Second)
	require.Zero(t, waiting)
	require.Positive(t, rate)
}

func TestTTFTIsARunningMean(t *testing.T) {
	l := &Live{}
	l.Observe(time.Second)
	require.EqualValues(t, time.Second, l.TTFT.Load())
	for range 100 {
		l.Observe(2 * time.Second)
	}
	require.InDelta(t, 2*time.Second, l.TTFT.Load(), float64(time.Millisecond))
}

// BenchmarkOrderWithProviders is the part of a pick that providers add.
func BenchmarkOrderWithProviders(b *testing.B) {
	for _, providers := range []int{0, 3} {
		b.Run(strconv.Itoa(providers), func(b *testing.B) {
			all := []*Endpoint{engineOf("a", "m"), engineOf("b", "m")}
			for i := range providers {
				all = append(all, providerOf(strconv.Itoa(i), "openai", i, "m"))
			}
			g := NewSnapshot(all, nil, nil).Lookup("m")
			p, r := newCost(0), &Request{Model: "m", Tokens: 100, Depth: 3, Kinds: []string{"openai"}}
			dst := make([]*Endpoint, 0, 8)
			b.ReportAllocs()
			for b.Loop() {
				dst = Order(p, r, g, dst[:0])
			}
		})
	}
}

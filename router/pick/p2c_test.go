package pick

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestP2C(t *testing.T) {
	for _, c := range []struct {
		name   string
		loads  []int64
		tokens []int64
		want   string
	}{
		{"only one", []int64{5}, nil, "e0"},
		{"fewer in flight", []int64{5, 4}, nil, "e1"},
		{"fewer in flight, though of more tokens", []int64{4, 5}, []int64{100, 0}, "e0"},
		{"as many, fewer tokens", []int64{4, 4}, []int64{100, 10}, "e1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := testGroup(c.loads...)
			for i, n := range c.tokens {
				g.Endpoints[i].Live.Tokens.Store(n)
			}
			require.Equal(t, map[string]int{c.want: 50}, draws(p2c{}, g, 50))
		})
	}
}

func TestP2CNeverTakesTheWorst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := rapid.SliceOfNDistinct(rapid.Int64Range(0, 100), 2, 10, rapid.ID[int64]).Draw(t, "loads")
		g := testGroup(loads...)
		r := &Request{Rand: rapid.Uint64().Draw(t, "rand"), Depth: rapid.IntRange(1, 10).Draw(t, "depth")}
		got := p2c{}.Order(r, g, nil)
		worse := 0
		for _, n := range loads {
			if n > got[0].Live.InFlight.Load() {
				worse++
			}
		}
		require.Positive(t, worse)
		if len(got) > 1 {
			require.Less(t, got[0].Live.InFlight.Load(), got[1].Live.InFlight.Load())
		}
	})
}

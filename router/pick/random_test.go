package pick

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRandomTakesEachAsOften(t *testing.T) {
	for _, c := range []struct {
		name string
		g    *Group
	}{
		{"one", testGroup(0)},
		{"three, loads don't matter", testGroup(0, 100, 3)},
		{"seven", testGroup(0, 0, 0, 0, 0, 0, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := len(c.g.Endpoints)
			for id, got := range draws(random{}, c.g, 1000*n) {
				require.InDelta(t, 1000, got, 150, id)
			}
		})
	}
}

func TestRandomIsAFunctionOfItsBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := testGroup(make([]int64, rapid.IntRange(1, 9).Draw(t, "n"))...)
		r := &Request{Rand: rapid.Uint64().Draw(t, "rand"), Depth: 4}
		first := ids(random{}.Order(r, g, nil))
		again := ids(random{}.Order(r, g, nil))
		require.Equal(t, first, again)
		require.Equal(t, "random", r.Reason)
	})
}

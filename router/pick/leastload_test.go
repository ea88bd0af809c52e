package pick

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLeastLoad(t *testing.T) {
	for _, c := range []struct {
		name  string
		loads []int64
		depth int
		want  []string
	}{
		{"one", []int64{7}, 3, []string{"e0"}},
		{"sorted", []int64{3, 1, 2}, 3, []string{"e1", "e2", "e0"}},
		{"only as deep as asked", []int64{3, 1, 2, 0}, 2, []string{"e3", "e1"}},
		{"deeper than usual", []int64{9, 8, 7, 6, 5, 4, 3, 2, 1, 0}, 10, []string{"e9", "e8", "e7", "e6", "e5", "e4", "e3", "e2", "e1", "e0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, ids(leastLoad{}.Order(&Request{Depth: c.depth}, testGroup(c.loads...), nil)))
		})
	}
	t.Run("equal ones share", func(t *testing.T) {
		for id, n := range draws(leastLoad{}, testGroup(1, 9, 1, 1), 3000) {
			require.NotEqual(t, "e1", id)
			require.InDelta(t, 1000, n, 150, id)
		}
	})
}

func TestLeastLoadIsSorted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := rapid.SliceOfN(rapid.Int64Range(0, 9), 1, 20).Draw(t, "loads")
		r := &Request{Rand: rapid.Uint64().Draw(t, "rand"), Depth: rapid.IntRange(1, 20).Draw(t, "depth")}
		var got []int64
		for _, e := range (leastLoad{}).Order(r, testGroup(loads...), nil) {
			got = append(got, e.Live.InFlight.Load())
		}
		slices.Sort(loads)
		require.Equal(t, loads[:len(got)], got)
	})
}

package sim

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const testBlock = 4

func tokens(k *kvState, ids ...int32) *kvState {
	for _, id := range ids {
		k.add(id, testBlock)
	}
	return k
}

func run(n int, first int32) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = first + int32(i)
	}
	return out
}

func TestCacheFindsTheLongestPrefix(t *testing.T) {
	tests := []struct {
		name  string
		held  []int32
		asked []int32
		found int
	}{
		{"nothing held", nil, run(8, 0), 0},
		{"the same, but for the last block", run(8, 0), run(8, 0), 4},
		{"longer than held", run(8, 0), run(20, 0), 8},
		{"same beginning", run(8, 0), append(run(4, 0), 90, 91, 92, 93, 94), 4},
		{"same block elsewhere", run(8, 0), append(run(4, 50), run(8, 4)...), 0},
		{"not a whole block", run(7, 0), run(7, 0), 4},
		{"one token more than a block", run(9, 0), run(9, 0), 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCache(16)
			held := tokens(&kvState{}, tt.held...)
			if len(tt.held) > 0 {
				_, ok := c.reserve(held, testBlock)
				require.True(t, ok)
				c.publish(held, 0)
				c.drop(held)
			}
			found, ok := c.reserve(tokens(&kvState{}, tt.asked...), testBlock)
			require.True(t, ok)
			require.Equal(t, tt.found, found)
		})
	}
}

func TestCacheEvictsWhatWasUnusedLongestAndNothingInUse(t *testing.T) {
	c := newCache(4)
	use := func(first int32, keep bool) (*kvState, int) {
		k := tokens(&kvState{}, run(5, first)...)
		found, ok := c.reserve(k, testBlock)
		require.True(t, ok)
		c.publish(k, 0)
		if !keep {
			c.drop(k)
		}
		return k, found
	}
	pinned, _ := use(100, true) // 2 blocks
	use(200, false)
	use(300, false) // evicts 200
	_, found := use(300, false)
	require.Equal(t, 4, found)
	_, found = use(200, false)
	require.Zero(t, found, "evicted")
	_, ok := c.reserve(tokens(&kvState{}, run(9, 400)...), testBlock)
	require.False(t, ok, "3 blocks don't fit beside those in use")
	c.drop(pinned)
	_, found = use(100, false)
	require.Equal(t, 4, found, "still there after its end")
}

// The cache agrees with what its blocks say, whatever happens to it.
func TestCacheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 12
		c := newCache(size)
		var live []*kvState
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				k := tokens(&kvState{}, rapid.SliceOfN(rapid.Int32Range(1, 2), 1, 30).Draw(t, "ids")...)
				if _, ok := c.reserve(k, testBlock); ok {
					c.publish(k, 0)
					live = append(live, k)
				}
			},
			"grow": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("none")
				}
				k := live[rapid.IntRange(0, len(live)-1).Draw(t, "i")]
				full := len(k.hashes)
				if c.grow(k, testBlock) {
					k.add(rapid.Int32Range(1, 2).Draw(t, "id"), testBlock)
					c.publish(k, full)
				}
			},
			"drop": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "i")
				c.drop(live[i])
				live = append(live[:i], live[i+1:]...)
			},
			"reset": func(*rapid.T) { c.reset() },
			"": func(t *rapid.T) {
				refs := map[*block]int{}
				for _, k := range live {
					require.GreaterOrEqual(t, len(k.blocks)*testBlock, k.tokens)
					for _, b := range k.blocks {
						refs[b]++
					}
				}
				free := 0
				for b := c.root.next; b != &c.root; b = b.next {
					require.Zero(t, refs[b], "a block in use is free")
					free++
				}
				require.Equal(t, c.free, free)
				require.Equal(t, size, free+len(refs))
				for i := range c.blocks {
					b := &c.blocks[i]
					require.Equal(t, refs[b], b.refs)
					if b.hash != 0 {
						require.Same(t, b, c.hashed[b.hash])
					}
				}
				for h, b := range c.hashed {
					require.Equal(t, h, b.hash)
				}
			},
		})
	})
}

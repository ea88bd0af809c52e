package kv

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// prompt makes n chained blocks; prompts with equal beginnings of words share them.
func prompt(words ...byte) []uint64 { return Blocks(nil, 1, 1, words) }

func held(x *Index, e Engine, blocks []uint64) int { return int(x.Match(blocks, nil)[e].Blocks) }

func TestIndex(t *testing.T) {
	t.Run("longest prefix of each engine", func(t *testing.T) {
		x := NewIndex(0)
		a, b, c := x.Add(0), x.Add(0), x.Add(0)
		require.Equal(t, 0, x.Insert(a, prompt(1, 2, 3, 4)))
		require.Equal(t, 0, x.Insert(b, prompt(1, 2, 9)))
		require.Equal(t, 2, x.Insert(a, prompt(1, 2, 7)))
		got := x.Match(prompt(1, 2, 3, 5), nil)
		require.Equal(t, []int32{3, 2, 0}, []int32{got[a].Blocks, got[b].Blocks, got[c].Blocks})
	})
	t.Run("tails go first", func(t *testing.T) {
		x := NewIndex(0)
		e := x.Add(4)
		x.Insert(e, prompt(1, 2, 3))
		x.Insert(e, prompt(7, 8))
		require.Equal(t, 2, held(x, e, prompt(1, 2, 3)))
		require.Equal(t, 2, held(x, e, prompt(7, 8)))
		x.Insert(e, prompt(1)) // used again: 7, 8 are older now than 1, but 2 is older still
		x.Insert(e, prompt(9, 10))
		require.Equal(t, 1, held(x, e, prompt(1, 2, 3)))
		require.Equal(t, 1, held(x, e, prompt(7, 8)))
	})
	t.Run("prompt larger than the engine keeps its head", func(t *testing.T) {
		x := NewIndex(0)
		e := x.Add(2)
		x.Insert(e, prompt(1, 2, 3, 4, 5))
		require.Equal(t, 2, held(x, e, prompt(1, 2, 3, 4, 5)))
	})
	t.Run("resize", func(t *testing.T) {
		x := NewIndex(0)
		e := x.Add(0)
		x.Insert(e, prompt(1, 2, 3, 4))
		require.EqualValues(t, math.MaxInt32, x.Match(nil, nil)[e].Room)
		x.Resize(e, 6)
		require.EqualValues(t, 2, x.Match(nil, nil)[e].Room)
		x.Resize(e, 2)
		x.Insert(e, nil)
		require.Equal(t, 2, held(x, e, prompt(1, 2, 3, 4)))
		require.EqualValues(t, 0, x.Match(nil, nil)[e].Room)
	})
	t.Run("removed engine's number comes back empty", func(t *testing.T) {
		x := NewIndex(0)
		a, b := x.Add(0), x.Add(0)
		x.Insert(a, prompt(1, 2, 3))
		x.Remove(a)
		x.Insert(b, prompt(4))
		require.Equal(t, 1, x.Len())
		c := x.Add(0)
		require.Equal(t, a, c)
		require.Equal(t, 0, held(x, c, prompt(1, 2, 3)))
		x.Remove(c)
		require.Equal(t, c, x.Add(0), "nothing to free first")
	})
	t.Run("drop", func(t *testing.T) {
		x := NewIndex(0)
		e := x.Add(0)
		p := prompt(1, 2, 3, 4)
		x.Insert(e, p)
		x.Drop(e, p[1:])
		x.Drop(e, prompt(8, 9))
		require.Equal(t, 1, held(x, e, p))
		require.Equal(t, 1, x.Len())
	})
	t.Run("answers take room", func(t *testing.T) {
		x := NewIndex(0)
		e := x.Add(4)
		x.Insert(e, prompt(1, 2, 3))
		x.Fill(e, 2)
		require.Equal(t, 2, held(x, e, prompt(1, 2, 3)))
		x.Fill(e, 100)
		require.Equal(t, 0, held(x, e, prompt(1, 2, 3)))
		require.Equal(t, 4, x.Len())
	})
	t.Run("regret grows when what was pushed out comes back, wherever", func(t *testing.T) {
		x := NewIndex(0)
		e, other := x.Add(1), x.Add(0)
		for i := range byte(100) {
			x.Insert(e, prompt(i))
		}
		require.Zero(t, x.Match(nil, nil)[e].Regret)
		for i := range byte(50) {
			x.Insert(other, prompt(i))
		}
		require.InDelta(t, 0.4, x.Match(nil, nil)[e].Regret, 0.1)
	})
}

// model is the index as one would write it without a thought for speed.
type model struct {
	capacity int
	order    []uint64 // oldest first
}

func (m *model) insert(blocks []uint64) (n int) {
	for _, h := range slices.Backward(blocks) {
		if i := slices.Index(m.order, h); i >= 0 {
			m.order = slices.Delete(m.order, i, i+1)
			n++
		}
		m.order = append(m.order, h)
	}
	m.order = m.order[max(0, len(m.order)-m.capacity):]
	return n
}

func (m *model) match(blocks []uint64) int {
	for i, h := range blocks {
		if !slices.Contains(m.order, h) {
			return i
		}
	}
	return len(blocks)
}

func TestIndexIsTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := NewIndex(minMemory) // more than the models ever hold
		models := map[Engine]*model{}
		var engines []Engine
		words := rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 9)
		var view []Holding
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				if len(engines) == 6 {
					t.Skip("enough")
				}
				m := &model{capacity: rapid.IntRange(1, 30).Draw(t, "capacity")}
				e := x.Add(m.capacity)
				require.NotContains(t, models, e)
				models[e], engines = m, append(engines, e)
			},
			"remove": func(t *rapid.T) {
				if len(engines) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(engines)-1).Draw(t, "i")
				x.Remove(engines[i])
				delete(models, engines[i])
				engines = slices.Delete(engines, i, i+1)
			},
			"resize": func(t *rapid.T) {
				if len(engines) == 0 {
					t.Skip("none")
				}
				e := rapid.SampledFrom(engines).Draw(t, "engine")
				models[e].capacity = rapid.IntRange(1, 30).Draw(t, "capacity")
				x.Resize(e, models[e].capacity)
				x.Insert(e, nil)
				models[e].insert(nil)
			},
			"insert": func(t *rapid.T) {
				if len(engines) == 0 {
					t.Skip("none")
				}
				e := rapid.SampledFrom(engines).Draw(t, "engine")
				p := prompt(words.Draw(t, "prompt")...)
				require.Equal(t, models[e].insert(p), x.Insert(e, p))
			},
			"": func(t *rapid.T) {
				p := prompt(words.Draw(t, "asked")...)
				view = x.Match(p, view)
				for e, m := range models {
					require.EqualValues(t, m.match(p), view[e].Blocks, "engine %d", e)
					require.EqualValues(t, m.capacity-len(m.order), view[e].Room, "engine %d", e)
				}
				check(t, x)
			},
		})
	})
}

// check walks all that an index links together.
func check(t require.TestingT, x *Index) {
	nodes := 0
	for b, i := range x.buckets {
		for ; i != 0; i = x.node(i).next {
			require.EqualValues(t, b, x.bucket(x.node(i).hash))
			nodes++
		}
	}
	owned := 0
	for id := range x.engines {
		e := &x.engines[id]
		n, newer := 0, uint32(0)
		for i := e.newest; i != 0; i = x.node(i).older {
			require.EqualValues(t, id, x.node(i).engine)
			require.Equal(t, newer, x.node(i).newer)
			newer = i
			n++
		}
		require.Equal(t, newer, e.oldest)
		require.Equal(t, e.blocks, n)
		owned += n
	}
	spare := 0
	for i := x.free; i != 0; i = x.node(i).next {
		spare++
	}
	require.Equal(t, nodes, owned)
	require.Equal(t, x.spare, spare)
	require.Equal(t, nodes, int(x.used)-1-x.spare)
	require.LessOrEqual(t, x.used, x.limit)
}

// Row 2 of the defects of production-stack: the prefix trie never evicted.
func TestRow02IndexMemoryIsBounded(t *testing.T) {
	const memory = 1 << 20
	x := NewIndex(memory)
	engines := []Engine{x.Add(0), x.Add(0), x.Add(20_000), x.Add(0)}
	var p []uint64
	for i := range uint64(1_000_000) { // each prompt unlike all others
		p = Blocks(p[:0], i, 1, []byte("pq"))
		x.Insert(engines[i%4], p)
		if i%1000 == 0 {
			require.LessOrEqual(t, x.Bytes(), int64(memory))
		}
	}
	require.LessOrEqual(t, x.Bytes(), int64(memory))
	require.Greater(t, x.Len(), memory/32*3/4, "memory is used")
	require.Equal(t, 2, held(x, engines[(1_000_000-1)%4], p), "the last one is there")
	check(t, x)
	t.Logf("%d blocks in %d bytes: %.1f bytes a block", x.Len(), x.Bytes(), float64(x.Bytes())/float64(x.Len()))
	for _, e := range engines {
		x.Remove(e)
	}
	e := x.Add(0)
	for i := range uint64(2000) {
		x.Insert(e, Blocks(p[:0], i, 1, []byte("pq")))
	}
	require.Equal(t, 4000, x.Len(), "removed engines are gone")
	check(t, x)
}

func TestIndexSmallerThanAPrompt(t *testing.T) {
	x := NewIndex(1)
	e := x.Add(0)
	long := make([]byte, 100_000)
	p := Blocks(nil, 1, 1, long)
	for range 3 {
		x.Insert(e, p)
		require.Greater(t, held(x, e, p), 500)
		x.Fill(e, 1<<30)
	}
	require.LessOrEqual(t, x.Bytes(), int64(minMemory))
	check(t, x)
}

func TestIndexByManyGoroutines(t *testing.T) {
	x := NewIndex(minMemory)
	fixed := x.Add(100)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			own := x.Add(50 * g)
			var view []Holding
			for i := range 500 {
				p := prompt(byte(i%7), byte(i%5), byte(g), byte(i), byte(i>>4))
				view = x.Match(p, view)
				x.Insert(own, p)
				x.Insert(fixed, p)
				x.Drop(fixed, p[3:])
				x.Fill(own, i%3)
				if i%50 == 49 {
					x.Remove(own)
					own = x.Add(50 * g)
				}
			}
		})
	}
	wg.Wait()
	check(t, x)
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte("\x00\x08abcdefgh\x01\x04abcd\x02\x05abcxy\x03\x04abcd\x04\x02zz\x05\x01a"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		x := NewIndex(minMemory)
		e := []Engine{x.Add(0), x.Add(5), x.Add(40)}
		for len(ops) >= 2 {
			op, n := ops[0], min(int(ops[1]), len(ops)-2)
			p := make([]uint64, n) // any numbers at all, not even a chain
			for i, c := range ops[2 : 2+n] {
				p[i] = binary.LittleEndian.Uint64([]byte{c % 16, 0, 0, 0, 0, 0, 0, c})
			}
			ops = ops[2+n:]
			at := &e[op>>4%3]
			switch op % 6 {
			case 0, 1:
				require.LessOrEqual(t, x.Insert(*at, p), n)
			case 2:
				x.Drop(*at, p)
			case 3:
				x.Fill(*at, n)
			case 4:
				x.Remove(*at)
				*at = x.Add(n)
			case 5:
				x.Resize(*at, n)
			}
			for _, h := range x.Match(p, nil) {
				require.LessOrEqual(t, int(h.Blocks), n)
			}
		}
		check(t, x)
	})
}

func BenchmarkIndex(b *testing.B) {
	text := make([]byte, 32)
	for _, engines := range []int{4, 64, 1000} {
		for _, c := range []struct {
			name     string
			unique   bool
			capacity int
		}{{"same", false, 0}, {"unique", true, 20_000}, {"unique/full", true, 0}} {
			b.Run(fmt.Sprintf("%dengines/%s", engines, c.name), func(b *testing.B) {
				x := NewIndex(0)
				var e []Engine
				p := Blocks(nil, 0, 1, text)
				for range engines {
					e = append(e, x.Add(c.capacity))
					x.Insert(e[len(e)-1], p) // the worst case: all hold it
				}
				if c.unique { // fill it, so that every insert pushes out
					for i := range uint64(80_000) {
						x.Insert(e[i%uint64(engines)], Blocks(p[:0], i, 1, text))
					}
				}
				var view []Holding
				n := uint64(1 << 40)
				b.ReportAllocs()
				for b.Loop() {
					n++
					if c.unique {
						for i := range p {
							p[i] = mix(n<<8 + uint64(i))
						}
					}
					view = x.Match(p, view)
					x.Insert(e[n%uint64(engines)], p)
				}
				b.ReportMetric(float64(x.Bytes())/float64(x.Len()), "bytes/block")
			})
		}
	}
}

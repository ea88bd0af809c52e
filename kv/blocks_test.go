package kv

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestBlocks(t *testing.T) {
	text := []byte("aaaabbbbccccdd")
	whole := Blocks(nil, 1, 4, text)
	for _, c := range []struct {
		name     string
		seed     uint64
		size     int
		segments [][]byte
		want     []uint64
	}{
		{"partial block left out", 1, 4, [][]byte{text[:12]}, whole},
		{"prefix of a text", 1, 4, [][]byte{text[:8]}, whole[:2]},
		{"segments cut anywhere", 1, 4, [][]byte{text[:1], nil, text[1:2], text[2:9], {}, text[9:]}, whole},
		{"no text", 1, 4, nil, nil},
		{"less than a block", 1, 4, [][]byte{text[:3]}, nil},
		{"no size", 1, 0, [][]byte{text}, nil},
		{"negative size", 1, -1, [][]byte{text}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Empty(t, cmp.Diff(c.want, Blocks(nil, c.seed, c.size, c.segments...)))
		})
	}
	require.Len(t, whole, 3)
	require.NotEqual(t, whole[0], Blocks(nil, 2, 4, text)[0], "seeds keep texts apart")
	require.NotEqual(t, whole[2], Blocks(nil, 1, 4, []byte("bbbbaaaacccc"))[2], "hashes are chained")
	require.Equal(t, []uint64{7, whole[0]}, Blocks([]uint64{7}, 1, 4, text[:4]), "dst is appended to")
}

func TestBlocksOfEqualTextsAreEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "text")
		other := bytes.Clone(text)
		at := -1
		if len(text) > 0 && rapid.Bool().Draw(t, "differ") {
			at = rapid.IntRange(0, len(text)-1).Draw(t, "at")
			other[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		}
		size := rapid.IntRange(1, 40).Draw(t, "size")
		seed := rapid.Uint64().Draw(t, "seed")
		cut := rapid.IntRange(0, len(text)).Draw(t, "cut")
		a, b := Blocks(nil, seed, size, text), Blocks(nil, seed, size, other[:cut], other[cut:])
		require.Len(t, a, len(text)/size)
		require.Len(t, b, len(a))
		for i := range a {
			require.Equal(t, at < 0 || at >= (i+1)*size, a[i] == b[i], "block %d", i)
		}
	})
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte("the same text, cut elsewhere"), uint8(4), uint64(1), uint16(3), uint16(9))
	f.Add([]byte{}, uint8(0), uint64(0), uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, text []byte, size uint8, seed uint64, a, b uint16) {
		i := min(int(a), len(text))
		j := min(max(int(b), i), len(text))
		want := Blocks(nil, seed, int(size), text)
		require.Equal(t, want, Blocks(nil, seed, int(size), text[:i], text[i:j], text[j:]))
		if size > 0 {
			require.Len(t, want, len(text)/int(size))
		}
	})
}

func TestBlocksAllocatesNothing(t *testing.T) {
	text := make([]byte, 32<<10)
	dst := make([]uint64, 0, 64)
	require.Zero(t, testing.AllocsPerRun(100, func() { dst = Blocks(dst[:0], 1, 1024, text[:100], text[100:5000], text[5000:]) }))
}

func BenchmarkBlocks(b *testing.B) {
	for _, segments := range []int{1, 20} {
		b.Run(fmt.Sprintf("32KB/%dsegments", segments), func(b *testing.B) {
			text := make([]byte, 32<<10)
			r := rand.New(rand.NewPCG(1, 2))
			for i := range text {
				text[i] = byte(r.Uint32())
			}
			var s [][]byte
			for i := range segments {
				s = append(s, text[i*len(text)/segments:(i+1)*len(text)/segments])
			}
			dst := make([]uint64, 0, 32)
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				dst = Blocks(dst[:0], 1, 1024, s...)
			}
		})
	}
}

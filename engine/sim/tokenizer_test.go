package sim

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTokenizerLosesNothing(t *testing.T) {
	tok := newTokenizer()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(
			rapid.String(),
			rapid.StringMatching(`([a-zA-Z]{0,9}[ \n\t]{0,4}[0-9]{0,5}[{}":,.]?){0,20}`),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		).Draw(t, "s")
		ids := tok.encode(nil, s, math.MaxInt)
		if got := tok.decode(ids, true); got != s {
			t.Fatalf("%q became %q", s, got)
		}
		for _, id := range ids {
			if id < firstByte || int(id) >= tok.size() {
				t.Fatalf("id %d is outside of the vocabulary", id)
			}
		}
	})
}

func TestTokenizerReadsNoMoreThanItsLimit(t *testing.T) {
	ids := newTokenizer().encode([]int32{1, 2}, strings.Repeat("hello world ", 1000), 10)
	require.Len(t, ids, 10)
}

func TestTokenizerKnowsEnglish(t *testing.T) {
	tok := newTokenizer()
	text := "The river runs through the mountain, and people live near it."
	require.LessOrEqual(t, len(tok.encode(nil, text, math.MaxInt)), 18)
	require.Less(t, tok.size(), 999_999)
}

// What was generated and is sent again as text in the next turn must be found in the cache.
func TestGeneratedTextEncodesToTheSameTokens(t *testing.T) {
	tok := newTokenizer()
	// The key of 0x2163 once made an answer of 201 tokens.
	answer := func(t require.TestingT, key uint64) {
		prompt := append([]int32{idTurn}, tok.encode(nil, "assistant\n", math.MaxInt)...)
		g := generator{tok: tok, key: key, min: 60, max: 200}
		g.feed(prompt)
		var out []int32
		for {
			id := g.next(true)
			if id == idTurnEnd {
				break
			}
			out = append(out, id)
		}
		require.GreaterOrEqual(t, len(out), 60)
		require.LessOrEqual(t, len(out), 200)
		again := tok.encode(nil, tok.decode(out, false), math.MaxInt)
		require.Equal(t, out, again)
	}
	answer(t, 0x2163)
	rapid.Check(t, func(t *rapid.T) { answer(t, rapid.Uint64().Draw(t, "key")) })
}

func FuzzTokenizer(f *testing.F) {
	for _, s := range []string{"", "hello world", "  a\n\n\n", "1234567", "für 🐟 日本語", "\xf0\x9f", "camelCaseWord_x9", "<|im_end|>"} {
		f.Add(s)
	}
	tok := newTokenizer()
	f.Fuzz(func(t *testing.T, s string) {
		require.Equal(t, s, tok.decode(tok.encode(nil, s, math.MaxInt), true))
	})
}

func BenchmarkTokenizer(b *testing.B) {
	tok := newTokenizer()
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, 42 times. ", 600)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	var dst []int32
	for b.Loop() {
		dst = tok.encode(dst[:0], text, math.MaxInt)
	}
}

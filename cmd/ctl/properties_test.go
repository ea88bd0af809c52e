package ctl

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[31mred\x1b[0m", "\x1b]0;t\x07x", "\x1b]8;;http://x\x1b\\y", "\x1b", "\x1b[", "\x9b2J", "a\tb\nc\r", "\xff\xfe", "\u202eabc", "日本語"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		require.True(t, utf8.ValidString(got))
		require.NotContains(t, got, "\x1b")
		require.False(t, strings.ContainsFunc(got, unprintable))
		require.Equal(t, got, clean(got), "cleaning twice is cleaning once")
	})
}

func TestCleanTakesWholeSequences(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[31mred\x1b[0m!":               "red!",
		"\x1b]0;title\x07text":              "text",
		"\x1b]8;;http://x\x1b\\link":        "link",
		"a\nb\tc\rd":                        "a b cd",
		"\x1b(Bx":                           "(Bx",
		"Grüße 日本 \U0001f600":               "Grüße 日本 \U0001f600",
		"broken \xff":                       "broken \ufffd",
		"left\u202eright\u2066\u200f\ufeff": "leftright",
	} {
		require.Equal(t, want, clean(in), "%q", in)
	}
}

func TestUnifiedLeadsFromOneToTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d", ""}), 0, 30)
		before, after := text.Draw(t, "before"), text.Draw(t, "after")
		var left, right []string
		same := 0
		for _, e := range difference(before, after) {
			if e.op != '+' {
				left = append(left, e.line)
			}
			if e.op != '-' {
				right = append(right, e.line)
			}
			if e.op == ' ' {
				same++
			}
		}
		if diff := cmp.Diff(strings.Join(before, "\n"), strings.Join(left, "\n")); diff != "" || len(left) != len(before) {
			t.Fatalf("before: %s", diff)
		}
		if diff := cmp.Diff(strings.Join(after, "\n"), strings.Join(right, "\n")); diff != "" || len(right) != len(after) {
			t.Fatalf("after: %s", diff)
		}
		if longest := commonLines(before, after); same != longest {
			t.Fatalf("%d lines in common, there are %d", same, longest)
		}
	})
}

// commonLines is the length of a longest common subsequence, by the textbook.
func commonLines(a, b []string) int {
	best := make([][]int, len(a)+1)
	best[0] = make([]int, len(b)+1)
	for i := range a {
		best[i+1] = make([]int, len(b)+1)
		for j := range b {
			if best[i+1][j+1] = max(best[i][j+1], best[i+1][j]); a[i] == b[j] {
				best[i+1][j+1] = best[i][j] + 1
			}
		}
	}
	return best[len(a)][len(b)]
}

func TestUnifiedHunks(t *testing.T) {
	lines := func(from, to int) string {
		var s strings.Builder
		for i := from; i <= to; i++ {
			fmt.Fprintln(&s, i)
		}
		return s.String()
	}
	for name, tc := range map[string]struct {
		before, after string
		want          []string
	}{
		"equal":       {"a\n", "a\n", nil},
		"from none":   {"", "a\nb\n", []string{"--- old", "+++ new", "@@ -0,0 +1,2 @@", "+a", "+b"}},
		"to none":     {"a\n", "", []string{"--- old", "+++ new", "@@ -1 +0,0 @@", "-a"}},
		"no line end": {"a\n", "a", []string{"--- old", "+++ new", "@@ -1 +1 @@", "-a", "+a (no line end)"}},
		"two hunks": {
			lines(1, 20), strings.Replace(strings.Replace(lines(1, 20), "2\n", "two\n", 1), "19\n", "", 1),
			[]string{"--- old", "+++ new", "@@ -1,5 +1,5 @@", " 1", "-2", "+two", " 3", " 4", " 5", "@@ -16,5 +16,4 @@", " 16", " 17", " 18", "-19", " 20"},
		},
		"near changes share one": {
			lines(1, 9), strings.Replace(strings.Replace(lines(1, 9), "2\n", "", 1), "8\n", "", 1),
			[]string{"--- old", "+++ new", "@@ -1,9 +1,7 @@", " 1", "-2", " 3", " 4", " 5", " 6", " 7", "-8", " 9"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Empty(t, cmp.Diff(tc.want, unified(tc.before, tc.after, "old", "new")))
		})
	}
}

func TestADifferenceOfVeryDifferentFilesIsBounded(t *testing.T) {
	var a, b []string
	for i := range 20000 {
		a, b = append(a, fmt.Sprint("a", i)), append(b, fmt.Sprint("b", i))
	}
	require.Len(t, difference(a, b), 40000)
}

func TestYAMLReadsAsTheJSON(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "3e10000000", "no", "null", "~", "- a", "a: b", "a #b", "1-4", " x", "x ", "\x1b[2J", "\u202e", "0x1f", "2026-03-01", "y", "*a", "&a", "{", "'", "\"", "\\", "a\nb", "|", "é"}))
	scalar := rapid.OneOf(rapid.Map(text, func(s string) any { return s }), rapid.Map(rapid.Int32(), func(n int32) any { return int(n) }), rapid.Just[any](true), rapid.Just[any](nil), rapid.Just[any](0.42))
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		if depth == 0 {
			return scalar
		}
		inner := value(depth - 1)
		return rapid.OneOf(scalar,
			rapid.Map(rapid.SliceOfN(inner, 0, 3), func(l []any) any { return l }),
			rapid.Map(rapid.MapOfN(text, inner, 0, 3), func(m map[string]any) any { return m }))
	}
	rapid.Check(t, func(t *rapid.T) {
		v := value(3).Draw(t, "value")
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		text, err := toYAML(v)
		require.NoError(t, err)
		require.False(t, strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && unprintable(r) }), "%q", text)
		var want, got any
		require.NoError(t, json.Unmarshal(raw, &want))
		require.NoError(t, yaml.Unmarshal([]byte(text), &got), "%s", text)
		back, err := json.Marshal(got)
		require.NoError(t, err)
		require.JSONEq(t, string(raw), string(back), "%s", text)
	})
}

func TestTablesFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := newTable(column{name: "NAME"}, column{name: "MODEL", flex: true}, column{name: "N", right: true, drop: 1}, column{name: "REASON", flex: true, drop: 2})
		for range rapid.IntRange(0, 5).Draw(t, "rows") {
			word := rapid.StringN(0, 30, -1)
			tab.add(rapid.StringMatching(`[a-z]{1,6}`).Draw(t, "name"), word.Draw(t, "model"), rapid.StringMatching(`[0-9]{1,3}`).Draw(t, "n"), word.Draw(t, "reason"))
		}
		width := rapid.IntRange(20, 120).Draw(t, "width")
		for _, line := range tab.lines(width, false, rapid.Bool().Draw(t, "colour")) {
			if got := lipgloss.Width(line); got > width {
				t.Fatalf("%q is %d wide, the terminal %d", line, got, width)
			}
		}
	})
}

func TestCutIsNeverWider(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, width := clean(rapid.String().Draw(t, "s")), rapid.IntRange(0, 40).Draw(t, "width")
		if got := cutMiddle(s, width); lipgloss.Width(got) > width {
			t.Fatalf("cutMiddle(%q, %d) = %q", s, width, got)
		}
		if got := cut(s, width); lipgloss.Width(got) > width {
			t.Fatalf("cut(%q, %d) = %q", s, width, got)
		}
	})
}

func TestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 90 * time.Minute: "1h", 23 * time.Hour: "23h", 100 * time.Hour: "4d",
	} {
		require.Equal(t, want, age(d))
	}
	for s, want := range map[float64]string{0: "-", 0.0042: "4.2ms", 0.35: "350ms", 0.9999: "1.00s", 1.234: "1.23s", 9.999: "10s", 75: "75s"} {
		require.Equal(t, want, seconds(s))
	}
	for n, want := range map[mobula.Size]string{0: "0MiB", 512 << 20: "512MiB", 80 << 30: "80GiB", 143771 << 20: "140GiB"} {
		require.Equal(t, want, memory(n))
	}
	require.Equal(t, "-", percent(-1))
	require.Equal(t, "██░░", bar(0.5, 4))
	require.Equal(t, "████", bar(7, 4))
	require.Equal(t, "░░░░", bar(-1, 4))
}

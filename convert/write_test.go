package convert

import (
	"encoding/json"
	"testing"

	goyaml "github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

// TestWhatIsWrittenIsReadAlike: by Helm's parser and by Mobula's.
func TestWhatIsWrittenIsReadAlike(t *testing.T) {
	words := rapid.OneOf(
		rapid.SampledFrom([]string{
			"", "yes", "n", "~", "null", "0x1f", "1e3", "1_000", "012", "12:30:45", "-", "--flag", "---", "- a", "a: b", "a #b", "#", "{a}", "[", "a,b", "'", `"`, `'"`, "@a", "`a", "%a",
			"!a", "&a", "*a", "? a", "a:", ":a", "<<", "=", ".5", ".inf", "+1", "2001-01-01", "a\nb", "a\n", "\na", "a\n\n", " a", "a ", "a\n b\n", "\t", "a\tb", "a\r\nb", "é", "\u2028", "a\u0085b", "\ufeff", "{{ x }}", "16Gi", "10m", "3s", "0b1", "1E5", "NaN", ".NaN", "-1", "~a",
		}),
		rapid.String(),
	)
	value := rapid.Custom(func(t *rapid.T) any { return tree(t, words, 3) })
	rapid.Check(t, func(t *rapid.T) {
		want := map[string]any{}
		o := &object{}
		for _, key := range rapid.SliceOfDistinct(words, rapid.ID).Draw(t, "keys") {
			v := value.Draw(t, "value")
			want[key] = v
			o.keep(key, v)
			if rapid.Bool().Draw(t, "commented") {
				o.say(key, "a comment: with 'signs'")
			}
		}
		text, err := write("title", o)
		require.NoError(t, err)
		expected, err := json.Marshal(want)
		require.NoError(t, err)
		asHelm, err := yaml.YAMLToJSON(text)
		require.NoError(t, err, "%s", text)
		require.Empty(t, cmp.Diff(normal(t, expected), normal(t, asHelm)), "%s", text)
	})
}

func normal(t require.TestingT, text []byte) any {
	var v any
	require.NoError(t, json.Unmarshal(text, &v))
	return v
}

func tree(t *rapid.T, words *rapid.Generator[string], depth int) any {
	kinds := 6
	if depth == 0 {
		kinds = 4
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return rapid.Bool().Draw(t, "flag")
	case 1:
		return rapid.IntRange(-5, 1<<40).Draw(t, "number")
	case 4:
		items := []any{}
		for range rapid.IntRange(0, 3).Draw(t, "items") {
			items = append(items, tree(t, words, depth-1))
		}
		return items
	case 5:
		m := map[string]any{}
		for range rapid.IntRange(0, 3).Draw(t, "pairs") {
			m[words.Draw(t, "key")] = tree(t, words, depth-1)
		}
		return m
	}
	return words.Draw(t, "word")
}

func TestMobulasParserReadsWhatIsWritten(t *testing.T) {
	o := &object{}
	o.set("args", []string{"--a", `{"b":"c d"}`, "x: y", "10"})
	o.set("text", "a\nb\n")
	o.child("deep", "deeper").set("list", []any{map[string]any{"name": "n", "a": "b", "c": "d", "e": "f"}, []any{"x", map[string]any{"y": "z\nz"}}})
	text, err := write("", o)
	require.NoError(t, err)
	var theirs, ours any
	require.NoError(t, goyaml.Unmarshal(text, &ours))
	require.NoError(t, yaml.Unmarshal(text, &theirs))
	require.Empty(t, cmp.Diff(theirs, ours), "%s", text)
}

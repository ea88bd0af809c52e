package chart_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// A value without a value is its default, or is refused with a sentence: `key:` alone is easily left behind in a file.
func TestValuesWithoutAValue(t *testing.T) {
	paths := []string{"models", "platform", "fleet", "fleet router", "fleet router timeouts", "platform kubernetes", "platform kuberay", "platform kubernetes pods"}
	for path := range leaves(t) {
		for _, end := range cuts(path) {
			paths = append(paths, path[:end])
		}
	}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		_, err := render(t, nothingAt(t, path, "{cacheServer: {enabled: true}, redis: {enabled: true}, router: {ingress: {enabled: true}}}"))
		if err != nil {
			requireSentence(t, err)
		}
	}
}

// cuts gives where the keys of a path end.
func cuts(path string) []int {
	ends := []int{len(path)}
	for i, c := range path {
		if c == ' ' {
			ends = append(ends, i)
		}
	}
	return ends
}

// nothingAt gives values (YAML) with null at a path.
func nothingAt(t *testing.T, path, more string) string {
	t.Helper()
	values := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(more), &values))
	node := values
	keys := strings.Fields(path)
	for _, key := range keys[:len(keys)-1] {
		below, is := node[key].(map[string]any)
		if !is {
			below = map[string]any{}
			node[key] = below
		}
		node = below
	}
	node[keys[len(keys)-1]] = nil
	raw, err := yaml.Marshal(values)
	require.NoError(t, err)
	return string(raw)
}

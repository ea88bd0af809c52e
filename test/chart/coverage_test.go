package chart_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// ofTheFleet are values that the fleet file's own tests look at; here they are handed on.
var ofTheFleet = []string{"models", "platform", "fleet"}

// unused are values that templates hand on: to sub-charts.
var unused = []string{"global", "kube-prometheus-stack", "prometheus-adapter"}

// each stands for the entries of a list in a path.
const each = "*"

// leaves gives each value of the schema that has no values below, with the schema's entry. Those in entries of lists are among them.
func leaves(t *testing.T) map[string]map[string]any {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(chartPath, "values.schema.json"))
	require.NoError(t, err)
	var schema map[string]any
	require.NoError(t, json.Unmarshal(raw, &schema))
	out := map[string]map[string]any{}
	var walk func(node map[string]any, path string)
	walk = func(node map[string]any, path string) {
		if ref, is := node["$ref"].(string); is {
			below := at(schema, strings.ReplaceAll(strings.TrimPrefix(ref, "#/"), "/", " ")).(map[string]any)
			require.NotNil(t, below, ref)
			walk(below, path)
			return
		}
		properties, _ := node["properties"].(map[string]any)
		for key, below := range properties {
			if path == "" && slices.Contains(append(ofTheFleet, unused...), key) {
				continue
			}
			walk(below.(map[string]any), strings.TrimSpace(path+" "+key))
		}
		if items, is := node["items"].(map[string]any); is && items["$ref"] != nil {
			walk(items, path+" "+each)
			return
		}
		if len(properties) == 0 {
			out[path] = node
		}
	}
	walk(schema, "")
	require.Greater(t, len(out), 80)
	return out
}

// withoutValue takes what is at a path out of values, and tells whether there was something.
func withoutValue(values any, path string) bool {
	key, rest, below := strings.Cut(path, " ")
	if key == each {
		found := false
		entries, _ := values.([]any)
		for _, entry := range entries {
			found = withoutValue(entry, rest) || found
		}
		return found
	}
	mapping, _ := values.(map[string]any)
	value, there := mapping[key]
	if !there || below {
		return there && withoutValue(value, rest)
	}
	delete(mapping, key)
	return true
}

// Each value is in a case, and makes a difference there: without it something else is rendered, or nothing.
func TestEveryValueMakesADifferenceInACase(t *testing.T) {
	rendered := map[string]rendering{}
	for _, c := range valueCases() {
		out, err := render(t, c.values)
		require.NoError(t, err, c.name)
		rendered[c.name] = out
	}
	for path := range leaves(t) {
		t.Run(path, func(t *testing.T) {
			given := false
			for _, c := range valueCases() {
				var values map[string]any
				require.NoError(t, yaml.Unmarshal([]byte(c.values), &values))
				if !withoutValue(values, path) {
					continue
				}
				given = true
				less, err := yaml.Marshal(values)
				require.NoError(t, err)
				if out, err := render(t, string(less)); err != nil || !maps.Equal(out.Files, rendered[c.name].Files) {
					return
				}
			}
			require.True(t, given, "no case sets it")
			t.Error("nothing changes without it in any case that sets it")
		})
	}
}

// values.yaml has each value, if only as a comment where there is no default.
func TestEveryValueIsInValuesYAML(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(chartPath, "values.yaml"))
	require.NoError(t, err)
	var values map[string]any
	require.NoError(t, yaml.UnmarshalStrict(raw, &values))
	for path, schema := range leaves(t) {
		if strings.Contains(path, each) {
			continue // of lists the comment beside has an example
		}
		if parent := path[:max(0, strings.LastIndex(path, " "))]; free(at(values, parent)) {
			continue // image: {} and the like: all that they have is left to others
		}
		value := at(values, path)
		if value == nil {
			require.Contains(t, string(raw), "# "+path[strings.LastIndex(path, " ")+1:]+":", path)
			continue
		}
		if stated := schema["default"]; stated != nil {
			require.Empty(t, cmp.Diff(text(t, stated), text(t, value)), path)
		}
	}
}

// free tells of a mapping with nothing in it.
func free(value any) bool {
	mapping, is := value.(map[string]any)
	return is && len(mapping) == 0
}

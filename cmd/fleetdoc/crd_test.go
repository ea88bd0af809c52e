package main

import (
	"encoding/json"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func allTypes(t *testing.T) map[string]structType {
	t.Helper()
	types, err := readTypes(append(fleetSources(root), ownSources(root)...)...)
	require.NoError(t, err)
	return withoutConnection(types)
}

func specs(t *testing.T) map[string]*structure {
	t.Helper()
	types, out := allTypes(t), map[string]*structure{}
	for _, r := range resources() {
		s, err := structureOf(types, r.spec(types))
		require.NoError(t, err)
		out[r.kind] = s
		s, err = structureOf(types, types[r.status])
		require.NoError(t, err)
		out[r.kind+".status"] = s
	}
	return out
}

func eachNode(path string, s *structure, visit func(path string, s *structure)) {
	visit(path, s)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		eachNode(path+"."+name, s.Properties[name], visit)
	}
	if s.Items != nil {
		eachNode(path+"[]", s.Items, visit)
	}
	if s.Additional != nil {
		eachNode(path+"{}", s.Additional, visit)
	}
}

// What API servers ask of a structural schema, and of bounds for rules.
func TestDefinitionsAreStructural(t *testing.T) {
	for kind, spec := range specs(t) {
		seen := 0
		eachNode(kind, spec, func(path string, s *structure) {
			seen++
			require.NotEqual(t, s.Type != "", s.IntOrString, "%s: want a type or int-or-string", path)
			require.False(t, s.Properties != nil && s.Additional != nil, path)
			require.Equal(t, s.Type == "array", s.Items != nil, path)
			if s.Type == "object" {
				require.True(t, s.Preserve || s.Properties != nil || s.Additional != nil, "%s: what is in it would be dropped", path)
			}
			for name, p := range s.Properties {
				require.NotEmpty(t, p.Description, path+"."+name)
			}
			for _, name := range s.Required {
				require.Contains(t, s.Properties, name, path)
			}
			for _, key := range s.ListMapKeys {
				require.Contains(t, s.Items.Required, key, path)
			}
			if s.Items != nil && len(s.Items.Rules) > 0 {
				require.Positive(t, s.MaxItems, path)
			}
			if s.Pattern != "" {
				_, err := regexp.Compile(s.Pattern)
				require.NoError(t, err, path)
			}
		})
		require.Greater(t, seen, 4)
	}
}

// Rules and patterns speak of fields that are there.
func TestRulesAndPatternsSpeakOfFields(t *testing.T) {
	types := allTypes(t)
	for at := range patterns() {
		owner, name, _ := strings.Cut(at, ".")
		if at == "Kubernetes.namespace" { // left out of objects in a cluster
			continue
		}
		require.True(t, slices.ContainsFunc(types[owner].fields, func(f field) bool { return f.name == name && f.typ == "string" }), at)
	}
	found := 0
	for kind, spec := range specs(t) {
		eachNode(kind, spec, func(path string, s *structure) {
			for _, r := range s.Rules {
				require.NotEmpty(t, r.Message)
				for _, m := range regexp.MustCompile(`(?:self|oldSelf)\.([A-Za-z]+)(?:\.([A-Za-z]+))?`).FindAllStringSubmatch(r.Rule, -1) {
					found++
					require.Contains(t, s.Properties, m[1], "%s: %s", path, r.Rule)
					if m[2] != "" {
						require.Contains(t, s.Properties[m[1]].Properties, m[2], "%s: %s", path, r.Rule)
					}
				}
			}
		})
	}
	require.Greater(t, found, 30)
}

// All that a fleet file has is in one of the resources, under the same name.
func TestResourcesHaveWhatAFleetFileHas(t *testing.T) {
	have := specs(t)
	names := func(v any) []string {
		var out []string
		for f := range reflect.TypeOf(v).Fields() {
			out = append(out, f.Tag.Get("yaml"))
		}
		return out
	}
	for _, name := range names(mobula.Model{}) {
		require.Contains(t, have["Model"].Properties, name)
	}
	for _, name := range names(mobula.LoRA{}) {
		require.Contains(t, have["LoRA"].Properties, name)
	}
	for _, name := range names(mobula.Fleet{}) {
		left := []string{"apiVersion", "kind", "name", "models"}
		require.Equal(t, !slices.Contains(left, name), have["Fleet"].Properties[name] != nil, name)
	}
	kubernetes := have["Fleet"].Properties["platform"].Properties["kubernetes"].Properties
	require.ElementsMatch(t, []string{"pods", "discover"}, slices.Collect(maps.Keys(kubernetes)))
	require.ElementsMatch(t, []string{"model", "source"}, have["LoRA"].Required)
	require.Empty(t, have["Model"].Required)
}

// What a schema's pattern refuses, Load refuses too; what Load takes, the pattern does.
func TestPatternsRefuseNoMoreThanLoadDoes(t *testing.T) {
	values := []string{
		"", "a", "A", "-a", "a-", "a.b", "a..b", "a_b", "1", "0", "1000", "1001", "10%", "100%", "101%", "%", "-1", "500m", "1.5", ".5", "1.", "16Gi", "16GB",
		"1e3", "1E3", "1E", "1Ei", "2k", "2K", "2Ki", "m", "Gi", "1 ", " 1", "/a", "a/b", "/a/../b", "nvidia.com/gpu", "nvidia.com/", "/gpu", "a/b/c",
		"http", "8000", "65536", "A_B", "1A", "_A", "a b", strings.Repeat("a", 64),
	}
	types := allTypes(t)
	compared := 0
	eachField(t, func(path string, f field, _ reflect.Value) {
		owner := ownerOf(t, types, path)
		pattern := patterns()[owner+"."+f.name]
		if pattern == "" || f.list {
			return
		}
		for _, value := range values {
			quoted, err := json.Marshal(value)
			require.NoError(t, err)
			file, err := json.Marshal(withField(t, path, string(quoted)))
			require.NoError(t, err)
			if _, err = mobula.Load(file, "fleet.yaml"); err == nil {
				compared++
				require.Regexp(t, pattern, value, path)
			}
		}
	})
	require.Greater(t, compared, 60)
}

// ownerOf gives the name of the struct that has the field at path.
func ownerOf(t *testing.T, types map[string]structType, path string) string {
	t.Helper()
	owner := "Fleet"
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		i := slices.IndexFunc(types[owner].fields, func(f field) bool { return f.name == strings.TrimSuffix(part, "[]") })
		require.GreaterOrEqual(t, i, 0, path)
		owner = types[owner].fields[i].typ
	}
	return owner
}

func TestYAMLIsWrittenAsItIsRead(t *testing.T) {
	type inner struct {
		Z string `json:"z"`
		A any    `json:"a,omitempty"`
	}
	got, err := writeYAML(map[string]any{
		"list":   []any{[]any{}, []any{"x", []int{1, 2}}, inner{Z: "1"}, map[string]any{}, nil, true, 1.5},
		"nested": inner{Z: "a: b # c", A: map[string]any{"no": "yes", "": "ü\n\"<&>"}},
	})
	require.NoError(t, err)
	require.Equal(t, `list:
  - []
  - - x
    - - 1
      - 2
  - z: "1"
  - {}
  - null
  - true
  - 1.5
nested:
  z: "a: b # c"
  a:
    "": "ü\n\"<&>"
    "no": "yes"
`, string(got))
}

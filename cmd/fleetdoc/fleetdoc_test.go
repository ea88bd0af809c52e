package main

import (
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

const (
	root     = "../.."
	header   = "apiVersion: mobula/v1\nkind: Fleet\n"
	platform = "platform: {static: {endpoints: [{url: http://vllm:8000}]}}\n"
)

func TestCommittedFilesAreFresh(t *testing.T) {
	files, err := generate(root)
	require.NoError(t, err)
	require.Len(t, files, 7)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is out of date, run go generate ./... (-fresh +committed)\n%s", name, diff)
		}
	}
}

func TestExamplesLoadAndAreComplete(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/fleet.md"))
	require.NoError(t, err)
	var blocks []string
	for _, block := range strings.Split(string(page), "```yaml\n")[1:] {
		text, _, closed := strings.Cut(block, "```\n")
		require.True(t, closed)
		blocks = append(blocks, text)
	}
	require.Len(t, blocks, 4)
	const model = "models: [{name: m, replicas: 1}]\n"
	for _, part := range blocks[1:] {
		_, err = mobula.Load([]byte(header+model+part), "docs/fleet.md")
		require.NoError(t, err)
	}
	fleet, err := mobula.Load([]byte(blocks[0]), "docs/fleet.md")
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(mobula.Default().Router, fleet.Router), "the example shows the defaults")
	require.Empty(t, cmp.Diff(mobula.Default().KV, fleet.KV))
	eachField(t, func(path string, f field, _ reflect.Value) {
		file := blocks[0]
		switch {
		case strings.HasPrefix(path, "platform.ray"):
			file = blocks[1]
		case strings.HasPrefix(path, "platform.kuberay.kubernetes."), strings.HasPrefix(path, "models[].kubernetes."):
			return // those of platform.kubernetes
		case strings.HasPrefix(path, "platform.kubernetes"):
			file = blocks[2]
		case path == "platform.kuberay.shared.cluster", path == "platform.kuberay.shared.service":
			return // in a comment: only one is allowed
		case strings.HasPrefix(path, "platform.kuberay"):
			file = blocks[3]
		}
		require.Contains(t, file, f.name+":", path)
	})
}

// "Default X" in a comment is what Default gives; a default that no comment states is the zero value.
func TestCommentsStateTheDefaults(t *testing.T) {
	eachField(t, func(path string, f field, v reflect.Value) {
		switch {
		case f.fixed != "":
			require.Equal(t, f.fixed, v.String(), path)
		case v.Kind() == reflect.Struct || v.Kind() == reflect.Pointer:
			require.Empty(t, f.fallback, path)
		case f.required:
		case f.fallback == "":
			require.True(t, v.IsZero(), "%s has an undocumented default: %v", path, v)
		default:
			want := reflect.New(v.Type())
			if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](want); ok {
				require.NoError(t, u.UnmarshalText([]byte(f.fallback)), path)
				require.Equal(t, want.Elem().Interface(), v.Interface(), path)
				return
			}
			require.Equal(t, f.fallback, fmt.Sprint(v.Interface()), path)
		}
	})
}

// The bounds and choices that comments state are those that Load checks.
func TestCommentsStateTheBounds(t *testing.T) {
	load := func(path, value string) error {
		file, err := json.Marshal(withField(t, path, value))
		require.NoError(t, err)
		_, err = mobula.Load(file, "fleet.yaml")
		return err
	}
	choices, bounds := 0, 0
	needsKubeRay := func(path, choice string) bool {
		return choice == "RayCluster" && strings.HasPrefix(path, "platform.kubernetes.")
	}
	eachField(t, func(path string, f field, v reflect.Value) {
		if f.list {
			return
		}
		for _, choice := range f.oneOf {
			choices++
			if err := load(path, choice); needsKubeRay(path, choice) {
				require.ErrorContains(t, err, "platform kuberay")
			} else {
				require.NoError(t, err, path)
			}
			require.ErrorContains(t, load(path, choice+"x"), path[strings.LastIndex(path, ".")+1:], path)
		}
		named := strings.ReplaceAll(path, "[]", "[0]")
		if f.low != "" {
			bounds++
			require.NoError(t, load(path, f.low), path)
			require.ErrorContains(t, load(path, beyond(t, v.Type(), f.low, -1)), named)
		}
		if f.high != "" {
			require.NoError(t, load(path, f.high), path)
			require.ErrorContains(t, load(path, beyond(t, v.Type(), f.high, 1)), named)
		}
	})
	require.Greater(t, choices, 10)
	require.Greater(t, bounds, 10)
}

// smallest is a fleet with one of everything that stands in a list.
const smallest = `{
	"apiVersion": "mobula/v1", "kind": "Fleet",
	"platform": {"static": {"endpoints": [{"url": "http://vllm:8000"}]}},
	"models": [{"name": "m", "replicas": 1, "rollout": {"unavailable": 1}, "loras": [{"name": "l", "source": "/l"}]}],
	"providers": [{"name": "p", "url": "http://p/v1", "models": [{"name": "m"}]}]
}`

// withField gives the smallest fleet with a field set; "models[].name" is the first model's name.
func withField(t *testing.T, path, value string) map[string]any {
	t.Helper()
	var fleet map[string]any
	require.NoError(t, json.Unmarshal([]byte(smallest), &fleet))
	if strings.HasPrefix(path, "platform.ray.") {
		fleet["platform"] = map[string]any{"ray": map[string]any{"address": "http://ray:8265", "serve": []any{map[string]any{"name": "s"}}}}
	}
	for _, name := range []string{"kubernetes", "kuberay"} {
		if strings.HasPrefix(path, "platform."+name+".") {
			k := map[string]any{"pods": map[string]any{"data": map[string]any{"size": "1GiB"}}, "discover": []any{map[string]any{"selector": "a"}}}
			fleet["platform"] = map[string]any{name: k}
			if name == "kuberay" {
				fleet["platform"] = map[string]any{name: map[string]any{"kubernetes": k}}
			}
		}
	}
	if strings.HasPrefix(path, "models[].kubernetes.") {
		fleet["models"].([]any)[0].(map[string]any)["kubernetes"] = map[string]any{"data": map[string]any{"size": "1GiB"}}
	}
	at := fleet
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		if name, isList := strings.CutSuffix(part, "[]"); isList {
			at = at[name].([]any)[0].(map[string]any)
			continue
		}
		if at[part] == nil {
			at[part] = map[string]any{}
		}
		at = at[part].(map[string]any)
	}
	if json.Valid([]byte(value)) {
		at[parts[len(parts)-1]] = json.RawMessage(value)
	} else {
		at[parts[len(parts)-1]] = value
	}
	return fleet
}

// beyond gives the value next to a bound of a field of type typ.
func beyond(t *testing.T, typ reflect.Type, bound string, step int64) string {
	t.Helper()
	switch v := reflect.New(typ).Interface().(type) {
	case *mobula.Size:
		require.NoError(t, v.UnmarshalText([]byte(bound)))
		return strconv.FormatInt(int64(*v)+step, 10)
	case *mobula.Duration:
		require.NoError(t, v.UnmarshalText([]byte(bound)))
		return (*v + mobula.Duration(step)).String()
	case *float64:
		n, err := strconv.ParseFloat(bound, 64)
		require.NoError(t, err)
		return strconv.FormatFloat(math.Nextafter(n, float64(step)*math.Inf(1)), 'f', -1, 64)
	}
	n, err := strconv.ParseInt(bound, 10, 64)
	require.NoError(t, err)
	return strconv.FormatInt(n+step, 10)
}

// eachField calls f for every field that a fleet file can have, with its default.
func eachField(t *testing.T, f func(path string, f field, v reflect.Value)) {
	t.Helper()
	types, err := readTypes(fleetSources(root)...)
	require.NoError(t, err)
	seen := map[string]bool{}
	loaded, err := mobula.Load([]byte(smallest), "smallest.yaml")
	require.NoError(t, err)
	onRay, err := mobula.Load([]byte(header+"platform: {ray: {address: http://ray:8265, serve: [{name: s}]}}"), "ray.yaml")
	require.NoError(t, err)
	ray := *onRay.Platform.Ray
	ray.Address, ray.Serve = "", nil
	withKubeRay, err := mobula.Load([]byte(header+"models: [{name: m, replicas: 1}]\nplatform: {kuberay: {kubernetes: {discover: [{selector: a}]}}}"), "kuberay.yaml")
	require.NoError(t, err)
	kuberay := *withKubeRay.Platform.KubeRay
	discover := kuberay.Kubernetes.Discover[0]
	discover.Selector, kuberay.Kubernetes.Discover = "", nil
	provider := loaded.Providers[0]
	provider.URL, provider.Models = "", nil
	items := map[string]any{
		"platform.static": mobula.Static{HostTimeout: loaded.Platform.Static.HostTimeout}, "platform.static.endpoints[]": mobula.StaticEndpoint{},
		"platform.kubernetes": mobula.Kubernetes{}, "platform.kubernetes.discover[]": discover,
		"platform.kuberay": kuberay, "platform.kuberay.kubernetes.discover[]": discover,
		"platform.ray": ray, "platform.ray.serve[]": mobula.RayServe{},
		"models[]": mobula.NewModel(""), "models[].loras[]": mobula.LoRA{},
		"providers[]": provider, "providers[].models[]": mobula.ProviderModel{},
	}
	var walk func(name, path string, v reflect.Value)
	walk = func(name, path string, v reflect.Value) {
		seen[name] = true
		require.Len(t, types[name].fields, v.NumField())
		for i, parsed := range types[name].fields {
			require.Equal(t, v.Type().Field(i).Tag.Get("yaml"), parsed.name)
			at, value := below(path, parsed), v.Field(i)
			f(at, parsed, value)
			if _, ok := types[parsed.typ]; ok {
				switch value.Kind() {
				case reflect.Slice, reflect.Pointer:
					require.Contains(t, items, at)
					value = reflect.ValueOf(items[at])
				}
				walk(parsed.typ, at, value)
			}
		}
	}
	walk("Fleet", "", reflect.ValueOf(mobula.Default()))
	for name := range types {
		require.True(t, seen[name], "%s is no part of the fleet file", name)
	}
}

func TestSchemaIsClosedAndDescribed(t *testing.T) {
	for file, required := range map[string][]string{
		"docs/fleet.schema.json": {"apiVersion", "kind", "platform"}, "charts/mobula/values.schema.json": nil,
	} {
		t.Run(file, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(root, file))
			require.NoError(t, err)
			var s schema
			require.NoError(t, json.Unmarshal(data, &s))
			require.Equal(t, required, s.Required)
			checkClosed(t, &s)
		})
	}
}

func checkClosed(t *testing.T, top *schema) {
	t.Helper()
	var check func(path string, s *schema)
	check = func(path string, s *schema) {
		if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
			require.Contains(t, top.Definitions, name, path)
		}
		if s.Properties != nil {
			require.Equal(t, false, s.Additional, path)
		}
		for name, p := range s.Properties {
			require.NotEmpty(t, p.Description, path+"."+name)
			check(path+"."+name, p)
		}
		if s.Items != nil {
			check(path+"[]", s.Items)
		}
	}
	check("", top)
	for name, def := range top.Definitions {
		check(name, def)
	}
}

func TestReadTypesRefusesWhatItCantExplain(t *testing.T) {
	for name, c := range map[string]struct{ fields, want string }{
		"no comment":       {"A string `yaml:\"a\"`", "T.A: want a comment and a yaml tag"},
		"no tag":           {"// A.\nA string", "T.A: want a comment and a yaml tag"},
		"default not said": {"// A. Defaults to 3\nA int `yaml:\"a\"`", "T.A: not understood"},
		"function":         {"// A.\nA func() `yaml:\"a\"`", "T.A: unknown type"},
		"embedded":         {"A", "T: want one name for each field"},
		"two names":        {"A, B int", "T: want one name for each field"},
		"syntax":           {"A B C", "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			source := filepath.Join(t.TempDir(), "x.go")
			require.NoError(t, os.WriteFile(source, []byte("package x\n\ntype T struct {\n"+c.fields+"\n}\n"), 0o600))
			_, err := readTypes(source)
			require.ErrorContains(t, err, c.want)
		})
	}
}

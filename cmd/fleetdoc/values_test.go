package main

import (
	"encoding"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// The comments that are read are those of the structs as the compiler has them.
func TestStructsAreReadAsTheyAre(t *testing.T) {
	types, err := readTypes(append(fleetSources(root), ownSources(root)...)...)
	require.NoError(t, err)
	seen := map[string]bool{}
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || seen[typ.Name()] {
			return
		}
		seen[typ.Name()] = true
		require.Len(t, types[typ.Name()].fields, typ.NumField(), typ)
		for i, f := range types[typ.Name()].fields {
			require.Equal(t, typ.Field(i).Tag.Get("yaml"), f.name)
			walk(typ.Field(i).Type)
		}
	}
	for _, root := range []any{Values{}, mobula.Fleet{}, FleetSpec{}, ModelSpec{}, LoRASpec{}, FleetStatus{}, ModelStatus{}, LoRAStatus{}} {
		walk(reflect.TypeOf(root))
	}
	for name := range types {
		require.True(t, seen[name], "%s is part of nothing", name)
	}
}

// Values that don't fit the chart are refused by Helm before anything is installed; those of a fleet are as strict as its file is.
func TestTheChartsModelsAreThoseOfAFleetFile(t *testing.T) {
	read := func(file string) (s schema) {
		data, err := os.ReadFile(filepath.Join(root, file))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &s))
		return s
	}
	fleet, values := read("docs/fleet.schema.json"), read("charts/mobula/values.schema.json")
	for _, name := range []string{"Model", "Engine", "KubernetesPods", "Router", "KV", "Provider", "KubernetesDiscover"} {
		require.Equal(t, fleet.Definitions[name], values.Definitions[name], name)
	}
	require.Equal(t, "#/definitions/Model", values.Properties["models"].Items.Ref)
	require.NotContains(t, values.Definitions["Kubernetes"].Properties, "namespace")
	require.Contains(t, fleet.Definitions["Kubernetes"].Properties, "namespace")
	require.Equal(t, 1, values.Definitions["PlatformValues"].MaxProperties)
	require.NotContains(t, values.Definitions, "Static")
}

func TestTheValuesPageLinksToTheFleetFile(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/values.md"))
	require.NoError(t, err)
	fleet, err := os.ReadFile(filepath.Join(root, "docs/fleet.md"))
	require.NoError(t, err)
	links := 0
	for _, part := range strings.Split(string(page), "](")[1:] {
		target, _, _ := strings.Cut(part, ")")
		file, anchor, _ := strings.Cut(target, "#")
		text := string(page)
		if file == "fleet.md" {
			text = string(fleet)
		}
		if anchor == "" {
			continue
		}
		links++
		found := false
		for line := range strings.Lines(text) {
			title, isTitle := strings.CutPrefix(strings.TrimSpace(line), "## ")
			found = found || isTitle && strings.ToLower(strings.NewReplacer(".", "", "[]", "").Replace(title)) == anchor
		}
		require.True(t, found, target)
	}
	require.Greater(t, links, 20)
}

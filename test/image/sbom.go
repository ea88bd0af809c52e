package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"runtime/debug"
	"slices"
	"strings"
)

// bom is a software bill of materials in CycloneDX 1.6 (cyclonedx.org/docs/1.6/json).
type bom struct {
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   metadata    `json:"metadata"`
	Components []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp,omitempty"` // of the commit
	Component component `json:"component"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version,omitempty"`
	Licenses []license `json:"licenses,omitempty"`
	URL      string    `json:"purl"`
}

type license struct {
	Expression string `json:"expression"`
}

// materials lists what a binary was built from: its modules and Go's standard library, as Go has noted them in it.
func materials(binary []byte) ([]byte, error) {
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return nil, err
	}
	_, created := labels(binary)
	main := module("application", &info.Main)
	main.Licenses = []license{{"Apache-2.0"}}
	b := bom{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{Timestamp: created, Component: main}}
	b.Components = append(b.Components, module("library", &debug.Module{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}))
	for _, dep := range info.Deps {
		b.Components = append(b.Components, module("library", cmp.Or(dep.Replace, dep)))
	}
	slices.SortFunc(b.Components, func(a, b component) int { return strings.Compare(a.Name, b.Name) })
	content, err := json.MarshalIndent(b, "", "  ")
	return append(content, '\n'), err
}

// module names it as package URLs do (package-url, type golang): in lower case.
func module(kind string, m *debug.Module) component {
	url := "pkg:golang/" + strings.ToLower(m.Path)
	version := m.Version
	if version == "(devel)" {
		version = ""
	}
	if version != "" {
		url += "@" + strings.ReplaceAll(version, "+", "%2B")
	}
	return component{Type: kind, Ref: url, Name: m.Path, Version: version, URL: url}
}

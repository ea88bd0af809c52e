package main

import (
	"fmt"
	"strings"
)

// writeReference gives docs/fleet.md.
func writeReference(types map[string]structType) string {
	var b strings.Builder
	b.WriteString(`<!-- Written by cmd/fleetdoc from fleet.go, model.go and kubernetes.go: change the comments there and run go generate ./... -->

# The fleet file

One YAML file says what runs where and how the router treats it. ` + "`mobula validate -f fleet.yaml`" + ` checks one and tells every
problem with line and column. Unknown fields, duplicate keys and values out of range are refused. What is left out, or has no
value, takes its default. Editors check it with [fleet.schema.json](fleet.schema.json).

Durations are written as ` + "`500ms`, `1.5s`, `10m`, `1h30m`" + `; sizes in bytes as plain digits or with KiB, MiB, GiB (powers of 1024),
KB, MB or GB (powers of 1000). Text that looks like a number or a truth value goes in quotes. Anchors, aliases and merge keys
(` + "`<<`" + `) work; tags don't. Free-form mappings are handed on as JSON has them. A file has one document of at most 4 MiB.

A running router applies the file again when it changes, and on SIGHUP even when it has not (say because a key file has). A file
with problems leaves the running fleet as it is: one log line tells them, and ` + "`mobula_config_last_reload_successful`" + ` is 0.

A complete example; only apiVersion, kind and platform are required:

` + "```yaml\n" + example + "```\n\nOn a [Ray cluster](ray.md) the platform is another one:\n\n```yaml\n" + exampleRay +
		"```\n\nOn Kubernetes:\n\n```yaml\n" + exampleKubernetes + "```\n\nAnd on Kubernetes with KubeRay:\n\n```yaml\n" + exampleKubeRay + "```\n")
	p := page{types: types, links: map[string]string{}}
	p.section("Fleet", "", "Top level")
	return b.String() + p.text.String()
}

// writeValues gives docs/values.md.
func writeValues(types map[string]structType) string {
	fleet := page{types: types, links: map[string]string{}}
	fleet.section("Fleet", "", "")
	p := page{types: types, links: map[string]string{}}
	for name, link := range fleet.links { // what a fleet file has is told there
		p.links[name] = strings.Replace(link, "](#", "](fleet.md#", 1)
	}
	p.text.WriteString(`<!-- Written by cmd/fleetdoc from cmd/fleetdoc/values.go and values_parts.go: change the comments there and run go generate ./... -->

# The chart's values

All values of ` + "`charts/mobula`" + `. None is required. Unknown ones and wrong types are refused before anything is installed. What
` + "`platform`, `models` and `fleet`" + ` have is what a [fleet file](fleet.md) has: the chart makes a Fleet object and Model objects of them.

`)
	p.section("Values", "", "Top level")
	return strings.Replace(p.text.String(), "\n\n\n", "\n\n", 1)
}

// page is a reference that is being written.
type page struct {
	types map[string]structType
	links map[string]string // to the section of a struct, by its name: each is told once
	text  strings.Builder
}

// section writes the table of a struct that stands at path, then those of its fields that have none yet.
func (p *page) section(name, path, title string) {
	t := p.types[name]
	fmt.Fprintf(&p.text, "\n## %s\n\n%s\n\n| field | type | default | meaning |\n|---|---|---|---|\n", title, t.doc)
	var next []field
	for _, f := range t.fields {
		if _, isStruct := p.types[f.typ]; isStruct && p.links[f.typ] == "" {
			at := below(path, f)
			p.links[f.typ] = "[" + at + "](#" + strings.ToLower(strings.NewReplacer(".", "", "[]", "").Replace(at)) + ")"
			next = append(next, f)
		}
		fmt.Fprintf(&p.text, "| `%s` | %s | %s | %s |\n", f.name, p.typeName(f), defaultText(f), cell(describe(f)))
	}
	for _, f := range next {
		p.section(f.typ, below(path, f), below(path, f))
	}
}

// below gives the path of a field in the section at path.
func below(path string, f field) string {
	if path != "" {
		path += "."
	}
	path += f.name
	if f.list {
		path += "[]"
	}
	return path
}

func (p *page) typeName(f field) string {
	name := map[string]string{
		"string": "text", "bool": "true or false", "int": "whole number", "float64": "number", "Object": "free-form mapping",
		"Duration": "duration", "Size": "size", "Role": "text", "Range": "number or range", "PortRange": "range of ports",
	}[f.typ]
	if link := p.links[f.typ]; link != "" {
		name = link
	}
	if f.number {
		name = "text or whole number"
	}
	switch {
	case f.mapping && f.typ == "any":
		return "free-form mapping"
	case f.mapping:
		return "map of " + name
	case f.list:
		return "list of " + name
	}
	return name
}

func defaultText(f field) string {
	switch {
	case f.required:
		return "required"
	case f.fallback != "" && f.derived != "":
		return "`" + f.fallback + "` " + cell(f.derived)
	case f.fallback != "":
		return "`" + f.fallback + "`"
	}
	return cell(f.derived)
}

func describe(f field) string {
	if f.fixed != "" {
		return strings.TrimSpace("Always `" + f.fixed + "`. " + f.doc)
	}
	return f.doc
}

// cell makes text fit into a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

package main

import (
	"fmt"
	"strings"
)

// writeReference gives docs/fleet.md.
func writeReference(types map[string]structType) string {
	var b strings.Builder
	b.WriteString(`<!-- Written by cmd/fleetdoc from fleet.go and model.go: change the comments there and run go generate ./... -->

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

` + "```yaml\n" + example + "```\n\nOn a [Ray cluster](ray.md) the platform is another one:\n\n```yaml\n" + exampleRay + "```\n")
	writeSection(&b, types, "Fleet", "")
	return b.String()
}

// writeSection writes the table of a struct that stands at path, then those of its fields.
func writeSection(b *strings.Builder, types map[string]structType, name, path string) {
	title := path
	if path == "" {
		title = "Top level"
	}
	t := types[name]
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| field | type | default | meaning |\n|---|---|---|---|\n", title, t.doc)
	for _, f := range t.fields {
		_, section := types[f.typ]
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.name, typeName(f, section, below(path, f)), defaultText(f), cell(describe(f)))
	}
	for _, f := range t.fields {
		if _, ok := types[f.typ]; ok {
			writeSection(b, types, f.typ, below(path, f))
		}
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

func typeName(f field, section bool, path string) string {
	name := map[string]string{
		"string": "text", "bool": "true or false", "int": "whole number", "float64": "number",
		"Duration": "duration", "Size": "size", "Role": "text", "Range": "number or range", "PortRange": "range of ports",
	}[f.typ]
	if section {
		anchor := strings.ToLower(strings.NewReplacer(".", "", "[]", "").Replace(path))
		name = "[" + path + "](#" + anchor + ")"
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

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// schema is a JSON Schema, as far as the fleet file needs it.
type schema struct {
	Schema        string             `json:"$schema,omitempty"`
	Title         string             `json:"title,omitempty"`
	Ref           string             `json:"$ref,omitempty"`
	Description   string             `json:"description,omitempty"`
	Type          any                `json:"type,omitempty"`
	Const         string             `json:"const,omitempty"`
	Enum          []string           `json:"enum,omitempty"`
	Pattern       string             `json:"pattern,omitempty"`
	Minimum       json.Number        `json:"minimum,omitempty"`
	Maximum       json.Number        `json:"maximum,omitempty"`
	MinItems      json.Number        `json:"minItems,omitempty"`
	MinLength     int                `json:"minLength,omitempty"`
	MinProperties int                `json:"minProperties,omitempty"`
	MaxProperties int                `json:"maxProperties,omitempty"`
	Default       json.RawMessage    `json:"default,omitempty"`
	Required      []string           `json:"required,omitempty"`
	Items         *schema            `json:"items,omitempty"`
	Properties    map[string]*schema `json:"properties,omitempty"`
	Additional    any                `json:"additionalProperties,omitempty"`
	Defs          map[string]*schema `json:"$defs,omitempty"`
}

// writeSchema gives docs/fleet.schema.json.
func writeSchema(types map[string]structType) ([]byte, error) {
	root, err := structSchema(types, "Fleet")
	if err != nil {
		return nil, err
	}
	root.Schema, root.Title = "https://json-schema.org/draft/2020-12/schema", "Mobula fleet file"
	root.Defs = map[string]*schema{
		"Duration":  {Type: "string", Pattern: `^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$`},
		"Size":      {Type: []string{"integer", "string"}, Pattern: `^[0-9]+(KiB|MiB|GiB|KB|MB|GB)?$`, Minimum: "0"},
		"Range":     {Type: []string{"integer", "string"}, Pattern: `^[0-9]+(-[0-9]+)?$`, Minimum: "0"},
		"PortRange": {Type: "string", Pattern: `^([0-9]+-[0-9]+)?$`},
	}
	for name := range types {
		if name == "Fleet" {
			continue
		}
		if root.Defs[name], err = structSchema(types, name); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(root)
	return b.Bytes(), err
}

func structSchema(types map[string]structType, name string) (*schema, error) {
	t := types[name]
	s := &schema{Description: t.doc, Type: "object", Properties: map[string]*schema{}, Additional: false}
	if strings.Contains(t.doc, "Exactly one of its fields") {
		s.MinProperties, s.MaxProperties = 1, 1
	}
	for _, f := range t.fields {
		p, err := fieldSchema(types, f)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", name, f.name, err)
		}
		s.Properties[f.name] = p
		if f.required {
			s.Required = append(s.Required, f.name)
		}
	}
	return s, nil
}

func fieldSchema(types map[string]structType, f field) (*schema, error) {
	s, err := typeSchema(types, f.typ)
	if err != nil {
		return nil, err
	}
	low, high := json.Number(f.low), json.Number(f.high)
	switch {
	case f.mapping:
		s = &schema{Type: "object", Additional: s}
	case f.list:
		s = &schema{Type: "array", Items: s, MinItems: low}
	default:
		s.Const, s.Enum = f.fixed, f.oneOf
		if s.Ref == "" { // bounds of durations and sizes are only in the description
			s.Minimum, s.Maximum = low, high
		}
		if f.required && f.typ == "string" && f.fixed == "" {
			s.MinLength = 1
		}
	}
	s.Description = describe(f)
	if f.fallback != "" {
		if s.Default, err = literal(f); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func typeSchema(types map[string]structType, name string) (*schema, error) {
	switch name {
	case "string", "Role":
		return &schema{Type: "string"}, nil
	case "bool":
		return &schema{Type: "boolean"}, nil
	case "int":
		return &schema{Type: "integer"}, nil
	case "float64":
		return &schema{Type: "number"}, nil
	case "any":
		return &schema{}, nil
	}
	if _, ok := types[name]; ok || name == "Duration" || name == "Size" || name == "Range" || name == "PortRange" {
		return &schema{Ref: "#/$defs/" + name}, nil
	}
	return nil, fmt.Errorf("no schema for type %s", name)
}

// literal gives a field's default as JSON.
func literal(f field) (json.RawMessage, error) {
	switch f.typ {
	case "bool", "int", "float64":
		if !json.Valid([]byte(f.fallback)) {
			return nil, fmt.Errorf("default %s is no %s", f.fallback, f.typ)
		}
		return json.RawMessage(f.fallback), nil
	}
	return json.Marshal(f.fallback)
}

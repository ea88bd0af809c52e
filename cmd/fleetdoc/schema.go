package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// schema is a JSON Schema, as far as the fleet file and the chart's values need it.
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
	Definitions   map[string]*schema `json:"definitions,omitempty"`
}

// Patterns of values that are written as text.
const (
	durationPattern  = `^\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$`
	sizePattern      = `^[0-9]+(KiB|MiB|GiB|KB|MB|GB)?$`
	rangePattern     = `^[0-9]+(-[0-9]+)?$`
	portRangePattern = `^([0-9]+-[0-9]+)?$`
)

// writeSchema gives the JSON Schema of a struct and all that is in it. It is of draft 7, which every version of Helm and every editor takes.
func writeSchema(types map[string]structType, name, title string) ([]byte, error) {
	root, err := structSchema(types, name)
	if err != nil {
		return nil, err
	}
	root.Schema, root.Title = "http://json-schema.org/draft-07/schema#", title
	root.Definitions = map[string]*schema{}
	var define func(name string) error
	define = func(name string) error {
		for _, f := range types[name].fields {
			if simple := simpleSchema(f.typ); simple != nil {
				root.Definitions[f.typ] = simple
			}
			if _, ok := types[f.typ]; !ok || root.Definitions[f.typ] != nil {
				continue
			}
			if root.Definitions[f.typ], err = structSchema(types, f.typ); err != nil {
				return err
			}
			if err := define(f.typ); err != nil {
				return err
			}
		}
		return nil
	}
	if err := define(name); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(root)
	return b.Bytes(), err
}

// simpleSchema gives what stands under definitions for types that are written as text, nil for others.
func simpleSchema(name string) *schema {
	switch name {
	case "Duration":
		return &schema{Type: "string", Pattern: durationPattern}
	case "Size":
		return &schema{Type: []string{"integer", "string"}, Pattern: sizePattern, Minimum: "0"}
	case "Range":
		return &schema{Type: []string{"integer", "string"}, Pattern: rangePattern, Minimum: "0"}
	case "PortRange":
		return &schema{Type: "string", Pattern: portRangePattern}
	}
	return nil
}

func structSchema(types map[string]structType, name string) (*schema, error) {
	t := types[name]
	s := &schema{Description: t.doc, Type: "object", Properties: map[string]*schema{}, Additional: false}
	if strings.Contains(t.doc, "Exactly one of its fields") {
		s.MinProperties, s.MaxProperties = 1, 1
	} else if strings.Contains(t.doc, "At most one of its fields") {
		s.MaxProperties = 1
	}
	for _, f := range t.fields {
		p, err := fieldSchema(types, name, f)
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

func fieldSchema(types map[string]structType, owner string, f field) (*schema, error) {
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
		s.Const, s.Enum, s.Pattern = f.fixed, f.oneOf, patterns()[owner+"."+f.name]
		if f.number {
			s.Type = []string{"integer", "string"}
			if s.Pattern == quantityPattern { // half a CPU
				s.Type = []string{"number", "string"}
			}
		}
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
	case "Object":
		return &schema{Type: "object"}, nil
	}
	if _, ok := types[name]; ok || simpleSchema(name) != nil {
		return &schema{Ref: "#/definitions/" + name}, nil
	}
	return nil, fmt.Errorf("no schema for type %s", name)
}

// literal gives a field's default as JSON.
func literal(f field) (json.RawMessage, error) {
	if _, err := strconv.Atoi(f.fallback); f.number && err == nil {
		return json.RawMessage(f.fallback), nil
	}
	switch f.typ {
	case "bool", "int", "float64":
		if !json.Valid([]byte(f.fallback)) {
			return nil, fmt.Errorf("default %s is no %s", f.fallback, f.typ)
		}
		return json.RawMessage(f.fallback), nil
	}
	return json.Marshal(f.fallback)
}

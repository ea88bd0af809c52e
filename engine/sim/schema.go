package sim

import (
	"strconv"

	"github.com/tidwall/gjson"
)

const (
	maxSchemaDepth = 8
	maxSample      = 64 << 10 // bytes, about
)

// answerSchema is the schema that an answer must have: a tool's parameters or a
// response_format's. It does not exist for free text.
func answerSchema(tool, format gjson.Result) gjson.Result {
	if tool.Exists() {
		if p := tool.Get("parameters"); p.IsObject() {
			return p
		}
		return gjson.Parse(`{"type":"object"}`)
	}
	switch format.Get("type").Str {
	case "json_schema":
		for _, path := range []string{"json_schema.schema", "schema"} { // chat, responses
			if s := format.Get(path); s.IsObject() {
				return s
			}
		}
	case "json_object":
		return gjson.Parse(`{"type":"object","properties":{"answer":{"type":"string"}}}`)
	}
	return gjson.Result{}
}

// appendSample writes a value that fits a JSON schema, as far as its plain keywords go.
func appendSample(dst []byte, schema gjson.Result, rnd *uint64, depth int) []byte {
	*rnd = chain(*rnd, 1)
	r := scramble(*rnd)
	if depth > maxSchemaDepth || len(dst) > maxSample {
		return append(dst, "null"...)
	}
	if v := schema.Get("const"); v.Exists() {
		return append(dst, v.Raw...)
	}
	if all := schema.Get("enum").Array(); len(all) > 0 {
		return append(dst, all[r%uint64(len(all))].Raw...)
	}
	for _, key := range []string{"anyOf", "oneOf", "allOf"} {
		if first := schema.Get(key + ".0"); first.Exists() {
			return appendSample(dst, first, rnd, depth+1)
		}
	}
	kind := schema.Get("type")
	if kind.IsArray() {
		kind = kind.Get("0")
	}
	switch {
	case kind.Str == "object", kind.Str == "" && schema.Get("properties").Exists():
		return appendSampleObject(dst, schema, rnd, depth)
	case kind.Str == "array":
		dst = append(dst, '[')
		for i := range max(1, min(schema.Get("minItems").Int(), 16)) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendSample(dst, schema.Get("items"), rnd, depth+1)
		}
		return append(dst, ']')
	case kind.Str == "integer", kind.Str == "number":
		return strconv.AppendInt(dst, schema.Get("minimum").Int()+int64(r%10), 10)
	case kind.Str == "boolean":
		return strconv.AppendBool(dst, r%2 == 0)
	case kind.Str == "null":
		return append(dst, "null"...)
	}
	return append(dst, `"simulated"`...)
}

func appendSampleObject(dst []byte, schema gjson.Result, rnd *uint64, depth int) []byte {
	dst = append(dst, '{')
	required := map[string]bool{}
	for _, name := range schema.Get("required").Array() {
		required[name.Str] = true
	}
	first := true
	schema.Get("properties").ForEach(func(name, sub gjson.Result) bool {
		if len(required) > 0 && !required[name.Str] {
			return true
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(appendString(dst, name.Str), ':')
		dst = appendSample(dst, sub, rnd, depth+1)
		return true
	})
	return append(dst, '}')
}

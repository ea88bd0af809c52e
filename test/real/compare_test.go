//go:build real

package real

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// same replaces in decoded JSON what differs from answer to answer: ids, times and how many
// events there were.
func same(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			switch k {
			case "id", "item_id", "created", "created_at", "sequence_number":
				v[k] = fmt.Sprintf("a %T", e)
			default:
				v[k] = same(e)
			}
		}
	case []any:
		for i := range v {
			v[i] = same(v[i])
		}
	}
	return v
}

// shape is the keys and types of decoded JSON, one line each: "choices[].index number".
// Elements of an array count together.
func shape(v any) []string {
	lines := map[string]bool{}
	addShape(lines, "", v)
	return slices.Sorted(maps.Keys(lines))
}

func addShape(lines map[string]bool, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		_, fixed := v["token"]
		// The keys of these are tokens.
		tokens := !fixed && (strings.HasSuffix(path, "top_logprobs[]") || strings.HasSuffix(path, "prompt_logprobs[]"))
		for k, e := range v {
			if tokens {
				k = "*"
			}
			addShape(lines, path+"."+k, e)
		}
	case []any:
		lines[path+" array"] = true
		for _, e := range v {
			addShape(lines, path+"[]", e)
		}
	case nil:
		lines[path+" null"] = true
	case string:
		lines[path+" string"] = true
	case bool:
		lines[path+" bool"] = true
	default:
		lines[path+" number"] = true
	}
}

// decoded is a body as JSON, or as a string if it isn't JSON.
func decoded(body []byte) any {
	var v any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return string(body)
	}
	return v
}

// fields are an answer's header fields that a router must pass on as they are.
func fields(h http.Header) http.Header {
	h = h.Clone()
	h.Del("X-Mobula-Endpoint")
	h.Del("X-Request-Id")
	if h.Get("Date") != "" {
		h.Set("Date", "a date")
	}
	return h
}

// stream is what must be the same in two streams of the same answer. How many tokens come
// in one event is the engine's whim: deltas count by their text alone.
type stream struct {
	Events []string // name and shape of each event that is more than a delta
	Text   string
	Last   any    // the last event but [DONE]
	Done   string // what is left: [DONE], or nothing
}

// delta tells whether an event brings text and nothing else.
func delta(data string) bool {
	if kind := gjson.Get(data, "type").String(); kind != "" {
		return kind == "content_block_delta" || strings.HasSuffix(kind, ".delta")
	}
	choice := gjson.Get(data, "choices.0")
	return choice.Exists() && choice.Get("finish_reason").Type == gjson.Null && !choice.Get("delta.role").Exists()
}

func parseStream(body []byte) stream {
	var s stream
	for block := range strings.SplitSeq(string(body), "\n\n") {
		name, data := "", ""
		for l := range strings.SplitSeq(block, "\n") {
			if v, ok := strings.CutPrefix(l, "event: "); ok {
				name = v
			}
			if v, ok := strings.CutPrefix(l, "data: "); ok {
				data = v
			}
		}
		if data == "" || data == "[DONE]" {
			s.Done += block
			continue
		}
		for _, path := range []string{"choices.0.delta.content", "choices.0.text", "delta.text", "delta"} {
			if r := gjson.Get(data, path); r.Type == gjson.String {
				s.Text += r.String()
				break
			}
		}
		v := decoded([]byte(data))
		if !delta(data) {
			s.Events = append(s.Events, fmt.Sprint(name, " ", shape(v)))
		}
		s.Last = same(v)
	}
	return s
}

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

// shape keeps of decoded JSON the keys and types; an array becomes the shapes that occur in it.
func shape(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = shape(e)
		}
		return m
	case []any:
		kinds := map[string]any{}
		for _, e := range v {
			s := shape(e)
			kinds[fmt.Sprint(s)] = s // fmt prints maps sorted by key
		}
		return slices.Collect(func(yield func(any) bool) {
			for _, k := range slices.Sorted(maps.Keys(kinds)) {
				if !yield(kinds[k]) {
					return
				}
			}
		})
	case nil:
		return "null"
	case string:
		return "string"
	case bool:
		return "bool"
	default:
		return "number"
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
	switch kind := gjson.Get(data, "type").String(); {
	case kind == "":
		choice := gjson.Get(data, "choices.0")
		return choice.Exists() && choice.Get("finish_reason").Type == gjson.Null && !choice.Get("delta.role").Exists()
	default:
		return kind == "content_block_delta" || strings.HasSuffix(kind, ".delta")
	}
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

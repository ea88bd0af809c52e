package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// span is a range of a body, [from, to).
type span struct{ from, to int }

func (s span) of(b []byte) []byte { return b[s.from:s.to] }

// fields is what the router needs of a request's body. Spans of strings are without quotes.
type fields struct {
	model    span
	name     []byte // the model's name, unescaped; nil when the body names none
	stream   bool
	session  []byte
	previous []byte // previous_response_id
	output   int    // max_tokens and its newer names, 0 when not said

	// The prompt in the order that a chat template writes it. The last byte of a value
	// (closing quote or bracket) is left out, so that a longer prompt extends a shorter one.
	tools, system, prompt, more span
}

// errNotObject and the others are what is wrong with a body that is not passed on.
var (
	errEmptyBody = errors.New("the request body is empty; send a JSON object with \"model\"")
	errNotObject = errors.New("the request body must be a JSON object")
	errTrailing  = errors.New("the request body goes on after its JSON object")
)

// syntaxError is a JSON error at a byte.
func syntaxError(at int, what string) error {
	return fmt.Errorf("the request body is not valid JSON: %s at byte %d", what, at)
}

// scanBody reads the top level of a JSON object in one pass, without decoding it: strings
// are skipped by their quotes and nested values by their brackets, so its cost is near a
// memory copy's. Inside nested values only brackets, strings and depth are checked; the
// engine judges the rest. As in Python's json, the last of duplicate members counts.
func scanBody(b []byte, maxDepth int, sessionField string, f *fields) error {
	i := skipSpace(b, 0)
	if i == len(b) {
		return errEmptyBody
	}
	if b[i] != '{' {
		return errNotObject
	}
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == '}' {
		return atEnd(b, i+1)
	}
	for {
		if i >= len(b) || b[i] != '"' {
			return syntaxError(i, "a member's name in double quotes is missing")
		}
		end := skipString(b, i+1)
		if end < 0 {
			return syntaxError(i, "a string is not closed")
		}
		key := b[i+1 : end]
		if bytes.IndexByte(key, '\\') >= 0 {
			key = unquote(b[i : end+1])
		}
		i = skipSpace(b, end+1)
		if i >= len(b) || b[i] != ':' {
			return syntaxError(i, "':' is missing")
		}
		from := skipSpace(b, i+1)
		to, err := skipValue(b, from, maxDepth)
		if err != nil {
			return err
		}
		if err := f.member(key, b, span{from, to}, sessionField); err != nil {
			return err
		}
		i = skipSpace(b, to)
		if i >= len(b) {
			return syntaxError(i, "the object is not closed")
		}
		if b[i] == '}' {
			return atEnd(b, i+1)
		}
		if b[i] != ',' {
			return syntaxError(i, "',' or '}' is missing")
		}
		i = skipSpace(b, i+1)
	}
}

func atEnd(b []byte, i int) error {
	if skipSpace(b, i) != len(b) {
		return errTrailing
	}
	return nil
}

// member notes one top-level member, v being its raw value.
func (f *fields) member(key, b []byte, v span, sessionField string) error {
	raw := v.of(b)
	switch string(key) {
	case "model":
		if raw[0] != '"' {
			if string(raw) == "null" {
				f.model, f.name = span{}, nil
				return nil
			}
			return errors.New("\"model\" must be a string")
		}
		f.model, f.name = span{v.from + 1, v.to - 1}, raw[1:len(raw)-1]
		if bytes.IndexByte(f.name, '\\') >= 0 {
			f.name = unquote(raw)
		}
	case "stream":
		f.stream = string(raw) == "true"
	case "max_tokens", "max_completion_tokens", "max_output_tokens":
		f.output = max(f.output, number(raw))
	case "tools":
		f.tools = open(raw, v)
	case "system", "instructions":
		f.system = open(raw, v)
	case "messages", "prompt", "input", "query", "queries", "text_1":
		f.prompt = open(raw, v)
	case "documents", "text_2", "items":
		f.more = open(raw, v)
	case "previous_response_id":
		f.previous = text(raw)
	}
	if string(key) == sessionField {
		f.session = text(raw)
	}
	return nil
}

// open is a value without its closing quote or bracket; an empty span for null and numbers.
func open(raw []byte, v span) span {
	switch raw[0] {
	case '"', '[', '{':
		return span{v.from, v.to - 1}
	}
	return span{}
}

// text is a string's bytes as written, nil when it is none.
func text(raw []byte) []byte {
	if raw[0] != '"' {
		return nil
	}
	return raw[1 : len(raw)-1]
}

// number reads a small positive integer, 0 for all else.
func number(raw []byte) int {
	n := 0
	if len(raw) > 9 {
		return 0
	}
	for _, c := range raw {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

func unquote(quoted []byte) []byte {
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return quoted[1 : len(quoted)-1]
	}
	return []byte(s)
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString finds the quote that ends the string whose first byte is at i, -1 when there
// is none.
func skipString(b []byte, i int) int {
	start := i
	for {
		k := bytes.IndexByte(b[i:], '"')
		if k < 0 {
			return -1
		}
		end := i + k
		slashes := 0
		for end-1-slashes >= start && b[end-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return end
		}
		i = end + 1
	}
}

// skipValue returns the end of the value that starts at i.
func skipValue(b []byte, i, maxDepth int) (int, error) {
	if i >= len(b) {
		return i, syntaxError(i, "a value is missing")
	}
	switch b[i] {
	case '"':
		end := skipString(b, i+1)
		if end < 0 {
			return i, syntaxError(i, "a string is not closed")
		}
		return end + 1, nil
	case '{', '[':
		return skipNested(b, i, maxDepth)
	}
	end := i
	for end < len(b) && literal(b[end]) {
		end++
	}
	if end == i {
		return i, syntaxError(i, "a value is missing")
	}
	if !json.Valid(b[i:end]) {
		return i, syntaxError(i, "a value is neither a string, a number, true, false nor null")
	}
	return end, nil
}

func literal(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '+' || c == '.'
}

// skipNested returns the end of the array or object that starts at i. Brackets are
// counted by kind without recursion; maxDepth bounds what an engine's parser must recurse
// into.
func skipNested(b []byte, i, maxDepth int) (int, error) {
	start, depth := i, 0
	var kinds [maxDepthLimit/64 + 1]uint64 // bit set: an object at that depth
	for i < len(b) {
		switch c := b[i]; c {
		case '"':
			end := skipString(b, i+1)
			if end < 0 {
				return i, syntaxError(i, "a string is not closed")
			}
			i = end
		case '{', '[':
			if depth++; depth >= maxDepth {
				return i, fmt.Errorf("the request body is nested deeper than %d levels at byte %d", maxDepth, i)
			}
			if bit := uint64(1) << (depth & 63); c == '{' {
				kinds[depth>>6] |= bit
			} else {
				kinds[depth>>6] &^= bit
			}
		case '}', ']':
			if (c == '}') != (kinds[depth>>6]>>(depth&63)&1 == 1) {
				return i, syntaxError(i, "a bracket does not match")
			}
			if depth--; depth == 0 {
				return i + 1, nil
			}
		}
		i++
	}
	return i, syntaxError(start, "a bracket is not closed")
}

// maxDepthLimit bounds the depth that the fleet file may allow.
const maxDepthLimit = 1000

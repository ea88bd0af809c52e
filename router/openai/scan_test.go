package openai

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestScanBodyFindsFields(t *testing.T) {
	for name, tc := range map[string]struct {
		body                     string
		model, session, previous string
		stream                   bool
		output                   int
		prompt, system, more     string
	}{
		"chat":               {body: `{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"user":"u1","max_tokens":7}`, model: "m", session: "u1", stream: true, output: 7, prompt: `[{"role":"user","content":"hi"}`},
		"white space":        {body: " {\n\t\"model\" : \"m\" ,\r\n \"stream\" : false }\n", model: "m"},
		"last duplicate":     {body: `{"model":"a","model":"b"}`, model: "b"},
		"escaped key":        {body: `{"mod\u0065l":"b"}`, model: "b"},
		"escaped name":       {body: `{"model":"a\/b"}`, model: "a/b"},
		"null model":         {body: `{"model":null}`},
		"empty":              {body: `{}`},
		"text prompt":        {body: `{"model":"m","prompt":"once \"upon\" a time"}`, model: "m", prompt: `"once \"upon\" a time`},
		"token ids":          {body: `{"model":"m","prompt":[1,2,[3]]}`, model: "m", prompt: `[1,2,[3]`},
		"responses":          {body: `{"model":"m","instructions":"be","input":"x","previous_response_id":"resp_1","max_output_tokens":9}`, model: "m", system: `"be`, prompt: `"x`, previous: "resp_1", output: 9},
		"anthropic":          {body: `{"model":"m","system":[{"type":"text"}],"messages":[]}`, model: "m", system: `[{"type":"text"}`, prompt: `[`},
		"rerank":             {body: `{"model":"m","query":"q","documents":["a","b"]}`, model: "m", prompt: `"q`, more: `["a","b"`},
		"score":              {body: `{"model":"m","text_1":"q","text_2":["a"]}`, model: "m", prompt: `"q`, more: `["a"`},
		"stream of no bool":  {body: `{"model":"m","stream":"true"}`, model: "m"},
		"backslash at end":   {body: `{"model":"m","prompt":"a\\"}`, model: "m", prompt: `"a\\`},
		"prompt null":        {body: `{"model":"m","prompt":null}`, model: "m"},
		"unknown and nested": {body: `{"x":{"model":"no","y":["}"]},"model":"m"}`, model: "m"},
		"user of no string":  {body: `{"model":"m","user":{"a":1}}`, model: "m"},
		"numbers":            {body: `{"a":-1.5e+10,"b":0,"model":"m","max_tokens":null}`, model: "m"},
	} {
		t.Run(name, func(t *testing.T) {
			var f fields
			b := []byte(tc.body)
			require.NoError(t, scanBody(b, 100, "user", &f))
			require.Equal(t, tc.model, string(f.name))
			require.Equal(t, tc.session, string(f.session))
			require.Equal(t, tc.previous, string(f.previous))
			require.Equal(t, tc.stream, f.stream)
			require.Equal(t, tc.output, f.output)
			require.Equal(t, tc.prompt, string(f.prompt.of(b)))
			require.Equal(t, tc.system, string(f.system.of(b)))
			require.Equal(t, tc.more, string(f.more.of(b)))
		})
	}
}

func TestScanBodyRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ body, want string }{
		"empty":             {"", "the request body is empty"},
		"blank":             {" \n", "the request body is empty"},
		"array":             {"[1]", "must be a JSON object"},
		"text":              {"hello", "must be a JSON object"},
		"open object":       {`{"model":"m"`, "the object is not closed at byte 12"},
		"open string":       {`{"model":"m`, "a string is not closed at byte 9"},
		"open array":        {`{"model":"m","x":[1,{"a":2}`, "a bracket is not closed at byte 17"},
		"mixed brackets":    {`{"model":"m","x":[1}`, "a bracket does not match at byte 19"},
		"no colon":          {`{"model" "m"}`, "':' is missing at byte 9"},
		"no comma":          {`{"model":"m" "x":1}`, "',' or '}' is missing at byte 13"},
		"bare key":          {`{model:"m"}`, "a member's name in double quotes is missing at byte 1"},
		"trailing comma":    {`{"model":"m",}`, "a member's name in double quotes is missing at byte 13"},
		"no value":          {`{"model":}`, "a value is missing at byte 9"},
		"bad literal":       {`{"stream":yes}`, "a value is neither"},
		"bad number":        {`{"x":01}`, "a value is neither"},
		"trailing":          {`{"model":"m"} {}`, "goes on after"},
		"model of no text":  {`{"model":7}`, `"model" must be a string`},
		"too deep":          {`{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested deeper than 100 levels at byte 104"},
		"very deep unended": {`{"x":` + strings.Repeat(`{"a":`, 1<<16), "nested deeper than 100 levels"},
	} {
		t.Run(name, func(t *testing.T) {
			var f fields
			require.ErrorContains(t, scanBody([]byte(tc.body), 100, "user", &f), tc.want)
		})
	}
}

// FuzzScanBody: whatever encoding/json takes as an object with known members, the scanner
// takes too, with the same values; and it never panics.
func FuzzScanBody(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}`, `{"model":"a\u0062","prompt":["x\\",1,[2]]}`,
		`{}`, ` {"a":{"b":[]}} `, `{"model":"m"`, `{"x":"\"}`, `{"stream":true,"stream":false}`, `[`, "{\"\xff\":1}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got fields
		err := scanBody(bytes.Clone(b), 100, "user", &got)
		var want map[string]json.RawMessage
		if json.Unmarshal(b, &want) != nil || want == nil {
			return // the scanner leaves the inside of values to the engine
		}
		if depthOf(b) >= 100 {
			return
		}
		if raw, ok := want["model"]; ok && raw[0] != '"' && string(raw) != "null" {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		var model string
		if raw, ok := want["model"]; ok && json.Unmarshal(raw, &model) == nil && json.Valid(raw) {
			require.Equal(t, model, strings.ToValidUTF8(string(got.name), "�"), "%q", b)
		}
		require.Equal(t, string(want["stream"]) == "true", got.stream)
	})
}

func depthOf(b []byte) int {
	most, depth := 0, 0
	d := json.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := d.Token()
		if err != nil {
			return most
		}
		if c, ok := tok.(json.Delim); ok {
			if c == '{' || c == '[' {
				depth++
				most = max(most, depth)
			} else {
				depth--
			}
		}
	}
}

func BenchmarkScanBody(b *testing.B) {
	for _, size := range []int{200, 32 << 10, 220 << 10, 1 << 20} {
		text := strings.Repeat("The quick brown fox jumps over the lazy dog.\\n", size/46+1)[:size]
		body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.TrimRight(text, `\`) + `"}],"stream":true,"max_tokens":16}`)
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				var f fields
				if err := scanBody(body, 100, "user", &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

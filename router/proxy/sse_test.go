package proxy

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// seen is what a scanner found in a stream.
type seen struct {
	Events                     int
	Done, Abort, Failed, First bool // First: it began with an error
	Usage                      Usage
}

func scan(pieces ...[]byte) seen {
	var s scanner
	s.reset()
	for _, p := range pieces {
		s.feed(p)
	}
	return seen{s.events, s.done, s.abort, s.failed, s.failedFirst(), s.usage}
}

// goldenBody is the body of a captured stream, which is JSON with its text, or raw with chunks.
func goldenBody(t *testing.T, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join("testdata", "vllm", name))
	require.NoError(t, err)
	if strings.HasSuffix(name, ".json") {
		var v struct {
			Text string `json:"response_text"`
		}
		require.NoError(t, json.Unmarshal(p, &v))
		return []byte(v.Text)
	}
	r, err := readPieces(p, len(p), "POST")
	if strings.Contains(name, "sigkill_midstream") && !strings.Contains(name, "enginecore") {
		require.Error(t, err, "it was cut")
	} else {
		require.NoError(t, err)
	}
	require.True(t, r.sse)
	return []byte(r.body)
}

func TestGoldenStreamsAtEverySplit(t *testing.T) {
	for _, c := range []struct {
		file string
		want seen
	}{
		{"chat_stream.json", seen{Events: 7, Done: true, Usage: Usage{true, 24, 6, 0}}},
		{"chat_stream_usage.json", seen{Events: 8, Done: true, Usage: Usage{true, 24, 6, 0}}},
		{"completions_stream.json", seen{Events: 3, Done: true, Usage: Usage{true, 2, 5, 0}}},
		{"messages_stream.json", seen{Events: 9, Done: true, Usage: Usage{true, 15, 4, 0}}},
		{"responses_stream.json", seen{Events: 10, Done: true, Usage: Usage{true, 16, 4, 0}}},
		{"sse_chat_raw.bin", seen{Events: 10, Done: true, Usage: Usage{true, 15, 8, 0}}},
		{"sse_drain_then_api_sigkill_midstream.bin", seen{Events: 56, Usage: Usage{true, 15, 102, -1}}},
		{"sse_enginecore_sigkill_midstream.bin", seen{Events: 1, Done: true, Failed: true, First: true, Usage: Usage{Cached: -1}}},
		{"sse_sigterm_midstream.bin", seen{Events: 7, Done: true, Abort: true, Usage: Usage{true, 15, 5, -1}}},
	} {
		t.Run(c.file, func(t *testing.T) {
			p := goldenBody(t, c.file)
			require.Empty(t, cmp.Diff(c.want, scan(p)))
			for i := range p {
				require.Equal(t, c.want, scan(p[:i], p[i:]), "split at %d", i)
			}
			for size := 1; size < 100; size++ {
				require.Equal(t, c.want, scan(split(p, size)...), "pieces of %d", size)
			}
		})
	}
}

func split(p []byte, size int) (pieces [][]byte) {
	for ; len(p) > size; p = p[size:] {
		pieces = append(pieces, p[:size])
	}
	return append(pieces, p)
}

func TestScanner(t *testing.T) {
	none := Usage{Cached: -1}
	long := strings.Repeat("x", 5<<10)
	for _, c := range []struct {
		name, stream string
		want         seen
	}{
		{"comments and fields without data", ": ping\n\nid: 3\nretry: 9\n\n", seen{Usage: none}},
		{"two data lines are one event", "data: a\ndata: b\n\ndata: c\n\n", seen{Events: 2, Usage: none}},
		{"CRLF", "data: {}\r\n\r\ndata: [DONE]\r\n\r\n", seen{Events: 1, Done: true, Usage: none}},
		{"no space", "data:{}\n\ndata:[DONE]\n\n", seen{Events: 1, Done: true, Usage: none}},
		{"text that looks like an end", event(`{"choices":[{"delta":{"content":"data: [DONE]\n\n"}}]}`), seen{Events: 1, Usage: none}},
		{"text that looks like an abort", event(`{"choices":[{"delta":{"content":"\"finish_reason\":\"abort\""},"finish_reason":null}]}`), seen{Events: 1, Usage: none}},
		{"the word abort before an abort", event(`{"choices":[{"delta":{"content":"abort"},"finish_reason": "abort"}]}`), seen{Events: 1, Abort: true, Usage: none}},
		{"text that looks like usage", event(`{"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":3}"}}]}`), seen{Events: 1, Usage: none}},
		{"error null", event(`{"error":null,"choices":[]}`), seen{Events: 1, Usage: none}},
		{"error 400", event(`{"error":{"message":"no","code":400}}`), seen{Events: 1, Usage: none}},
		{"error 500", event(`{"error":{"message":"no","code":500}}`), seen{Events: 1, Failed: true, First: true, Usage: none}},
		{"error 500 later", event(`{}`) + event(`{"error":{"message":"no","code":500}}`), seen{Events: 2, Failed: true, Usage: none}},
		{"error without a code", event(`{"error":"no"}`), seen{Events: 1, Failed: true, First: true, Usage: none}},
		{"error with a code in words", event(`{"error":{"code":"server_error"}}`), seen{Events: 1, Failed: true, First: true, Usage: none}},
		{"Anthropic error", "event: error\n" + event(`{"type":"error","error":{"type":"overloaded_error"}}`), seen{Events: 1, Failed: true, First: true, Usage: none}},
		{"response.failed", "event: response.created\n" + event(`{}`) + "event: response.failed\n" + event(`{}`), seen{Events: 2, Done: true, Failed: true, Usage: none}},
		{"usage in a long line", event(`{"x":"` + long + `","usage":{"prompt_tokens":3,"completion_tokens":4}}`), seen{Events: 1, Usage: Usage{true, 3, 4, -1}}},
		{"usage before the rest of a long line", event(`{"usage":{"prompt_tokens":3},"x":"` + long + `"}`), seen{Events: 1, Usage: Usage{true, 3, 0, -1}}},
		{"abort in a long line", event(`{"x":"` + long + `","finish_reason":"abort","y":"` + long + `"}`), seen{Events: 1, Abort: true, Usage: none}},
		{"code after a long message", event(`{"error":{"message":"` + long + `","code":400}}`), seen{Events: 1, Usage: none}},
		{"usage null", event(`{"usage":null}`), seen{Events: 1, Usage: none}},
		{"usage is merged", event(`{"usage":{"input_tokens":9,"cache_read_input_tokens":5}}`) + event(`{"usage":{"output_tokens":2}}`), seen{Events: 2, Usage: Usage{true, 9, 2, 5}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := []byte(c.stream)
			require.Empty(t, cmp.Diff(c.want, scan(p)))
			for size := 1; size < 64; size++ {
				require.Equal(t, c.want, scan(split(p, size)...), "pieces of %d", size)
			}
		})
	}
}

func TestScannerDecidesAsSoonAsItCan(t *testing.T) {
	for _, c := range []struct {
		prefix    string
		undecided bool
	}{
		{"", true},
		{"d", true},
		{"data: ", true},
		{`data: {"`, true},
		{`data: {"i`, false},
		{`data: {"err`, true},
		{`data: {"error": {"message": "x`, true},
		{"data: [", false},
		{":", false},
		{"event: ", true},
		{"event: m", false},
		{"event: error\ndata", true},
		{"event: error\ndata: {\"type\":\"error\"}", true},
		{"event: error\ndata: {\"type\":\"error\"}\n", false},
		{"\n\n", true},
	} {
		var s scanner
		s.reset()
		s.feed([]byte(c.prefix))
		require.Equal(t, c.undecided, s.undecided(), "%q", c.prefix)
	}
}

// naive is the scanner written for clarity: it has the whole stream.
func naive(p []byte) (events int, done bool) {
	counted := false
	lines := bytes.Split(p, []byte("\n"))
	for _, l := range lines[:len(lines)-1] { // the last has not ended
		l = bytes.TrimSuffix(l, []byte("\r"))
		name, value, _ := bytes.Cut(l, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(l) == 0:
			counted = false
		case string(name) == "event":
			switch string(trimSpace(value)) {
			case "message_stop", "response.completed", "response.incomplete", "response.cancelled", "response.failed":
				done = true
			}
		case string(name) != "data" || len(l) == len("data:") || len(l) == len("data"):
		case string(value) == "[DONE]":
			done = true
		case !counted:
			counted = true
			events++
		}
	}
	return events, done
}

func FuzzScanner(f *testing.F) {
	for _, s := range []string{
		tokens(3) + event("[DONE]"), "event: error\n" + event("{}"), "data:x\r\n\r\n: c\n\ndata: [DONE]",
		event(`{"usage":{"prompt_tokens":1,"x":{"cached_tokens":2}}}`), event(`{"finish_reason":"abort"}`), event(`{"error":{"code":404}}`),
		"data: " + strings.Repeat("long ", 500) + "\n\n", "data:{\"error\":0\n", "event:\terror\ndata:{}\n\n",
	} {
		f.Add([]byte(s), uint16(3))
		f.Add([]byte(s), uint16(4))
		f.Add([]byte(s), uint16(1500))
	}
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		want, got := scan(p), scan(split(p, int(size)+1)...)
		longest := 0
		for l := range bytes.SplitSeq(p, []byte("\n")) {
			longest = max(longest, len(l))
		}
		if longest <= windowSize { // in longer lines a split may hide a usage or a code
			require.Equal(t, want, got)
		}
		events, done := naive(p)
		if !bytes.Contains(p, []byte("event: error")) {
			require.Equal(t, []any{events, done}, []any{want.Events, want.Done})
		}
		require.Equal(t, []any{want.Events, want.Done}, []any{got.Events, got.Done})
	})
}

func TestUsageOfPlainGoldenAnswers(t *testing.T) {
	for _, c := range []struct {
		file string
		want Usage
	}{
		{"chat.json", Usage{true, 24, 16, 0}},
		{"messages.json", Usage{true, 15, 6, 0}},
		{"responses.json", Usage{true, 16, 8, 0}},
		{"pool_embeddings.json", Usage{true, 5, 0, -1}},
		{"err_unknown_model_stream.json", Usage{Cached: -1}},
	} {
		t.Run(c.file, func(t *testing.T) {
			p, err := os.ReadFile(filepath.Join("testdata", "vllm", c.file))
			require.NoError(t, err)
			var v struct {
				JSON json.RawMessage `json:"response_json"`
			}
			require.NoError(t, json.Unmarshal(p, &v))
			u := noUsage()
			u.last(v.JSON)
			require.Equal(t, c.want, u)
		})
	}
}

func TestUsageOfStrangeBytes(t *testing.T) {
	none := Usage{Cached: -1}
	for _, c := range []struct {
		in   string
		want Usage
	}{
		{`"usage":{"prompt_tokens":1`, none},
		{`"usage":{"prompt_tokens`, none},
		{`"usage"`, none},
		{`"usage":`, none},
		{`"usage":[1]`, none},
		{`"usage":"x"`, none},
		{`"usage":{}`, Usage{true, 0, 0, -1}},
		{`"usage":{"prompt_tokens":99999999999999999999}`, Usage{true, 9999999999999, 0, -1}},
		{`"usage":{"prompt_tokens":null,"completion_tokens":-4}`, Usage{true, 0, 4, -1}},
		{`"usage":{"prompt_tokens":3,"a":"}\"","cached_tokens":2}`, Usage{true, 3, 0, 2}},
		{`"usage":{"prompt_tokens":3},"usage":{"prompt_tokens":4}`, Usage{true, 4, 0, -1}},
	} {
		u := noUsage()
		u.last([]byte(c.in))
		if strings.Contains(c.in, "9999999") {
			require.Positive(t, u.Prompt)
			continue
		}
		require.Equal(t, c.want, u, c.in)
	}
}

func FuzzUsage(f *testing.F) {
	f.Add([]byte(`{"usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		u := noUsage()
		u.last(p)
		require.True(t, u.Prompt >= 0 && u.Completion >= 0 && u.Cached >= -1)
		if json.Valid(p) && !u.Seen {
			var v struct {
				Usage *struct {
					Prompt *int `json:"prompt_tokens"`
				} `json:"usage"`
			}
			// What encoding/json finds at the top and last, we find, unless it is hidden under another.
			if json.Unmarshal(p, &v) == nil && v.Usage != nil && v.Usage.Prompt != nil {
				require.Greater(t, bytes.Count(bytes.ToLower(p), []byte("usage")), 1, "%s", p)
			}
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	p := []byte(event(`{"id":"chatcmpl-97a06a094931de4e","object":"chat.completion.chunk","created":1795356484,"model":"tiny","choices":[{"index":0,"delta":{"content":" message"},"logprobs":null,"finish_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-e7b544e9","x":"` + strings.Repeat("y", 20) + `"}`))
	usage := []byte(event(`{"id":"chatcmpl-97a06a094931de4e","object":"chat.completion.chunk","created":1795356484,"model":"tiny","choices":[{"index":0,"delta":{"content":"&"},"logprobs":null,"finish_reason":null,"token_ids":null}],"usage":{"prompt_tokens":15,"total_tokens":16,"completion_tokens":1,"completion_tokens_details":null}}`))
	for _, c := range []struct {
		name string
		p    []byte
	}{{"300 bytes", p}, {"with usage", usage}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.p)))
			var s scanner
			s.reset()
			for b.Loop() {
				s.feed(c.p)
			}
		})
	}
}

//go:build real

package real

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// testSimulator holds the simulated engine against the real one: the same status, header
// and keys and types of the body, whatever the text.
func (s *stack) testSimulator(t *testing.T) {
	port := freePorts(t, 1)[0]
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	sim := s.guard.start(t, s.logs, "sim", nil, s.binary, "sim", "--port", strconv.Itoa(port), "--model", model, "--lora", lora, "--max-model-len", "2048")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer sim.killGroup()
	require.NoError(t, sim.healthy(ctx, s.client, url))

	for _, c := range []struct {
		name string
		call
	}{
		{"models", call{method: http.MethodGet, path: "/v1/models"}},
		{"health", call{method: http.MethodGet, path: "/health"}},
		{"version", call{method: http.MethodGet, path: "/version"}},
		{"chat", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":8}`}},
		{"chat of a LoRA", call{path: chat, body: `{"model":"ad1",` + hello + `,"max_tokens":8}`}},
		{"prompt too long", call{path: "/v1/completions", body: `{"model":"tiny","prompt":[` + strings.Repeat("5,", 2100) + `5]}`}},
		{"chat n2 logprobs", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":3,"n":2,"logprobs":true,"top_logprobs":2}`}},
		{"chat token ids", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":3,"return_token_ids":true,"ignore_eos":true}`}},
		{"completions", call{path: "/v1/completions", body: `{"model":"tiny","prompt":"a","max_tokens":8}`}},
		{"completions echo logprobs", call{path: "/v1/completions", body: `{"model":"tiny","prompt":"a b c","max_tokens":8,"echo":true,"logprobs":1}`}},
		{"completions token ids", call{path: "/v1/completions", body: `{"model":"tiny","prompt":[5,6,7],"max_tokens":8}`}},
		{"responses", call{path: "/v1/responses", body: `{"model":"tiny","input":"hello","max_output_tokens":8}`}},
		{"messages", call{path: "/v1/messages", body: `{"model":"tiny",` + hello + `,"max_tokens":8}`}},
		{"count tokens", call{path: "/v1/messages/count_tokens", body: `{"model":"tiny",` + hello + `}`}},
		{"tokenize", call{path: "/tokenize", body: `{"model":"tiny","prompt":"hello"}`}},
		{"detokenize", call{path: "/detokenize", body: `{"model":"tiny","tokens":[5,6,7]}`}},
		{"embeddings", call{path: "/v1/embeddings", body: `{"model":"tiny","input":"a"}`}},
		{"unknown model", call{path: chat, body: `{"model":"nope",` + hello + `}`}},
		{"unknown model messages", call{path: "/v1/messages", body: `{"model":"nope",` + hello + `,"max_tokens":8}`}},
		{"bad JSON", call{path: chat, body: `{"model":`}},
		{"temperature", call{path: chat, body: `{"model":"tiny",` + hello + `,"temperature":9}`}},
		{"max_tokens 0", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":0}`}},
		{"content type", call{path: chat, contentType: "text/plain", body: `{"model":"tiny",` + hello + `}`}},
		{"wrong type", call{path: chat, body: `{"model":"tiny","messages":"hello"}`}},
		{"stored answer not found", call{method: http.MethodGet, path: "/v1/responses/resp_0000000000000000"}},
		{"wrong method", call{method: http.MethodGet, path: chat}},
		{"no such path", call{path: "/nothing"}},
		{"chat stream", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":8,"stream":true,"stream_options":{"include_usage":true}}`}},
		{"chat stream without usage", call{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":8,"stream":true}`}},
		{"completions stream", call{path: "/v1/completions", body: `{"model":"tiny","prompt":"a","max_tokens":8,"stream":true}`}},
		{"responses stream", call{path: "/v1/responses", body: `{"model":"tiny","input":"hello","max_output_tokens":8,"stream":true}`}},
		{"messages stream", call{path: "/v1/messages", body: `{"model":"tiny",` + hello + `,"max_tokens":8,"stream":true}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := s.ask(t.Context(), s.engines[0].url, c.call)
			require.NoError(t, err)
			got, err := s.ask(t.Context(), url, c.call)
			require.NoError(t, err)
			require.Equal(t, want.status, got.status, "status; vLLM: %s; simulator: %s", want.body, got.body)
			require.Empty(t, cmp.Diff(framing(want.header), framing(got.header)), "header (-vLLM +simulator)")
			if want.header.Get("Transfer-Encoding") != "" {
				w, g := parseStream(want.body), parseStream(got.body)
				// The engine samples: now and then its last token is half a character, and the last event without text.
				for again := 0; again < 10 && !cmp.Equal(w.Events, g.Events); again++ {
					want, err = s.ask(t.Context(), s.engines[0].url, c.call)
					require.NoError(t, err)
					w = parseStream(want.body)
				}
				require.Empty(t, cmp.Diff(w.Events, g.Events), "events (-vLLM +simulator)")
				require.Equal(t, w.Done, g.Done)
				return
			}
			if want.status >= http.StatusBadRequest {
				require.Empty(t, cmp.Diff(decoded(want.body), decoded(got.body)), "error (-vLLM +simulator)")
				return
			}
			require.Empty(t, cmp.Diff(shape(decoded(want.body)), shape(decoded(got.body))), "shape (-vLLM +simulator)")
		})
	}
}

// testSamplingRefused holds the real engine against what the simulator's own test takes for
// its answers to sampling parameters out of range.
func (s *stack) testSamplingRefused(t *testing.T) {
	f, err := os.Open("../../engine/sim/testdata/vllm/sampling.jsonl")
	require.NoError(t, err)
	defer f.Close()
	base := map[string]string{
		chat:              `{"model":"tiny",` + hello + `}`,
		"/v1/completions": `{"model":"tiny","prompt":"hello"}`,
		"/v1/responses":   `{"model":"tiny","input":"hello"}`,
		"/v1/messages":    `{"model":"tiny",` + hello + `,"max_tokens":8}`,
	}
	lines, n := bufio.NewScanner(f), 0
	for lines.Scan() {
		for path, refused := range gjson.Get(lines.Text(), "refused").Map() {
			n++
			body := base[path]
			for name, value := range gjson.Get(lines.Text(), "add").Map() {
				body, err = sjson.SetRaw(body, name, value.Raw)
				require.NoError(t, err)
			}
			t.Run(path+" "+gjson.Get(lines.Text(), "add").Raw, func(t *testing.T) {
				got, err := s.ask(t.Context(), s.engines[0].url, call{path: path, body: body})
				require.NoError(t, err)
				want, answer := refused.Get("body"), string(got.body)
				if event := refused.Get("event"); event.Exists() {
					want = event
					answer = strings.TrimSuffix(strings.TrimPrefix(answer, "data: "), "\n\ndata: [DONE]\n\n")
				}
				require.Equal(t, refused.Get("status").Int(), int64(got.status), "%s", got.body)
				require.JSONEq(t, want.Raw, answer)
			})
		}
	}
	require.NoError(t, lines.Err())
	require.Positive(t, n)
}

// framing is an answer's header without the values that depend on its text.
func framing(h http.Header) http.Header {
	h = fields(h)
	if h.Get("Content-Length") != "" {
		h.Set("Content-Length", "a length")
	}
	return h
}

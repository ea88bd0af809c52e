package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"
)

// generating are the routes that take sampling parameters, with the least that each needs.
var generating = map[string]string{
	"/v1/chat/completions": `{"model":"tiny","messages":[{"role":"user","content":"hello"}]}`,
	"/v1/completions":      `{"model":"tiny","prompt":"hello"}`,
	"/v1/responses":        `{"model":"tiny","input":"hello"}`,
	"/v1/messages":         `{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":8}`,
}

// refusal is how vLLM refuses a request: with a status and a body, or by an event in a stream.
type refusal struct {
	Status int             `json:"status"`
	Body   json.RawMessage `json:"body"`
	Event  json.RawMessage `json:"event"`
}

// with adds fields to a JSON object; of two with one name the later one counts.
func with(t *testing.T, body string, add json.RawMessage) string {
	t.Helper()
	var all map[string]json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(body), &all))
	require.NoError(t, json.Unmarshal(add, &all))
	b, err := json.Marshal(all)
	require.NoError(t, err)
	return string(b)
}

// The size of the vocabulary is the model's: 2048 where vLLM was asked.
var vocabulary = regexp.MustCompile(`(Vocabulary size: |logprobs of |logprobs, value=)\d{3,}`)

// The answers in sampling.jsonl are those of vLLM 0.32's own request classes, for each of the
// routes that does not answer with 200; test/real holds a real engine against them.
func TestSamplingParametersAreRefusedAsVLLMRefusesThem(t *testing.T) {
	s := serve(t, Options{Model: "tiny", MaxModelLen: 2048})
	f, err := os.Open("testdata/vllm/sampling.jsonl")
	require.NoError(t, err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	n := 0
	for ; lines.Scan(); n++ {
		var c struct {
			Add     json.RawMessage    `json:"add"`
			Refused map[string]refusal `json:"refused"`
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		for path, base := range generating {
			t.Run(path+" "+string(c.Add), func(t *testing.T) {
				want, refused := c.Refused[path]
				res, err := s.start(t.Context(), path, with(t, base, c.Add))
				require.NoError(t, err)
				defer res.Body.Close()
				got, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				if !refused {
					require.Equal(t, http.StatusOK, res.StatusCode, "%s", got)
					require.NotContains(t, string(got), `"error"`)
					return
				}
				require.Equal(t, want.Status, res.StatusCode, "%s", got)
				body, answer := string(want.Body), string(got)
				if want.Event != nil {
					event, rest, _ := strings.Cut(strings.TrimPrefix(answer, "data: "), "\n\n")
					require.Equal(t, "data: [DONE]\n\n", rest)
					body, answer = string(want.Event), event
				}
				require.JSONEq(t, vocabulary.ReplaceAllString(body, "$1?"), vocabulary.ReplaceAllString(answer, "$1?"))
			})
		}
	}
	require.NoError(t, lines.Err())
	require.Greater(t, n, 140)
}

func TestWhatIsRefusedFirst(t *testing.T) {
	s := serve(t, Options{MaxModelLen: 64})
	prompt := func(n int) string { return `{"temperature":9,"prompt":` + string(appendIDs(nil, run(n, 300))) }
	tests := []struct{ name, body, param, message string }{
		{"the model before the ranges", `{"model":"nope","prompt":"x","temperature":9}`, "model", "The model `nope` does not exist."},
		{"the tokens asked for before the prompt's length", prompt(70) + `,"max_tokens":65}`, "max_tokens", "max_tokens=65 cannot be greater than max_model_len=64."},
		{"the prompt's length before the ranges", prompt(70) + "}", "input_tokens", "your prompt contains 70 input tokens"},
		{"the ranges before the room that is left", prompt(64) + "}", "temperature", "temperature must be in [0, 2], got 9.0."},
		{"the room before the least", `{"prompt":` + string(appendIDs(nil, run(64, 300))) + `,"min_tokens":3}`, "max_tokens", "max_tokens must be at least 1, got 0."},
		{"the room is the most", `{"prompt":` + string(appendIDs(nil, run(60, 300))) + `,"max_tokens":9,"min_tokens":5}`, "", "min_tokens must be less than or equal to max_tokens=4, got 5."},
		{"the API before the engine", `{"prompt":"x","logprobs":21,"temperature":9}`, "temperature", "temperature must be in [0, 2], got 9.0."},
		{"too many prompts", `{"prompt":["x"` + strings.Repeat(`,"x"`, 1024) + `]}`, "prompt", "prompt list length 1025 exceeds the maximum allowed count of 1024."},
		{"the simulator's own bound", `{"prompt":["x","y"],"n":3000}`, "", "The simulator gives at most 4096 choices in one request."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, got := s.post("/v1/completions", tt.body)
			require.GreaterOrEqual(t, status, 400)
			require.Equal(t, tt.param, got.Get("error.param").Str, got.Raw)
			require.Contains(t, got.Get("error.message").Str, tt.message)
		})
	}
}

func TestWhatIsInRangeIsAnswered(t *testing.T) {
	s := serve(t, Options{})
	rapid.Check(t, func(r *rapid.T) {
		body, good := `{"prompt":"x"`, true
		wild := rapid.IntRange(0, 8).Draw(r, "field that may be out of range")
		number := func(i int, field string, low, high, unit int) int {
			from, to := low, high
			if i == wild {
				from, to = min(-3*unit, low), max(3*unit, high)
			}
			n := rapid.IntRange(from, to).Draw(r, field)
			body += fmt.Sprintf(",%q:%v", field, float64(n)/float64(unit))
			good = good && low <= n && n <= high
			return n
		}
		temperature := number(1, "temperature", 0, 200, 100)
		number(2, "top_p", 1, 100, 100)
		number(3, "min_p", 0, 100, 100)
		number(4, "presence_penalty", -200, 200, 100)
		number(5, "frequency_penalty", -200, 200, 100)
		number(6, "repetition_penalty", 1, 300, 100)
		most := number(7, "max_tokens", 1, 5, 1)
		number(8, "min_tokens", 0, max(0, most), 1)
		n := rapid.IntRange(1, 2).Draw(r, "n")
		good = good && (n == 1 || temperature != 0)
		status, got := s.post("/v1/completions", fmt.Sprintf(`%s,"n":%d}`, body, n))
		if good {
			require.Equal(r, http.StatusOK, status, got.Raw)
			return
		}
		require.Equal(r, http.StatusBadRequest, status, got.Raw)
		require.Equal(r, "BadRequestError", got.Get("error.type").Str, got.Raw)
	})
}

func TestTheLastChunkHasTheFingerprint(t *testing.T) {
	for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
		for more, want := range map[string]struct{ finishing, last bool }{
			``:       {true, true},
			`,"n":2`: {true, true},
			`,"stream_options":{"include_usage":true}`:                               {false, true},
			`,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`: {false, true},
		} {
			t.Run(path+more, func(t *testing.T) {
				s := serve(t, Options{Model: "tiny"})
				events, err := s.stream(path, strings.TrimSuffix(generating[path], "}")+`,"max_tokens":3,"stream":true`+more+"}")
				require.NoError(t, err)
				last := len(events) - 2 // before [DONE]
				for i, e := range events[:last+1] {
					finishing := gjson.Get(e, "choices.0.finish_reason").Type == gjson.String
					has := gjson.Get(e, "system_fingerprint").Str == fingerprint
					require.Equal(t, finishing && want.finishing || i == last && want.last, has, e)
				}
			})
		}
	}
}

//go:build real

package real

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

const (
	chat = "/v1/chat/completions"
	// Prompts are shorter than a KV block, so that no answer depends on what is cached.
	hello = `"messages":[{"role":"user","content":"hello"}]`
)

// compared are calls that the router must answer as the engine does. own marks those that
// the router may answer itself: then the status and the shape of the error must agree.
func compared() map[string]struct {
	call
	own bool
} {
	type c = call
	type row = struct {
		call
		own bool
	}
	tools := `"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"u":{"enum":["C","F"]}}}}}]`
	long := strings.Repeat("one two three ", 3000)
	return map[string]row{
		"chat":                      {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":8,"temperature":0}`}},
		"chat, spaces and order":    {call: c{path: chat, body: "{ \"max_tokens\" : 8,\n\t\"temperature\":0 , " + hello + ` , "model" : "tiny" }`}},
		"chat, escapes":             {call: c{path: chat, body: `{"model":"t\u0069ny","messages":[{"role":"user","content":"h\u00e9 \ud83c\udf0a \"\\"}],"max_tokens":8,"temperature":0}`}},
		"chat, n and logprobs":      {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":3,"n":2,"logprobs":true,"top_logprobs":2,"seed":1,"temperature":1}`}},
		"chat, token ids":           {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":3,"temperature":0,"return_token_ids":true,"unknown":{"a":[1,null]}}`}},
		"chat, tools":               {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":30,"temperature":0,"tool_choice":{"type":"function","function":{"name":"f"}},` + tools + `}`}},
		"chat, JSON schema":         {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":8,"temperature":0,"response_format":{"type":"json_object"}}`}},
		"chat, LoRA":                {call: c{path: chat, body: `{"model":"ad1",` + hello + `,"max_tokens":8,"temperature":0}`}},
		"chat, charset":             {call: c{path: chat, contentType: "application/json; charset=utf-8", body: `{"model":"tiny",` + hello + `,"max_tokens":2,"temperature":0}`}},
		"completions":               {call: c{path: "/v1/completions", body: `{"model":"tiny","prompt":"a","max_tokens":8,"temperature":0,"echo":true,"logprobs":1}`}},
		"completions, token ids":    {call: c{path: "/v1/completions", body: `{"model":"tiny","prompt":[5,6,7],"max_tokens":8,"temperature":0}`}},
		"completions, list":         {call: c{path: "/v1/completions", body: `{"model":"tiny","prompt":["a","b"],"max_tokens":4,"temperature":0}`}},
		"responses":                 {call: c{path: "/v1/responses", body: `{"model":"tiny","input":"hello","max_output_tokens":8,"temperature":0}`}},
		"messages":                  {call: c{path: "/v1/messages", body: `{"model":"tiny",` + hello + `,"max_tokens":8,"temperature":0}`}},
		"count tokens":              {call: c{path: "/v1/messages/count_tokens", body: `{"model":"tiny",` + hello + `}`}},
		"tokenize":                  {call: c{path: "/tokenize", body: `{"model":"tiny","prompt":"def main(argv)"}`}},
		"tokenize, chat":            {call: c{path: "/tokenize", body: `{"model":"tiny",` + hello + `,"add_generation_prompt":true}`}},
		"detokenize":                {call: c{path: "/detokenize", body: `{"model":"tiny","tokens":[5,6,7]}`}},
		"embeddings":                {call: c{path: "/v1/embeddings", body: `{"model":"tinyemb","input":["a","b"]}`}},
		"embeddings, base64":        {call: c{path: "/v1/embeddings", body: `{"model":"tinyemb","input":[5,6],"encoding_format":"base64"}`}},
		"embeddings, too long":      {call: c{path: "/v1/embeddings", body: `{"model":"tinyemb","input":"` + long + `"}`}},
		"pooling":                   {call: c{path: "/pooling", body: `{"model":"tinyemb","input":"a"}`}},
		"score":                     {call: c{path: "/score", body: `{"model":"tinyemb","text_1":"a","text_2":["b","c"]}`}},
		"v1 score":                  {call: c{path: "/v1/score", body: `{"model":"tinyemb","text_1":"a","text_2":"b"}`}},
		"rerank":                    {call: c{path: "/rerank", body: `{"model":"tinyemb","query":"a","documents":["b","c"]}`}},
		"v1 rerank":                 {call: c{path: "/v1/rerank", body: `{"model":"tinyemb","query":"a","documents":["b","c"],"top_n":1}`}},
		"v2 rerank":                 {call: c{path: "/v2/rerank", body: `{"model":"tinyemb","query":"a","documents":["b","c"]}`}},
		"chat of a pooling model":   {call: c{path: chat, body: `{"model":"tinyemb",` + hello + `}`}},
		"embeddings of a chat one":  {call: c{path: "/v1/embeddings", body: `{"model":"tiny","input":"a"}`}},
		"temperature out of range":  {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"temperature":9}`}},
		"no tokens wanted":          {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":0}`}},
		"no answers wanted":         {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"n":0}`}},
		"no messages":               {call: c{path: chat, body: `{"model":"tiny"}`}},
		"empty messages":            {call: c{path: chat, body: `{"model":"tiny","messages":[]}`}},
		"messages of a wrong type":  {call: c{path: chat, body: `{"model":"tiny","messages":"hello"}`}},
		"stream of a wrong type":    {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"stream":"perhaps"}`}},
		"options without a stream":  {call: c{path: chat, body: `{"model":"tiny",` + hello + `,"stream_options":{"include_usage":true}}`}},
		"prompt too long":           {call: c{path: chat, body: `{"model":"tiny","messages":[{"role":"user","content":"` + long + `"}]}`}},
		"prompt too long, streamed": {call: c{path: chat, body: `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"` + long + `"}]}`}},
		"token id out of range":     {call: c{path: "/v1/completions", body: `{"model":"tiny","prompt":[999999]}`}},
		"messages without a bound":  {call: c{path: "/v1/messages", body: `{"model":"tiny",` + hello + `}`}},
		"stored answer not found":   {call: c{method: http.MethodGet, path: "/v1/responses/resp_0000000000000000"}, own: true},
		"unknown model":             {call: c{path: chat, body: `{"model":"nope",` + hello + `}`}, own: true},
		"unknown model, streamed":   {call: c{path: chat, body: `{"model":"nope",` + hello + `,"stream":true}`}, own: true},
		"unknown model, messages":   {call: c{path: "/v1/messages", body: `{"model":"nope",` + hello + `,"max_tokens":8}`}, own: true},
		"unknown model, responses":  {call: c{path: "/v1/responses", body: `{"model":"nope","input":"a"}`}, own: true},
		"not JSON":                  {call: c{path: chat, body: `{"model":"tiny","messages":[`}, own: true},
		"an array":                  {call: c{path: chat, body: `[]`}, own: true},
		"no body":                   {call: c{path: chat}, own: true},
		"wrong content type":        {call: c{path: chat, contentType: "text/plain", body: `{"model":"tiny",` + hello + `}`}, own: true},
		"wrong method":              {call: c{method: http.MethodGet, path: chat}, own: true},
		"no such path":              {call: c{path: "/v1/nothing", body: `{}`}, own: true},
	}
}

func (s *stack) testSameAsEngine(t *testing.T) {
	calls := compared()
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		c := calls[name]
		c.header = http.Header{"X-Request-Id": {"same"}} // part of the ids that engines give
		t.Run(name, func(t *testing.T) {
			got, err := s.ask(t.Context(), s.url, c.call)
			require.NoError(t, err)
			from := s.servedBy(got)
			if from == nil {
				require.True(t, c.own, "no engine is named in the answer: %d %s", got.status, got.body)
				from = s.engines[0]
			}
			want, err := s.ask(t.Context(), from.url, c.call)
			require.NoError(t, err)
			require.Equal(t, want.status, got.status, "status; %s", got.body)
			if s.servedBy(got) == nil {
				require.Equal(t, want.header.Get("Content-Type"), got.header.Get("Content-Type"))
				sameError(t, want.body, got.body)
				return
			}
			require.Empty(t, cmp.Diff(same(decoded(want.body)), same(decoded(got.body))), "body (-engine +router)")
			require.Empty(t, cmp.Diff(fields(want.header), fields(got.header)), "header (-engine +router)")
			require.Equal(t, "same", got.header.Get("X-Request-Id"))
		})
	}
}

// sameError compares an error of the router's own with the engine's: the words may differ.
func sameError(t *testing.T, want, got []byte) {
	t.Helper()
	if !gjson.GetBytes(want, "error").Exists() {
		// {"detail": ...} of the engine's web framework; clients of OpenAI's read the router's better.
		require.NotEmpty(t, gjson.GetBytes(got, "error.message").String(), "%s", got)
		return
	}
	require.NotEmpty(t, gjson.GetBytes(got, "error.message").String(), "%s", got)
	require.Equal(t, gjson.GetBytes(want, "type").Raw, gjson.GetBytes(got, "type").Raw, "%s", got)
	require.Equal(t, gjson.GetBytes(want, "error.code").Raw, gjson.GetBytes(got, "error.code").Raw, "%s", got)
	keys := func(b []byte) []string {
		m, _ := decoded([]byte(gjson.GetBytes(b, "error").Raw)).(map[string]any)
		return slices.Sorted(maps.Keys(m))
	}
	require.Empty(t, cmp.Diff(keys(want), keys(got)), "keys of the error (-engine +router)")
}

func (s *stack) testStreamsSameAsEngine(t *testing.T) {
	for name, c := range map[string]call{
		"chat":                  {path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":24,"temperature":0,"stream":true}`},
		"chat with usage":       {path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":24,"temperature":0,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		"chat with token ids":   {path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":24,"temperature":0,"stream":true,"return_token_ids":true}`},
		"completions":           {path: "/v1/completions", body: `{"model":"tiny","prompt":"a","max_tokens":24,"temperature":0,"stream":true}`},
		"responses":             {path: "/v1/responses", body: `{"model":"tiny","input":"hello","max_output_tokens":24,"temperature":0,"stream":true}`},
		"messages":              {path: "/v1/messages", body: `{"model":"tiny",` + hello + `,"max_tokens":24,"temperature":0,"stream":true}`},
		"chat of a LoRA, cut":   {path: chat, body: `{"model":"ad1",` + hello + `,"max_tokens":24,"temperature":0,"stream":true,"stop":["e"]}`},
		"chat of one token":     {path: chat, body: `{"model":"tiny",` + hello + `,"max_tokens":1,"temperature":0,"stream":true}`},
		"messages of one token": {path: "/v1/messages", body: `{"model":"tiny",` + hello + `,"max_tokens":1,"temperature":0,"stream":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.ask(t.Context(), s.url, c)
			require.NoError(t, err)
			from := s.servedBy(got)
			require.NotNil(t, from, "%d %s", got.status, got.body)
			want, err := s.ask(t.Context(), from.url, c)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, got.status, "%s", got.body)
			require.Empty(t, cmp.Diff(parseStream(want.body), parseStream(got.body)), "(-engine +router)")
			require.Empty(t, cmp.Diff(fields(want.header), fields(got.header)), "header (-engine +router)")
		})
	}
}

package sim

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	"pgregory.net/rapid"
)

func TestContinuingFromTokenIDsGivesTheSameRest(t *testing.T) {
	a, b := serve(t, Options{}), serve(t, Options{})
	rapid.Check(t, func(r *rapid.T) {
		params := fmt.Sprintf(`,"temperature":%d,"seed":%d,"return_token_ids":true`, rapid.IntRange(0, 1).Draw(r, "temperature"), rapid.IntRange(0, 5).Draw(r, "seed"))
		most := rapid.IntRange(2, 250).Draw(r, "most")
		text := rapid.StringMatching(`[a-z ]{1,60}`).Draw(r, "text")
		whole := a.ok("/v1/chat/completions", chatBody(text, fmt.Sprintf(`%s,"max_tokens":%d`, params, most)))
		said := ids(whole.Get("choices.0.token_ids"))
		if len(said) < 2 {
			return
		}
		cut := rapid.IntRange(1, len(said)-1).Draw(r, "cut")
		prompt := append(ids(whole.Get("prompt_token_ids")), said[:cut]...)
		rest := b.ok("/v1/completions", fmt.Sprintf(`{"prompt":%s%s,"max_tokens":%d}`, appendIDs(nil, prompt), params, most-cut))
		require.Equal(r, said[cut:], ids(rest.Get("choices.0.token_ids")))
		require.Equal(r, whole.Get("choices.0.finish_reason").Str, rest.Get("choices.0.finish_reason").Str)
	})
}

func TestAnswersAreDeterministic(t *testing.T) {
	s, other := serve(t, Options{}), serve(t, Options{Seed: 1})
	say := func(s *server, more string) string {
		return s.ok("/v1/chat/completions", chatBody("hello", `,"max_tokens":20`+more)).Get("choices.0.message.content").Str
	}
	once := say(s, `,"temperature":0`)
	require.Equal(t, once, say(s, `,"temperature":0`))
	require.Equal(t, say(s, `,"temperature":0,"seed":4`), say(s, `,"temperature":0,"seed":5`), "greedy has no seed")
	require.NotEqual(t, say(s, `,"seed":4`), say(s, `,"seed":5`))
	require.NotEqual(t, say(s, ""), say(other, ""), "another model")
}

func TestChatEndsByItself(t *testing.T) {
	s := serve(t, Options{})
	for i := range 20 {
		got := s.ok("/v1/chat/completions", chatBody(fmt.Sprint("question ", i), ""))
		require.Equal(t, "stop", got.Get("choices.0.finish_reason").Str)
		n := got.Get("usage.completion_tokens").Int()
		require.True(t, n > 60 && n <= 201, "%d tokens", n)
	}
	got := s.ok("/v1/chat/completions", chatBody("x", `,"max_tokens":300,"ignore_eos":true`))
	require.Equal(t, int64(300), got.Get("usage.completion_tokens").Int())
	require.Equal(t, "length", got.Get("choices.0.finish_reason").Str)
}

func TestStreamSaysWhatThePlainAnswerSays(t *testing.T) {
	s := serve(t, Options{})
	for _, more := range []string{"", `,"n":3,"temperature":0.7`, `,"stop":["e "]`, `,"max_tokens":7`, `,"logprobs":true,"top_logprobs":3`} {
		plain := s.ok("/v1/chat/completions", chatBody("tell me", more))
		events, err := s.stream("/v1/chat/completions", chatBody("tell me", more+`,"stream":true,"return_token_ids":true,"stream_options":{"include_usage":true}`))
		require.NoError(t, err)
		require.Equal(t, "[DONE]", events[len(events)-1])
		texts, finish, n := map[int64]string{}, map[int64]string{}, 0
		for _, e := range events[:len(events)-2] {
			c := gjson.Get(e, "choices.0")
			texts[c.Get("index").Int()] += c.Get("delta.content").Str
			finish[c.Get("index").Int()] += c.Get("finish_reason").Str
			n += len(c.Get("token_ids").Array())
		}
		for i, c := range plain.Get("choices").Array() {
			require.Equal(t, c.Get("message.content").Str, texts[int64(i)])
			require.Equal(t, c.Get("finish_reason").Str, finish[int64(i)])
		}
		usage := gjson.Get(events[len(events)-2], "usage")
		require.Equal(t, plain.Get("usage.completion_tokens").Int(), usage.Get("completion_tokens").Int())
		require.Equal(t, int64(n), usage.Get("completion_tokens").Int())
		require.Equal(t, plain.Get("usage.prompt_tokens").Int(), usage.Get("prompt_tokens").Int())
	}
}

func TestCharactersComeWhole(t *testing.T) {
	s := serve(t, Options{})
	fish := 0
	for i := range 20 {
		events, err := s.stream("/v1/chat/completions", chatBody(strconv.Itoa(i), `,"stream":true,"max_tokens":150,"ignore_eos":true`))
		require.NoError(t, err)
		for _, e := range events {
			content := gjson.Get(e, "choices.0.delta.content").Str
			require.NotContains(t, content, "\ufffd")
			if strings.Contains(content, "🐟") || strings.Contains(content, "🐠") {
				fish++
			}
		}
	}
	require.Positive(t, fish)
}

func TestStop(t *testing.T) {
	s := serve(t, Options{})
	base := `{"prompt":"once upon","max_tokens":60,"temperature":0`
	whole := s.ok("/v1/completions", base+"}").Get("choices.0.text").Str
	stop := whole[30:36]
	cut := whole[:strings.Index(whole, stop)]
	tests := []struct{ name, more, text, reason string }{
		{"a string", `,"stop":` + quote(stop), cut, quote(stop)},
		{"a list", `,"stop":["zzz",` + quote(stop) + `]`, cut, quote(stop)},
		{"kept in the text", `,"include_stop_str_in_output":true,"stop":` + quote(stop), cut + stop, quote(stop)},
		{"none found", `,"stop":"zzz"`, whole, "null"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := s.ok("/v1/completions", base+tt.more+"}").Get("choices.0")
			require.Equal(t, tt.text, got.Get("text").Str)
			require.Equal(t, tt.reason, got.Get("stop_reason").Raw)
		})
	}
}

func quote(s string) string { return string(appendString(nil, s)) }

func TestCompletionPrompts(t *testing.T) {
	s := serve(t, Options{})
	tests := []struct {
		name, body string
		choices    int
		prompt     int64
	}{
		{"string", `"prompt":"one two"`, 1, 2},
		{"strings", `"prompt":["one two","three"]`, 2, 3},
		{"ids", `"prompt":[20,21,22]`, 1, 3},
		{"lists of ids", `"prompt":[[20,21],[22,23,24]]`, 2, 5},
		{"two of each", `"prompt":["one","two"],"n":2`, 4, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := s.ok("/v1/completions", "{"+tt.body+`,"max_tokens":3}`)
			require.Len(t, got.Get("choices").Array(), tt.choices)
			require.Equal(t, tt.prompt, got.Get("usage.prompt_tokens").Int())
			require.Equal(t, int64(3*tt.choices), got.Get("usage.completion_tokens").Int())
		})
	}
	echo := s.ok("/v1/completions", `{"prompt":"one two","max_tokens":0,"echo":true}`)
	require.Equal(t, "one two", echo.Get("choices.0.text").Str)
}

func TestToolsAndSchemas(t *testing.T) {
	s := serve(t, Options{})
	const tools = `,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","required":["city","unit"],"properties":{"city":{"type":"string"},"unit":{"enum":["C","F"]},"days":{"type":"integer"}}}}}]`
	for _, choice := range []string{`"required"`, `{"type":"function","function":{"name":"weather"}}`} {
		call := s.ok("/v1/chat/completions", chatBody("hi", tools+`,"tool_choice":`+choice)).Get("choices.0.message.tool_calls.0")
		require.Equal(t, "weather", call.Get("function.name").Str)
		arguments := gjson.Parse(call.Get("function.arguments").Str)
		require.Contains(t, "CF", arguments.Get("unit").Str)
		require.Equal(t, gjson.String, arguments.Get("city").Type)

		events, err := s.stream("/v1/chat/completions", chatBody("hi", tools+`,"stream":true,"tool_choice":`+choice))
		require.NoError(t, err)
		var joined strings.Builder
		for _, e := range events {
			joined.WriteString(gjson.Get(e, "choices.0.delta.tool_calls.0.function.arguments").Str)
		}
		require.Equal(t, arguments.Raw, joined.String())
	}
	auto := s.ok("/v1/chat/completions", chatBody("hi", tools))
	require.NotEmpty(t, auto.Get("choices.0.message.content").Str)

	formed := s.ok("/v1/chat/completions", chatBody("hi", `,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"type":"array","items":{"type":"boolean"}}}}}}`))
	require.True(t, gjson.Get(formed.Get("choices.0.message.content").Str, "a.0").IsBool())

	use := s.ok("/v1/messages", `{"max_tokens":50,"messages":[{"role":"user","content":"hi"}],"tools":[{"name":"f","input_schema":{"type":"object","properties":{"n":{"type":"integer"}}}}],"tool_choice":{"type":"tool","name":"f"}}`)
	require.Equal(t, "tool_use", use.Get("stop_reason").Str)
	require.Equal(t, gjson.Number, use.Get("content.0.input.n").Type)
}

func TestTheNextTurnIsCached(t *testing.T) {
	s := serve(t, Options{})
	first := s.ok("/v1/chat/completions", chatBody(strings.Repeat("some words ", 50), `,"max_tokens":150`))
	answer := first.Get("choices.0.message.content").Str
	require.Zero(t, first.Get("usage.prompt_tokens_details.cached_tokens").Int())
	second := s.ok("/v1/chat/completions", `{"messages":[{"role":"user","content":"`+strings.Repeat("some words ", 50)+`"},{"role":"assistant","content":`+quote(answer)+`},{"role":"user","content":"go on"}]}`)
	total := first.Get("usage.total_tokens").Int()
	cached := second.Get("usage.prompt_tokens_details.cached_tokens").Int()
	require.Greater(t, cached, total-32, "prompt and answer are in the cache, but for the last block")

	salted := s.ok("/v1/chat/completions", chatBody(strings.Repeat("some words ", 50), `,"cache_salt":"x","max_tokens":1`))
	require.Zero(t, salted.Get("usage.prompt_tokens_details.cached_tokens").Int())
	res := s.ok("/reset_prefix_cache", "")
	require.True(t, res.Get("success").Bool())
	again := s.ok("/v1/chat/completions", chatBody(strings.Repeat("some words ", 50), `,"max_tokens":1`))
	require.Zero(t, again.Get("usage.prompt_tokens_details.cached_tokens").Int())
}

func TestResponsesAreKept(t *testing.T) {
	s := serve(t, Options{MaxResponses: 2})
	first := s.ok("/v1/responses", `{"input":"my name is Ann","instructions":"be kind"}`)
	id := first.Get("id").Str
	require.Equal(t, "completed", first.Get("status").Str)
	status, body := s.get("/v1/responses/" + id)
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, first.Raw, body)

	second := s.ok("/v1/responses", `{"input":[{"role":"user","content":[{"type":"input_text","text":"who?"}]}],"previous_response_id":"`+id+`"}`)
	require.Greater(t, second.Get("usage.input_tokens").Int(), first.Get("usage.total_tokens").Int())
	_, _ = s.get("/v1/responses/" + id)
	s.ok("/v1/responses", `{"input":"a third one"}`)
	status, _ = s.get("/v1/responses/" + id)
	require.Equal(t, http.StatusOK, status, "it was used last when the third came")
	status, _ = s.get("/v1/responses/" + second.Get("id").Str)
	require.Equal(t, http.StatusNotFound, status)

	status, got := s.post("/v1/responses/"+id+"/cancel", "")
	require.Equal(t, http.StatusBadRequest, status)
	require.Equal(t, "Cannot cancel a synchronous response.", got.Get("error.message").Str)
	status, got = s.post("/v1/responses/resp_none/cancel", "")
	require.Equal(t, http.StatusNotFound, status, got.Raw)
}

func TestBackgroundResponses(t *testing.T) {
	s := serve(t, Options{ITL: patience})
	got := s.ok("/v1/responses", `{"input":"hello","background":true}`)
	require.Equal(t, "queued", got.Get("status").Str)
	s.until("it runs", func(st Stats) bool { return st.Running == 1 })
	got = s.ok("/v1/responses/"+got.Get("id").Str+"/cancel", "")
	require.Equal(t, "cancelled", got.Get("status").Str)
	s.until("it is gone", func(st Stats) bool { return st.Running == 0 && st.Aborted == 1 })
	_, body := s.get("/v1/responses/" + got.Get("id").Str)
	require.Equal(t, "cancelled", gjson.Get(body, "status").Str)
}

func TestBackgroundResponseEnds(t *testing.T) {
	s := serve(t, Options{})
	got := s.ok("/v1/responses", `{"input":"hello","background":true}`)
	require.Eventually(t, func() bool {
		_, body := s.get("/v1/responses/" + got.Get("id").Str)
		return gjson.Get(body, "status").Str == "completed" && gjson.Get(body, "output.0.content.0.text").Str != ""
	}, patience, patience/1000)
}

func TestTokenizeAndBack(t *testing.T) {
	s := serve(t, Options{})
	got := s.ok("/tokenize", `{"prompt":"Hello 日本 world!","return_token_strs":true}`)
	require.Equal(t, int64(len(got.Get("tokens").Array())), got.Get("count").Int())
	back := s.ok("/detokenize", `{"tokens":`+got.Get("tokens").Raw+`}`)
	require.Equal(t, "Hello 日本 world!", back.Get("prompt").Str)
	chat := s.ok("/tokenize", chatBody("hello", ""))
	asked := s.ok("/v1/chat/completions", chatBody("hello", `,"max_tokens":1,"return_token_ids":true`))
	require.Equal(t, asked.Get("prompt_token_ids").Raw, chat.Get("tokens").Raw)
	count := s.ok("/v1/messages/count_tokens", chatBody("hello", ""))
	require.Equal(t, chat.Get("count").Int(), count.Get("input_tokens").Int())
}

func TestEmbeddings(t *testing.T) {
	s := serve(t, Options{Embedding: true, Classify: true})
	floats := s.ok("/v1/embeddings", `{"input":"hello"}`).Get("data.0.embedding").Array()
	require.Len(t, floats, 64)
	raw, err := base64.StdEncoding.DecodeString(s.ok("/v1/embeddings", `{"input":"hello","encoding_format":"base64"}`).Get("data.0.embedding").Str)
	require.NoError(t, err)
	for i, f := range floats {
		require.InDelta(t, f.Num, math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])), 1e-6)
	}
	require.Len(t, s.ok("/v1/embeddings", `{"input":[[20,21],[22]],"dimensions":3}`).Get("data.1.embedding").Array(), 3)

	order := s.ok("/v2/rerank", `{"query":"the red river","documents":["plain boys","a red river","stone"],"top_n":2}`)
	require.Equal(t, int64(1), order.Get("results.0.index").Int())
	require.Len(t, order.Get("results").Array(), 2)
	require.InDelta(t, 1, s.ok("/score", `{"text_1":"same","text_2":"same"}`).Get("data.0.score").Num, 1e-5)
	require.Equal(t, int64(2), s.ok("/v1/classify", `{"input":["a","b"]}`).Get("data.1.num_classes").Int())
	status, _ := s.post("/v1/chat/completions", chatBody("x", ""))
	require.Equal(t, http.StatusNotFound, status)
	status, _ = s.post("/score", `{"text_1":["a","b"],"text_2":["a","b","c"]}`)
	require.Equal(t, http.StatusBadRequest, status)
}

func TestMedia(t *testing.T) {
	s := serve(t, Options{})
	body := strings.ReplaceAll("--B\nContent-Disposition: form-data; name=\"model\"\n\nmobula-sim\n--B\nContent-Disposition: form-data; name=\"language\"\n\nde\n--B\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\n\n12345\n--B--\n", "\n", "\r\n")
	form := func(path, body string) (int, gjson.Result) {
		res, err := s.client.Post(s.url+path, "multipart/form-data; boundary=B", strings.NewReader(body))
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, gjson.ParseBytes(b)
	}
	status, got := form("/v1/audio/transcriptions", body)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, got.Get("text").Str, "model=mobula-sim, language=de, file=a.wav (5 bytes)")
	status, got = form("/v1/audio/translations", body[:len(body)-40])
	require.Equal(t, http.StatusBadRequest, status, got.Raw)
	status, got = form("/v1/images/edits", body)
	require.Equal(t, http.StatusOK, status, got.Raw)

	image := s.ok("/v1/images/generations", `{"prompt":"a ray","n":2}`)
	png, err := base64.StdEncoding.DecodeString(image.Get("data.1.b64_json").Str)
	require.NoError(t, err)
	require.Equal(t, "\x89PNG", string(png[:4]))
	res, err := s.start(t.Context(), "/v1/audio/speech", `{"input":"hello"}`)
	require.NoError(t, err)
	defer res.Body.Close()
	sound, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, "RIFF", string(sound[:4]))
	require.Equal(t, len(sound)-8, int(binary.LittleEndian.Uint32(sound[4:])))
}

func TestLoRAs(t *testing.T) {
	s := serve(t, Options{LoRAs: []LoRA{{Name: "poet", Path: "/loras/poet"}}, Aliases: []string{"gpt"}, MaxLoRAs: 2})
	_, list := s.get("/v1/models")
	require.Equal(t, `["mobula-sim","gpt","poet"]`, gjson.Get(list, "data.#.id").Raw)
	require.Equal(t, "mobula-sim", gjson.Get(list, "data.2.parent").Str)
	say := func(model string) gjson.Result {
		return s.ok("/v1/completions", `{"model":"`+model+`","prompt":"x"}`)
	}
	require.Equal(t, "poet", say("poet").Get("model").Str)
	require.NotEqual(t, say("poet").Get("choices.0.text").Str, say("mobula-sim").Get("choices.0.text").Str)
	require.Equal(t, say("gpt").Get("choices.0.text").Str, say("mobula-sim").Get("choices.0.text").Str)
	require.Equal(t, "mobula-sim", say("gpt").Get("model").Str)
	s.ok("/v1/load_lora_adapter", `{"lora_name":"b","lora_path":"/b"}`)
	status, _ := s.post("/v1/load_lora_adapter", `{"lora_name":"c","lora_path":"/c"}`)
	require.Equal(t, http.StatusBadRequest, status, "no room")
	for body, want := range map[string]string{
		`{"lora_name":"gpt","lora_path":"/x"}`:                             "The lora adapter 'gpt' conflicts with a served base model.",
		`{"lora_name":"mobula-sim","lora_path":"/x"}`:                      "The lora adapter 'mobula-sim' conflicts with a served base model.",
		`{"lora_name":"","lora_path":"/x"}`:                                "Both 'lora_name' and 'lora_path' must be provided.",
		`{"lora_name":"d","lora_path":""}`:                                 "Both 'lora_name' and 'lora_path' must be provided.",
		`{"lora_name":"b","lora_path":"/nonexistent","load_inplace":true}`: "Loading lora b failed: No adapter found for /nonexistent",
	} {
		status, answer := s.post("/v1/load_lora_adapter", body)
		require.GreaterOrEqual(t, status, http.StatusBadRequest, body)
		require.Equal(t, want, answer.Get("error.message").Str, body)
	}
	s.ok("/v1/load_lora_adapter", `{"lora_name":"b","lora_path":"/b2","load_inplace":true}`)
	_, list = s.get("/v1/models")
	require.Equal(t, `["mobula-sim","mobula-sim","/loras/poet","/b2"]`, gjson.Get(list, "data.#.root").Raw)
	s.ok("/v1/unload_lora_adapter", `{"lora_name":"poet"}`)
	status, _ = s.post("/v1/completions", `{"model":"poet","prompt":"x"}`)
	require.Equal(t, http.StatusNotFound, status)
}

func TestAPIKey(t *testing.T) {
	s := serve(t, Options{APIKey: "sesame"})
	status, body := s.get("/v1/models")
	require.Equal(t, http.StatusUnauthorized, status)
	require.JSONEq(t, `{"error":"Unauthorized"}`, body)
	status, _ = s.get("/health")
	require.Equal(t, http.StatusOK, status)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/models", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer sesame")
	res, err := s.client.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
}

func TestItSaysThatItIsASimulator(t *testing.T) {
	s := serve(t, Options{})
	_, version := s.get("/version")
	require.Contains(t, version, "mobula-sim")
	_, card := s.get("/v1/models")
	require.Equal(t, "mobula-sim", gjson.Get(card, "data.0.owned_by").Str)
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"context over cache": {MaxModelLen: 100, Blocks: 1},
		"negative rate":      {PrefillRate: -1},
		"NaN rate":           {PrefillRate: math.NaN()},
		"answer bounds":      {MinAnswer: 10, MaxAnswer: 5},
		"LoRA twice":         {LoRAs: []LoRA{{Name: "a"}, {Name: "a"}}},
		"no batch":           {MaxNumSeqs: -1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(o)
			require.Error(t, err)
		})
	}
}

func TestAHostileSchemaStaysSmall(t *testing.T) {
	schema := `{"type":"string"}`
	for range 12 {
		schema = `{"type":"array","minItems":99,"items":` + schema + `}`
	}
	rnd := uint64(1)
	require.Less(t, len(appendSample(nil, gjson.Parse(schema), &rnd, 0)), 2*maxSample)
}

func TestWrongTypesAreNamed(t *testing.T) {
	s := serve(t, Options{})
	for field, value := range map[string]string{
		"model": "5", "stream": `"maybe"`, "temperature": "[]", "max_tokens": "1.5", "stop": "{}", "cache_salt": "1",
		"seed": `{}`, "tools": `"x"`, "n": `"two"`,
	} {
		t.Run(field, func(t *testing.T) {
			status, got := s.post("/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"`+field+`":`+value+`}`)
			require.Equal(t, http.StatusBadRequest, status)
			require.Equal(t, "body."+field, got.Get("error.param").Str, got.Raw)
			require.Equal(t, "Bad Request", got.Get("error.type").Str)
		})
	}
}

func TestContextLength(t *testing.T) {
	s := serve(t, Options{MaxModelLen: 64})
	prompt := func(n int) string { return string(appendIDs(nil, run(n, 300))) }
	tests := []struct {
		name, body string
		status     int
		said       int64
		message    string
	}{
		{"room for all", `"prompt":` + prompt(50) + `,"max_tokens":10`, 200, 10, ""},
		{"more asked than there is room", `"prompt":` + prompt(60) + `,"max_tokens":10`, 200, 4, ""},
		{"no room", `"prompt":` + prompt(64) + `,"max_tokens":10`, 400, 0, "max_tokens must be at least 1, got 0."},
		{"too long", `"prompt":` + prompt(70) + `,"max_tokens":10`, 400, 0, "your prompt contains 70 input tokens"},
		{"text too long", `"prompt":"` + strings.Repeat("the ", 500) + `"`, 400, 0, "contains at least 65 input tokens"},
		{"echo alone", `"prompt":` + prompt(64) + `,"max_tokens":0,"echo":true`, 200, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, got := s.post("/v1/completions", "{"+tt.body+"}")
			require.Equal(t, tt.status, status, got.Raw)
			require.Equal(t, tt.said, got.Get("usage.completion_tokens").Int())
			require.Contains(t, got.Get("error.message").Str, tt.message)
		})
	}
}

func TestAnthropicUsageIsWhatTheCacheLeaves(t *testing.T) {
	s := serve(t, Options{})
	body := `{"max_tokens":4,"messages":[{"role":"user","content":"` + strings.Repeat("some words ", 40) + `"}]}`
	total := s.ok("/v1/messages/count_tokens", body).Get("input_tokens").Int()
	for i, field := range []string{"cache_creation_input_tokens", "cache_read_input_tokens"} {
		u := s.ok("/v1/messages", body).Get("usage")
		require.Equal(t, total, u.Get("input_tokens").Int()+u.Get("cache_creation_input_tokens").Int()+u.Get("cache_read_input_tokens").Int())
		require.Positive(t, u.Get(field).Int(), "request %d", i)
	}
}

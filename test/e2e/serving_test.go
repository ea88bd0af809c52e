package e2e

import (
	"bufio"
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

func TestChatAnswersAsTheEngineDoes(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("models:\n  - name: m\n    aliases: [gpt-4o-mini]\n", e.url))
	for name, body := range map[string]string{
		"plain":          `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":8,"temperature":0}`,
		"unknown fields": `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":8,"x_future":{"a":[1]}}`,
		"logprobs, n":    `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":4,"n":2,"logprobs":true,"top_logprobs":2}`,
		"tool":           `{"model":"m","messages":[{"role":"user","content":"hello"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{}}}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`,
		"stream":         `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":8,"stream":true,"stream_options":{"include_usage":true}}`,
		"bad value":      `{"model":"m","messages":[{"role":"user","content":"hello"}],"temperature":9}`,
		"no messages":    `{"model":"m"}`,
		"no model":       `{"messages":[{"role":"user","content":"hello"}],"max_tokens":8}`,
		"white space":    "\n {\"model\" : \"m\",\n \"messages\":[{\"role\":\"user\",\"content\":\"hello\"}], \"max_tokens\":3 }\n",
	} {
		t.Run(name, func(t *testing.T) {
			post(e.url+"/v1/chat/completions", body) // so that both find the same in the cache
			direct := post(e.url+"/v1/chat/completions", body, "X-Request-Id", "same")
			through := post(r.url+"/v1/chat/completions", body, "X-Request-Id", "same")
			require.NoError(t, direct.err)
			require.NoError(t, through.err)
			require.Equal(t, direct.status, through.status, through.body)
			require.Equal(t, withoutTime(direct.body), withoutTime(through.body))
			require.Equal(t, direct.header.Get("Content-Type"), through.header.Get("Content-Type"))
			require.Equal(t, e.url, through.endpoint())
			require.Equal(t, "same", through.header.Get("X-Request-Id"))
		})
	}
	t.Run("alias", func(t *testing.T) {
		a := post(r.url+"/v1/chat/completions", `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}],"max_tokens":8}`)
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, "m", jsonOf(t, a.body)["model"])
	})
	r.idle()
}

// withoutTime takes out what differs from one answer to the next.
func withoutTime(body string) string {
	for _, key := range []string{`"created":`, `"created": `} {
		parts := strings.Split(body, key)
		for i := 1; i < len(parts); i++ {
			parts[i] = strings.TrimLeft(parts[i], "0123456789")
		}
		body = strings.Join(parts, key)
	}
	return body
}

func TestEveryRouteReachesAnEngine(t *testing.T) {
	chat := startEngine(t, sim.Options{Model: "m", LoRAs: []sim.LoRA{{Name: "ad1", Path: "/loras/ad1"}}})
	pool := startEngine(t, sim.Options{Model: "e", Embedding: true, Classify: true})
	r := startRouter(t, fleetOf("", chat.url, pool.url))
	for path, body := range map[string]string{
		"/v1/chat/completions":      `{"model":"ad1","messages":[{"role":"user","content":"hi"}],"max_tokens":2}`,
		"/v1/completions":           `{"model":"m","prompt":[[1,2,3],[4]],"max_tokens":2}`,
		"/v1/responses":             `{"model":"m","input":"hi","max_output_tokens":4}`,
		"/v1/messages":              `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":2}`,
		"/v1/messages/count_tokens": `{"model":"m","messages":[{"role":"user","content":"hi"}]}`,
		"/tokenize":                 `{"model":"m","prompt":"hi"}`,
		"/detokenize":               `{"model":"m","tokens":[5]}`,
		"/v1/embeddings":            `{"model":"e","input":["a","b"]}`,
		"/v1/score":                 `{"model":"e","text_1":"a","text_2":["b"]}`,
		"/score":                    `{"model":"e","text_1":"a","text_2":["b"]}`,
		"/v1/rerank":                `{"model":"e","query":"a","documents":["b"]}`,
		"/v2/rerank":                `{"model":"e","query":"a","documents":["b"]}`,
		"/rerank":                   `{"model":"e","query":"a","documents":["b"]}`,
		"/v1/pooling":               `{"model":"e","input":"a"}`,
		"/pooling":                  `{"model":"e","input":"a"}`,
		"/v1/classify":              `{"model":"e","input":"a"}`,
		"/classify":                 `{"model":"e","input":"a"}`,
		"/v1/audio/speech":          `{"model":"m","input":"hi","voice":"v"}`,
		"/v1/images/generations":    `{"model":"m","prompt":"a ray"}`,
	} {
		t.Run(path, func(t *testing.T) {
			a := post(r.url+path, body)
			require.NoError(t, a.err)
			require.Equal(t, http.StatusOK, a.status, a.body)
			require.NotEmpty(t, a.endpoint())
		})
	}
	for _, path := range []string{"/v1/audio/transcriptions", "/v1/audio/translations"} {
		t.Run(path, func(t *testing.T) {
			var b bytes.Buffer
			w := multipart.NewWriter(&b)
			for _, f := range [][2]string{{"model", "m"}, {"timestamp_granularities[]", "word"}, {"prompt", "names"}, {"x_future", "kept"}} {
				require.NoError(t, w.WriteField(f[0], f[1]))
			}
			f, err := w.CreateFormFile("file", "a.wav")
			require.NoError(t, err)
			_, err = f.Write(bytes.Repeat([]byte("RIFF\r\n"), 1000))
			require.NoError(t, err)
			require.NoError(t, w.Close())
			a := post(r.url+path, b.String(), "Content-Type", w.FormDataContentType())
			require.Equal(t, http.StatusOK, a.status, a.body)
			for _, kept := range []string{"word", "names", "kept"} {
				require.Contains(t, a.body, kept, "every field reaches the engine")
			}
		})
	}
	t.Run("responses by id", func(t *testing.T) {
		id, _ := jsonOf(t, post(r.url+"/v1/responses", `{"model":"m","input":"hi","max_output_tokens":4}`).body)["id"].(string)
		require.Equal(t, http.StatusOK, r.status("/v1/responses/"+id))
		require.Equal(t, http.StatusNotFound, r.status("/v1/responses/resp_none"))
		after := launchRouter(t, fleetOf("", chat.url, pool.url)) // a router that did not see the answer made
		after.eventually("ready", func() bool { return after.status("/ready") == http.StatusOK })
		require.Equal(t, http.StatusOK, after.status("/v1/responses/"+id))
	})
	t.Run("models", func(t *testing.T) {
		for path, want := range map[string]string{"/v1/models": `"ad1"`, "/models": `"parent":"m"`, "/v1/models/ad1": `"ad1"`} {
			resp, err := http.Get(r.url + path)
			require.NoError(t, err)
			b, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Contains(t, strings.ReplaceAll(string(b), `": "`, `":"`), want)
		}
		require.Equal(t, http.StatusNotFound, r.status("/v1/models/none"))
	})
	t.Run("engine's own paths are not proxied", func(t *testing.T) {
		for _, path := range []string{"/sleep", "/wake_up", "/reset_prefix_cache", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc", "/sim/fault"} {
			requireOpenAIError(t, post(r.url+path, `{}`), http.StatusNotFound)
		}
		requireOpenAIError(t, post(r.url+"/v1/models", `{}`), http.StatusMethodNotAllowed)
	})
	require.Equal(t, http.StatusOK, r.status("/health"))
	require.Equal(t, http.StatusOK, r.status("/version"))
	r.idle()
}

func TestStreamComesAsItIsMade(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m", ITL: 50 * time.Millisecond})
	r := startRouter(t, fleetOf("", e.url))
	resp, err := client.Post(r.url+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":400,"min_tokens":400,"ignore_eos":true,"stream":true}`))
	require.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for range 5 {
		_, err := lines.ReadString('\n')
		require.NoError(t, err)
	}
	// the first events are here while the engine still makes the others
	require.Equal(t, 1, e.Stats().Running)
}

func TestReloadTakesEnginesInAndOut(t *testing.T) {
	a, b := startEngine(t, sim.Options{Model: "m"}), startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", a.url))
	write := func(text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(r.fleet+".new", []byte(text), 0o600))
		require.NoError(t, os.Rename(r.fleet+".new", r.fleet))
	}
	write(fleetOf("", b.url))
	r.eventually("moved to the second engine", func() bool { return r.chat("x").endpoint() == b.url })

	write("kind: Fleet\nrouter: {polcy: {}}\n")
	r.eventually("refused the bad file", func() bool { return r.metric("mobula_config_last_reload_successful") == 0 })
	require.Equal(t, b.url, r.chat("x").endpoint(), "a bad file keeps the running one")
	require.Contains(t, r.log.String(), "polcy")

	write(fleetOf("models:\n  - name: m\n    aliases: [other]\n", a.url, b.url))
	r.eventually("took the alias", func() bool {
		return post(r.url+"/v1/completions", `{"model":"other","prompt":"x","max_tokens":1}`).status == http.StatusOK
	})
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
	r.eventually("read the file again", func() bool { return r.metric("mobula_config_reloads_total", "result", "success") >= 3 })
}

func TestGracefulStopFinishesStreams(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m", ITL: 20 * time.Millisecond})
	r := startRouter(t, fleetOf("router:\n  timeouts: {lameduck: 500ms, drain: 30s}\n", e.url))
	resp, err := client.Post(r.url+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":100,"min_tokens":100,"ignore_eos":true,"stream":true}`))
	require.NoError(t, err)
	defer resp.Body.Close()
	r.terminate()
	r.eventually("unready", func() bool { return r.status("/ready") != http.StatusOK })
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(b), "data: [DONE]\n\n"), "the stream that ran has its end")
}

func TestHTTPSEngineWithAKey(t *testing.T) {
	e, err := sim.New(sim.Options{Model: "m", APIKey: "sk-engine"})
	require.NoError(t, err)
	server := httptest.NewTLSServer(e.Handler())
	defer server.Close()
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("sk-engine"), 0o600))
	r := startRouter(t, fleetOf("        apiKeyFile: "+key+"\n        insecureSkipVerify: true\n", server.URL))
	for _, stream := range []string{"", `,"stream":true`} {
		a := r.chat("x", stream)
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status, a.body)
	}
	strict := launchRouter(t, fleetOf("        apiKeyFile: "+key+"\n", server.URL))
	strict.eventually("told why the engine is not used", func() bool { return strings.Contains(strict.log.String(), "certificate") })
	require.NotEqual(t, http.StatusOK, strict.status("/ready"))
}

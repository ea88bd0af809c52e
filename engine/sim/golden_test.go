package sim

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// exchange is a captured request to the real engine, and its answer.
type exchange struct {
	Name           string            `json:"name"`
	Method         string            `json:"method"`
	Path           string            `json:"path"`
	RequestHeaders map[string]string `json:"request_headers"`
	RequestBody    *string           `json:"request_body"`
	Status         int               `json:"status"`
	Headers        [][2]string       `json:"response_headers"`
	Text           string            `json:"response_text"`
	JSON           json.RawMessage   `json:"response_json"`
}

// goldenOptions are those of the engine that an exchange was captured from.
func goldenOptions(name string) Options {
	o := Options{Model: "tiny", MaxModelLen: 2048, BlockSize: 32, ForceUsage: true, NoAutoTools: true}
	switch {
	case strings.HasPrefix(name, "pool_"):
		o.Model, o.Embedding = "tinyemb", true
	case name == "lora_load_not_enabled":
		o.NoLoRA = true
	case slices.Contains([]string{"chat_lora", "lora_load_twice", "lora_unload", "models_with_lora"}, name):
		o.LoRAs = []LoRA{{Name: "ad1"}}
	}
	return o
}

// longBodies are those that the captures give by their length only.
func longBody(name string) string {
	switch name {
	case "err_context_completions":
		return `{"model":"tiny","prompt":[` + strings.Repeat("10,", 2999) + `10],"max_tokens":2}`
	case "err_context_prompt":
		return `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 6000) + `"}]}`
	}
	return `{"model":"tinyemb","input":"` + strings.Repeat("hello ", 6000) + `"}`
}

// unlike are exchanges whose body the simulator does not have the shape of, with the reason.
var unlike = map[string]string{
	"chat_tool_forced": "the random model fails to call the tool; the simulator calls it",
	"server_info":      "lists the machine and the libraries",
	"version":          "the simulator says what it is",
}

func TestGoldenExchanges(t *testing.T) {
	files, err := filepath.Glob("testdata/vllm/http/*.json")
	require.NoError(t, err)
	require.Greater(t, len(files), 70)
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		var x exchange
		require.NoError(t, json.Unmarshal(b, &x))
		t.Run(x.Name, func(t *testing.T) { replay(t, &x) })
	}
}

func replay(t *testing.T, x *exchange) {
	t.Helper()
	e, err := New(goldenOptions(x.Name))
	require.NoError(t, err)
	srv := httptest.NewServer(e.Handler())
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	if x.Name == "is_sleeping2" {
		e.asleep.Store(1)
	}
	body := ""
	if x.RequestBody != nil {
		body = *x.RequestBody
	}
	if strings.HasSuffix(body, " bytes>") {
		body = longBody(x.Name)
	}
	req, err := http.NewRequestWithContext(t.Context(), x.Method, srv.URL+x.Path, strings.NewReader(body))
	require.NoError(t, err)
	for k, v := range x.RequestHeaders {
		req.Header.Set(k, v)
	}
	res, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	require.NoError(t, err)

	require.Equal(t, x.Status, res.StatusCode, "%s", got)
	require.Empty(t, cmp.Diff(goldenHeaders(x), answerHeaders(res)))
	want := x.Text
	if x.JSON != nil {
		want = string(x.JSON)
	}
	switch {
	case unlike[x.Name] != "":
	case strings.HasPrefix(want, "data: "), strings.HasPrefix(want, "event: "):
		require.Empty(t, cmp.Diff(events(want), events(string(got))))
	case x.JSON == nil:
		require.Equal(t, want, string(got))
	case x.Status >= 400:
		require.JSONEq(t, want, string(got))
	default:
		require.Empty(t, cmp.Diff(shape(gjson.Parse(want)), shape(gjson.ParseBytes(got))))
	}
}

// goldenHeaders are the captured header's names, with the values that don't change.
func goldenHeaders(x *exchange) map[string]string {
	h := map[string]string{}
	for _, kv := range x.Headers {
		h[http.CanonicalHeaderKey(kv[0])] = kv[1]
	}
	return maskHeaders(h)
}

func answerHeaders(res *http.Response) map[string]string {
	h := map[string]string{}
	for k := range res.Header {
		h[k] = res.Header.Get(k)
	}
	if len(res.TransferEncoding) > 0 {
		h["Transfer-Encoding"] = res.TransferEncoding[0]
	}
	return maskHeaders(h)
}

func maskHeaders(h map[string]string) map[string]string {
	for _, k := range []string{"Date", "Content-Length"} {
		if _, ok := h[k]; ok {
			h[k] = "*"
		}
	}
	return h
}

// shape writes a JSON value as its keys, in order, and the types of what is under them.
func shape(v gjson.Result) string {
	var b strings.Builder
	writeShape(&b, v, "")
	return b.String()
}

func writeShape(b *strings.Builder, v gjson.Result, key string) {
	switch {
	case key == "top_logprobs" && v.IsArray() && v.Get("1").IsObject() && !v.Get("1.token").Exists(), key == "prompt_logprobs":
		b.WriteString("tokens") // maps by token: their keys are no fields
	case v.IsObject():
		b.WriteByte('{')
		v.ForEach(func(k, sub gjson.Result) bool {
			b.WriteString("\n" + k.Str + ":")
			writeShape(b, sub, k.Str)
			return true
		})
		b.WriteByte('}')
	case v.IsArray():
		b.WriteByte('[')
		last := ""
		v.ForEach(func(_, sub gjson.Result) bool {
			var s strings.Builder
			writeShape(&s, sub, "")
			if s.String() != last {
				last = s.String()
				b.WriteString(last + " ")
			}
			return true
		})
		b.WriteByte(']')
	case v.IsBool():
		b.WriteString("bool")
	default:
		b.WriteString(v.Type.String())
	}
}

// events is a stream as the shapes of its events, repeated ones once: how many tokens an
// event has is a matter of timing.
func events(s string) []string {
	var out []string
	for event := range strings.SplitSeq(s, "\n\n") {
		name, data, found := strings.Cut(event, "data: ")
		if !found {
			out = append(out, event)
			continue
		}
		v := data
		if strings.HasPrefix(data, "{") {
			v = shape(gjson.Parse(data))
		}
		if v = name + v; len(out) == 0 || out[len(out)-1] != v {
			out = append(out, v)
		}
	}
	return out
}

func TestGoldenMetrics(t *testing.T) {
	b, err := os.ReadFile("testdata/vllm/metrics.txt")
	require.NoError(t, err)
	wantTypes, wantLabels := metricShapes(string(b))
	e, err := New(Options{LoRAs: []LoRA{{Name: "ad1"}}})
	require.NoError(t, err)
	w := httptest.NewRecorder()
	e.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	types, labels := metricShapes(w.Body.String())
	require.Greater(t, len(types), 18)
	for name, kind := range types {
		require.Equal(t, wantTypes[name], kind, name)
	}
	for name, l := range labels {
		require.Equal(t, wantLabels[name], l, name)
	}
}

// metricShapes gives each vllm: family's type, and each sample's label names.
func metricShapes(text string) (types, labels map[string]string) {
	types, labels = map[string]string{}, map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "# TYPE vllm:"); ok {
			name, kind, _ := strings.Cut(rest, " ")
			types[name] = kind
		}
		if !strings.HasPrefix(line, "vllm:") {
			continue
		}
		name, rest, _ := strings.Cut(line, "{")
		set, _, _ := strings.Cut(rest, "} ")
		var names []string
		for pair := range strings.SplitSeq(set, `",`) {
			n, v, _ := strings.Cut(pair, "=")
			if n == "le" {
				n += v // the buckets are the same too
				labels[name+n] = ""
				n = "le"
			}
			names = append(names, n)
		}
		labels[name] = strings.Join(names, ",")
	}
	return types, labels
}

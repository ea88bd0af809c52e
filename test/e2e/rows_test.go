package e2e

// Tests named RowNN each show that a defect found in vLLM's production-stack router is not
// here; docs/migrating.md lists them by number. Rows 2, 3 and 5 are tested in their rooms,
// and others of this package carry their row in their names.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

func TestRow04CountsReturnToZero(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	l, err := net.Listen("tcp", "127.0.0.1:0") // an engine that was there and is gone
	require.NoError(t, err)
	gone := "http://" + l.Addr().String()
	l.Close()
	r := startRouter(t, fleetOf("", e.url, gone))
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultStallMidstream, AfterTokens: 2}))
	var wg sync.WaitGroup
	for range 20 { // clients that leave in mid-stream
		wg.Go(func() {
			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}`))
			if err != nil {
				return
			}
			req.Header.Set("Content-Type", "application/json")
			if resp, err := client.Do(req); err == nil {
				_, _ = resp.Body.Read(make([]byte, 100))
				leave()
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	r.idle()
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultRefuse}))
	for range 5 { // failed connects
		require.GreaterOrEqual(t, r.chat("x").status, 500)
	}
	r.idle()
	require.Zero(t, r.metric("vllm:num_prefill_requests"))
	require.Zero(t, r.metric("vllm:num_decoding_requests"))
}

func TestRow06PrefixTakesEveryBodyShape(t *testing.T) {
	chat, pool := startEngine(t, sim.Options{Model: "m"}), startEngine(t, sim.Options{Model: "e", Embedding: true})
	for _, policy := range []string{"prefix", "cost"} {
		r := startRouter(t, fleetOf("router: {policy: {name: "+policy+"}}\n", chat.url, pool.url))
		long := strings.Repeat("long enough to fill a block of the index ", 100)
		ids := strings.TrimSuffix(strings.Repeat("17,", 2000), ",")
		for _, c := range [][2]string{
			{"/v1/chat/completions", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"` + long + `"}]}`},
			{"/v1/chat/completions", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"` + long + `"}]}]}`},
			{"/v1/completions", `{"model":"m","max_tokens":1,"prompt":"` + long + `"}`},
			{"/v1/completions", `{"model":"m","max_tokens":1,"prompt":["` + long + `","b"]}`},
			{"/v1/completions", `{"model":"m","max_tokens":1,"prompt":[` + ids + `]}`},
			{"/v1/completions", `{"model":"m","max_tokens":1,"prompt":[[` + ids + `],[1]]}`},
			{"/v1/responses", `{"model":"m","max_output_tokens":4,"input":"` + long + `"}`},
			{"/v1/messages", `{"model":"m","max_tokens":1,"system":"` + long + `","messages":[{"role":"user","content":"x"}]}`},
			{"/v1/embeddings", `{"model":"e","input":["` + long + `"]}`},
			{"/v1/rerank", `{"model":"e","query":"` + long + `","documents":["` + long + `"]}`},
			{"/v1/score", `{"model":"e","text_1":"` + long + `","text_2":"b"}`},
			{"/v1/audio/speech", `{"model":"m","voice":"v","input":"` + long + `"}`},
		} {
			a := post(r.url+c[0], c[1])
			require.NoError(t, a.err)
			require.Equal(t, http.StatusOK, a.status, "%s %s", c[0], a.body)
		}
		r.idle()
	}
}

func TestRow09CompressedAnswersStayWhole(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultGzip}))
	a := r.chat("x") // net/http's client decodes what is labelled gzip
	require.NoError(t, a.err)
	require.Contains(t, jsonOf(t, a.body), "choices")
}

func TestRow14MalformedJSONIsTheClientsError(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	requireOpenAIError(t, post(r.url+"/v1/chat/completions", `{"model":"m",`), http.StatusBadRequest)
}

func TestRow15EnginesAreNotPutToSleepByClients(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	requireOpenAIError(t, post(r.url+"/sleep", ""), http.StatusNotFound)
	require.Equal(t, http.StatusOK, r.chat("x").status)
}

func TestRow21ProbesCarryTheEnginesKey(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m", APIKey: "sk-engine"})
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("sk-engine\n"), 0o600))
	r := startRouter(t, fleetOf("        apiKeyFile: "+key+"\n", e.url))
	require.Equal(t, http.StatusOK, r.chat("x").status, "the router's key stands in for the client's")
	require.NotContains(t, r.log.String(), "sk-engine")
}

func TestRow22SingleLabelHostsAndIPv6(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	_, port, err := net.SplitHostPort(strings.TrimPrefix(e.url, "http://"))
	require.NoError(t, err)
	r := startRouter(t, fleetOf("", "http://localhost:"+port))
	require.Equal(t, http.StatusOK, r.chat("x").status)
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Logf("not run: an engine on IPv6: %v", err)
		return
	}
	l.Close()
	six := startEngineAt(t, sim.Options{Model: "m"}, l.Addr().String())
	r = startRouter(t, fleetOf("", six.url))
	require.Equal(t, http.StatusOK, r.chat("x").status)
}

func TestRow23And24ReloadTakesWhatTheStartTook(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	whole := func(attempts int) string {
		return fleetOf(fmt.Sprintf("models:\n  - name: m\n    aliases: [a]\nrouter:\n  listen: 127.0.0.1:8000\n  policy: {name: session, sessionHeader: X-User}\n  retries: {attempts: %d}\n  log: {format: json}\nkv: {index: {memory: 8MiB}}\n", attempts), e.url)
	}
	r := startRouter(t, whole(2))
	require.NoError(t, os.WriteFile(r.fleet, []byte(whole(1)), 0o600))
	r.eventually("reloaded", func() bool { return r.metric("mobula_config_reloads_total", "result", "success") >= 1 })
	a := post(r.url+"/v1/completions", `{"model":"a","prompt":"x","max_tokens":1}`, "X-User", "u", "X-Mobula-Debug", "1")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "session", jsonOf(t, a.header.Get("X-Mobula-Decision"))["policy"])
	require.Equal(t, "u", jsonOf(t, a.header.Get("X-Mobula-Decision"))["session"])
}

func TestRow27AnswersAreNotKept(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	r.chat("warm")
	before := r.metric("go_memstats_heap_alloc_bytes")
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultLongLine, Size: 200 << 20}))
	a := r.chat("x", `,"stream":true`)
	require.NoError(t, a.err)
	require.GreaterOrEqual(t, len(a.body), 200<<20)
	require.Less(t, r.metric("go_memstats_heap_alloc_bytes"), before+50<<20)
}

func TestRow29NothingIsLoggedPerRequest(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	before := r.log.String()
	for i := range 20 {
		r.chat(strconv.Itoa(i))
	}
	require.Equal(t, before, r.log.String())
}

func TestRow30EnginesMetricsAreReadWithTheirKey(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m", MaxNumSeqs: 1, ITL: 1e8})
	r := startRouter(t, fleetOf("router: {health: {metricsInterval: 200ms}}\n", e.url))
	var wg sync.WaitGroup
	ctx, leave := context.WithCancel(context.Background())
	defer wg.Wait()
	defer leave()
	for range 2 {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/completions", strings.NewReader(`{"model":"m","prompt":"x","max_tokens":2000,"ignore_eos":true,"min_tokens":2000}`))
			if err != nil {
				return
			}
			req.Header.Set("Content-Type", "application/json")
			if resp, err := client.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	r.eventually("showing the engine's queue", func() bool { return r.metric("vllm:num_requests_waiting", "server", e.url) == 1 })
	require.EqualValues(t, 1, r.metric("vllm:healthy_pods_total", "server", e.url))
	require.EqualValues(t, 2, r.metric("vllm:num_requests_running", "server", e.url))
}

func TestRow33ErrorsHaveOpenAIsShape(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	requireOpenAIError(t, post(r.url+"/v1/chat/completions", `{"model":"nope"}`), http.StatusNotFound)
	requireOpenAIError(t, post(r.url+"/nope", `{}`), http.StatusNotFound)
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultRefuse}))
	a := r.chat("x")
	for end := time.Now().Add(time.Minute); a.status == http.StatusOK && time.Now().Before(end); a = r.chat("x") { // by a connection that was open
		time.Sleep(time.Millisecond)
	}
	requireOpenAIError(t, a, http.StatusServiceUnavailable)
}

func TestRow35TranscriptionsKeepTheClientsFields(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	require.NoError(t, w.WriteField("model", "m"))
	f, err := w.CreateFormFile("file", "a.wav")
	require.NoError(t, err)
	_, err = f.Write([]byte("RIFF"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	a := post(r.url+"/v1/audio/transcriptions", b.String(), "Content-Type", w.FormDataContentType())
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.NotContains(t, a.body, "language")
}

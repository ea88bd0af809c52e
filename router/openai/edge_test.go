package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/front"
	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// fixedFleet serves one snapshot and notes reports.
type fixedFleet struct {
	snapshot *pick.Snapshot
	reports  []proxy.Outcome
}

func (f *fixedFleet) Snapshot() *pick.Snapshot                 { return f.snapshot }
func (f *fixedFleet) Report(_ *pick.Endpoint, o proxy.Outcome) { f.reports = append(f.reports, o) }
func (f *fixedFleet) Overdue(*pick.Endpoint)                   {}
func (f *fixedFleet) Ready() bool                              { return true }
func (f *fixedFleet) Scraped(string) (engine.Metrics, bool)    { return engine.Metrics{}, false }

// doer answers exchanges without engines.
type doer struct {
	last   proxy.Exchange
	body   string // of the last exchange
	list   []*pick.Endpoint
	answer string
	err    *proxy.Error
}

func (d *doer) Do(x *proxy.Exchange) proxy.Result {
	d.last, d.body, d.list = *x, string(x.Body), slices.Clone(x.List) // calls are pooled
	ep := x.List[0]
	x.Hooks.Sent(ep)
	if d.err != nil {
		x.Hooks.Ended(ep, proxy.Outcome{Cause: d.err.Cause})
		return proxy.Result{Endpoint: ep, Attempts: 1, Err: d.err}
	}
	now := time.Now()
	fields := x.AnswerFields([]byte("Content-Type: application/json\r\n"), ep)
	if err := x.Client.Head(http.StatusOK, fields, int64(len(d.answer))); err != nil {
		return proxy.Result{Endpoint: ep, Err: err}
	}
	x.Hooks.First(ep, http.StatusOK, []byte(d.answer), now)
	x.Hooks.Events(3, now.Add(time.Millisecond))
	if err := x.Client.Write([]byte(d.answer)); err != nil {
		return proxy.Result{Endpoint: ep, Err: err}
	}
	x.Hooks.Ended(ep, proxy.Outcome{Status: http.StatusOK, Events: 3, Usage: proxy.Usage{Seen: true, Prompt: 7, Completion: 3, Cached: 4}})
	return proxy.Result{Endpoint: ep, Status: http.StatusOK, Attempts: 1}
}

type bench struct {
	edge     *Edge
	doer     *doer
	fleet    *fixedFleet
	registry *prometheus.Registry
}

func newBench(tb testing.TB, policy string, models ...string) *bench {
	tb.Helper()
	var endpoints []*pick.Endpoint
	for i := range 4 {
		e := pick.NewEndpoint(mobula.Endpoint{ID: fmt.Sprintf("http://e%d", i), URL: fmt.Sprintf("http://e%d", i)}, &pick.Live{})
		e.Serving = true
		for _, m := range models {
			e.Cards = append(e.Cards, mobula.Card{ID: m, Raw: []byte(`{"id":` + strconv.Quote(m) + `,"object":"model"}`)})
		}
		endpoints = append(endpoints, e)
	}
	p, err := pick.New(pick.Options{Name: policy})
	require.NoError(tb, err)
	fleet := mobula.Default()
	b := &bench{
		doer: &doer{answer: `{"id":"resp_1"}`}, registry: prometheus.NewRegistry(),
		fleet: &fixedFleet{snapshot: pick.NewSnapshot(endpoints, []mobula.Model{{Name: models[0], Aliases: []string{"other"}}}, []string{"asleep"})},
	}
	b.edge = New(Options{
		Fleet: b.fleet, Proxy: b.doer, Policy: p, Router: fleet.Router,
		Metrics: metrics.New(b.registry), Gatherer: b.registry, Version: "test",
	})
	return b
}

func (b *bench) post(path, body string, header ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.edge.Handler().ServeHTTP(w, req)
	return w
}

func TestAliasReachesTheEngineByItsOwnName(t *testing.T) {
	b := newBench(t, "prefix", "meta/llama-3")
	w := b.post("/v1/completions", `{"a":1, "model" : "other","prompt":"x"}`)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	require.JSONEq(t, `{"a":1, "model" : "meta/llama-3","prompt":"x"}`, b.doer.body)
	require.Equal(t, "POST", b.doer.last.Method)
	require.Equal(t, "/v1/completions", b.doer.last.Target)
}

func TestAliasOfAModelWhoseNameNeedsEscapes(t *testing.T) {
	const model = `a "quoted" \\ name`
	b := newBench(t, "prefix", model)
	require.Equal(t, http.StatusOK, b.post("/v1/completions", `{"model":"other","prompt":"x"}`).Code)
	var got struct{ Model string }
	require.NoError(t, json.Unmarshal([]byte(b.doer.body), &got), b.doer.body)
	require.Equal(t, model, got.Model)
}

func TestPathsThatEnginesNameOtherwise(t *testing.T) {
	b := newBench(t, "roundrobin", "m")
	require.Equal(t, http.StatusOK, b.post("/v1/pooling?a=b", `{"model":"m"}`).Code)
	require.Equal(t, "/pooling?a=b", b.doer.last.Target)
}

func TestKnownModelWithoutEnginesIsUnavailable(t *testing.T) {
	b := newBench(t, "cost", "m")
	w := b.post("/v1/completions", `{"model":"asleep"}`)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
}

func TestDebugHeaderExplains(t *testing.T) {
	for _, policy := range pick.Names() {
		b := newBench(t, policy, "m")
		w := b.post("/v1/completions", `{"model":"m","prompt":"`+strings.Repeat("x", 5000)+`","user":"u"}`, "X-Mobula-Debug", "1")
		require.Contains(t, w.Header().Get("X-Mobula-Decision"), `"policy":"`+policy+`"`)
		require.NotContains(t, w.Header().Get("X-Mobula-Decision"), `"reason":""`)
		require.Empty(t, b.post("/v1/completions", `{"model":"m"}`).Header().Get("X-Mobula-Decision"))
	}
}

func TestResponsesGoBackToTheirEngine(t *testing.T) {
	b := newBench(t, "roundrobin", "m")
	require.Equal(t, http.StatusOK, b.post("/v1/responses", `{"model":"m","input":"x"}`).Code)
	owner := b.doer.list[0].ID
	for range 8 {
		b.post("/v1/responses", `{"model":"m","input":"y","previous_response_id":"resp_1"}`)
		require.Equal(t, owner, b.doer.list[0].ID)
		require.Len(t, b.doer.list, 1)
	}
}

func TestFailureOf(t *testing.T) {
	for cause, want := range map[proxy.Cause]int{
		proxy.CauseConnect: 503, proxy.CauseReset: 502, proxy.CauseFirstByte: 504, proxy.CauseIdle: 504,
		proxy.CauseStatus: 502, proxy.CauseProtocol: 502, proxy.CauseBusy: 429, proxy.CauseTruncated: 502, proxy.CauseMissing: 404,
	} {
		require.Equal(t, want, failureOf(fmt.Errorf("do: %w", &proxy.Error{Cause: cause})).status, cause)
	}
	require.Equal(t, 502, failureOf(errors.New("x")).status)
}

func TestFailedRequestGetsABodyAndCounts(t *testing.T) {
	b := newBench(t, "cost", "m")
	b.doer.err = &proxy.Error{Cause: proxy.CauseConnect, Endpoint: "http://e0"}
	w := b.post("/v1/chat/completions", `{"model":"m","messages":[]}`)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Contains(t, w.Body.String(), `"type":"ServiceUnavailableError"`)
	n, err := testutil.GatherAndCount(b.registry, "vllm:request_errors_total")
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestInFlightIsBounded(t *testing.T) {
	b := newBench(t, "cost", "m")
	r := mobula.Default().Router
	r.Limits.InFlight = 0
	b.edge.Update(r, b.edge.settings.Load().policy)
	w := b.post("/v1/completions", `{"model":"m"}`)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Zero(t, b.edge.InFlight())
}

// TestRow03NothingLeaksPerRequest: the heap holds no more after many requests than before.
func TestRow03NothingLeaksPerRequest(t *testing.T) {
	for _, policy := range []string{"cost", "session"} {
		b := newBench(t, policy, "m")
		play := func(n int) {
			for i := range n {
				w := b.post("/v1/chat/completions", fmt.Sprintf(`{"model":"m","user":"u%d","messages":[{"role":"user","content":"hi"}]}`, i), "X-Request-Id", strconv.Itoa(i))
				require.Equal(t, http.StatusOK, w.Code)
				b.fleet.reports = nil
			}
		}
		objects := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapObjects)
		}
		play(500)
		before := objects()
		play(5000)
		require.Less(t, objects()-before, int64(1000), policy)
	}
}

func TestMetricsCountWhatHappened(t *testing.T) {
	b := newBench(t, "cost", "m")
	for range 3 {
		b.post("/v1/chat/completions", `{"model":"m","messages":[],"stream":true}`)
	}
	b.post("/v1/chat/completions", `{"model":"junk"}`)
	require.NoError(t, testutil.GatherAndCompare(b.registry, strings.NewReader(`
# HELP mobula_router_requests_total Requests answered, by the status that the client got (499: the client left).
# TYPE mobula_router_requests_total counter
mobula_router_requests_total{code="200",model="m",route="chat"} 3
mobula_router_requests_total{code="200",model="(unknown)",route="chat"} 0
mobula_router_requests_total{code="404",model="(unknown)",route="chat"} 1
# HELP mobula_router_tokens_total Tokens by the engines' own count, kind prompt, cached or generated.
# TYPE mobula_router_tokens_total counter
mobula_router_tokens_total{kind="cached",model="(unknown)"} 0
mobula_router_tokens_total{kind="generated",model="(unknown)"} 0
mobula_router_tokens_total{kind="prompt",model="(unknown)"} 0
mobula_router_tokens_total{kind="cached",model="m"} 12
mobula_router_tokens_total{kind="generated",model="m"} 9
mobula_router_tokens_total{kind="prompt",model="m"} 21
`), "mobula_router_requests_total", "mobula_router_tokens_total"))
}

// nowhere is a client that takes everything.
type nowhere struct{}

func (nowhere) Head(int, []byte, int64) error { return nil }
func (nowhere) Write([]byte) error            { return nil }
func (nowhere) Flush() error                  { return nil }
func (nowhere) Watch(proxy.Canceler) bool     { return true }
func (nowhere) Unwatch()                      {}

// BenchmarkEdge is the edge's own part of a request: scan, pick, count.
func BenchmarkEdge(b *testing.B) {
	for _, policy := range []string{"roundrobin", "cost", "prefix"} {
		for _, size := range []int{200, 32 << 10} {
			b.Run(fmt.Sprintf("%s/%d", policy, size), func(b *testing.B) {
				e := newBench(b, policy, "m")
				body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("abcd ", size/5) + `"}],"max_tokens":16}`)
				r := &front.Request{
					Method: []byte("POST"), Path: []byte("/v1/chat/completions"), Target: []byte("/v1/chat/completions"), Body: body,
					Fields: []byte("Host: a\r\nContent-Type: application/json\r\nAuthorization: Bearer sk\r\nContent-Length: 100\r\n"),
				}
				b.ReportAllocs()
				for b.Loop() {
					e.fleet.reports = e.fleet.reports[:0]
					if err := e.edge.ServeFast(r, nowhere{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

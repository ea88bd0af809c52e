// Package metrics counts what the router does. Series of a hot path are resolved once and
// kept, so that counting a request costs a few atomic additions. A label is never a string
// of a client's choice: unknown models count under Unknown.
package metrics

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Unknown is the model label of requests for models that no engine serves.
const Unknown = "(unknown)"

// Set is the router's metrics on one registry.
type Set struct {
	requests  *prometheus.CounterVec
	e2e       *prometheus.HistogramVec
	ttft      *prometheus.HistogramVec
	itl       *prometheus.HistogramVec
	tokens    *prometheus.CounterVec
	prefix    *prometheus.CounterVec
	picks     *prometheus.CounterVec
	attempts  *prometheus.CounterVec
	retries   *prometheus.CounterVec
	rejected  *prometheus.CounterVec
	incoming  *prometheus.CounterVec
	errors    *prometheus.CounterVec
	latency   *prometheus.HistogramVec
	inTokens  *prometheus.CounterVec
	outTokens *prometheus.CounterVec

	mu        sync.Mutex
	recent    map[string]*recent // by model
	models    atomic.Pointer[map[modelKey]*Model]
	endpoints atomic.Pointer[map[string]*Endpoint]
	windows   *windows
}

type modelKey struct{ model, route string }

// New registers the metrics on r.
func New(r prometheus.Registerer) *Set {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		r.MustRegister(h)
		return h
	}
	s := &Set{
		requests: counter("mobula_router_requests_total", "Requests answered, by the status that the client got (499: the client left).", "model", "route", "code"),
		e2e:      histogram("mobula_router_e2e_seconds", "Seconds from a request's head to the end of its answer.", secondsBuckets(), "model", "route"),
		ttft:     histogram("mobula_router_ttft_seconds", "Seconds from a request's head to the first byte of a streamed answer.", secondsBuckets(), "model"),
		itl:      histogram("mobula_router_itl_seconds", "Seconds between two events of a stream.", itlBuckets(), "model"),
		tokens:   counter("mobula_router_tokens_total", "Tokens by the engines' own count, kind prompt, cached or generated.", "model", "kind"),
		prefix:   counter("mobula_router_prefix_hit_tokens_total", "Prompt tokens found in an engine's cache: predicted by the pick, and real by the engine's usage, of requests where both are known.", "kind"),
		picks:    counter("mobula_router_picks_total", "Choices of an endpoint by policy and reason.", "policy", "reason"),
		attempts: counter("mobula_router_attempts_total", "Attempts at an endpoint by how they ended.", "endpoint", "cause"),
		retries:  counter("mobula_router_retries_total", "Attempts that were followed by another one, by why they failed.", "cause"),
		rejected: counter("mobula_router_rejected_total", "Requests refused before an engine was asked, by reason.", "reason"),
		// names that dashboards for vLLM's production stack read
		incoming:  counter("vllm:num_incoming_requests_total", "Requests by model, as production-stack names it.", "model"),
		errors:    counter("vllm:request_errors_total", "Failed attempts, as production-stack names it.", "server", "model", "error_type"),
		latency:   histogram("vllm:request_latency_seconds", "Seconds of an attempt at an engine, as production-stack names it.", secondsBuckets(), "server", "model", "status"),
		inTokens:  counter("vllm:input_tokens_total", "Prompt tokens, as production-stack names it.", "server", "model"),
		outTokens: counter("vllm:output_tokens_total", "Generated tokens, as production-stack names it.", "server", "model"),
	}
	s.recent = map[string]*recent{}
	s.models.Store(&map[modelKey]*Model{})
	s.endpoints.Store(&map[string]*Endpoint{})
	s.windows = newWindows(s)
	r.MustRegister(s.windows)
	return s
}

// secondsBuckets reach from a cached answer to a long one.
func secondsBuckets() []float64 {
	return []float64{.005, .01, .025, .05, .1, .2, .35, .5, .75, 1, 1.5, 2.5, 5, 10, 20, 40, 80, 160, 640}
}

// itlBuckets reach from bursts of tokens to a stall.
func itlBuckets() []float64 {
	return []float64{.001, .0025, .005, .01, .015, .02, .03, .04, .05, .075, .1, .15, .2, .4, .8, 2, 10}
}

// Model is the resolved series of one model on one route.
type Model struct {
	set                           *Set
	recent                        *recent
	model, route                  string
	ok                            prometheus.Counter
	e2e, ttft, itl                prometheus.Observer
	prompt, cached, generated, in prometheus.Counter
}

// Model resolves the series of a model on a route. model is a name that the fleet knows or
// Unknown.
func (s *Set) Model(model, route string) *Model {
	k := modelKey{model, route}
	if m := (*s.models.Load())[k]; m != nil {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.models.Load()
	if m := old[k]; m != nil {
		return m
	}
	lately := s.recent[model]
	if lately == nil {
		lately = newRecent()
		s.recent[model] = lately
	}
	m := &Model{
		set: s, recent: lately, model: model, route: route,
		ok:  s.requests.WithLabelValues(model, route, "200"),
		e2e: s.e2e.WithLabelValues(model, route), ttft: s.ttft.WithLabelValues(model), itl: s.itl.WithLabelValues(model),
		prompt: s.tokens.WithLabelValues(model, "prompt"), cached: s.tokens.WithLabelValues(model, "cached"),
		generated: s.tokens.WithLabelValues(model, "generated"), in: s.incoming.WithLabelValues(model),
	}
	next := maps.Clone(old)
	next[k] = m
	s.models.Store(&next)
	return m
}

// Incoming counts a request that has come.
func (m *Model) Incoming(now time.Time) {
	m.in.Inc()
	m.recent.request(now)
}

// Prompt counts prompt tokens that an engine has to compute for a request.
func (m *Model) Prompt(now time.Time, tokens int) {
	m.recent.at(now).prompt.Add(uint64(max(tokens, 0)))
}

// Failed counts a request that ended in an error of ours or of the engines.
func (m *Model) Failed(now time.Time) { m.recent.at(now).failed.Add(1) }

// Answered counts a request that is over with the status that its client got.
func (m *Model) Answered(status int, took time.Duration) {
	if status == 200 {
		m.ok.Inc()
	} else {
		m.set.requests.WithLabelValues(m.model, m.route, strconv.Itoa(status)).Inc()
	}
	m.e2e.Observe(took.Seconds())
}

// First observes the first byte of an answer: of a stream it tells the time to the first token.
func (m *Model) First(now time.Time, took time.Duration, stream bool) {
	s := m.recent.at(now)
	s.answered.Add(1)
	if stream {
		m.ttft.Observe(took.Seconds())
		s.ttft.observe(took, 1)
	}
}

// Events observes n events of a stream that came together gap after the ones before.
func (m *Model) Events(now time.Time, n int, gap time.Duration) {
	if n > 8 { // a burst says nothing more about the gap between tokens
		n = 8
	}
	m.recent.at(now).itl.observe(gap/time.Duration(n), n)
	each := gap.Seconds() / float64(n)
	for range n {
		m.itl.Observe(each)
	}
}

// Endpoint is the resolved series of one endpoint.
type Endpoint struct {
	ok       prometheus.Counter
	finished atomic.Int64 // attempts that ended well
	nanos    atomic.Int64 // their durations
	sent     atomic.Int64
	events   atomic.Int64
	decode   atomic.Int64 // nanoseconds from first to last byte
	hits     atomic.Int64 // prompt tokens from the cache
	queries  atomic.Int64 // prompt tokens

	mu     sync.Mutex
	models map[string]*endpointModel // by model; bounded by what the fleet serves
}

type endpointModel struct {
	latency prometheus.Observer
	in, out prometheus.Counter
}

// Endpoint resolves the series of an endpoint.
func (s *Set) Endpoint(id string) *Endpoint {
	if e := (*s.endpoints.Load())[id]; e != nil {
		return e
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.endpoints.Load()
	if e := old[id]; e != nil {
		return e
	}
	e := &Endpoint{ok: s.attempts.WithLabelValues(id, "ok"), models: map[string]*endpointModel{}}
	next := maps.Clone(old)
	next[id] = e
	s.endpoints.Store(&next)
	return e
}

// Keep drops the series of endpoints that keep says are gone, so that a fleet whose
// engines come and go does not grow the page for ever.
func (s *Set) Keep(keep func(id string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*Endpoint{}
	for id, e := range *s.endpoints.Load() {
		if keep(id) {
			next[id] = e
			continue
		}
		s.attempts.DeletePartialMatch(prometheus.Labels{"endpoint": id})
		for _, v := range []interface {
			DeletePartialMatch(prometheus.Labels) int
		}{s.errors, s.latency, s.inTokens, s.outTokens} {
			v.DeletePartialMatch(prometheus.Labels{"server": id})
		}
	}
	s.endpoints.Store(&next)
}

// Attempt is one attempt at an endpoint that is over.
type Attempt struct {
	Endpoint, Model string
	Cause           string // the proxy's word for how it ended, "ok" when all was well
	Failed          bool   // the engine is to blame
	Retried         bool
	Took, Decode    time.Duration // whole; first to last byte
	Events          int
	// Prompt, Cached and Completion are tokens by the engine's usage; Counted tells whether
	// there was one, Cached is -1 when it did not say.
	Counted                    bool
	Prompt, Cached, Completion int
	Predicted                  int // prompt tokens that the pick expected in the cache, -1 without a prediction
}

// Sent counts an attempt that begins.
func (s *Set) Sent(endpoint string) { s.Endpoint(endpoint).sent.Add(1) }

// Ended counts an attempt that is over. m is the model's series.
func (s *Set) Ended(m *Model, a *Attempt) {
	if a.Retried {
		s.retries.WithLabelValues(a.Cause).Inc()
	}
	if a.Counted {
		m.prompt.Add(float64(a.Prompt))
		m.generated.Add(float64(a.Completion))
		m.cached.Add(float64(max(a.Cached, 0)))
	}
	e := (*s.endpoints.Load())[a.Endpoint]
	if e == nil {
		return // removed while it answered: its series are gone and stay so
	}
	if a.Cause == "ok" {
		e.ok.Inc()
		e.finished.Add(1)
		e.nanos.Add(int64(a.Took))
		e.events.Add(int64(a.Events))
		e.decode.Add(int64(a.Decode))
	} else {
		s.attempts.WithLabelValues(a.Endpoint, a.Cause).Inc()
	}
	em := e.model(s, a.Endpoint, a.Model)
	if a.Failed {
		s.errors.WithLabelValues(a.Endpoint, a.Model, a.Cause).Inc()
		s.latency.WithLabelValues(a.Endpoint, a.Model, "error").Observe(a.Took.Seconds())
	} else {
		em.latency.Observe(a.Took.Seconds())
	}
	if !a.Counted {
		return
	}
	em.in.Add(float64(a.Prompt))
	em.out.Add(float64(a.Completion))
	e.queries.Add(int64(a.Prompt))
	if a.Cached < 0 {
		return
	}
	e.hits.Add(int64(a.Cached))
	if a.Predicted >= 0 {
		s.prefix.WithLabelValues("predicted").Add(float64(min(a.Predicted, a.Prompt)))
		s.prefix.WithLabelValues("real").Add(float64(a.Cached))
	}
}

func (e *Endpoint) model(s *Set, endpoint, model string) *endpointModel {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.models[model]
	if m == nil {
		m = &endpointModel{
			latency: s.latency.WithLabelValues(endpoint, model, "success"),
			in:      s.inTokens.WithLabelValues(endpoint, model), out: s.outTokens.WithLabelValues(endpoint, model),
		}
		e.models[model] = m
	}
	return m
}

// Picked counts a choice.
func (s *Set) Picked(policy, reason string) { s.picks.WithLabelValues(policy, reason).Inc() }

// Rejected counts a request that no engine was asked about.
func (s *Set) Rejected(reason string) { s.rejected.WithLabelValues(reason).Inc() }

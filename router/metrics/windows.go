package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// window is the time that rates of production-stack's names look back over, its default.
const window = 60 * time.Second

// Load is an endpoint's live counts.
type Load struct {
	ID                string
	Serving           bool
	InFlight, Waiting int64
	Queued            float64 // requests in the engine's own queue, as it says
}

// windows gives the gauges that are read from live counts at the time of a scrape. Rates
// are taken against samples of earlier scrapes, so they cost nothing between scrapes.
type windows struct {
	set   *Set
	loads func() []Load
	now   func() time.Time

	mu      sync.Mutex
	samples map[string][]sample // by endpoint, oldest first, at most maxSamples

	inFlight, waiting                                      *prometheus.Desc
	healthy, running, queued, qps, latency, prefill, decod *prometheus.Desc
	itl, length, swapped, kvRate, kvHits, kvQueries        *prometheus.Desc
}

// maxSamples bounds what is kept when somebody scrapes without pause.
const maxSamples = 128

type sample struct {
	at                                                   time.Time
	sent, finished, nanos, events, decode, hits, queries int64
}

func newWindows(s *Set) *windows {
	d := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"server"}, nil)
	}
	own := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"endpoint"}, nil)
	}
	const same = ", as production-stack names it."
	return &windows{
		set: s, loads: func() []Load { return nil }, now: time.Now, samples: map[string][]sample{},
		inFlight:  own("mobula_router_inflight_requests", "Requests sent to an endpoint and not ended."),
		waiting:   own("mobula_router_waiting_requests", "Requests sent to an endpoint without a first byte yet."),
		healthy:   d("vllm:healthy_pods_total", "1 while an endpoint serves, 0 while it does not"+same),
		running:   d("vllm:num_requests_running", "Requests in flight at an endpoint, by the router's count"+same),
		queued:    d("vllm:num_requests_waiting", "Requests that wait in the engine's queue, by its own count"+same),
		qps:       d("vllm:current_qps", "Requests per second over the last minute"+same),
		latency:   d("vllm:avg_latency", "Mean seconds of a request over the last minute"+same),
		prefill:   d("vllm:num_prefill_requests", "Requests without a first byte"+same),
		decod:     d("vllm:num_decoding_requests", "Requests between first and last byte"+same),
		itl:       d("vllm:avg_itl", "Mean seconds between events over the last minute"+same),
		length:    d("vllm:avg_decoding_length", "Mean events of a stream over the last minute"+same),
		swapped:   d("vllm:num_requests_swapped", "Always 0: vLLM has not swapped since V1"+same),
		kvRate:    d("vllm:gpu_prefix_cache_hit_rate", "Share of prompt tokens found in the engine's cache over the last minute"+same),
		kvHits:    d("vllm:gpu_prefix_cache_hits_total", "Prompt tokens found in the engine's cache"+same),
		kvQueries: d("vllm:gpu_prefix_cache_queries_total", "Prompt tokens looked up in the engine's cache"+same),
	}
}

// Loads sets where the live counts come from; it is called before the first scrape.
func (s *Set) Loads(f func() []Load) { s.windows.loads = f }

// Describe implements prometheus.Collector.
func (w *windows) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		w.inFlight, w.waiting, w.healthy, w.running, w.queued, w.qps, w.latency,
		w.prefill, w.decod, w.itl, w.length, w.swapped, w.kvRate, w.kvHits, w.kvQueries,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w *windows) Collect(ch chan<- prometheus.Metric) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, seen := w.now(), map[string][]sample{}
	for _, l := range w.loads() {
		first, last := w.step(seen, l.ID, now)
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l.ID)
		}
		serving := 0.0
		if l.Serving {
			serving = 1
		}
		gauge(w.inFlight, float64(l.InFlight))
		gauge(w.waiting, float64(l.Waiting))
		gauge(w.healthy, serving)
		gauge(w.running, float64(l.InFlight))
		gauge(w.queued, l.Queued)
		gauge(w.prefill, float64(l.Waiting))
		gauge(w.decod, float64(l.InFlight-l.Waiting))
		gauge(w.swapped, 0)
		gauge(w.qps, ratio(float64(last.sent-first.sent), last.at.Sub(first.at).Seconds()))
		gauge(w.latency, ratio(float64(last.nanos-first.nanos)/1e9, float64(last.finished-first.finished)))
		gauge(w.itl, ratio(float64(last.decode-first.decode)/1e9, float64(last.events-first.events)))
		gauge(w.length, ratio(float64(last.events-first.events), float64(last.finished-first.finished)))
		gauge(w.kvRate, ratio(float64(last.hits-first.hits), float64(last.queries-first.queries)))
		gauge(w.kvHits, float64(last.hits))
		gauge(w.kvQueries, float64(last.queries))
	}
	w.samples = seen // endpoints that are gone take their samples with them
}

// step adds a sample of an endpoint and gives the oldest one within the window and the new one.
func (w *windows) step(seen map[string][]sample, id string, now time.Time) (first, last sample) {
	e := w.set.Endpoint(id)
	last = sample{
		at: now, sent: e.sent.Load(), finished: e.finished.Load(), nanos: e.nanos.Load(),
		events: e.events.Load(), decode: e.decode.Load(), hits: e.hits.Load(), queries: e.queries.Load(),
	}
	old := w.samples[id]
	for len(old) > 1 && (now.Sub(old[0].at) > window || len(old) >= maxSamples) {
		old = old[1:]
	}
	first = last
	if len(old) > 0 {
		first = old[0]
	}
	seen[id] = append(append(make([]sample, 0, len(old)+1), old...), last)
	return first, last
}

func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

var _ prometheus.Collector = (*windows)(nil)

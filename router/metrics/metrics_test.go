package metrics

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// attempt is one that ended well.
func attempt(endpoint string) *Attempt {
	return &Attempt{
		Endpoint: endpoint, Model: "m", Cause: "ok", Took: 2 * time.Second, Decode: time.Second, Events: 10,
		Counted: true, Prompt: 100, Cached: 60, Completion: 10, Predicted: 50,
	}
}

func gauge(t *testing.T, r *prometheus.Registry, name, endpoint string) float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == endpoint {
					return m.GetGauge().GetValue()
				}
			}
		}
	}
	t.Fatalf("no %s of %s", name, endpoint)
	return 0
}

func TestRatesLookBackOverAMinute(t *testing.T) {
	r := prometheus.NewRegistry()
	s := New(r)
	now := time.Unix(1000, 0)
	s.windows.now = func() time.Time { return now }
	s.Loads(func() []Load { return []Load{{ID: "e", Serving: true, InFlight: 3, Waiting: 1, Queued: 5}} })
	require.Zero(t, gauge(t, r, "vllm:current_qps", "e"), "nothing to compare with yet")
	m := s.Model("m", "chat")
	for range 20 {
		s.Sent("e")
		s.Ended(m, attempt("e"))
	}
	now = now.Add(10 * time.Second)
	for name, want := range map[string]float64{
		"vllm:current_qps": 2, "vllm:avg_latency": 2, "vllm:avg_itl": 0.1, "vllm:avg_decoding_length": 10,
		"vllm:gpu_prefix_cache_hit_rate": 0.6, "vllm:num_requests_running": 3, "vllm:num_requests_waiting": 5,
		"vllm:num_prefill_requests": 1, "vllm:num_decoding_requests": 2, "vllm:healthy_pods_total": 1,
	} {
		require.InDelta(t, want, gauge(t, r, name, "e"), 1e-9, name)
	}
	now = now.Add(5 * time.Minute)
	gauge(t, r, "vllm:current_qps", "e")
	now = now.Add(time.Second)
	require.Zero(t, gauge(t, r, "vllm:current_qps", "e"), "what was long ago is forgotten")
}

func TestSamplesAreBounded(t *testing.T) {
	r := prometheus.NewRegistry()
	s := New(r)
	s.Loads(func() []Load { return []Load{{ID: "e"}} })
	for range 3 * maxSamples {
		_, err := r.Gather()
		require.NoError(t, err)
	}
	require.LessOrEqual(t, len(s.windows.samples["e"]), maxSamples)
}

func TestEndpointsThatAreGoneLeaveNoSeries(t *testing.T) {
	r := prometheus.NewRegistry()
	s := New(r)
	m := s.Model("m", "chat")
	series := func() int {
		n, err := testutil.GatherAndCount(r, "mobula_router_attempts_total", "vllm:request_latency_seconds", "vllm:input_tokens_total")
		require.NoError(t, err)
		return n
	}
	empty := series()
	for i := range 100 {
		id := fmt.Sprintf("http://10.0.0.%d", i)
		s.Sent(id)
		s.Ended(m, attempt(id))
		failed := attempt(id)
		failed.Cause, failed.Failed, failed.Retried = "reset", true, true
		s.Ended(m, failed)
	}
	require.Greater(t, series(), empty)
	s.Keep(func(string) bool { return false })
	s.Ended(m, attempt("http://10.0.0.7")) // a stream that outlived its endpoint
	require.Equal(t, empty, series())
}

func TestBurstsSayLittleOfTheGap(t *testing.T) {
	r := prometheus.NewRegistry()
	s := New(r)
	s.Model("m", "chat").Events(time.Now(), 500, time.Second)
	families, err := r.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "mobula_router_itl_seconds" {
			require.LessOrEqual(t, f.GetMetric()[0].GetHistogram().GetSampleCount(), uint64(8))
			return
		}
	}
	t.Fatal("no ITL")
}

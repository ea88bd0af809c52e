//go:build real

package real

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// scrape reads a server's /metrics.
func (s *stack) scrape(t *testing.T, base string) string {
	t.Helper()
	a, err := s.ask(t.Context(), base, call{method: http.MethodGet, path: "/metrics"})
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.status)
	return string(a.body)
}

// sum adds up the samples of a metric whose labels hold all of label. found is their number.
func sum(metrics, name string, label ...string) (total float64, found int) {
lines:
	for l := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(l, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, want := range label {
			if !strings.Contains(rest, want) {
				continue lines
			}
		}
		value := strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:])
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			total, found = total+v, found+1
		}
	}
	return total, found
}

// running is how many requests the causal engines that live work on or hold in their queues.
func (s *stack) running(t *testing.T, engines ...*engine) (n float64) {
	t.Helper()
	for _, e := range engines {
		m := s.scrape(t, e.url)
		for _, name := range []string{"vllm:num_requests_running", "vllm:num_requests_waiting"} {
			v, found := sum(m, name)
			require.Positive(t, found, "%s of engine %s", name, e.name)
			n += v
		}
	}
	return n
}

func (s *stack) testCountersReturnToZero(t *testing.T) {
	for _, name := range []string{"mobula_router_inflight_requests", "mobula_router_waiting_requests"} {
		eventually(t, time.Minute, name+" is zero", func() bool {
			v, found := sum(s.scrape(t, s.url), name)
			return found > 0 && v == 0
		})
	}
	v, _ := sum(s.scrape(t, s.url), "mobula_router_requests_total")
	require.Positive(t, v, "requests counted")
}

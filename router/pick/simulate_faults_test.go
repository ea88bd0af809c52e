package pick

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// One of four engines goes wrong for half a minute of a run of two, under cost, and nothing
// but the policy leaves it: health's ejection is not simulated.
func TestCostLeavesABadEngineAndComesBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  simFault
		plain  bool
		failed int     // requests that may meet the fault, of about 500 in that time
		share  float64 // of all requests that it still gets, at least
	}{
		{"refuses at once, as with 429", simFault{after: time.Millisecond}, false, 40, 0.12},
		{"refuses plain requests at once", simFault{after: time.Millisecond}, true, 40, 0.12},
		{"hangs", simFault{after: 10 * time.Second}, false, 15, 0.12},
		{"hangs with plain requests", simFault{after: 10 * time.Second}, true, 40, 0.12},
		{"restarts with an empty cache", simFault{restart: true}, false, 0, 0.2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustNew(t, "cost")
			cfg := change(qa(), func(q *simConfig) { q.plain = c.plain })
			s := newSim(p, cfg)
			s.engines[1].fault, s.engines[1].from, s.engines[1].to = c.fault, 30*time.Second, 60*time.Second
			s.play(cfg)
			requireIdle(t, p, s.group.Endpoints)
			total := 0
			for _, e := range s.engines {
				total += e.requests
			}
			r := s.result()
			share := float64(s.engines[1].requests) / float64(total)
			t.Logf("%d failed, share %.2f, hit %.3f, TTFT mean %.1f ms, p99 %.1f ms", s.retries, share, r.hit, ms(r.mean), ms(r.p99))
			require.LessOrEqual(t, s.retries, c.failed)
			require.GreaterOrEqual(t, share, c.share)
			require.GreaterOrEqual(t, r.hit, 0.8)
		})
	}
}

package scale

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// workload is a trace and what the policies may do with it.
type workload struct {
	name  string
	trace []arrival
	rng   mobula.Range
	// spare is how many times the GPU-seconds of each HPA may be needed for as many good requests. Above 1 it is a
	// confession, for docs/autoscaling.md: half of the replicas stay for another minute on each way down.
	spare float64
}

func workloads() []workload {
	const hour = 3600.0
	diurnal := func(t float64) float64 {
		x := 2 + 14*math.Pow(math.Sin(math.Pi*t/(6*hour)), 2)
		return x * (1 + 0.15*math.Sin(t/37) + 0.1*math.Sin(t/211))
	}
	burst := func(t float64) float64 {
		if m := math.Mod(t, 1800); m >= 600 && m < 1080 {
			return 20
		}
		return 4
	}
	sparse := func(t float64) float64 {
		if m := math.Mod(t, 5400); m < 420 {
			return 0.8
		}
		return 0
	}
	return []workload{
		{"a day in six hours", draw(1, 6*hour, diurnal, 22), mobula.Range{Min: 1, Max: 8}, 1},
		{"bursts of five times the load", draw(2, 2*hour, burst, 20), mobula.Range{Min: 1, Max: 8}, 1.1},
		{"a sparse night", draw(3, 6*hour, sparse, 0.8), mobula.Range{Min: 0, Max: 8}, 1},
	}
}

// ours is Decide, once a second.
func ours(r mobula.Range) func(*world) int {
	var s State
	return func(w *world) int {
		var d Decision
		d, s = Decide(w.input(r), s)
		return d.Replicas
	}
}

func fixed(n int) func(*world) int { return func(*world) int { return n } }

// hpa is what a HorizontalPodAutoscaler does with its defaults: every 15 s the replicas in proportion to metric over target,
// within 10 % nothing, up by four or to the double, down to the most of 5 minutes. From and to zero it goes as we do,
// which KEDA can be made to.
func hpa(r mobula.Range, target float64, metric func(*world) float64) func(*world) int {
	wanted, next := 0, 0.0
	var recent []Span
	return func(w *world) int {
		ready, starting := w.count()
		switch {
		case wanted == 0 && len(w.held) > 0:
			wanted = 1
		case r.Min == 0 && len(w.held) == 0 && !w.unfinished() && w.now-w.last > 600:
			wanted, recent = 0, nil
		case w.now < next:
		default:
			next = w.now + 15
			if wanted == 0 {
				wanted = ready + starting
			}
			n := wanted
			if ready > 0 {
				if ratio := metric(w) / target; math.Abs(ratio-1) > 0.1 {
					n = int(math.Ceil(float64(ready) * ratio))
				}
			}
			n = min(max(n, max(r.Min, min(wanted, 1))), r.Max, max(2*wanted, wanted+4))
			recent = remember(recent, n, at(w.now), 300e9, greater)
			most, _ := over(recent, at(w.now), 300e9, greater)
			wanted = max(n, min(most, wanted))
		}
		return wanted
	}
}

// busy is the share of time in which the engines computed since it was asked last, as GPU utilisation is.
func busy() func(*world) float64 {
	before, then := map[*engine]float64{}, 0.0
	return func(w *world) float64 {
		sum, n := 0.0, 0.0
		for _, e := range w.engines {
			if e.serving(w.now) {
				sum += (e.busy - before[e]) / max(1, w.now-max(then, e.ready))
				n++
			}
			before[e] = e.busy
		}
		then = w.now
		return sum / max(n, 1)
	}
}

// perReplica is the mean of requests in flight.
func perReplica(w *world) float64 {
	sum, n := 0, 0
	for _, e := range w.engines {
		if e.serving(w.now) {
			sum += e.inFlight()
			n++
		}
	}
	return float64(sum) / float64(max(n, 1))
}

// result of a policy.
type result struct {
	policy string
	good   float64 // share of requests
	gpu    float64 // seconds
	most   int
}

func (r result) String() string {
	return fmt.Sprintf("| %s | %.2f %% | %.0f | %d |", r.policy, 100*r.good, r.gpu, r.most)
}

func (l *workload) run(policy string, start int, decide func(*world) int) result {
	w := newWorld(start)
	w.replay(l.trace, decide)
	return result{policy, float64(w.good) / float64(len(l.trace)), w.gpu, w.most}
}

// capacity is the requests a second that one engine carries with 99 % of them good.
func capacity() float64 {
	for rate := 1.0; ; rate += 0.5 {
		l := workload{trace: draw(9, 900, func(float64) float64 { return rate }, rate)}
		if l.run("", 1, fixed(1)).good < 0.99 {
			return rate - 0.5
		}
	}
}

// concurrency is the requests in flight at which an engine's ITL is at its objective, which somebody has measured beforehand.
func concurrency() float64 {
	m := someEngine()
	return (0.1 - m.base) / m.perSeq / 2 // half of the steps' time is for prompts
}

func (l *workload) compare(one float64) []result {
	length := l.trace[len(l.trace)-1].at
	mean := float64(len(l.trace)) / length
	peak := 0.0
	for i, j := 0, 0; i < len(l.trace); i++ {
		for l.trace[i].at-l.trace[j].at > 120 {
			j++
		}
		peak = max(peak, float64(i-j+1)/120)
	}
	start := max(1, l.rng.Min)
	if l.rng.Min == 0 {
		start = 0
	}
	atMean, atPeak := int(math.Ceil(mean/one)), int(math.Ceil(peak/one))
	results := []result{
		l.run("Mobula", start, ours(l.rng)),
		l.run("HPA, requests in flight at 70 % of what ITL allows", start, hpa(l.rng, 0.7*concurrency(), perReplica)),
		l.run("HPA, the same at 30 %", start, hpa(l.rng, 0.3*concurrency(), perReplica)),
		l.run("HPA, GPU utilisation at 70 %", start, hpa(l.rng, 0.7, busy())),
	}
	if !testing.Verbose() { // the others are to be read, and nothing is asked of them
		return results
	}
	return append(results,
		l.run(fmt.Sprintf("fixed for the mean (%d)", atMean), atMean, fixed(atMean)),
		l.run(fmt.Sprintf("fixed for the peak (%d)", atPeak), atPeak, fixed(atPeak)),
	)
}

// TestReplay prints docs/autoscaling.md's tables: go test ./control/scale -run Replay -v. An HPA with more good requests
// by half a percent has to pay for them.
func TestReplay(t *testing.T) {
	one := capacity()
	t.Logf("one engine carries %.1f requests/s", one)
	for _, l := range workloads() {
		t.Run(l.name, func(t *testing.T) {
			results := l.compare(one)
			lines := []string{"| policy | good requests | GPU-seconds | most replicas |", "|---|---|---|---|"}
			for _, r := range results {
				lines = append(lines, r.String())
			}
			t.Logf("%d requests\n%s", len(l.trace), strings.Join(lines, "\n"))
			us := results[0]
			for _, r := range results[1:] {
				if !strings.HasPrefix(r.policy, "HPA") {
					continue
				}
				require.True(t, us.good >= r.good-0.005 || us.gpu < r.gpu, "%s is better", r.policy)
				require.LessOrEqual(t, us.gpu, l.spare*r.gpu, "%s is cheaper", r.policy)
			}
		})
	}
}

package scale

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

// calm is an input of n replicas that have little to do.
func calm(second float64, n int) Input {
	return Input{
		Now: at(second), Spec: defaults(), Range: mobula.Range{Min: 1, Max: 10}, Ready: n, StartTime: 60, Heard: true,
		PrefillRate: 10_000, KVMean: 0.05, KVMax: 0.1, InFlight: 2,
		Demand: mobula.ModelReport{Requests: 10, PromptTokens: 5000, Answered: 10, TTFT50: 0.1, TTFT90: 0.2, ITL50: 0.01, ITL90: 0.02, LastRequest: at(second)},
	}
}

// play decides once a second and gives the decisions.
func play(s *State, from, to float64, input func(second float64) Input) []int {
	var out []int
	for t := from; t < to; t++ {
		var d Decision
		d, *s = Decide(input(t), *s)
		out = append(out, d.Replicas)
	}
	return out
}

func TestFromZeroAtOnce(t *testing.T) {
	idle := func(second float64) Input {
		return Input{Now: at(second), Spec: defaults(), Range: mobula.Range{Min: 0, Max: 4}, Heard: true, KVMean: -1, KVMax: -1}
	}
	for name, tc := range map[string]struct {
		demand mobula.ModelReport
		rate   float64 // learnt before
		want   int
		reason string
	}{
		"one request is held":             {mobula.ModelReport{Held: 1, HeldTokens: 100, LastRequest: at(3)}, 0, 1, "1 requests held: 0 → 1"},
		"more are held than one can take": {mobula.ModelReport{Held: 500, HeldTokens: 400_000, LastRequest: at(3)}, 5000, 3, "500 requests held: 0 → 3"},
		"more than all can take":          {mobula.ModelReport{Held: 500, HeldTokens: 4_000_000, LastRequest: at(3)}, 5000, 4, "500 requests held: 0 → 4"},
		"a provider answered":             {mobula.ModelReport{Requests: 1, LastRequest: at(3)}, 0, 1, "requests came in the last 10m: 0 → 1"},
		"nobody asks":                     {mobula.ModelReport{}, 0, 0, "as the fleet says"},
	} {
		t.Run(name, func(t *testing.T) {
			s := State{Learnt: Learnt{PrefillRate: tc.rate}}
			require.Equal(t, []int{0, 0, 0}, play(&s, 0, 3, idle))
			s.Learnt.PrefillRate = tc.rate
			in := idle(3)
			in.Demand = tc.demand
			d, _ := Decide(in, s)
			require.Equal(t, Decision{tc.want, tc.reason}, d)
		})
	}
}

func TestToZeroWhenNobodyAsks(t *testing.T) {
	var s State
	input := func(second float64) Input {
		in := calm(second, 3)
		in.Range = mobula.Range{Min: 0, Max: 4}
		in.InFlight, in.Demand = 0, mobula.ModelReport{LastRequest: at(100)}
		if second < 100 {
			in.InFlight = 1
		}
		return in
	}
	got := play(&s, 0, 700, input)
	require.NotContains(t, got, 0, "ten minutes have not passed")
	got = play(&s, 700, 702, input)
	require.Equal(t, []int{0, 0}, got)
	require.Contains(t, s.Reason, "no request for 10m")
	in := input(703)
	in.InFlight = 1 // of somebody who is still there
	in.Ready = 0
	_, s = Decide(in, s)
	require.Equal(t, 0, s.Wanted, "it is being drained")
}

func TestUpAfterSustainedNeedOnly(t *testing.T) {
	slow := func(second float64) Input {
		in := calm(second, 2)
		in.InFlight, in.Demand.TTFT90 = 20, 3.1
		return in
	}
	var s State
	play(&s, 0, 60, func(second float64) Input { return calm(second, 2) })
	require.NotContains(t, play(&s, 60, 69, slow), 3, "9 s")
	require.Equal(t, []int{2}, play(&s, 69, 70, func(second float64) Input { return calm(second, 2) }), "it was short")
	require.NotContains(t, play(&s, 70, 80, slow), 3)
	require.Equal(t, []int{3}, play(&s, 80, 81, slow))
	require.Equal(t, "TTFT p90 3.1s over 2s: 2 → 3", s.Reason)
	require.NotContains(t, play(&s, 81, 200, slow), 4, "one is on its way")
}

func TestDownBySteps(t *testing.T) {
	var s State
	wanted := 8
	var changes []string
	for second := 0.0; second < 1200; second++ {
		d, next := Decide(calm(second, wanted), s)
		if s = next; d.Replicas != wanted {
			changes = append(changes, fmt.Sprintf("%.0f: %d", second, d.Replicas))
			wanted = d.Replicas
		}
	}
	require.Equal(t, []string{"300: 4", "360: 2", "604: 1"}, changes)
}

func TestAStepDownTooFarIsNotRepeated(t *testing.T) {
	// One replica is too slow for the load, and two look as if they were too many.
	input := func(n int, second float64) Input {
		in := calm(second, n)
		if n == 1 {
			in.InFlight, in.Demand.ITL90 = 40, 0.2
		}
		return in
	}
	var s State
	wanted, changes := 2, []float64(nil)
	for second := 0.0; second < 4*3600; second++ {
		d, next := Decide(input(wanted, second), s)
		if s = next; d.Replicas != wanted {
			wanted = d.Replicas
			changes = append(changes, second)
		}
	}
	require.Equal(t, 2, wanted)
	require.LessOrEqual(t, len(changes), 3, "down once and up again, too far at most")
	require.Contains(t, s.Reason, "1 were too few for 1.0 requests/s")
}

func TestNothingChangesWithoutReports(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, before := drawState(t)
		in := drawInput(t, before)
		in.Heard = false
		d, next := Decide(in, s)
		require.Equal(t, in.Range.Clamp(s.Wanted), d.Replicas)
		require.Equal(t, s.At, next.At)
		require.Equal(t, s.Learnt, next.Learnt)
	})
}

// drawState lives through a while of anything, and gives the last time with it.
func drawState(t *rapid.T) (State, time.Time) {
	var s State
	now := at(0)
	for range rapid.IntRange(1, 20).Draw(t, "steps") {
		in := drawInput(t, now)
		now = in.Now
		_, s = Decide(in, s)
	}
	return s, now
}

func drawInput(t *rapid.T, after time.Time) Input {
	in := Input{
		Now:  after.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "dt")) * time.Second),
		Spec: defaults(), Heard: rapid.Bool().Draw(t, "heard"),
		Ready: rapid.IntRange(0, 12).Draw(t, "ready"), Starting: rapid.IntRange(0, 3).Draw(t, "starting"),
		StartTime: rapid.Float64().Draw(t, "start"), InFlight: rapid.Int().Draw(t, "in flight"), WaitingTokens: rapid.IntRange(0, 1e6).Draw(t, "waiting"),
		PrefillRate: rapid.Float64().Draw(t, "rate"), KVMean: rapid.Float64().Draw(t, "kv"), KVMax: rapid.Float64().Draw(t, "kv max"),
		Demand: mobula.ModelReport{
			Held: rapid.IntRange(-1, 1000).Draw(t, "held"), HeldTokens: rapid.Int().Draw(t, "held tokens"),
			Requests: rapid.IntRange(0, 1e6).Draw(t, "requests"), PromptTokens: rapid.Int().Draw(t, "prompt"), Answered: rapid.IntRange(0, 100).Draw(t, "answered"),
			TTFT50: rapid.Float64().Draw(t, "ttft50"), TTFT90: rapid.Float64().Draw(t, "ttft"), ITL90: rapid.Float64().Draw(t, "itl"),
			LastRequest: after.Add(time.Duration(rapid.IntRange(-1000, 10).Draw(t, "last")) * time.Second),
		},
	}
	in.Range.Min = rapid.IntRange(0, 5).Draw(t, "min")
	in.Range.Max = in.Range.Min + rapid.IntRange(0, 5).Draw(t, "more")
	in.Spec.UpAfter = mobula.Duration(rapid.SampledFrom([]time.Duration{0, 10 * time.Second, 24 * time.Hour}).Draw(t, "up"))
	in.Spec.DownAfter = mobula.Duration(rapid.SampledFrom([]time.Duration{0, 5 * time.Minute, 24 * time.Hour}).Draw(t, "down"))
	if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
		in.PrefillRate, in.Demand.ITL90, in.KVMean = math.NaN(), math.Inf(1), math.NaN()
	}
	return in
}

func TestWhateverComesTheRangeIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := drawState(t)
		for range 20 {
			in := drawInput(t, now)
			now = in.Now
			b, err := json.Marshal(s)
			require.NoError(t, err, "no NaN gets in")
			require.Less(t, len(b), 5000)
			var same State
			require.NoError(t, json.Unmarshal(b, &same))
			d, next := Decide(in, s)
			require.Equal(t, in.Range.Clamp(d.Replicas), d.Replicas)
			if was := in.Range.Clamp(s.Wanted); d.Replicas > 0 {
				require.GreaterOrEqual(t, d.Replicas, was/2, "half at most")
			}
			b2, err := json.Marshal(s)
			require.NoError(t, err)
			require.JSONEq(t, string(b), string(b2), "the state given is not touched")
			again, _ := Decide(in, same)
			require.Empty(t, cmp.Diff(d, again), "nothing is remembered elsewhere")
			s = next
		}
	})
}

func TestMoreLoadNeverAsksForFewer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := Input{
			Spec: defaults(), Ready: rapid.IntRange(0, 8).Draw(t, "ready"), StartTime: rapid.Float64Range(0, 300).Draw(t, "start"),
			InFlight: rapid.IntRange(0, 500).Draw(t, "in flight"), WaitingTokens: rapid.IntRange(0, 1e5).Draw(t, "waiting"),
			KVMean: rapid.Float64Range(0, 1).Draw(t, "kv"), KVMax: rapid.Float64Range(0, 1).Draw(t, "kv max"),
			Demand: mobula.ModelReport{
				Held: rapid.IntRange(0, 100).Draw(t, "held"), HeldTokens: rapid.IntRange(0, 1e6).Draw(t, "held tokens"),
				Answered: rapid.IntRange(0, 50).Draw(t, "answered"), TTFT90: rapid.Float64Range(0, 10).Draw(t, "ttft"), ITL90: rapid.Float64Range(0, 0.3).Draw(t, "itl"),
			},
		}
		l := Learnt{Known: true, PrefillRate: rapid.Float64Range(0, 2e4).Draw(t, "rate"), Requests: rapid.Float64Range(0, 50).Draw(t, "requests")}
		l.TokensSlow = rapid.Float64Range(0, 1e5).Draw(t, "slow")
		l.Tokens = rapid.Float64Range(0, 1e5).Draw(t, "tokens")
		l.Running = rapid.Float64Range(0, 300).Draw(t, "running")
		for i := range 20 {
			l.Line = l.Line.add(float64(5*i), 0.01+rapid.Float64Range(0, 0.002).Draw(t, "slope")*float64(i), 1)
		}
		settled := rapid.Bool().Draw(t, "settled")
		before := assess(&in, &l, settled)
		more := rapid.Float64Range(0, 3).Draw(t, "more")
		grow := func(v *int) { *v += int(more * float64(*v+1)) }
		switch what := rapid.SampledFrom([]string{"held", "held tokens", "in flight", "waiting", "tokens", "running", "kv", "kv max", "ttft"}).Draw(t, "what"); what {
		case "held":
			grow(&in.Demand.Held)
		case "held tokens":
			grow(&in.Demand.HeldTokens)
		case "in flight":
			grow(&in.InFlight)
		case "waiting":
			grow(&in.WaitingTokens)
		case "tokens":
			l.Tokens *= 1 + more
		case "running":
			l.Running *= 1 + more
		case "kv":
			in.KVMean = min(1, in.KVMean*(1+more))
		case "kv max":
			in.KVMax = min(1, in.KVMax*(1+more))
		case "ttft":
			in.Demand.TTFT90 *= 1 + more
		}
		require.GreaterOrEqual(t, assess(&in, &l, settled).replicas, before.replicas)
	})
}

// TestAConstantLoadSettles runs the simulated engines with arrivals like clockwork.
func TestAConstantLoadSettles(t *testing.T) {
	for _, rate := range []float64{0.3, 4.6, 9.1} {
		t.Run(fmt.Sprintf("%.1f requests a second", rate), func(t *testing.T) {
			const length = 9000
			var trace []arrival
			for x := 0.0; x < length; x += 1 / rate {
				trace = append(trace, arrival{x, 700, 200})
			}
			decide := ours(mobula.Range{Min: 1, Max: 10})
			last, changed := 0, 0.0
			newWorld(1).replay(trace, func(w *world) int {
				n := decide(w)
				if n != last && w.now < length {
					last, changed = n, w.now
				}
				return n
			})
			require.Less(t, changed, 6000.0, "it still moves, to %d", last)
			require.LessOrEqual(t, last, int(math.Ceil(rate/3))+1)
		})
	}
}

func TestLineFindsTheConcurrency(t *testing.T) {
	var l Line
	_, ok := l.concurrency(0.1)
	require.False(t, ok, "nothing is known")
	for range 100 {
		l = l.add(10, 0.02, 1)
	}
	_, ok = l.concurrency(0.1)
	require.False(t, ok, "all alike")
	for i := range 100 {
		l = l.add(float64(i), 0.01+0.001*float64(i), 1)
	}
	n, ok := l.concurrency(0.1)
	require.True(t, ok)
	require.InDelta(t, 90, n, 1)
	_, ok = l.concurrency(0.005)
	require.False(t, ok, "less than a step without load")
}

func TestForecastFollowsARampAndNotChance(t *testing.T) {
	var l Learnt
	for second := range 600 {
		in := Input{Demand: mobula.ModelReport{Requests: 100 + second, PromptTokens: 10 * (1000 + 10*second)}}
		l = l.learn(&in, time.Second, false)
	}
	require.InDelta(t, 1000+10*(600+60), l.forecast(60), 150)
	l = Learnt{Known: true, Tokens: 1100, TokensSlow: 1000, Requests: 1}
	require.Equal(t, 1100.0, l.forecast(60))
}

func BenchmarkDecide(b *testing.B) {
	var s State
	play(&s, 0, 600, func(second float64) Input { return calm(second, 3) })
	second := 600.0
	b.ReportAllocs()
	for b.Loop() {
		second++
		_, s = Decide(calm(second, 3), s)
	}
}

package scale

import (
	"fmt"
	"math"
	"time"
)

const (
	// margin is the share of an objective that is aimed at.
	margin = 0.85
	// maxKV is the usage of the KV cache above which engines begin to preempt.
	maxKV = 0.85
	// minAnswered is how many answers make a quantile.
	minAnswered = 5
	// Shares of its prefill rate that a replica may be asked for, whatever the objective.
	minPrefill, maxPrefill = 0.3, 0.85
	// unknownStart is how many seconds a start takes until one has been seen.
	unknownStart = 60.0
	// wakeTime is how many seconds one takes that only sleeps.
	wakeTime = 5.0
	// maxFactor bounds how many times the replicas that are ready a latency may ask for.
	maxFactor = 2
)

// need is how many replicas one signal asks for, and why.
type need struct {
	replicas int
	why      string
}

// more gives the greater of two needs.
func (n need) more(o need) need {
	if o.replicas > n.replicas {
		return o
	}
	return n
}

// assess gives how many replicas are needed now: the most that any signal asks for. settled tells that the latencies are
// those of the replicas that serve now. It does not look at the range.
func assess(in *Input, l *Learnt, settled bool) need {
	n := need{0, "nothing is asked for"}
	for _, signal := range []func(*Input, *Learnt) need{held, prefill, decode, cache} {
		n = n.more(signal(in, l))
	}
	if settled {
		n = n.more(ttft(in)).more(itl(in))
	}
	return n
}

// held: requests wait in the routers because no engine serves.
func held(in *Input, l *Learnt) need {
	if in.Demand.Held == 0 {
		return need{}
	}
	n := 1
	if l.PrefillRate > 0 {
		n = max(1, ceil(float64(in.Demand.HeldTokens)/(l.PrefillRate*catchUp(in))))
	}
	return need{n, fmt.Sprintf("%d requests held", in.Demand.Held)}
}

// prefill: the prompt tokens that come, or will have come when a replica that is started now is ready, over what a
// replica can take while nine of ten requests still wait no longer than the TTFT objective leaves them. That share of
// its rate is r = B/(B + 2.3 S), S being a prompt's own prefill and B the objective without it: the 90th percentile of
// a queue's wait is S × ln 10 × r/(1-r). When more waits than the objective allows, it is to be worked off beside.
func prefill(in *Input, l *Learnt) need {
	if l.PrefillRate <= 0 || l.Tokens <= 0 {
		return need{}
	}
	objective := time.Duration(in.Spec.TTFT).Seconds()
	share := maxPrefill
	if l.Requests > 0 {
		own := l.TokensSlow / l.Requests / l.PrefillRate
		budget := max(0, objective-own)
		share = min(max(budget/(budget+math.Ln10*own), minPrefill), maxPrefill)
	}
	each := l.PrefillRate * share
	tokens := l.forecast(startTime(in))
	why := fmt.Sprintf("%.0f prompt tokens/s at %.0f a replica", l.Tokens, each)
	if tokens > l.Tokens {
		why = fmt.Sprintf("%.0f prompt tokens/s and rising, %.0f expected", l.Tokens, tokens)
	}
	wait := float64(in.WaitingTokens) / (l.PrefillRate * float64(max(in.Ready, 1)))
	if in.InFlight > in.Ready && wait > margin*objective { // with a request for each, more replicas would help nobody
		growth := max(0, l.Tokens-l.PrefillRate*(float64(in.Ready)+float64(in.Starting)/2)) // those that start are there for half of it
		tokens += (float64(in.WaitingTokens) + growth*startTime(in)) / catchUp(in)
		why = fmt.Sprintf("%d prompt tokens wait, %s of prefill for %d", in.WaitingTokens, seconds(wait), in.Ready)
	}
	return need{ceil(tokens / each), why}
}

// startTime is how many seconds the next replica needs to be ready.
func startTime(in *Input) float64 {
	switch {
	case in.Asleep > 0:
		return wakeTime
	case in.StartTime > 0:
		return in.StartTime
	}
	return unknownStart
}

// catchUp is in how many seconds what has piled up should be worked off. It has waited for a start, or will; to work it off
// much faster than in another half of that takes replicas that nobody needs afterwards.
func catchUp(in *Input) float64 {
	return max(time.Duration(in.Spec.TTFT).Seconds(), startTime(in)/2)
}

// decode: requests that run over how many a replica can have while ITL is under its objective. With fewer replicas each
// request takes longer, so there are more of them: what counts is tokens a second.
func decode(in *Input, l *Learnt) need {
	limit := margin * time.Duration(in.Spec.ITL).Seconds()
	if in.Ready == 0 || in.Demand.ITL90 <= 0 || in.Demand.Answered < minAnswered {
		return need{}
	}
	grown := l.Running * max(1, limit/in.Demand.ITL90)
	each, ok := l.Line.concurrency(limit)
	if !ok {
		// Nothing is known of the engine yet. Being wrong here costs a step down that teaches it.
		return need{ceil(float64(in.Ready) * in.Demand.ITL90 / limit), "ITL p90 " + seconds(in.Demand.ITL90)}
	}
	n := ceil(grown / each)
	if in.Demand.ITL90 <= limit { // what a line says is no reason for more than experience has shown to do
		n = min(n, in.Ready)
		if l.Proven > 0 {
			n = min(n, ceil(l.Requests/l.Proven))
		}
	}
	return need{n, fmt.Sprintf("%.0f requests running, up to %.0f a replica", l.Running, each)}
}

// cache: the KV caches' usage, shared out anew. One that is full keeps the others from becoming fewer.
func cache(in *Input, _ *Learnt) need {
	if in.Ready == 0 || in.KVMean < 0 {
		return need{}
	}
	n := ceil(float64(in.Ready) * min(in.KVMean, 1) / maxKV)
	if in.KVMax > maxKV {
		n = max(n, in.Ready)
	}
	return need{n, fmt.Sprintf("KV cache %.0f %% full", 100*in.KVMean)}
}

// ttft and itl: a latency above its objective asks for more in proportion to its root, for one that is close to it they stay.
func ttft(in *Input) need {
	return latency(in, "TTFT", in.Demand.TTFT90, time.Duration(in.Spec.TTFT).Seconds())
}

func itl(in *Input) need {
	return latency(in, "ITL", in.Demand.ITL90, time.Duration(in.Spec.ITL).Seconds())
}

func latency(in *Input, name string, is, limit float64) need {
	if in.Demand.Answered < minAnswered || in.InFlight <= in.Ready || is <= margin*limit {
		return need{} // alone on its engine a request gets no faster by more of them
	}
	why := fmt.Sprintf("%s p90 %s near %s", name, seconds(is), seconds(limit))
	n := in.Ready
	if is > limit {
		why = fmt.Sprintf("%s p90 %s over %s", name, seconds(is), seconds(limit))
		n = max(n+1, ceil(float64(n)*min(math.Sqrt(is/limit), maxFactor)))
	}
	return need{min(n, in.InFlight), why}
}

// ceil rounds up, but for what is over by a hair. Counts are bounded so that nonsense does not overflow.
func ceil(x float64) int {
	const hair, most = 0.02, 1e6
	if !(x > 0) {
		return 0
	}
	return int(math.Ceil(max(min(x, most)-hair, 0.5)))
}

// seconds writes a time as people do: 3.1s, 85ms.
func seconds(s float64) string {
	d := time.Duration(min(max(s, 0), 1e6) * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

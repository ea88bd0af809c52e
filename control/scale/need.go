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
	for _, signal := range []func(*Input, *Learnt) need{held, backlog, prefill, decode, cache} {
		n = n.more(signal(in, l))
	}
	if settled {
		n = n.more(ttft(in)).more(itl(in))
	}
	return n
}

// held: requests wait in the routers because no engine serves. They have waited as long as a start takes already;
// what came meanwhile should be done in half of that again.
func held(in *Input, l *Learnt) need {
	if in.Demand.Held == 0 {
		return need{}
	}
	n := 1
	if l.PrefillRate > 0 {
		within := max(time.Duration(in.Spec.TTFT).Seconds(), in.StartTime/2)
		n = max(1, ceil(float64(in.Demand.HeldTokens)/(l.PrefillRate*within)))
	}
	return need{n, fmt.Sprintf("%d requests held", in.Demand.Held)}
}

// backlog: the prompt tokens that wait should be through within the TTFT objective.
func backlog(in *Input, l *Learnt) need {
	limit := time.Duration(in.Spec.TTFT).Seconds()
	if in.WaitingTokens == 0 || in.InFlight <= in.Ready || l.PrefillRate <= 0 {
		return need{} // with a request for each, more replicas would help nobody
	}
	wait := float64(in.WaitingTokens) / l.PrefillRate
	n := min(ceil(wait/(margin*limit)), in.InFlight)
	return need{n, fmt.Sprintf("%d prompt tokens wait, %s of prefill for one replica", in.WaitingTokens, seconds(wait))}
}

// prefill: the prompt tokens that come, or will have when a replica that is started now is ready, over what a
// replica can take while nine of ten requests still wait no longer than the TTFT objective leaves them. That share of its rate is
// r = B/(B + 2.3 S), S being a prompt's own prefill and B the objective without it: the 90th percentile of a queue's wait is
// S × ln 10 × r/(1-r).
func prefill(in *Input, l *Learnt) need {
	if l.PrefillRate <= 0 || l.Tokens <= 0 {
		return need{}
	}
	share := maxPrefill
	if l.Requests > 0 {
		own := l.TokensSlow / l.Requests / l.PrefillRate
		budget := max(0, time.Duration(in.Spec.TTFT).Seconds()-own)
		share = min(max(budget/(budget+math.Ln10*own), minPrefill), maxPrefill)
	}
	tokens := l.forecast(in.StartTime)
	n := ceil(tokens / (l.PrefillRate * share))
	if tokens > l.Tokens {
		return need{n, fmt.Sprintf("%.0f prompt tokens/s and rising, %.0f expected", l.Tokens, tokens)}
	}
	return need{n, fmt.Sprintf("%.0f prompt tokens/s at %.0f a replica", l.Tokens, l.PrefillRate*share)}
}

// decode: requests in flight over how many a replica can have while ITL is under its objective. With fewer replicas each
// request takes longer, so there are more of them: what counts is tokens a second.
func decode(in *Input, l *Learnt) need {
	limit := margin * time.Duration(in.Spec.ITL).Seconds()
	if in.Ready == 0 || in.Demand.ITL90 <= 0 || in.Demand.Answered < minAnswered {
		return need{}
	}
	grown := l.InFlight * max(1, limit/in.Demand.ITL90)
	most, ok := l.Line.concurrency(limit)
	if !ok {
		// Nothing is known of the engine yet: as if ITL had no part that is there without load.
		return need{min(in.Ready, ceil(grown)), fmt.Sprintf("ITL p90 %s", seconds(in.Demand.ITL90))}
	}
	return need{ceil(grown / most), fmt.Sprintf("%.0f requests in flight, up to %.0f a replica", l.InFlight, most)}
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

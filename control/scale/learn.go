package scale

import (
	"math"
	"time"
)

// Time constants of the running means, in seconds.
const (
	fast   = 5.0
	medium = 15.0
	slow   = 60.0
	// hours is for what is known of engines, which changes with what they are asked for only.
	hours = 6 * 3600.0
	// lineMemory is as long, in samples, which come once in a report's window.
	lineMemory = hours / reportWindow
)

// learn takes one input in. dt is the time since the last one; settled tells that its latencies fit its replicas.
func (l Learnt) learn(in *Input, dt time.Duration, settled bool) Learnt {
	d := &in.Demand
	tokens := float64(d.PromptTokens) / reportWindow
	if d.PromptTokens == 0 && d.TTFT50 > 0 {
		// Little's law, for routers that don't count them: what waits is what comes times how long it waits.
		tokens = min(l.Waiting/d.TTFT50, nonsense)
	}
	requests := float64(d.Requests) / reportWindow
	running := l.running(in)
	if !l.Known {
		return Learnt{
			Known: true, Tokens: tokens, TokensSlow: tokens, Requests: requests, Running: float64(in.InFlight),
			Waiting: float64(in.WaitingTokens), PrefillRate: in.PrefillRate, Proven: l.Proven, Line: l.Line,
		}
	}
	toward := func(old, value, seconds float64) float64 {
		return old + (value-old)*-math.Expm1(-dt.Seconds()/seconds)
	}
	l.Tokens = toward(l.Tokens, tokens, fast)
	l.TokensSlow = toward(l.TokensSlow, tokens, slow)
	l.Requests = toward(l.Requests, requests, slow)
	l.Running = toward(l.Running, running, medium)
	l.Waiting = toward(l.Waiting, float64(in.WaitingTokens), medium)
	switch {
	case l.PrefillRate == 0:
		l.PrefillRate = in.PrefillRate
	case in.PrefillRate > 0:
		l.PrefillRate = toward(l.PrefillRate, in.PrefillRate, slow)
	}
	if !settled || in.Ready == 0 || d.ITL90 <= 0 || d.Answered < minAnswered {
		return l
	}
	l.Line = l.Line.add(l.Running/float64(in.Ready), d.ITL90, dt.Seconds()/reportWindow)
	good := d.TTFT90 <= time.Duration(in.Spec.TTFT).Seconds() && d.ITL90 <= time.Duration(in.Spec.ITL).Seconds()
	if each := l.Requests / float64(in.Ready); each < l.Proven {
		l.Proven = toward(l.Proven, each, hours)
	} else if good {
		l.Proven = toward(l.Proven, each, slow)
	}
	return l
}

// running gives the requests in flight that are past their prefill, as far as the mean prompt tells.
func (l *Learnt) running(in *Input) float64 {
	n := float64(in.InFlight)
	if l.TokensSlow > 0 {
		n -= min(n, float64(in.WaitingTokens)*l.Requests/l.TokensSlow)
	}
	return n
}

// forecast gives the prompt tokens a second that are to be expected ahead seconds from now: on a ramp, as much more as
// came in the same time before. Growth that may be chance does not count.
func (l *Learnt) forecast(ahead float64) float64 {
	growth := l.Tokens - l.TokensSlow
	chance := l.TokensSlow / math.Sqrt(1+2*fast*l.Requests) // deviation of a mean of random arrivals
	if growth <= 2*chance {
		return l.Tokens
	}
	slope := growth / (slow - fast) // the means lag behind a ramp by their time constants
	return min(l.Tokens+slope*(fast+ahead), 2*l.Tokens)
}

// Line is ITL over concurrency, ITL = Base + Slope × requests in flight at a replica, by least squares
// over samples that fade.
type Line struct {
	N, X, Y, XX, XY float64 // sums
}

func (l Line) add(x, y, weight float64) Line {
	keep := math.Exp(-weight / lineMemory)
	return Line{
		N: l.N*keep + weight, X: l.X*keep + weight*x, Y: l.Y*keep + weight*y,
		XX: l.XX*keep + weight*x*x, XY: l.XY*keep + weight*x*y,
	}
}

// concurrency gives how many requests a replica can have in flight at a time while ITL stays under limit. ok is false as
// long as the samples don't tell: there are too few, or they are too much alike.
func (l *Line) concurrency(limit float64) (n float64, ok bool) {
	const enough, spread = 12, 0.2
	if l.N < enough {
		return 0, false
	}
	meanX, meanY := l.X/l.N, l.Y/l.N
	variance := l.XX/l.N - meanX*meanX
	if variance < spread*spread*meanX*meanX || variance <= 0 {
		return 0, false
	}
	slope := (l.XY/l.N - meanX*meanY) / variance
	base := meanY - slope*meanX
	if base < 0 { // a line through the origin
		slope, base = meanY/meanX, 0
	}
	if slope <= 0 || base >= limit {
		return 0, false
	}
	return max(1, (limit-base)/slope), true
}

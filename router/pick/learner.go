package pick

import "math"

// learner fits the seconds that an engine needs for a prompt until its first token:
//
//	seconds = a + b·uncached tokens + c·active requests
//
// It is one recursive least squares over all engines: fitted for each engine, one that looked
// slow at its first requests was never tried again. What is one engine's own is its speed
// (load.speed), which is drawn back to 1. Coefficients stay in ranges that any engine is in,
// so no sample can make a cost negative or an engine unreachable.
type learner struct {
	theta [3]float64    // a in s, b in s per 1,000 tokens, c in s per 10 requests
	p     [3][3]float64 // covariance over the noise's variance
}

const (
	forget   = 0.995 // weight of the past at each sample (docs/performance.md)
	priorA   = 0.020 // s (docs/performance.md)
	priorB   = 0.100 // s per 1,000 tokens (docs/performance.md)
	priorP   = 0.05  // the prior counts as some 20 samples of noise: a few real ones outweigh it
	maxP     = 1     // without variety in the samples forgetting would let p grow without end
	outlier  = 8     // a sample beyond this many times what was expected counts as that: a stall, not a rate
	floorC   = 0.001 // 0.1 ms for each active request: decode is never free, and with it equal engines even out
	smallest = 0.001 // s; what a sample is at least compared with
)

// ranges of the coefficients: from a large GPU to a CPU.
func bounds() (lo, hi [3]float64) { return [3]float64{0, 0.001, floorC}, [3]float64{5, 20, 1} }

func newLearner() learner {
	l := learner{theta: [3]float64{priorA, priorB, floorC}}
	for i := range l.p {
		l.p[i][i] = priorP
	}
	return l
}

// features scales its inputs to about 1, which keeps p well conditioned.
func features(uncached, active float64) [3]float64 {
	return [3]float64{1, uncached / 1000, active / 10}
}

// seconds predicts for an engine of speed 1.
func (l *learner) seconds(uncached, active float64) float64 {
	x := features(uncached, active)
	return l.theta[0]*x[0] + l.theta[1]*x[1] + l.theta[2]*x[2]
}

// perToken is b, in seconds.
func (l *learner) perToken() float64 { return l.theta[1] / 1000 }

// learn takes one sample, of an engine of speed 1. Prefills that overlap give uneven gaps but
// the right sum, which is what least squares goes by.
func (l *learner) learn(uncached, active, seconds float64) {
	x := features(uncached, active)
	expected := l.seconds(uncached, active)
	seconds = min(max(seconds, 0), outlier*max(expected, smallest))
	var px [3]float64
	xpx := 0.0
	for i := range px {
		for j := range x {
			px[i] += l.p[i][j] * x[j]
		}
		xpx += x[i] * px[i]
	}
	lo, hi := bounds()
	for i := range px {
		gain := px[i] / (forget + xpx)
		l.theta[i] = min(max(l.theta[i]+gain*(seconds-expected), lo[i]), hi[i])
		for j := range px {
			l.p[i][j] = (l.p[i][j] - gain*px[j]) / forget
		}
	}
	for i := range px {
		if over := l.p[i][i] / maxP; over > 1 { // scaled from both sides, p stays a covariance
			scale := 1 / math.Sqrt(over)
			for j := range px {
				l.p[i][j] *= scale
				l.p[j][i] *= scale
			}
		}
	}
}

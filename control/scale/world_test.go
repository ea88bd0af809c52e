package scale

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

// The world of the replays: engines with continuous batching, a router that picks the least load and holds what nobody
// can serve, and replicas that take their time to start. All times are seconds since the trace began.

// engineModel is how fast a simulated engine is: about an 8B model on one large GPU.
type engineModel struct {
	rate    float64 // prompt tokens a second, without anything else to do
	base    float64 // seconds of a step
	perSeq  float64 // seconds that each running request adds to a step
	chunk   int     // prompt tokens in one step
	maxSeqs int
	kv      int // tokens
	start   float64
}

func someEngine() engineModel {
	return engineModel{rate: 12000, base: 0.012, perSeq: 0.0006, chunk: 512, maxSeqs: 256, kv: 300_000, start: 60}
}

// arrival is one request of a trace.
type arrival struct {
	at          float64
	prompt, out int
}

type request struct {
	arrival
	first float64
	left  int // prompt tokens to compute
}

type engine struct {
	m                *engineModel
	born, ready, end float64 // end: drained and gone, 0 before
	draining         bool
	clock            float64
	step             int
	waiting          []*request
	ending           map[int][]*request // by step
	running, tokens  int
	left             int // prompt tokens that wait
	busy             float64
	prefill          float64 // learnt rate
	w                *world
}

func (e *engine) serving(now float64) bool { return e.ready <= now && !e.draining && e.end == 0 }
func (e *engine) inFlight() int            { return e.running + len(e.waiting) }

// run computes until then.
func (e *engine) run(until float64) {
	e.clock = max(e.clock, min(e.ready, until))
	for e.clock < until {
		if e.inFlight() == 0 {
			e.clock = until
			return
		}
		e.once()
	}
}

// once is a step of the batch: a chunk of the prompts that wait, and a token for each that runs.
func (e *engine) once() {
	chunk, done := e.m.chunk, 0
	for _, r := range e.waiting {
		if chunk == 0 || e.running+done >= e.m.maxSeqs || e.tokens+r.prompt > e.m.kv {
			break
		}
		n := min(chunk, r.left)
		r.left -= n
		chunk -= n
		if r.left == 0 {
			done++
		}
	}
	computed := e.m.chunk - chunk
	took := e.m.base + e.m.perSeq*float64(e.running) + float64(computed)/e.m.rate
	e.clock += took
	e.busy += took
	e.left -= computed
	if computed > 0 {
		e.prefill += (float64(computed)/took - e.prefill) * 0.05
	}
	e.w.stats.gap(took, float64(e.running))
	e.step++
	e.tokens += e.running
	for _, r := range e.ending[e.step] {
		e.running--
		e.tokens -= r.prompt + r.out
		e.w.finish(r, e.clock)
	}
	delete(e.ending, e.step)
	for _, r := range e.waiting[:done] {
		r.first = e.clock
		e.w.stats.ttft(r.first - r.at)
		e.running++
		e.tokens += r.prompt + 1
		e.ending[e.step+r.out-1] = append(e.ending[e.step+r.out-1], r)
	}
	e.waiting = e.waiting[done:]
}

func (e *engine) take(r *request) {
	e.waiting = append(e.waiting, r)
	e.left += r.prompt
}

// world is a fleet of engines under a trace.
type world struct {
	m       engineModel
	spec    mobula.Scaling
	engines []*engine
	held    []*request
	stats   stats
	last    float64 // request
	now     float64

	requests, good int
	gpu            float64 // seconds
	most           int
}

func newWorld(n int) *world {
	w := &world{m: someEngine(), spec: defaults(), last: math.Inf(-1)}
	for range n {
		w.add(-w.m.start) // they are ready when the trace begins
	}
	return w
}

func defaults() mobula.Scaling {
	return mobula.Scaling{
		TTFT: mobula.Duration(2 * time.Second), ITL: mobula.Duration(100 * time.Millisecond), UpAfter: mobula.Duration(10 * time.Second),
		DownAfter: mobula.Duration(5 * time.Minute), ZeroAfter: mobula.Duration(10 * time.Minute),
	}
}

func (w *world) add(now float64) {
	w.engines = append(w.engines, &engine{m: &w.m, w: w, born: max(0, now), ready: now + w.m.start, ending: map[int][]*request{}, prefill: w.m.rate})
}

// finish counts a request that has its last token: good is a TTFT up to 2 s and a mean ITL up to 100 ms.
func (w *world) finish(r *request, now float64) {
	itl := 0.0
	if r.out > 1 {
		itl = (now - r.first) / float64(r.out-1)
	}
	w.requests++
	if r.first-r.at <= time.Duration(w.spec.TTFT).Seconds() && itl <= time.Duration(w.spec.ITL).Seconds() {
		w.good++
	}
}

// advance computes until now.
func (w *world) advance(now float64) {
	w.now = now
	for _, e := range w.engines {
		e.run(now)
		if e.draining && e.end == 0 && e.inFlight() == 0 {
			e.end = now
			w.gpu += e.end - e.born
		}
	}
	w.engines = slices.DeleteFunc(w.engines, func(e *engine) bool { return e.end > 0 })
	for len(w.held) > 0 && w.route(w.held[0]) {
		w.held = w.held[1:]
	}
}

func (w *world) arrive(a arrival) {
	w.advance(a.at)
	w.last = a.at
	w.stats.request(a.prompt)
	if r := (&request{arrival: a, left: a.prompt}); !w.route(r) {
		w.held = append(w.held, r)
	}
}

// route picks the engine with the least to do.
func (w *world) route(r *request) bool {
	var best *engine
	load := func(e *engine) float64 { return float64(e.left)/w.m.rate + w.m.perSeq*float64(e.inFlight()) }
	for _, e := range w.engines {
		if e.serving(w.now) && (best == nil || load(e) < load(best)) {
			best = e
		}
	}
	if best != nil {
		best.take(r)
	}
	return best != nil
}

// count gives how many serve and how many start.
func (w *world) count() (ready, starting int) {
	for _, e := range w.engines {
		switch {
		case e.serving(w.now):
			ready++
		case !e.draining:
			starting++
		}
	}
	return ready, starting
}

// resize makes as many engines as wanted, as the control plane does: those that start go first.
func (w *world) resize(wanted int) {
	ready, starting := w.count()
	w.most = max(w.most, wanted)
	for range wanted - ready - starting {
		w.add(w.now)
	}
	for range ready + starting - wanted {
		var victim *engine
		for _, e := range w.engines {
			if !e.draining && (victim == nil || e.ready > w.now && victim.ready <= w.now || e.serving(w.now) == victim.serving(w.now) && e.inFlight() < victim.inFlight()) {
				victim = e
			}
		}
		victim.draining = true
	}
}

// input is what routers and platform would tell.
func (w *world) input(r mobula.Range) Input {
	ready, starting := w.count()
	in := Input{
		Now: at(w.now), Spec: w.spec, Range: r, Ready: ready, Starting: starting, StartTime: w.m.start, Heard: true, KVMean: -1, KVMax: -1,
	}
	kv := 0.0
	for _, e := range w.engines {
		if e.serving(w.now) {
			in.InFlight += e.inFlight()
			in.WaitingTokens += e.left
			in.PrefillRate += e.prefill / float64(ready)
			usage := float64(e.tokens) / float64(w.m.kv)
			kv += usage / float64(ready)
			in.KVMean, in.KVMax = kv, max(in.KVMax, usage)
		}
	}
	in.Demand = w.stats.report()
	in.Demand.Held = len(w.held)
	for _, h := range w.held {
		in.Demand.HeldTokens += h.prompt
	}
	if len(w.held) > 0 {
		in.Demand.OldestHeld = w.now - w.held[0].at
	}
	if !math.IsInf(w.last, 0) {
		in.Demand.LastRequest = at(w.last)
	}
	return in
}

func at(seconds float64) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

// replay runs a trace to its end: each second the policy says how many engines it wants.
func (w *world) replay(trace []arrival, policy func(*world) int) {
	length := math.Ceil(trace[len(trace)-1].at) + 1
	for now := 0.0; now < length; now++ {
		for len(trace) > 0 && trace[0].at <= now {
			w.arrive(trace[0])
			trace = trace[1:]
		}
		w.advance(now)
		w.stats.tick()
		w.resize(policy(w))
	}
	for now := length; w.unfinished() && now < length+3600; now++ {
		w.advance(now)
		w.resize(max(1, policy(w)))
	}
	for _, e := range w.engines {
		w.gpu += min(w.now, length) - e.born
	}
}

func (w *world) unfinished() bool {
	return len(w.held) > 0 || slices.ContainsFunc(w.engines, func(e *engine) bool { return e.inFlight() > 0 })
}

// stats are what a router keeps of its last ten seconds.
type stats struct {
	seconds [11]second // the last one has only begun
	at      int
	sum     second
}

const buckets = 240

type second struct {
	requests, prompts, answered int
	ttfts, gaps                 [buckets]float64
}

// bucketStep is math.Log(1.05): a step of 5 %.
const bucketStep = 0.04879016416943205

// bucket is on a scale of 5 % a step from 1 ms.
func bucket(s float64) int {
	return min(max(int(math.Log(s/0.001)/bucketStep), 0), buckets-1)
}

func (s *stats) both(add func(*second)) {
	add(&s.seconds[s.at])
	add(&s.sum)
}

func (s *stats) request(prompt int) {
	s.both(func(x *second) { x.requests++; x.prompts += prompt })
}

func (s *stats) ttft(v float64) {
	b := bucket(v)
	s.both(func(x *second) { x.answered++; x.ttfts[b]++ })
}

func (s *stats) gap(v, weight float64) {
	b := bucket(v)
	s.both(func(x *second) { x.gaps[b] += weight })
}

func (s *stats) tick() {
	s.at = (s.at + 1) % len(s.seconds)
	old := &s.seconds[s.at]
	s.sum.requests -= old.requests
	s.sum.prompts -= old.prompts
	s.sum.answered -= old.answered
	for b := range buckets {
		s.sum.ttfts[b] -= old.ttfts[b]
		s.sum.gaps[b] -= old.gaps[b]
	}
	*old = second{}
}

func (s *stats) report() mobula.ModelReport {
	x := &s.sum
	return mobula.ModelReport{
		Requests: x.requests, PromptTokens: x.prompts, Answered: x.answered,
		TTFT50: quantile(&x.ttfts, 0.5), TTFT90: quantile(&x.ttfts, 0.9), ITL50: quantile(&x.gaps, 0.5), ITL90: quantile(&x.gaps, 0.9),
	}
}

func quantile(h *[buckets]float64, q float64) float64 {
	total := 0.0
	for _, n := range h {
		total += n
	}
	if total == 0 {
		return 0
	}
	for b, n := range h {
		total -= n / q
		if total <= 0 {
			return 0.001 * math.Pow(1.05, float64(b)+0.5)
		}
	}
	return 0
}

// trace draws arrivals with a rate that changes, log-normal prompts of 700 tokens in the mean and answers of 200.
func draw(seed uint64, length float64, rate func(t float64) float64, peak float64) []arrival {
	r := rand.New(rand.NewPCG(seed, 1))
	size := func(mean, sigma float64, most int) int {
		return min(max(int(math.Exp(r.NormFloat64()*sigma-sigma*sigma/2)*mean), 1), most)
	}
	var out []arrival
	for t := r.ExpFloat64() / peak; t < length; t += r.ExpFloat64() / peak {
		if r.Float64()*peak < rate(t) {
			out = append(out, arrival{t, size(700, 0.8, 16000), size(200, 0.7, 4000)})
		}
	}
	return out
}

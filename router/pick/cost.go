package pick

import (
	"math"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/kv"
)

// cost goes by seconds: it estimates for each engine the time until this request's first
// token and the time that the request costs those after it. Affinity is saved seconds, so
// there is no threshold to tune, and nothing can pin everything to one engine. For engine e:
//
//	s    = speed_e · (a + b·uncached + c·active)  service, learned
//	Q    = s of those without a first byte, less the progress of the first
//	cost = Q + s                                  this request's own time to first token
//	     + s · λ_e · (Q + s) / (1 - ρ_e)          its delay of those who come in the same busy period
//	     + b · tokens pushed out · regret_e       what evictions will cost
//	     + penalty_e                              for refusing
//
// The smallest cost wins; engines within a tenth of a millisecond take turns.
type cost struct {
	mu       sync.Mutex
	engines  engines
	attempts attempts
	learner  learner
	turn     uint64
	plain    float64   // seconds that a plain answer takes, averaged
	costs    []float64 // scratch of Order
}

const (
	equal      = 0.0001 // s; costs that differ less are the same (docs/performance.md)
	plainPrior = 2.5    // s that a plain answer takes, before any was seen
	plainGain  = 0.1    // weight of the latest
	plainLate  = 4      // a plain answer that takes so many times the mean is late
	plainLeast = 1.0    // s; no plain answer is late before
	maxStrikes = 2      // predicted hits in a row that were not there at all: the engine lost its cache
	strikeHeld = 4      // blocks; a prediction of fewer proves nothing
)

func newCost(memory int64) *cost {
	return &cost{engines: newEngines(memory), learner: newLearner(), plain: plainPrior}
}

// Order sorts by cost.
func (p *cost) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.engines.of(g)
	var view []kv.Holding
	if len(r.Blocks) > 0 {
		view = p.engines.match(r)
	}
	p.costs = p.costs[:0]
	least := math.Inf(1)
	for _, n := range nodes {
		c := p.of(r, n, holding(view, n))
		p.costs = append(p.costs, c)
		least = min(least, c)
	}
	var buf [usualDepth]place
	ranked := buf[:0]
	best, oldest := 0, uint64(math.MaxUint64)
	for i, c := range p.costs {
		turn := nodes[i].load.turn
		if c < least+equal {
			c = least
			if turn < oldest {
				best, oldest = i, turn
			}
		}
		ranked = rank(ranked, r.Depth, place{c, turn, g.Endpoints[i]})
	}
	reason := "load"
	if holding(view, nodes[best]).Blocks > 0 {
		reason = "prefix"
	}
	explain(r, g, "cost", reason)
	if r.Explain != nil {
		for i := range r.Explain.Scores {
			s := &r.Explain.Scores[i]
			s.Cost = p.costs[i]
			s.Hit = float64(cached(r, int(holding(view, nodes[i]).Blocks))) / float64(r.Tokens)
		}
	}
	return appendRanked(dst, ranked)
}

// holding is what n holds; view is nil for a prompt without blocks.
func holding(view []kv.Holding, n *engine) kv.Holding {
	if view == nil {
		return kv.Holding{}
	}
	return view[n.slot]
}

// of is the cost of r on n, in seconds.
func (p *cost) of(r *Request, n *engine, h kv.Holding) float64 {
	l := &n.load
	s := p.service(r, n, h)
	own := s + p.attempts.wait(l, r.Now, max(plainLate*p.plain, plainLeast))
	lambda, rho := l.rates(r.Now)
	c := own + s*lambda*own/(1-rho) + l.penaltyNow(r.Now)
	if h.Regret > 0 {
		out := len(head(r.Blocks)) - int(h.Blocks) - int(h.Room)
		c += p.learner.perToken() * float64(max(0, out)) * p.engines.blockTokens * float64(h.Regret)
	}
	return c
}

// Sent puts r in e's queue and its blocks in the index.
func (p *cost) Sent(r *Request, e *Endpoint, t *Ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.engines.get(e)
	l := &n.load
	p.attempts.advance(l, r.Now)
	held := p.engines.insert(n, r.Blocks)
	hit := cached(r, held)
	uncached, active := float64(r.Tokens-hit), float64(l.active)
	s := l.speedNow(r.Now) * p.learner.seconds(uncached, active)
	alone := l.queue.first == 0
	if alone {
		l.headAt = r.Now
	}
	i := p.attempts.take()
	a := &p.attempts.list[i]
	*a = attempt{
		engine: n, seconds: s, active: active, uncached: uncached, held: held,
		sentAt: r.Now, queued: true, plain: !r.Stream, alone: alone, seq: a.seq,
	}
	p.attempts.push(&l.queue, queueLink, i)
	if a.plain {
		p.attempts.push(&l.plain, plainLink, i)
	}
	l.queued += s
	l.active++
	l.arrive(s, r.Now)
	p.turn++
	l.turn = p.turn
	t.Endpoint, t.SentAt, t.Tokens, t.Cached, t.Seconds = e, r.Now, r.Tokens, hit, s
	t.Blocks, t.Seq = r.Blocks, p.attempts.ticket(i)
}

// First takes a prompt out of the queue and, of a stream, the time that it took.
func (p *cost) First(t *Ticket, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.attempts.find(t.Seq)
	if i == 0 || t.FirstAt != 0 {
		return
	}
	t.FirstAt = now
	a := &p.attempts.list[i]
	l := &a.engine.load
	p.attempts.advance(l, now)
	if a.plain || !a.queued {
		p.attempts.leave(i, now)
		return
	}
	// Engines answer nearly in the order sent; where not, gaps still add up to the time worked.
	a.gap = (now - l.headAt).Seconds()
	p.attempts.leave(i, now)
}

// Done learns from an answer, or takes back what was expected of it.
func (p *cost) Done(t *Ticket, o Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.attempts.find(t.Seq)
	if i == 0 {
		return
	}
	a := &p.attempts.list[i]
	l := &a.engine.load
	p.attempts.advance(l, o.Now)
	p.attempts.leave(i, o.Now)
	if a.plain {
		p.attempts.remove(&l.plain, plainLink, i)
	}
	l.active--
	switch {
	case o.OK:
		l.served()
		p.learn(t, a, o)
	case o.Refused:
		l.refused(o.Now)
	}
	if !o.OK && o.Completion == 0 { // no token came, so the prompt was hardly computed
		p.engines.drop(a.engine, t.Blocks, a.held)
	}
	p.attempts.drop(i)
	t.Blocks, t.Seq = nil, 0
}

// learn takes what a whole answer tells about time, tokens and the engine's cache.
func (p *cost) learn(t *Ticket, a *attempt, o Outcome) {
	p.engines.learn(a.engine, t.Blocks, o)
	if a.plain {
		p.plain += plainGain * ((o.Now - a.sentAt).Seconds() - p.plain)
	}
	counted := o.Cached >= 0 && o.Prompt > 0
	if counted { // in the router's tokens, as predictions are
		a.uncached = float64(t.Tokens) * float64(max(0, o.Prompt-o.Cached)) / float64(o.Prompt)
	}
	if a.gap > 0 {
		l := &a.engine.load
		expected := max(p.learner.seconds(a.uncached, a.active), smallest)
		speed := l.speedNow(o.Now)
		l.observe(a.gap/expected, o.Now)
		p.learner.learn(a.uncached, a.active, a.gap/speed)
	}
	// Heads are evicted last: when even the head is missing, the engine has started anew. A
	// prompt sent behind another may be computed beside it and find nothing for that reason.
	if !counted || !a.alone || a.held < strikeHeld {
		return
	}
	if float64(o.Cached) >= p.engines.blockTokens/2 {
		a.engine.load.strikes = 0
	} else if a.engine.load.strikes++; a.engine.load.strikes >= maxStrikes {
		a.engine.load.strikes = 0
		p.engines.forget(a.engine, t.Blocks)
	}
}

// Keep forgets engines that are gone. Their tickets may still come in.
func (p *cost) Keep(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.engines.keep(s)
}

// Needs blocks.
func (*cost) Needs() Needs { return Needs{Blocks: true} }

var (
	_ Policy   = (*cost)(nil)
	_ Observer = (*cost)(nil)
)

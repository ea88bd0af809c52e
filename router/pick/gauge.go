package pick

import (
	"math"
	"time"

	"github.com/mobula-serve/mobula/kv"
)

// Soonest gives the least of the estimates that Order goes by, without what a request costs others.
func (p *cost) Soonest(r *Request, g *Group) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.engines.of(g)
	var view []kv.Holding
	if len(r.Blocks) > 0 {
		view = p.engines.match(r)
	}
	least := math.Inf(1)
	for _, n := range nodes {
		least = min(least, p.service(r, n, holding(view, n))+p.attempts.wait(&n.load, r.Now, max(plainLate*p.plain, plainLeast)))
	}
	return duration(min(least, math.MaxInt32))
}

// service is the seconds that r's prefill takes on n.
func (p *cost) service(r *Request, n *engine, h kv.Holding) float64 {
	return n.load.speedNow(r.Now) * p.learner.seconds(float64(r.Tokens-cached(r, int(h.Blocks))), float64(n.load.active))
}

// Queue sums the uncached tokens of the prompts in an engine's queue.
func (p *cost) Queue(id string, now time.Duration) (waiting int, rate float64, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.engines.byID[id]
	if n == nil {
		return 0, 0, false
	}
	p.attempts.advance(&n.load, now)
	tokens := 0.0
	for i := n.load.queue.first; i != 0; i = p.attempts.list[i].links[queueLink].next {
		tokens += p.attempts.list[i].uncached
	}
	if n.load.speedAt > 0 { // it has been seen at work
		rate = 1 / (n.load.speedNow(now) * p.learner.perToken())
	}
	return int(tokens), rate, true
}

var _ Gauge = (*cost)(nil)

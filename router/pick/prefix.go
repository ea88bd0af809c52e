package pick

import (
	"math"
	"sync"
	"time"
)

// prefix sends a prompt where most of it is cached, weighed against load, and never to an
// engine at its bound of load while another is not. What everybody's prompt begins with is
// soon held by all, so it pins nothing.
type prefix struct {
	bounded
	mu      sync.Mutex
	engines engines
}

func newPrefix(factor float64, memory int64) *prefix {
	return &prefix{bounded: bounded{factor}, engines: newEngines(memory)}
}

// loadBlocks is how many blocks of a prefix outweigh one more request in flight. A system
// prompt of 1,000 tokens then moves to a second engine when the first has two requests more;
// a conversation of 4,000 stays until it has eight more.
const loadBlocks = 2

// Order sorts by blocks held less loadBlocks for each request in flight, those at their bound
// last.
func (p *prefix) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	limit := p.limit(g)
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := p.engines.of(g)
	view := p.engines.match(r)
	var buf [usualDepth]place
	ranked := buf[:0]
	reason := "load"
	for i, e := range g.Endpoints {
		load := e.Live.InFlight.Load()
		held := view[nodes[i].slot].Blocks
		at := place{float64(loadBlocks*load - int64(held)), mix(r.Rand + uint64(i)), e}
		if load >= limit {
			at.cost += math.MaxInt32
		}
		ranked = rank(ranked, r.Depth, at)
		if ranked[0].endpoint == e {
			reason = "load"
			if held > 0 {
				reason = "prefix"
			}
		}
	}
	explain(r, g, "prefix", reason)
	if r.Explain != nil {
		for i := range r.Explain.Scores {
			s := &r.Explain.Scores[i]
			s.Hit = float64(cached(r, int(view[nodes[i].slot].Blocks))) / float64(r.Tokens)
			s.Cost = float64(loadBlocks*s.Load - int64(view[nodes[i].slot].Blocks)) // blocks
		}
	}
	return appendRanked(dst, ranked)
}

// Sent notes the prompt's blocks.
func (p *prefix) Sent(r *Request, e *Endpoint, t *Ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := p.engines.insert(p.engines.get(e), r.Blocks)
	t.Endpoint, t.SentAt, t.Tokens, t.Cached, t.Blocks = e, r.Now, r.Tokens, cached(r, held), r.Blocks
	t.Seq = uint64(held) + 1
}

// First notes the time.
func (*prefix) First(t *Ticket, now time.Duration) { t.FirstAt = now }

// Done takes back the blocks of a prompt that came to nothing.
func (p *prefix) Done(t *Ticket, o Outcome) {
	if t.Seq == 0 {
		return
	}
	held := int(t.Seq - 1)
	t.Seq = 0
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.engines.byID[t.Endpoint.ID]
	switch {
	case n == nil || n.url != t.Endpoint.URL: // it is gone, or another one by now
	case o.OK:
		p.engines.learn(n, t.Blocks, o)
	case o.Completion == 0:
		p.engines.drop(n, t.Blocks, held)
	}
	t.Blocks = nil
}

// Keep forgets engines that are gone.
func (p *prefix) Keep(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.engines.keep(s)
}

// Needs blocks.
func (*prefix) Needs() Needs { return Needs{Blocks: true} }

var (
	_ Policy   = (*prefix)(nil)
	_ Observer = (*prefix)(nil)
)

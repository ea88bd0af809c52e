package pick

import "sync"

// roundRobin takes the endpoints of each model in turn.
type roundRobin struct {
	mu    sync.Mutex
	turns map[string]uint64 // by model; its next endpoint
}

// maxTurns bounds the models with a turn of their own; LoRAs come and go.
const maxTurns = 4096

func newRoundRobin() *roundRobin { return &roundRobin{turns: map[string]uint64{}} }

// Order starts with the model's next endpoint; each model has a turn of its own.
func (p *roundRobin) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	explain(r, g, "roundrobin", "turn")
	p.mu.Lock()
	n, known := p.turns[g.Model]
	if !known && len(p.turns) >= maxTurns {
		clear(p.turns) // all start over
	}
	p.turns[g.Model] = n + 1
	p.mu.Unlock()
	return circle(dst, len(dst), g, int(n%uint64(len(g.Endpoints))), r.Depth)
}

// Needs nothing.
func (*roundRobin) Needs() Needs { return Needs{} }

var _ Policy = (*roundRobin)(nil)

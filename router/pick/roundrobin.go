package pick

import (
	"maps"
	"sync"
	"sync/atomic"
)

// roundRobin takes the endpoints of each model in turn.
type roundRobin struct {
	turns atomic.Pointer[map[string]*atomic.Uint64] // by model; replaced, never changed
	mu    sync.Mutex                                // held to replace turns
}

// maxTurns bounds the models with a turn of their own; LoRAs come and go.
const maxTurns = 4096

func newRoundRobin() *roundRobin {
	p := &roundRobin{}
	p.turns.Store(&map[string]*atomic.Uint64{})
	return p
}

// Order starts with the model's next endpoint; each model has a turn of its own.
func (p *roundRobin) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	explain(r, g, "roundrobin", "turn")
	n := p.turn(g.Model).Add(1) - 1
	return circle(dst, len(dst), g, int(n%uint64(len(g.Endpoints))), max(1, r.Depth))
}

func (p *roundRobin) turn(model string) *atomic.Uint64 {
	if t := (*p.turns.Load())[model]; t != nil {
		return t
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.turns.Load()
	if t := old[model]; t != nil {
		return t
	}
	turns := map[string]*atomic.Uint64{}
	if len(old) < maxTurns { // else all start over
		maps.Copy(turns, old)
	}
	t := new(atomic.Uint64)
	turns[model] = t
	p.turns.Store(&turns)
	return t
}

// Needs nothing.
func (*roundRobin) Needs() Needs { return Needs{} }

var _ Policy = (*roundRobin)(nil)

package pick

import (
	"math"
	"slices"
	"time"
)

// Reasons of a pick that begins with a provider.
const (
	reasonFallback = "fallback" // no engine is up
	reasonSpill    = "spill"    // the engines are busy
)

// Gauge is the optional power of a policy that knows how far an engine's first token is.
type Gauge interface {
	// Soonest is the least time until r's first token over the engines of g, which has at least one.
	Soonest(r *Request, g *Group) time.Duration
	// Queue gives an engine's prompt tokens that wait for their prefill and how many it computes a
	// second; false when the engine is not known.
	Queue(id string, now time.Duration) (waiting int, rate float64, known bool)
}

// Order is p's order of g's engines together with g's providers. Providers come last, to be asked
// when engines can't answer; first when no engine is up, or when each is too busy for a provider
// that spills. A provider that is full or has no such request is left out. The result is empty
// when nobody is left, which a group with engines never is.
func Order(p Policy, r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	if len(g.Providers) == 0 && len(g.Endpoints) > 0 {
		return p.Order(r, g, dst)
	}
	from, depth := len(dst), max(1, r.Depth)
	up, wait, reason := len(g.Endpoints) > 0 && !g.Ejected, time.Duration(math.MaxInt64), reasonFallback
	if up {
		wait, reason = soonest(p, r, g), reasonSpill
	}
	later := false
	for _, e := range g.Providers {
		switch {
		case !e.takes(r.Kinds):
		case len(dst)-from < depth && (!up || e.Provider.Spill && wait > e.Provider.SpillAfter):
			dst = append(dst, e)
		default:
			later = true
		}
	}
	first := len(dst) - from
	room := depth - first
	if later && room > 1 {
		room-- // the last place is a provider's, else none is reached while many engines fail
	}
	if len(g.Endpoints) > 0 && room > 0 {
		r.Depth = room
		dst = p.Order(r, g, dst)
		r.Depth = depth
	}
	if first > 0 || len(g.Endpoints) == 0 {
		r.Reason = reason
	}
	for _, e := range g.Providers {
		if later && len(dst)-from < depth && e.takes(r.Kinds) && !slices.Contains(dst[from:], e) {
			dst = append(dst, e)
		}
	}
	return dst
}

// takes tells whether a provider takes a request for which these kinds will do. One that was ejected
// since the snapshot was made does not.
func (e *Endpoint) takes(kinds []string) bool {
	if e.Live.Draining.Load() || e.Serving && e.Live.Ejected.Load() {
		return false
	}
	return slices.Contains(kinds, e.Provider.Kind) && e.Live.InFlight.Load() < int64(e.Provider.InFlight)
}

// soonest is how far the first token is with the best engine of g.
func soonest(p Policy, r *Request, g *Group) time.Duration {
	if p, ok := p.(Gauge); ok {
		return p.Soonest(r, g)
	}
	// Without an estimate: as long as it took lately, on an engine where somebody waits.
	least := time.Duration(math.MaxInt64)
	for _, e := range g.Endpoints {
		wait := time.Duration(0)
		if e.Live.Waiting.Load() > 0 {
			wait = time.Duration(e.Live.TTFT.Load())
		}
		least = min(least, wait)
	}
	return least
}

// ttftGain is the weight of the latest in Live.TTFT.
const ttftGain = 0.2

// Observe takes the time to first byte of a stream into TTFT. Two at once may lose one.
func (l *Live) Observe(took time.Duration) {
	old := l.TTFT.Load()
	if old == 0 {
		old = int64(took)
	}
	l.TTFT.Store(old + int64(ttftGain*float64(int64(took)-old)))
}

// addProviders puts providers into the groups of their models, in the fleet's order.
func (s *Snapshot) addProviders() {
	ejected := map[*Group][]*Endpoint{}
	for _, e := range s.Endpoints {
		if e.Provider == nil || e.Draining {
			continue
		}
		for _, c := range e.Cards {
			g := s.group(c.ID)
			if g.Card.ID == "" {
				g.Card = c
			}
			if e.Serving {
				g.Providers = append(g.Providers, e)
			} else {
				ejected[g] = append(ejected[g], e)
			}
		}
	}
	for g, list := range ejected {
		if !g.Offered() { // trying them costs less than refusing
			g.Providers = list
		}
	}
	for _, g := range s.models {
		slices.SortStableFunc(g.Providers, func(a, b *Endpoint) int { return a.Provider.Order - b.Provider.Order })
	}
}

package pick

import "github.com/cespare/xxhash/v2"

// session keeps a session on one endpoint: rendezvous hashing with bounded load. It holds no
// state, so nothing is rebuilt when endpoints or models change, and a lost endpoint moves
// only its own sessions, a new one only those that it gets.
type session struct{ bounded }

// Order sorts by the hash of session and endpoint, those at their bound last. A request
// without a session goes where the load is least.
func (p session) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	if r.Session == "" {
		explain(r, g, "session", "load")
		return byLoad(r, g, dst)
	}
	limit := p.limit(g)
	hash := xxhash.Sum64String(r.Session)
	var buf [usualDepth]place
	ranked := buf[:0]
	home, highest := false, uint64(0) // whether the endpoint that the hash says is below its bound
	for _, e := range g.Endpoints {
		weight := mix(hash ^ mix(e.Hash))
		load := e.Live.InFlight.Load()
		at := place{tie: ^weight, endpoint: e}
		if load >= limit {
			at.cost = float64(load)
		}
		if weight >= highest {
			home, highest = load < limit, weight
		}
		ranked = rank(ranked, r.Depth, at)
	}
	reason := "session"
	if !home {
		reason = "overload"
	}
	explain(r, g, "session", reason)
	return appendRanked(dst, ranked)
}

// Needs sessions.
func (session) Needs() Needs { return Needs{Session: true} }

var _ Policy = session{}

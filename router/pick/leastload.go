package pick

// leastLoad takes the endpoint with fewest requests in flight.
type leastLoad struct{}

// Order sorts by requests in flight; equal ones share at random.
func (leastLoad) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	explain(r, g, "leastload", "load")
	return byLoad(r, g, dst)
}

func byLoad(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	var buf [usualDepth]place
	ranked := buf[:0]
	for i, e := range g.Endpoints {
		ranked = rank(ranked, r.Depth, place{float64(e.Live.InFlight.Load()), mix(r.Rand + uint64(i)), e})
	}
	return appendRanked(dst, ranked)
}

// Needs nothing.
func (leastLoad) Needs() Needs { return Needs{} }

var _ Policy = leastLoad{}

package pick

// p2c takes the less loaded of two random endpoints.
type p2c struct{}

// Order compares requests in flight, then tokens in flight; after the two, the others come in
// turn from a random one.
func (p2c) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	explain(r, g, "p2c", "load")
	from, n := len(dst), len(g.Endpoints)
	i := below(mix(r.Rand), n)
	a := g.Endpoints[i]
	if n == 1 {
		return append(dst, a)
	}
	b := g.Endpoints[(i+1+below(mix(r.Rand+1), n-1))%n]
	if lighter(b, a) {
		a, b = b, a
	}
	dst = append(dst, a)
	if r.Depth <= 1 {
		return dst
	}
	return circle(append(dst, b), from, g, below(mix(r.Rand+2), n), r.Depth)
}

func lighter(a, b *Endpoint) bool {
	x, y := a.Live.InFlight.Load(), b.Live.InFlight.Load()
	return x < y || x == y && a.Live.Tokens.Load() < b.Live.Tokens.Load()
}

// Needs nothing.
func (p2c) Needs() Needs { return Needs{} }

var _ Policy = p2c{}

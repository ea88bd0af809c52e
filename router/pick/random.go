package pick

// random takes any endpoint, each as likely.
type random struct{}

// Order starts with a random endpoint and goes on in turn from another.
func (random) Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint {
	explain(r, g, "random", "random")
	from := len(dst)
	dst = append(dst, g.Endpoints[below(mix(r.Rand), len(g.Endpoints))])
	return circle(dst, from, g, below(mix(r.Rand+1), len(g.Endpoints)), r.Depth)
}

// Needs nothing.
func (random) Needs() Needs { return Needs{} }

var _ Policy = random{}

package pick

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// DefaultLoadFactor is LoadFactor unless said otherwise.
const DefaultLoadFactor = 1.25

// Options sets up a policy.
type Options struct {
	// Name is one of Names; empty means the first of them.
	Name string
	// LoadFactor is how many times the mean load an engine may have before session and
	// prefix pass it over, at least 1; 0 means DefaultLoadFactor.
	LoadFactor float64
	// IndexMemory bounds the prefix index of cost and prefix in bytes; 0 means kv.DefaultMemory.
	IndexMemory int64
}

// Names are the policies' names, the default first.
func Names() []string {
	return []string{"cost", "roundrobin", "random", "p2c", "leastload", "session", "prefix"}
}

// New makes the named policy. An unknown name gives an error that lists the known ones.
func New(o Options) (Policy, error) {
	if o.Name == "" {
		o.Name = Names()[0]
	}
	if o.LoadFactor == 0 {
		o.LoadFactor = DefaultLoadFactor
	}
	makers := map[string]func() Policy{
		"cost":       func() Policy { return newCost(o.IndexMemory) },
		"roundrobin": func() Policy { return newRoundRobin() },
		"random":     func() Policy { return random{} },
		"p2c":        func() Policy { return p2c{} },
		"leastload":  func() Policy { return leastLoad{} },
		"session":    func() Policy { return session{bounded{o.LoadFactor}} },
		"prefix":     func() Policy { return newPrefix(o.LoadFactor, o.IndexMemory) },
	}
	maker, ok := makers[o.Name]
	switch {
	case !ok:
		return nil, fmt.Errorf("policy %q is unknown; known are %s", o.Name, strings.Join(Names(), ", "))
	case math.IsNaN(o.LoadFactor) || o.LoadFactor < 1:
		return nil, fmt.Errorf("load factor %g of policy %s is below 1", o.LoadFactor, o.Name)
	case o.IndexMemory < 0:
		return nil, fmt.Errorf("index memory %d of policy %s is negative", o.IndexMemory, o.Name)
	}
	return maker(), nil
}

// place is where an endpoint stands in a ranking; the lowest is the best.
type place struct {
	cost     float64
	tie      uint64
	endpoint *Endpoint
}

func (p place) before(q place) bool { return p.cost < q.cost || p.cost == q.cost && p.tie < q.tie }

// rank puts p among the best depth places, best first, or leaves it out. The result has the
// memory of places unless that is too small; a ranking in a struct would escape to the heap.
func rank(places []place, depth int, p place) []place {
	n := len(places)
	if n < max(1, depth) {
		places = append(places, p)
	} else if n--; !p.before(places[n]) {
		return places
	}
	for ; n > 0 && p.before(places[n-1]); n-- {
		places[n] = places[n-1]
	}
	places[n] = p
	return places
}

func appendRanked(dst []*Endpoint, places []place) []*Endpoint {
	for i := range places {
		dst = append(dst, places[i].endpoint)
	}
	return dst
}

// usualDepth is how many endpoints are ranked without an allocation.
const usualDepth = 8

// circle appends up to depth endpoints of g in turn from the one at start, leaving out those
// that dst[from:] has already.
func circle(dst []*Endpoint, from int, g *Group, start, depth int) []*Endpoint {
	depth = max(1, depth)
	first := dst[from:]
	n := len(g.Endpoints)
	for i := 0; i < n && len(dst)-from < depth; i++ {
		if e := g.Endpoints[(start+i)%n]; !slices.Contains(first, e) {
			dst = append(dst, e)
		}
	}
	return dst
}

// mix spreads the bits of x over all of the result (murmur3's finalizer).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// below makes random bits a number from 0 to n-1.
func below(bits64 uint64, n int) int {
	hi, _ := bits.Mul64(bits64, uint64(n))
	return int(hi)
}

// explain says why, and fills in an explanation by load alone if one is wanted.
func explain(r *Request, g *Group, policy, reason string) {
	r.Reason = reason
	x := r.Explain
	if x == nil {
		return
	}
	x.Policy, x.Scores = policy, x.Scores[:0]
	for _, e := range g.Endpoints {
		load := e.Live.InFlight.Load()
		x.Scores = append(x.Scores, Score{Endpoint: e.ID, Cost: float64(load), Load: load})
	}
}

// bounded is consistent hashing's bound on load.
type bounded struct{ factor float64 }

// slack is how many requests more than the mean an engine may always have. At a mean of one
// or two, chance alone goes beyond any factor, and a factor alone loses a third of the prefix
// hits (HAProxy with 1.25 got .59 of .87).
const slack = 4

// limit is the number of requests in flight from which on an engine of g is passed over.
func (b bounded) limit(g *Group) int64 {
	total := int64(1) // the one to place
	for _, e := range g.Endpoints {
		total += e.Live.InFlight.Load()
	}
	mean := float64(total) / float64(len(g.Endpoints))
	return int64(math.Ceil(max(b.factor*mean, mean+slack)))
}

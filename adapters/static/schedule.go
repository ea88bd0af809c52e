package static

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Ports on which the ranks of an engine of several hosts meet; each engine has the next few for itself too.
const (
	firstMasterPort = 29500
	masterPortStep  = 10
	masterPorts     = 50 // engines whose rank 0 one host may run
)

// node is a host as the scheduler sees it.
type node struct {
	name    string
	address string // without a port
	labels  map[string]string
	gpus    []gpu
	slots   int // engines without a GPU that still fit
	// closed says why nothing new goes there ("is cordoned"), empty when something may.
	closed string
	// replicas of each model that run there.
	replicas map[modelKey]int
	// masters are the ports taken by engines whose rank 0 runs there.
	masters map[int]bool
}

type modelKey struct{ fleet, model string }

type gpu struct {
	id, group string
	memory    mobula.Size
	taken     bool
	ill       bool
}

// want is a replica that has no place.
type want struct {
	id    string
	born  int64
	key   adapters.Key
	model *mobula.Model
}

// part is what a replica has on one host.
type part struct {
	Host    string   `json:"host"`
	Devices []string `json:"devices,omitempty"`
}

// place is where a replica goes, rank 0 first.
type place struct {
	id         string
	parts      []part
	master     string // for several parts
	masterPort int
}

// schedule finds places for wants and tells, by deployment, why the others have none. It changes nodes to
// hold what it has placed. Large engines choose first; the result doesn't depend on the order of its arguments.
func schedule(nodes []*node, wants []want) ([]place, map[adapters.Key]string) {
	slices.SortFunc(nodes, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	groups := map[adapters.Key][]want{}
	for _, w := range wants {
		groups[w.key] = append(groups[w.key], w)
	}
	type demand struct {
		key   adapters.Key
		wants []want
		need  need
	}
	demands := make([]demand, 0, len(groups))
	reasons := map[adapters.Key]string{}
	for key, group := range groups {
		n, err := needOf(group[0].model, nodes)
		if err != nil {
			reasons[key] = err.Error()
			continue
		}
		slices.SortFunc(group, func(a, b want) int { return cmp.Or(cmp.Compare(a.born, b.born), cmp.Compare(a.id, b.id)) })
		demands = append(demands, demand{key, group, n})
	}
	slices.SortFunc(demands, func(a, b demand) int {
		return cmp.Or(cmp.Compare(b.need.hosts, a.need.hosts), cmp.Compare(b.need.gpus, a.need.gpus), a.key.Compare(b.key))
	})
	var places []place
	for _, d := range demands {
		s := newSearch(nodes, d.key, d.need)
		for _, w := range d.wants {
			p, ok := s.next()
			if !ok {
				reasons[d.key] = why(nodes, d.need)
				break
			}
			p.id = w.id
			places = append(places, p)
		}
	}
	return places, reasons
}

// search gives one place after the other for the replicas of one deployment.
type search struct {
	need  need
	model modelKey
	total int // replicas of the model, on all nodes
	queue candidates
}

func newSearch(nodes []*node, key adapters.Key, n need) *search {
	s := &search{need: n, model: modelKey{key.Fleet, key.Model}}
	for _, node := range nodes {
		s.total += node.replicas[s.model]
		if node.closed == "" && n.lacks(node) == "" {
			if c, ok := s.fit(node); ok {
				s.queue = append(s.queue, c)
			}
		}
	}
	heap.Init(&s.queue)
	return s
}

// next places one replica: on as many nodes as it needs, or on none.
func (s *search) next() (place, bool) {
	if len(s.queue) < s.need.hosts {
		return place{}, false
	}
	var best []candidate
	for range s.need.hosts {
		best = append(best, s.pop())
	}
	p := place{}
	if s.need.hosts > 1 {
		master := slices.IndexFunc(best, func(c candidate) bool { return len(c.node.masters) < masterPorts })
		if master < 0 {
			for _, c := range best {
				heap.Push(&s.queue, c)
			}
			return place{}, false
		}
		best[0], best[master] = best[master], best[0]
		p.master, p.masterPort = best[0].node.address, best[0].node.takeMasterPort()
	}
	s.total++
	best[0].node.replicas[s.model]++
	for _, c := range best {
		p.parts = append(p.parts, c.take())
		if again, ok := s.fit(c.node); ok {
			heap.Push(&s.queue, again)
		}
	}
	return p, true
}

// pop takes the best node; the second best when all replicas of the model would else hang on one host.
func (s *search) pop() candidate {
	first := heap.Pop(&s.queue).(candidate)
	if s.need.hosts > 1 || len(s.queue) == 0 || first.same == 0 || first.same < s.total || s.queue[0].linked != first.linked {
		return first
	}
	second := heap.Pop(&s.queue).(candidate)
	heap.Push(&s.queue, first)
	return second
}

// fit chooses the GPUs that a replica would have on a node.
func (s *search) fit(n *node) (candidate, bool) {
	c := candidate{node: n, same: n.replicas[s.model]}
	if s.need.gpus == 0 {
		c.left = -n.slots // engines without GPUs spread out
		c.spread = true
		return c, n.slots > 0
	}
	free := n.free(s.need.memory)
	if len(free) < s.need.gpus {
		return c, false
	}
	c.gpus, c.linked, c.groupLeft = chooseGPUs(n.gpus, free, s.need.gpus)
	c.left = len(free) - s.need.gpus
	if s.need.memory > 0 {
		for _, i := range c.gpus {
			c.waste += n.gpus[i].memory - s.need.memory
		}
	}
	return c, true
}

// free gives the indices of the GPUs that may be taken.
func (n *node) free(memory mobula.Size) []int {
	free := make([]int, 0, len(n.gpus))
	for i := range n.gpus {
		if g := &n.gpus[i]; !g.taken && !g.ill && g.memory >= memory {
			free = append(free, i)
		}
	}
	return free
}

func (n *node) takeMasterPort() int {
	port := firstMasterPort
	for n.masters[port] {
		port += masterPortStep
	}
	n.masters[port] = true
	return port
}

// chooseGPUs takes n of the free GPUs: those of the smallest NVLink group that has enough, else of as few
// groups as can be. left is what remains free in the groups that it takes from.
func chooseGPUs(gpus []gpu, free []int, n int) (chosen []int, linked bool, left int) {
	byGroup := map[string][]int{}
	var groups [][]int
	for _, i := range free {
		if g := gpus[i].group; g != "" {
			byGroup[g] = append(byGroup[g], i)
		} else {
			groups = append(groups, []int{i})
		}
	}
	groups = slices.AppendSeq(groups, maps.Values(byGroup))
	slices.SortFunc(groups, func(a, b []int) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a[0], b[0])) })
	for _, g := range groups {
		if len(g) >= n {
			return g[:n], true, len(g) - n
		}
	}
	for _, g := range slices.Backward(groups) {
		if k := min(n-len(chosen), len(g)); k > 0 {
			chosen = append(chosen, g[:k]...)
			left += len(g) - k
		}
	}
	slices.Sort(chosen)
	return chosen, false, left
}

// candidate is a node that could take a replica, or one part of it.
type candidate struct {
	node *node
	gpus []int
	// What it is judged by, see compare.
	linked    bool
	waste     mobula.Size
	left      int
	groupLeft int
	same      int
	spread    bool
}

// compare orders the better candidate first: GPUs that reach each other over NVLink, little memory wasted, the
// fullest node, few replicas of the same model. Without GPUs: few of the same model, the emptiest node.
func (c *candidate) compare(o *candidate) int {
	if c.spread {
		return cmp.Or(cmp.Compare(c.same, o.same), cmp.Compare(c.left, o.left), cmp.Compare(c.node.name, o.node.name))
	}
	if c.linked != o.linked {
		if c.linked {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(c.waste, o.waste), cmp.Compare(c.left, o.left), cmp.Compare(c.groupLeft, o.groupLeft),
		cmp.Compare(c.same, o.same), cmp.Compare(c.node.name, o.node.name),
	)
}

// take marks what the candidate stands for as taken.
func (c *candidate) take() part {
	p := part{Host: c.node.name}
	if c.spread {
		c.node.slots--
	}
	for _, i := range c.gpus {
		c.node.gpus[i].taken = true
		p.Devices = append(p.Devices, c.node.gpus[i].id)
	}
	return p
}

// candidates is a heap with the best one first.
type candidates []candidate

func (c candidates) Len() int           { return len(c) }
func (c candidates) Less(i, j int) bool { return c[i].compare(&c[j]) < 0 }
func (c candidates) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }
func (c *candidates) Push(x any)        { *c = append(*c, x.(candidate)) }
func (c *candidates) Pop() any {
	last := len(*c) - 1
	x := (*c)[last]
	*c = (*c)[:last]
	return x
}

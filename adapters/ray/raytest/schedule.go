package raytest

import (
	"maps"
	"slices"
	"strings"
)

// memory of each node, in bytes.
const memory = 64 << 30

// total is what a node has.
func (n *node) total() map[string]float64 {
	all := map[string]float64{"CPU": n.CPUs, "memory": memory, "object_store_memory": 1e8, "node:" + n.IP: 1}
	if n.GPUs > 0 {
		all["GPU"] = n.GPUs
	}
	if n.head {
		all["node:__internal_head__"] = 1
	}
	maps.Copy(all, n.Resources)
	return all
}

func (n *node) labels() map[string]string {
	all := map[string]string{"ray.io/node-id": n.id}
	maps.Copy(all, n.Labels)
	return all
}

// step lets things get on by one: jobs, then groups, then actors. It tells whether something happened.
func (c *Cluster) step() bool {
	if c.down || c.cut {
		return false
	}
	some := c.runJobs()
	for _, g := range c.groups {
		if g.state == groupPending || g.state == groupRescheduling {
			some = c.place(g) || some
		}
	}
	for _, a := range c.actors {
		some = c.advance(a) || some
	}
	c.endJobs()
	return c.serve.step(c) || some
}

// advance gets one actor on: a place, an engine, readiness.
func (c *Cluster) advance(a *actor) bool {
	switch {
	case !a.waiting() || a.group == nil || a.group.state != groupCreated:
		return false
	case a.node == nil:
		a.node = a.group.nodes[a.rank]
		return true
	case a.stop == nil:
		c.engine(a)
		return true
	case c.opts.Manual || !c.gangPlaced(a):
		return false
	}
	c.alive(a)
	return true
}

// gangPlaced tells whether all parts of an actor's replica have begun.
func (c *Cluster) gangPlaced(a *actor) bool {
	begun := 0
	for _, part := range c.actors {
		if part.group == a.group && part.exists() && part.stop != nil {
			begun++
		}
	}
	return begun >= len(a.start.Argv)
}

// place finds nodes for all bundles of a group that have none, each on another node, or leaves it as it is.
func (c *Cluster) place(g *group) bool {
	g.attempts++
	nodes := slices.Clone(g.nodes)
	feasible := true
	for i, have := range nodes {
		if have != nil {
			continue
		}
		best, possible := c.find(g, nodes)
		if best == nil {
			feasible = possible
			nodes = nil
			break
		}
		nodes[i] = best
	}
	if nodes != nil {
		g.nodes, g.state, g.scheduling = nodes, groupCreated, "FINISHED"
		return true
	}
	g.scheduling = "INFEASIBLE"
	if feasible {
		g.scheduling = "NO_RESOURCES"
	}
	return false
}

// find gives the first node with room for one more bundle, and whether some node could have it were it empty.
func (c *Cluster) find(g *group, taken []*node) (found *node, possible bool) {
	for _, n := range c.nodes {
		if n.died != "" || slices.Contains(taken, n) || !matches(n.labels(), g.labels) || !fits(n.total(), g.bundle) {
			continue
		}
		possible = true
		if found == nil && fits(c.free(n), g.bundle) {
			found = n
		}
	}
	return found, possible
}

// free is what no bundle has reserved of a node.
func (c *Cluster) free(n *node) map[string]float64 {
	left := n.total()
	for _, g := range c.groups {
		if g.state == groupRemoved {
			continue
		}
		for _, on := range g.nodes {
			if on == n {
				for name, amount := range g.bundle {
					left[name] -= amount
				}
			}
		}
	}
	return left
}

func fits(have, need map[string]float64) bool {
	for name, amount := range need {
		if amount > have[name]+1e-9 {
			return false
		}
	}
	return true
}

// matches tells whether labels satisfy a selector: value, !value, in(a, b) or !in(a, b). A label that is not there
// differs from all values.
func matches(labels, selector map[string]string) bool {
	for key, want := range selector {
		want, not := strings.CutPrefix(want, "!")
		values := []string{want}
		if list, ok := strings.CutPrefix(want, "in("); ok {
			values = strings.Split(strings.TrimSuffix(list, ")"), ",")
		}
		have, ok := labels[key]
		hit := ok && slices.ContainsFunc(values, func(v string) bool { return strings.TrimSpace(v) == have })
		if hit == not {
			return false
		}
	}
	return true
}

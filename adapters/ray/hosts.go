package ray

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const (
	maxDevices       = 1024
	acceleratorLabel = "ray.io/accelerator-type"
)

// Hosts lists the cluster's nodes. Ray tells how many GPUs one has, not which.
func (c *Cluster) Hosts(ctx context.Context) ([]mobula.Host, error) {
	if err := c.reach(ctx, false); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.away(lostAfter); err != nil {
		return nil, err
	}
	all := make([]mobula.Host, 0, len(c.view.state.Nodes))
	for name, n := range c.hosts() {
		h := mobula.Host{
			Name: name, Labels: maps.Clone(n.Labels), Devices: devices(n), Slots: int(n.Resources["CPU"]),
			Cordoned: slices.Contains(c.records.settings.Cordoned, name), Heard: c.view.state.At,
		}
		if !n.Alive {
			h.Silent = "Ray says that it is dead: " + cmp.Or(n.Died, "no reason is given")
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b mobula.Host) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// tellApart has nodes that are alive and have one name, such as several on one machine, be called by their IDs too.
func tellApart(nodes []Node) {
	by := map[string]int{}
	for i := range nodes {
		if nodes[i].Alive {
			by[nodeName(&nodes[i])]++
		}
	}
	for i := range nodes {
		if n := &nodes[i]; n.Alive && by[nodeName(n)] > 1 {
			n.Name = nodeName(n) + "/" + short(n.ID)
		}
	}
}

// hosts gives the nodes by name. Of several with one name only the last dead one is there, or the one that is alive.
func (c *Cluster) hosts() map[string]*Node {
	all := make(map[string]*Node, len(c.view.state.Nodes))
	for i := range c.view.state.Nodes {
		n := &c.view.state.Nodes[i]
		if was := all[nodeName(n)]; was == nil || n.Alive || !was.Alive {
			all[nodeName(n)] = n
		}
	}
	return all
}

func devices(n *Node) []mobula.Device {
	kind := n.Labels[acceleratorLabel]
	for _, name := range slices.Sorted(maps.Keys(n.Resources)) {
		if t, ok := strings.CutPrefix(name, acceleratorPrefix); ok && kind == "" {
			kind = t
		}
	}
	var all []mobula.Device
	for i := range min(int(n.Resources["GPU"]), maxDevices) {
		all = append(all, mobula.Device{ID: strconv.Itoa(i), Name: cmp.Or(kind, "GPU")})
	}
	return all
}

// cordoned tells whether a node is to get no new replicas.
func (c *Cluster) cordoned(n *Node) bool {
	plain := strings.TrimSuffix(nodeName(n), "/"+short(n.ID)) // it may have been told apart from another one
	for _, name := range c.records.settings.Cordoned {
		if name == plain || name == plain+"/"+short(n.ID) {
			return true
		}
	}
	return false
}

// cordonedIDs are the IDs of those that are alive, sorted.
func (c *Cluster) cordonedIDs() []string {
	var all []string
	for i := range c.view.state.Nodes {
		if n := &c.view.state.Nodes[i]; n.Alive && c.cordoned(n) {
			all = append(all, n.ID)
		}
	}
	slices.Sort(all)
	return all
}

// avoiding is the selector of nodes that are not cordoned, empty for all.
func avoiding(cordoned []string) string {
	if len(cordoned) == 0 {
		return ""
	}
	return "!in(" + strings.Join(cordoned, ",") + ")"
}

// astray tells that a group without a place was made when other nodes were cordoned. Groups keep their selectors.
func (c *Cluster) astray(rec *replicaRecord, g *Group) bool {
	d := c.records.deployments[rec.key()]
	if d == nil || g.Labels == nil || d.Model.Resources.HostLabels[nodeIDLabel] != "" {
		return false
	}
	return g.Labels[nodeIDLabel] != avoiding(c.cordonedIDs())
}

// Cordon has a node get no new replicas, or get them again. Those that wait for room are told anew where they may run.
func (c *Cluster) Cordon(ctx context.Context, host string, on bool) error {
	if err := c.reach(ctx, false); err != nil {
		return err
	}
	return c.do(func() error {
		if err := c.away(lostAfter); err != nil {
			return err
		}
		s := &c.records.settings
		at, has := slices.BinarySearch(s.Cordoned, host)
		switch {
		case c.hosts()[host] == nil && (on || !has):
			return fmt.Errorf("host %s: %w", host, adapters.ErrUnknownHost)
		case has == on:
			return nil
		case on:
			s.Cordoned = slices.Insert(slices.Clone(s.Cordoned), at, host)
		default:
			s.Cordoned = slices.Delete(slices.Clone(s.Cordoned), at, at+1)
		}
		c.records.saveSettings()
		return nil
	})
}

// Forget fails: which nodes there are is for Ray to decide.
func (c *Cluster) Forget(ctx context.Context, host string) error {
	if err := c.reach(ctx, false); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.away(lostAfter); err != nil {
		return err
	}
	if c.hosts()[host] == nil {
		return fmt.Errorf("host %s: %w", host, adapters.ErrUnknownHost)
	}
	return fmt.Errorf("host %s: Ray decides which nodes the cluster has: run ray stop there; its replicas move elsewhere by themselves", host)
}

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

// hosts gives the nodes by name. Of several nodes with one name the dead ones are left out, and those that are alive get
// their IDs too.
func (c *Cluster) hosts() map[string]*Node {
	by := map[string][]*Node{}
	for i := range c.view.state.Nodes {
		n := &c.view.state.Nodes[i]
		by[nodeName(n)] = append(by[nodeName(n)], n)
	}
	all := make(map[string]*Node, len(by))
	for name, nodes := range by {
		alive := slices.DeleteFunc(slices.Clone(nodes), func(n *Node) bool { return !n.Alive })
		switch {
		case len(alive) == 0:
			all[name] = nodes[len(nodes)-1]
		case len(alive) == 1:
			all[name] = alive[0]
		default:
			for _, n := range alive {
				all[name+"/"+short(n.ID)] = n
			}
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
	for _, name := range c.records.settings.Cordoned {
		if name == nodeName(n) || name == nodeName(n)+"/"+short(n.ID) {
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

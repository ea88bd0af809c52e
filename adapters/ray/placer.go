package ray

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Apply makes d so.
func (c *Cluster) Apply(ctx context.Context, d adapters.Deployment) error {
	if err := c.reach(ctx, true); err != nil {
		return err
	}
	return c.do(func() error {
		gpus, err := c.possible(&d)
		if err != nil {
			return err
		}
		c.apply(&deploymentRecord{Key: d.Key, Model: d.Model, Replicas: d.Replicas, Drain: slices.Clone(d.Drain), GPUs: gpus})
		return nil
	})
}

// Check fails as Apply would.
func (c *Cluster) Check(ctx context.Context, d adapters.Deployment) error {
	if err := c.reach(ctx, false); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.possible(&d)
	return err
}

// reach fails unless the cluster can be asked, for all we know. It waits a while for the first look at it. With probe the
// cluster is asked.
func (c *Cluster) reach(ctx context.Context, probe bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for deadline := time.After(firstLook); ; {
		c.mu.Lock()
		l, changed, looked, failing := c.link, c.changed, c.view.looked(), c.view.failures > 0
		err := c.sure()
		if err == nil && probe {
			err = c.away(never) // the probe tells
		} else if err == nil {
			err = c.away(lostAfter)
		}
		c.mu.Unlock()
		switch {
		case l != nil && !looked:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-deadline:
				return err
			case <-changed:
			}
			continue
		case err != nil || !probe:
			return err
		}
		return l.probe(ctx, failing)
	}
}

// probe fails unless the cluster answers now. A dashboard tells its version without a GCS: one that was failing has to tell
// its state.
func (l *link) probe(ctx context.Context, failing bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if failing {
		_, err = l.api.State(ctx, l.ray.Namespace)
	} else {
		_, err = l.api.Version(ctx)
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// away tells why the cluster can't be asked: after so many polls that failed in a row, or for another control plane.
func (c *Cluster) away(failures int) error {
	v := &c.view
	switch {
	case c.link == nil:
		return unavailable(errNone)
	case c.doubt:
		return unavailable(errDoubt)
	case v.failures >= failures || v.state == nil && v.err != nil:
		return unavailable(v.err)
	case v.state == nil:
		return unavailable(errUnseen)
	case v.rival != "":
		return unavailable(fmt.Errorf("control plane %s uses owner %s on this cluster too: give each its own platform.ray.owner, or end one",
			v.rival, v.owner))
	}
	return nil
}

// possible fails with ErrImpossible when no node could ever run a deployment that is new, and gives the GPUs of a replica. One
// that is known may be changed while nodes are away.
func (c *Cluster) possible(d *adapters.Deployment) (gpus int, err error) {
	if err := c.away(never); err != nil {
		return 0, err
	}
	before, s := c.records.deployments[d.Key], c.view.state
	if before != nil && !before.Removed && same(&before.Model, &d.Model) {
		return before.GPUs, nil
	}
	gpus = gpusOf(&d.Model, s.Nodes, c.link.ray.Autoscaling)
	return gpus, possible(&d.Model, gpus, s.Nodes, c.link.ray.Autoscaling || s.Partial != "")
}

func (c *Cluster) apply(d *deploymentRecord) {
	before, have := c.records.deployments[d.Key], c.records.of(d.Key)
	if before != nil && len(have) == d.Replicas && same(before, d) {
		return
	}
	c.records.saveDeployment(d)
	if before != nil && !same(&before.Model, &d.Model) {
		for _, r := range have { // what failed may work now
			delete(c.view.tries, r.ID)
		}
	}
	if extra := len(have) - d.Replicas; extra > 0 {
		all := make([]mobula.Replica, len(have))
		for i, r := range have {
			all[i] = c.statuses[r.ID]
			all[i].ID = r.ID
		}
		for _, id := range adapters.Leaving(all, d.Drain, extra) {
			c.leave(c.records.replicas[id])
		}
	}
	for range d.Replicas - len(have) {
		c.records.save(&replicaRecord{
			ID:    newID(c.records, c.view.sights, d.Key),
			Fleet: d.Key.Fleet, Model: d.Key.Model, Revision: d.Key.Revision, Made: c.now(),
		})
	}
}

func (c *Cluster) leave(rec *replicaRecord) {
	c.records.leave(rec)
	delete(c.view.tries, rec.ID)
}

// same compares what would be stored.
func same[T any](a, b *T) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Remove stops all replicas of the deployment and forgets it.
func (c *Cluster) Remove(ctx context.Context, key adapters.Key) error {
	if err := c.reach(ctx, true); err != nil {
		return err
	}
	return c.do(func() error {
		d := c.records.deployments[key]
		if d == nil || d.Removed {
			return nil
		}
		d.Removed, d.Replicas, d.Drain = true, 0, nil
		c.records.saveDeployment(d)
		for _, rec := range c.records.of(key) {
			c.leave(rec)
		}
		return nil
	})
}

// Deployments gives what is asked for in a fleet. It needs no cluster.
func (c *Cluster) Deployments(ctx context.Context, fleet string) ([]adapters.Deployment, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.doubt {
		return nil, unavailable(errDoubt)
	}
	all := []adapters.Deployment{}
	for key, d := range c.records.deployments {
		if key.Fleet == fleet && !d.Removed {
			all = append(all, adapters.Deployment{Key: key, Model: d.Model, Replicas: d.Replicas, Drain: slices.Clone(d.Drain)})
		}
	}
	slices.SortFunc(all, func(a, b adapters.Deployment) int { return a.Compare(b.Key) })
	return all, nil
}

// Status gives the replicas of a fleet as they were when the cluster was looked at last.
func (c *Cluster) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]mobula.Replica, 0, len(c.statuses))
	if c.link == nil && len(c.records.replicas) == 0 {
		return all, nil
	}
	if err := c.away(lostAfter); err != nil {
		return nil, err
	}
	for id, r := range c.statuses {
		if rec := c.records.replicas[id]; rec != nil && rec.Fleet == fleet {
			r.Hosts, r.Devices = slices.Clone(r.Hosts), slices.Clone(r.Devices)
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b mobula.Replica) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// Changed gives a channel that is closed at the next change of what Status tells.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

package control

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Bounds on a Report; one beyond them is no router's.
const (
	maxReported = 20_000
	maxNameLen  = 512
)

// Control gives the name of this control plane: made once, kept with its state.
func (c *Control) Control() string { return c.id }

// Fleet gives the fleet file as it was applied last, with ErrNotFound before the first time.
func (c *Control) Fleet(context.Context) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want.fleet == nil {
		return nil, fmt.Errorf("%w: no fleet has been applied", ErrNotFound)
	}
	return slices.Clone(c.want.File), nil
}

// View gives all that is known, which the caller must not change. With after above 0 it waits while that is the Version; when ctx
// ends it gives what there is.
func (c *Control) View(ctx context.Context, after int64) (*View, error) {
	for {
		c.mu.Lock()
		v, changed := c.view, c.changed
		c.mu.Unlock()
		if after <= 0 || v.Version != after {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return v, nil
		case <-changed:
		}
	}
}

// Events gives the events beyond after, oldest first. With wait it waits for one, until ctx ends.
func (c *Control) Events(ctx context.Context, after int64, wait bool) ([]Event, error) {
	for {
		c.mu.Lock()
		all, changed := c.events.after(after), c.changed
		c.mu.Unlock()
		if len(all) > 0 || !wait {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return all, nil
		case <-changed:
		}
	}
}

// edit changes what is remembered of a model that is wanted. c.mu is not held.
func (c *Control) edit(name string, f func(m *memory, d *draft) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want.model(name) == nil {
		return c.noModel(name)
	}
	m := c.models[name].clone()
	d := draft{models: map[string]*memory{name: &m}}
	if err := f(&m, &d); err != nil {
		return err
	}
	if err := c.commit(d); err != nil {
		return err
	}
	c.changedByHand()
	return nil
}

func (c *Control) noModel(name string) error {
	if c.want.fleet != nil && byName(c.want.fleet, name) != nil {
		return fmt.Errorf("%w: model %s is not placed by the control plane: it has no replicas in the fleet file", ErrNotFound, name)
	}
	return fmt.Errorf("%w: no model %s in the fleet", ErrNotFound, name)
}

// Scale sets the wanted number of replicas until an apply changes the model's replicas; a negative
// number gives it back to the fleet file.
func (c *Control) Scale(_ context.Context, model string, replicas int) error {
	if replicas > mobula.MaxReplicas {
		return fmt.Errorf("%w: want at most %d replicas, got %d", ErrInvalid, mobula.MaxReplicas, replicas)
	}
	return c.edit(model, func(m *memory, d *draft) error {
		if replicas < 0 {
			m.Scaled = nil
			d.notef("model/"+model, "Scaled", "by hand: back to %s of the fleet file", m.Range)
			return nil
		}
		m.Scaled = &replicas
		d.notef("model/"+model, "Scaled", "by hand: %d replicas", replicas)
		return nil
	})
}

// Drain has a replica get no new requests, and go when it has none left, or takes that back.
func (c *Control) Drain(_ context.Context, replica string, on bool) error {
	model, err := c.modelOfReplica(replica)
	if err != nil {
		return err
	}
	return c.edit(model, func(m *memory, d *draft) error {
		mk, marked := m.Marks[replica]
		switch {
		case !on && mk.Released:
			return fmt.Errorf("%w: replica %s is being stopped already", ErrConflict, replica)
		case !on && marked && !mk.Person:
			return fmt.Errorf("%w: replica %s is drained because %s", ErrConflict, replica, mk.Why)
		case !on:
			delete(m.Marks, replica)
			return nil
		case !marked:
			mk = c.handMark(replica)
		}
		mk.Person, mk.Sleep = true, false
		m.Marks[replica] = mk
		d.notef("replica/"+replica, "Draining", "by hand: it gets no new requests")
		return nil
	})
}

func (c *Control) handMark(id string) mark {
	for i := range c.observed.replicas {
		if r := &c.observed.replicas[i]; r.ID == id {
			return mark{Revision: r.Revision, Since: c.o.Now(), Why: "it was drained by hand", Restarts: r.Restarts}
		}
	}
	return mark{}
}

func (c *Control) modelOfReplica(id string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := slices.BinarySearchFunc(c.observed.replicas, id, func(r mobula.Replica, id string) int { return cmp.Compare(r.ID, id) })
	if !ok {
		return "", fmt.Errorf("%w: %w: %s", ErrNotFound, adapters.ErrUnknownReplica, id)
	}
	return c.observed.replicas[i].Model, nil
}

// Cordon has a host get no new replicas, or get them again; with drain its replicas are replaced elsewhere,
// within the bounds of their models' rollouts.
func (c *Control) Cordon(ctx context.Context, host string, on, drain bool) error {
	if c.hosts == nil {
		return fmt.Errorf("%w: the platform keeps its hosts to itself", ErrInvalid)
	}
	if err := c.call(ctx, func(ctx context.Context) error { return c.hosts.Cordon(ctx, host, on) }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observed.at = c.observed.at.AddDate(-1, 0, 0) // look again
	var d draft
	d.notef("host/"+host, "Cordoned", "cordoned: %t, drained: %t", on, on && drain)
	return c.leave(d, host, on && drain)
}

// leave remembers whether a host is to be emptied, and has d tell of it. c.mu is held.
func (c *Control) leave(d draft, host string, on bool) error {
	if c.want.Leaving[host] == on { // there is nothing to write
		for i := range d.events {
			c.note(d.events[i])
		}
	} else {
		want := c.want
		want.Leaving = maps.Clone(want.Leaving)
		if want.Leaving == nil {
			want.Leaving = map[string]bool{}
		}
		if on {
			want.Leaving[host] = true
		} else {
			delete(want.Leaving, host)
		}
		d.want = &want
		if err := c.commit(d); err != nil {
			return err
		}
	}
	c.changedByHand()
	return nil
}

// Forget removes a host that is gone for good.
func (c *Control) Forget(ctx context.Context, host string) error {
	if c.hosts == nil {
		return fmt.Errorf("%w: the platform keeps its hosts to itself", ErrInvalid)
	}
	if err := c.call(ctx, func(ctx context.Context) error { return c.hosts.Forget(ctx, host) }); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observed.at = c.observed.at.AddDate(-1, 0, 0)
	var d draft
	d.notef("host/"+host, "Forgotten", "by hand: it is gone for good")
	return c.leave(d, host, false)
}

// Restart replaces all replicas of a model, or of all models for "", within the bounds of their rollouts.
func (c *Control) Restart(_ context.Context, model string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := draft{models: map[string]*memory{}}
	for name := range c.models {
		if (model == "" || model == name) && c.want.model(name) != nil && !c.models[name].Deleted {
			m := c.models[name].clone()
			m.Nonce++
			m.Pin = ""
			m.Phase, m.Reason, m.Since = RolloutProgressing, "restarted by hand", c.o.Now()
			d.models[name] = &m
			d.notef("model/"+name, "Restarted", "by hand: all replicas are replaced")
		}
	}
	if len(d.models) == 0 && model != "" {
		return c.noModel(model)
	}
	if err := c.commit(d); err != nil {
		return err
	}
	c.changedByHand()
	return nil
}

// Rollback makes a model's last good revision the wanted one, until an apply changes more of it than its replicas, or a restart.
func (c *Control) Rollback(_ context.Context, model string) error {
	return c.edit(model, func(m *memory, d *draft) error {
		to := m.Good
		if to == m.Target {
			to = m.Previous
		}
		if _, known := m.Revisions[to]; !known || to == m.Target {
			return fmt.Errorf("%w: model %s has no earlier revision that was good", ErrConflict, model)
		}
		d.notef("model/"+model, "RolledBack", "by hand: from revision %s to %s", m.Target, to)
		m.Pin = to
		m.Phase, m.Reason, m.Since = RolloutProgressing, "rolled back by hand", c.o.Now()
		return nil
	})
}

// Delete drains and stops a model's replicas until an apply wants it again, or those of the whole fleet for "".
func (c *Control) Delete(_ context.Context, model string) error {
	if model != "" {
		return c.edit(model, func(m *memory, d *draft) error {
			m.Deleted = true
			d.notef("model/"+model, "Deleted", "by hand: its replicas are drained and stopped")
			return nil
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want.fleet == nil {
		return fmt.Errorf("%w: no fleet has been applied", ErrNotFound)
	}
	want := c.want
	want.Deleted = true
	d := draft{want: &want}
	d.notef("fleet", "Deleted", "by hand: all replicas of fleet %s are drained and stopped", want.name())
	if err := c.commit(d); err != nil {
		return err
	}
	c.changedByHand()
	return nil
}

// Logs reads what a replica's engine prints.
func (c *Control) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	return c.o.Placer.Logs(ctx, replica, tail, follow)
}

// Report tells how a router fares.
func (c *Control) Report(_ context.Context, r mobula.Report) error {
	if r.Router == "" || len(r.Router) > maxNameLen {
		return fmt.Errorf("%w: a report needs its router's name, of at most %d bytes", ErrInvalid, maxNameLen)
	}
	if len(r.Endpoints) > maxReported || len(r.Models) > maxReported {
		return fmt.Errorf("%w: a report has at most %d endpoints and models", ErrInvalid, maxReported)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := len(c.routers.reports)
	c.routers = c.routers.with(r, c.o.Now())
	c.viewDirty = true
	if was != len(c.routers.reports) || c.drainMoves(&r) {
		c.wakeUp()
	}
	return nil
}

// drainMoves tells whether a report says that a replica which is to go has nothing left. c.mu is held.
func (c *Control) drainMoves(r *mobula.Report) bool {
	for i := range r.Endpoints {
		e := &r.Endpoints[i]
		if !e.Draining || e.InFlight > 0 {
			continue
		}
		for name := range c.models {
			if m, marked := c.models[name].Marks[e.ID]; marked && !m.Released && !m.Asleep {
				return true
			}
		}
	}
	return false
}

// History gives the files of the last applies, the newest first.
func (c *Control) History() ([]Applied, error) {
	var all []Applied
	err := c.o.Store.Each(bucket, func(key string, value []byte) error {
		if len(key) <= len(preHistory) || key[:len(preHistory)] != preHistory {
			return nil
		}
		var d desired
		if err := decode(key, value, &d); err != nil {
			return err
		}
		all = append(all, Applied{Generation: d.Generation, At: d.At, Source: d.Source, File: d.File})
		return nil
	})
	slices.Reverse(all)
	return all, err
}

package control

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const (
	// A platform that tells of changes is looked at this often all the same, and asked what it holds.
	lookEvery = 10 * time.Second
	askEvery  = time.Minute
)

// reconcile goes round once: look, decide, remember, act. It tells whether there is more to do at once.
func (c *Control) reconcile(ctx context.Context) (again bool) {
	start := time.Now()
	defer func() { c.metrics.seconds.Observe(time.Since(start).Seconds()) }()
	if !c.configure(ctx) {
		return false
	}
	c.round.Lock()
	defer c.round.Unlock()
	known := c.observe(ctx)
	c.evict(ctx)
	if !known {
		c.publish() // hosts join before there is a fleet
		return false
	}
	decisions, again := c.decide()
	c.act(ctx, decisions)
	c.publish()
	return again && ctx.Err() == nil
}

// observe looks at the platform when that is due, and tells whether what is known of it can be acted upon.
func (c *Control) observe(ctx context.Context) bool {
	_, watched := c.o.Placer.(adapters.Watcher)
	c.mu.Lock()
	now, fleet, last, before := c.o.Now(), c.want.name(), c.observed.at, c.observed
	due := !watched || now.Sub(last) >= lookEvery || before.stale != ""
	ask := c.asked == nil || now.Sub(c.askedAt) >= askEvery
	c.mu.Unlock()
	if fleet == "" && c.hosts == nil || !due && !ask {
		return fleet != ""
	}
	after, asked, err := c.ask(ctx, fleet, ask, &before)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		c.stale(now, err)
		return false
	}
	if before.stale != "" {
		c.notef("fleet", "PlatformBack", false, "the platform answers again")
	}
	if c.observed.at.Equal(last) { // else there was a command meanwhile, and something new to see
		after.at = now
	}
	if c.looks.Add(1) > 1 { // what is there when we start is no news
		for _, e := range changes(&before, after) {
			c.note(e)
		}
	}
	if !reflect.DeepEqual(before.replicas, after.replicas) || !sameHosts(before.hosts, after.hosts) || before.stale != "" {
		c.viewDirty = true
	}
	c.hear()
	c.learnStart(&before, after)
	c.engines.prune(after.replicas)
	c.observed = *after
	if asked != nil {
		c.asked, c.askedAt = asked, now
	}
	return fleet != ""
}

// sameHosts compares hosts but for when they were heard.
func sameHosts(a, b []mobula.Host) bool {
	return slices.EqualFunc(a, b, func(a, b mobula.Host) bool {
		a.Heard = b.Heard
		return reflect.DeepEqual(a, b)
	})
}

// ask asks the platform for all that there is, and with all for what it holds; so it does when replicas are missing.
func (c *Control) ask(ctx context.Context, fleet string, all bool, before *observation) (*observation, map[adapters.Key]adapters.Deployment, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var o observation
	var asked map[adapters.Key]adapters.Deployment
	var err error
	if fleet != "" {
		if o.replicas, err = c.o.Placer.Status(ctx, fleet); err != nil {
			return nil, nil, err
		}
		o.byModel = map[string][]mobula.Replica{}
		for _, r := range o.replicas { // sorted by ID, and so is each part
			o.byModel[r.Model] = append(o.byModel[r.Model], r)
		}
		all = all || c.missing(before, &o)
	}
	if c.hosts != nil {
		if o.hosts, err = c.hosts.Hosts(ctx); err != nil {
			return nil, nil, err
		}
	}
	if fleet == "" || !all {
		return &o, nil, nil
	}
	held, err := c.o.Placer.Deployments(ctx, fleet)
	if err != nil {
		return nil, nil, err
	}
	asked = make(map[adapters.Key]adapters.Deployment, len(held))
	for _, d := range held {
		asked[d.Key] = d
	}
	return &o, asked, nil
}

// missing tells whether a deployment has fewer replicas than it was asked to, and something has changed: somebody else may have taken it away.
func (c *Control) missing(before, after *observation) bool {
	type part struct{ model, revision string }
	live := map[part]int{}
	for i := range after.replicas {
		if r := &after.replicas[i]; r.State != mobula.StateDraining {
			live[part{r.Model, r.Revision}]++
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, d := range c.asked {
		if live[part{key.Model, key.Revision}] < d.Replicas {
			return !reflect.DeepEqual(before.replicas, after.replicas)
		}
	}
	return false
}

// stale notes that the platform can't be asked. What is known of it stays. c.mu is held.
func (c *Control) stale(now time.Time, err error) {
	c.metrics.errors.Inc()
	if c.observed.stale == "" {
		c.observed.since = now
	}
	if c.observed.stale != err.Error() {
		c.observed.stale = err.Error()
		c.notef("fleet", "PlatformUnavailable", true, "%v", err)
	}
	c.publishLocked(now)
}

// decide plans for each model and remembers the plans. It gives those that may be acted upon.
func (c *Control) decide() (decisions []decision, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	c.suspect(now)
	situations := c.situations(now)
	d := draft{models: map[string]*memory{}}
	for i := range situations {
		s := &situations[i]
		s.was = c.autoscale(s, s.was, &d)
		done := plan(s)
		done.loras, done.ask, done.mem = c.engines.lorasFor(s, done.mem)
		d.events = append(d.events, done.events...)
		if done.forget {
			d.models[s.name] = nil
			delete(c.backoff, s.name)
			delete(c.scaling, s.name)
			delete(c.startTime, s.name)
			delete(c.engines.status, s.name)
			again = true
			continue
		}
		if was, known := c.models[s.name]; !known || !reflect.DeepEqual(done.mem, was) {
			d.models[s.name], again = &done.mem, true
		}
		decisions = append(decisions, done)
	}
	if c.want.Deleted && len(situations) == 0 {
		d.want = &desired{Generation: c.want.Generation, Leaving: c.want.Leaving, Former: c.want.Former}
		d.notef("fleet", "Deleted", "nothing is left of fleet %s", c.want.name())
	}
	if len(d.models) > 0 || d.want != nil {
		c.viewDirty = true
	}
	if err := c.commit(d); err != nil {
		c.log.Error("can't remember what to do, so nothing is done", "error", err)
		c.viewDirty = true
		return nil, false
	}
	for i := range d.events {
		c.metrics.outcome(&d.events[i], strings.TrimPrefix(d.events[i].Object, "model/"))
	}
	if d.want != nil {
		c.asked, c.observed = nil, observation{hosts: c.observed.hosts}
	}
	return decisions, again
}

// suspect notes which replicas routers can't reach any more, or again. c.mu is held.
func (c *Control) suspect(now time.Time) {
	for id, l := range c.routers.loads {
		away := c.routers.unreachable(id, now)
		switch was := c.suspects[id]; {
		case !was && away >= suspectAfter:
			c.suspects[id] = true
			c.notef("replica/"+id, "ReplicaSuspect", true, "routers can't reach it: %s", cmp.Or(l.Reason, l.State))
		case was && away == 0:
			delete(c.suspects, id)
			c.notef("replica/"+id, "ReplicaBack", false, "routers reach it again")
		}
	}
	maps.DeleteFunc(c.suspects, func(id string, _ bool) bool { return c.routers.loads[id] == nil })
}

// situations gives what plans rest on, for each model that is wanted, remembered or held by the platform. c.mu is held.
func (c *Control) situations(now time.Time) []situation {
	names := map[string]bool{}
	if c.want.fleet != nil && !c.want.Deleted {
		for i := range c.want.fleet.Models {
			if c.want.fleet.Models[i].Placed() {
				names[c.want.fleet.Models[i].Name] = true
			}
		}
	}
	for name := range c.models {
		names[name] = true
	}
	asked := map[string]map[string]adapters.Deployment{}
	for key, d := range c.asked {
		names[key.Model] = true
		if asked[key.Model] == nil {
			asked[key.Model] = map[string]adapters.Deployment{}
		}
		asked[key.Model][key.Revision] = d
	}
	all := make([]situation, 0, len(names))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		mem, known := c.models[name]
		want := c.want.model(name)
		if !known {
			mem = memory{}.clone()
			if want != nil {
				mem.Range = *want.Replicas
			}
		}
		all = append(all, situation{
			now: now, fleet: c.want.name(), name: name, want: want, was: mem,
			asked: asked[name], replicas: c.observed.byModel[name], routers: c.routers, leaving: c.want.Leaving,
		})
	}
	return all
}

// act tells the platform what has been decided, some models at once.
func (c *Control) act(ctx context.Context, decisions []decision) {
	var g errgroup.Group
	g.SetLimit(parallelCalls)
	calls, away := context.WithCancel(ctx)
	defer away()
	for i := range decisions {
		d := &decisions[i]
		if len(d.sleep)+len(d.wake)+len(d.ask)+len(d.loras) > 0 {
			c.engines.begin(ctx, d)
		}
		if len(d.apply)+len(d.remove) == 0 || c.waits(d) {
			continue
		}
		g.Go(func() error {
			if errors.Is(c.tell(calls, d), adapters.ErrUnavailable) {
				away() // the others would only wait for the same
			}
			return nil
		})
	}
	_ = g.Wait() // what went wrong is noted where it did
}

// waits tells whether the model's calls have failed lately.
func (c *Control) waits(d *decision) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.o.Now().Before(c.backoff[d.name].until)
}

// tell makes one model's calls, and stops at the first that fails.
func (c *Control) tell(ctx context.Context, d *decision) error {
	for _, dep := range d.apply {
		err := c.call(ctx, func(ctx context.Context) error { return c.o.Placer.Apply(ctx, dep) })
		if c.told(dep.Key, &dep, err); err != nil {
			return err
		}
	}
	for _, key := range d.remove {
		err := c.call(ctx, func(ctx context.Context) error { return c.o.Placer.Remove(ctx, key) })
		if c.told(key, nil, err); err != nil {
			return err
		}
	}
	return nil
}

func (c *Control) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// evict stops what is left of former fleets.
func (c *Control) evict(ctx context.Context) {
	c.mu.Lock()
	former, stale := c.want.Former, c.observed.stale
	c.mu.Unlock()
	if len(former) == 0 || stale != "" {
		return
	}
	for _, fleet := range former {
		err := c.call(ctx, func(ctx context.Context) error {
			all, err := c.o.Placer.Deployments(ctx, fleet)
			for i := 0; err == nil && i < len(all); i++ {
				err = c.o.Placer.Remove(ctx, all[i].Key)
			}
			return err
		})
		if err != nil {
			c.log.Warn("can't stop what is left of a former fleet; tried again", "fleet", fleet, "error", err)
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.want
	want.Former = slices.DeleteFunc(slices.Clone(want.Former), func(f string) bool { return slices.Contains(former, f) })
	if err := c.commit(draft{want: &want}); err != nil {
		c.log.Error("can't remember that a former fleet is gone", "error", err)
	}
}

// told remembers what the platform holds now for a key; a deployment of nil was removed.
func (c *Control) told(key adapters.Key, d *adapters.Deployment, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	if err != nil {
		c.asked = nil // it may hold the one or the other: ask again
		c.metrics.errors.Inc()
		failed := c.backoff[key.Model].next(now)
		failed.why = err.Error()
		c.backoff[key.Model] = failed
		c.viewDirty = true
		if !errors.Is(err, context.Canceled) && !errors.Is(err, adapters.ErrWithdrawn) {
			c.notef("model/"+key.Model, "PlatformError", true, "revision %s: %v", key.Revision, err)
		}
		return
	}
	delete(c.backoff, key.Model)
	c.observed.at = time.Time{} // there is something new to see
	if c.asked == nil {
		return
	}
	if d == nil {
		delete(c.asked, key)
	} else {
		c.asked[key] = *d
	}
	c.wakeUp()
}

// publish makes a view when there is something new.
func (c *Control) publish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.publishLocked(c.o.Now())
}

func (c *Control) publishLocked(now time.Time) {
	if !c.viewDirty {
		return
	}
	c.viewDirty = false
	c.version++
	before := c.view
	c.view, c.settings = c.makeView(now), c.makeSettings()
	c.metrics.show(before, c.view)
	close(c.changed)
	c.changed = make(chan struct{})
}

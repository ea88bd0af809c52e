package ray

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

const (
	roundTimeout = time.Minute
	deedTimeout  = time.Minute
	restPoll     = 10 * time.Second // while there is no cluster: a change wakes Run
	jobRepeat    = 10 * time.Second // from one StopJob or DeleteJob to the next for the same job
)

// needs is what a round asks of the cluster beside its State.
type needs struct{ version, jobs, dead, serve bool }

// findings are what a round has been told.
type findings struct {
	version *Version
	jobs    []Job
	listed  bool
	logs    map[string]string
	state   *State
	dead    []Actor
	asked   bool // dead was
	serve   []mobula.Endpoint
	served  bool
	trouble []string // with Ray Serve
	err     error    // nothing else counts, then
	jobsErr error
}

// deed is one thing to tell the cluster.
type deed struct {
	link         *link
	submit       *Submission
	stop, forget string // jobs
}

// round looks at the cluster, once, and says what is to be done there and when to look again.
func (c *Cluster) round(ctx context.Context) (deeds []deed, wait time.Duration) {
	l, n, logs := c.begin()
	if l == nil {
		return nil, restPoll
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	f := gather(ctx, l, n, logs)
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return nil, 0
	}
	return c.take(l, f)
}

// begin says what this round asks for. logs are the failed jobs whose output is known.
func (c *Cluster) begin() (l *link, n needs, unread func([]Job) []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil, n, nil
	}
	v := &c.view
	v.rounds++
	n.version = v.state == nil || v.failures > 0
	n.jobs = v.listed.IsZero() || c.now().Sub(v.listed) >= jobsEvery || len(v.orders) > 0 || c.unsettled()
	n.dead, n.serve = c.wonders(), v.rival == ""
	link, owner := c.link, v.owner
	return link, n, func(jobs []Job) []string {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.link != link {
			return nil
		}
		return c.view.unread(jobs, owner)
	}
}

// wonders tells whether a replica is missing for a reason that is not known yet.
func (c *Cluster) wonders() bool {
	busy, jobs := c.view.busy(), c.view.single()
	for id, t := range c.view.tries {
		rec := c.records.replicas[id]
		if t.failed.IsZero() && !busy[id] && len(jobs[id]) == 0 && rec != nil && !rec.Leaving && !c.view.sights[id].whole(c.parts(rec)) {
			return true
		}
	}
	return false
}

// unsettled tells whether what is on the cluster differs from what is wanted, as far as is known.
func (c *Cluster) unsettled() bool {
	for _, rec := range c.records.replicas {
		at := c.view.sights[rec.ID]
		if rec.Leaving || !at.whole(c.parts(rec)) || at.group != nil && !placed(at.group) && c.astray(rec, at.group) {
			return true
		}
	}
	for _, d := range c.records.deployments {
		if d.Removed {
			return true
		}
	}
	for id, at := range c.view.sights {
		if c.records.replicas[id] == nil && at.exists() {
			return true
		}
	}
	return false
}

// parts gives the number of actors of a replica.
func (c *Cluster) parts(rec *replicaRecord) int {
	d := c.records.deployments[rec.key()]
	if d == nil || spreads(&d.Model) {
		return 1
	}
	return max(1, d.Model.Resources.Hosts)
}

// gather asks the cluster. Jobs come before the State: one that was over then has left all its traces in it.
func gather(ctx context.Context, l *link, n needs, unread func([]Job) []string) (f findings) {
	if n.version {
		v, err := l.api.Version(ctx)
		if err != nil {
			return findings{err: err}
		}
		f.version = &v
	}
	if n.jobs {
		if f.jobs, f.jobsErr = l.api.Jobs(ctx, jobPrefix(l.owner)); f.jobsErr == nil {
			f.listed, f.logs = true, map[string]string{}
			for _, id := range unread(f.jobs) {
				if log, err := l.api.JobLogs(ctx, id); ctx.Err() == nil {
					f.logs[id] = log
					if err != nil {
						f.logs[id] = "its output can't be read: " + err.Error()
					}
				}
			}
		}
	}
	if f.state, f.err = l.api.State(ctx, l.ray.Namespace); f.err != nil {
		return f
	}
	if n.dead {
		dead, err := l.api.Dead(ctx, l.ray.Namespace)
		f.dead, f.asked = dead, err == nil
	}
	if n.serve {
		serve, trouble, err := l.serving.round(ctx, l.api, l.ray.Serve)
		f.serve, f.trouble, f.served = serve, trouble, err == nil
	}
	return f
}

// take follows from what a round was told.
func (c *Cluster) take(l *link, f findings) (deeds []deed, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	poll := time.Duration(l.ray.Poll)
	if c.link != l {
		return nil, 0
	}
	defer c.tell()
	v := &c.view
	if f.err != nil {
		c.lost(f.err)
		return nil, poll
	}
	if err := c.sure(); err != nil {
		c.log.Error("cannot read the state of the Ray cluster's replicas, trying again", "error", err)
		return nil, poll
	}
	same := c.found(&f)
	var end []string
	if f.listed {
		if v.list(f.jobs, c.control, c.now()) {
			c.log.Error("another control plane uses this owner on the Ray cluster: nothing is done there until it is quiet",
				"control", v.rival, "owner", l.owner, "address", l.ray.Address)
			c.news = true
		}
		end = v.settle(c.records, c.now())
	}
	if f.listed && v.rival == "" && f.state.Partial == "" {
		if ids := adopt(c.records, v.sights, v.jobs, c.now()); len(ids) > 0 {
			c.log.Info("took up replicas that were on the Ray cluster", "replicas", len(ids))
		}
	}
	if same && !f.listed && len(c.records.marked) == 0 {
		return nil, c.wait(poll)
	}
	s := c.situation()
	c.observe()
	if s.notes(func(id string) bool { return c.statuses[id].State == mobula.StateReady },
		func(id string) (string, string, bool) { return v.why(id, f.asked) }) {
		c.observe()
	}
	c.urls()
	var drafts []draft
	var forget []string
	if v.rival == "" && f.listed {
		drafts, forget = c.decide(&s, &end)
	}
	changed := len(c.records.marked) > 0
	if err := c.commit(); err != nil {
		c.log.Error("cannot keep the state of the Ray cluster's replicas, trying again", "error", err)
		c.observe()
		return nil, poll
	}
	deeds = c.tellRay(l, drafts, end, forget)
	if changed || len(drafts) > 0 {
		c.observe()
	}
	return deeds, c.wait(poll)
}

// lost notes that the cluster could not be asked.
func (c *Cluster) lost(err error) {
	v := &c.view
	if v.failures++; v.failures == 1 || v.failures == lostAfter {
		c.log.Warn("cannot look at the Ray cluster, trying again", "address", c.link.ray.Address, "failures", v.failures, "error", err)
		c.news = true
	}
	v.err = err
}

// found takes a State and what came with it, and tells whether it is the same State as before.
func (c *Cluster) found(f *findings) (same bool) {
	v := &c.view
	if v.state == nil || v.failures > 0 {
		c.log.Info("the Ray cluster answers", "address", c.link.ray.Address, "nodes", len(f.state.Nodes))
		c.news = true
	}
	if f.jobsErr != nil {
		c.log.Warn("cannot list the jobs of the Ray cluster, trying again", "error", f.jobsErr)
	}
	v.failures, v.err = 0, nil
	if f.version != nil {
		if c.records.settings.Session != "" && c.records.settings.Session != f.version.Session {
			c.log.Warn("the Ray cluster was started anew: all replicas are started again", "session", f.version.Session)
			v.orders, v.tries, v.logs = map[string]*order{}, map[string]*try{}, map[string]string{}
		}
		v.version = *f.version
		if c.records.settings.Session != f.version.Session {
			c.records.settings.Session = f.version.Session
			c.records.saveSettings()
		}
	}
	tellApart(f.state.Nodes)
	if same = v.state != nil && sameState(v.state, f.state); same {
		v.state.At = f.state.At
	} else {
		v.state, v.sights = f.state, look(f.state, v.owner, v.sights)
		v.nodes = make(map[string]*Node, len(f.state.Nodes))
		for i := range f.state.Nodes {
			v.nodes[f.state.Nodes[i].ID] = &f.state.Nodes[i]
		}
	}
	maps.Copy(v.logs, f.logs)
	if f.asked {
		v.dead = make(map[string]*Actor, len(f.dead))
		for i := range f.dead {
			if a := &f.dead[i]; v.dead[a.Name] == nil {
				v.dead[a.Name] = a
			}
		}
	}
	if f.served {
		v.serve = f.serve
		if !slices.Equal(v.trouble, f.trouble) {
			v.trouble, c.news = f.trouble, true
		}
	}
	return same
}

// sameState compares all but the time.
func sameState(a, b *State) bool {
	return a.Partial == b.Partial && slices.Equal(a.Actors, b.Actors) &&
		slices.EqualFunc(a.Groups, b.Groups, func(a, b Group) bool {
			return a.ID == b.ID && a.Name == b.Name && a.State == b.State && a.Scheduling == b.Scheduling &&
				slices.Equal(a.Nodes, b.Nodes) && maps.Equal(a.Bundle, b.Bundle) && maps.Equal(a.Labels, b.Labels)
		}) &&
		slices.EqualFunc(a.Nodes, b.Nodes, func(a, b Node) bool {
			return a.ID == b.ID && a.IP == b.IP && a.Name == b.Name && a.Head == b.Head && a.Alive == b.Alive && a.Died == b.Died &&
				maps.Equal(a.Resources, b.Resources) && maps.Equal(a.Labels, b.Labels)
		})
}

// carry tells the cluster one thing.
func (c *Cluster) carry(ctx context.Context, d deed) {
	ctx, cancel := context.WithTimeout(ctx, deedTimeout)
	defer cancel()
	api := d.link.api
	switch {
	case d.submit != nil:
		err := api.Upload(ctx, c.pkg, c.content)
		if err == nil {
			err = api.Submit(ctx, *d.submit)
		}
		c.told(d.link, d.submit.ID, err)
	case d.stop != "":
		c.warn("cannot stop a job of the Ray cluster, trying again", d.stop, api.StopJob(ctx, d.stop))
	default:
		c.warn("cannot delete a job of the Ray cluster, trying again", d.forget, api.DeleteJob(ctx, d.forget))
	}
}

func (c *Cluster) warn(what, job string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.log.Warn(what, "job", job, "error", err) //nolint:sloglint // one of two constants
	}
}

// told notes that a job was submitted, or why not, as far as is known.
func (c *Cluster) told(l *link, job string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.view.orders[job]
	if c.link != l || o == nil {
		return
	}
	o.told = c.view.rounds
	if err != nil {
		c.log.Warn("cannot submit a job to the Ray cluster, trying again", "job", job, "error", err)
		o.refused = cmp.Or(err.Error(), "unknown")
	}
}

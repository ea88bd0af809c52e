package ray

import (
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/raycluster"
)

func (c *Cluster) situation() situation {
	v := &c.view
	return situation{
		now: c.now(), records: c.records, sights: v.sights, partial: v.state.Partial != "",
		busy: v.busy(), jobs: v.single(), parts: c.parts, tries: v.tries, astray: c.astray,
	}
}

// decide says what is to be told, and changes the records and what is known as if it were. end gets jobs to stop.
func (c *Cluster) decide(s *situation, end *[]string) (drafts []draft, forget []string) {
	v, l := &c.view, c.link
	a := plan(*s)
	for _, id := range a.gone {
		if rec := c.records.replicas[id]; rec != nil {
			c.records.drop(rec)
		}
	}
	*end = append(*end, a.end...)
	w := writer{
		ray: &l.ray, owner: l.owner, control: c.control, pkg: c.pkg, records: c.records, cordoned: c.cordonedIDs(), now: c.now(),
	}
	drafts, impossible := w.write(a.start, a.stop, ordersAtOnce-len(v.orders))
	for id, err := range impossible {
		v.tries[id] = &try{orders: 1 << 10, failed: c.now(), reason: err.Error()}
	}
	for _, d := range drafts {
		for _, id := range d.order.start {
			rec := c.records.replicas[id]
			rec.Starts++
			c.records.save(rec)
		}
	}
	if s.partial {
		return drafts, nil
	}
	forget, stale, left := dispensable(c.records, v.jobs, c.kept)
	*end = append(*end, stale...)
	for key, d := range c.records.deployments {
		if d.Removed && !left[key] && !c.hasReplicas(key) {
			c.records.dropDeployment(key)
		}
	}
	return drafts, append(forget, c.view.ghosts...)
}

// kept tells whether something may still be learned from a job.
func (c *Cluster) kept(j *Job) bool {
	_, read := c.view.logs[j.ID]
	if c.view.orders[j.ID] != nil || j.Status == "FAILED" && !read || j.Over() && c.now().Sub(c.view.over[j.ID]) < jobRest {
		return true
	}
	id := j.Metadata[metaReplica]
	rec, t := c.records.replicas[id], c.view.tries[id]
	return id != "" && rec != nil && !rec.Leaving && t != nil && t.failed.IsZero()
}

// tellRay notes what Ray is about to be told.
func (c *Cluster) tellRay(l *link, drafts []draft, end, forget []string) (deeds []deed) {
	v := &c.view
	for _, d := range drafts {
		v.orders[d.order.job] = d.order
		for _, id := range d.order.replicas() {
			if rec := c.records.replicas[id]; rec != nil && !rec.Leaving && slices.Contains(d.order.stop, id) {
				continue // it is started again at once
			}
			t := v.tries[id]
			if t == nil {
				t = &try{}
				if a := v.dead[raycluster.ActorName(v.owner, id)]; a != nil {
					t.death = a.ID
				}
				v.tries[id] = t
			}
			t.orders++
			t.failed, t.told = time.Time{}, ""
		}
		c.log.Info("tell Ray", "job", d.order.job, "what", d.submission.Metadata[metaWhat])
		deeds = append(deeds, deed{link: l, submit: &d.submission})
	}
	for _, job := range end {
		deeds = c.again(deeds, deed{link: l, stop: job})
	}
	for _, job := range forget {
		deeds = c.again(deeds, deed{link: l, forget: job})
	}
	return deeds
}

// again adds a deed unless Ray was told a short while ago.
func (c *Cluster) again(deeds []deed, d deed) []deed {
	if at, asked := c.view.asked[d]; asked && c.now().Sub(at) < jobRepeat {
		return deeds
	}
	c.view.asked[d] = c.now()
	return append(deeds, d)
}

// wait is the time to the next look: half of a poll while something moves.
func (c *Cluster) wait(poll time.Duration) time.Duration {
	if len(c.view.orders) > 0 || c.unsettled() {
		return poll / 2
	}
	for id := range c.statuses {
		if c.statuses[id].State == mobula.StateStarting {
			return poll / 2
		}
	}
	return poll
}

package ray

import (
	"cmp"
	"reflect"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// observe says anew how all replicas fare.
func (c *Cluster) observe() {
	v := &c.view
	notes := map[string]string{}
	for _, o := range v.orders {
		for _, id := range o.start {
			notes[id] = cmp.Or(o.note, "the launcher job "+o.job+" starts it")
		}
	}
	needs := map[adapters.Key]need{}
	for key, d := range c.records.deployments {
		needs[key], _ = needOf(&d.Model, d.GPUs)
	}
	a := account{cordoned: c.cordoned, byID: v.nodes}
	if v.state != nil {
		a.nodes = v.state.Nodes
	}
	if c.link != nil {
		a.namespace = c.link.ray.Namespace
	}
	all := make(map[string]mobula.Replica, len(c.records.replicas))
	now := c.now()
	for id, rec := range c.records.replicas {
		old, known := c.statuses[id]
		a.rec, a.need, a.at, a.try, a.pending = rec, needs[rec.key()], v.sights[id], v.tries[id], notes[id]
		if known && !rec.Leaving && a.pending == "" && !a.at.exists() && v.state != nil && v.state.Partial != "" {
			all[id] = old // nothing follows from what Ray did not tell
			continue
		}
		r := a.status()
		before := (*mobula.Replica)(nil)
		if known {
			before = &old
		}
		r.Since = since(&r, before, rec.Made, readyAt(a.at), now)
		all[id] = r
		c.news = c.news || !known || !reflect.DeepEqual(old, r)
	}
	c.news = c.news || len(all) != len(c.statuses)
	c.statuses = all
}

// readyAt is when a replica says it got ready, zero for never.
func readyAt(at *sight) time.Time {
	if at == nil {
		return time.Time{}
	}
	if p := at.actors[0].published(); p != nil {
		return p.Ready()
	}
	return time.Time{}
}

// urls keeps where replicas serve. One that is Suspect may serve still.
func (c *Cluster) urls() {
	for id, rec := range c.records.replicas {
		r := c.statuses[id]
		url, host := rec.URL, rec.Host
		switch {
		case rec.Leaving:
			continue
		case r.State == mobula.StateReady || r.State == mobula.StateSuspect && r.URL != "":
			url, host = r.URL, ""
			if len(r.Hosts) > 0 {
				host = r.Hosts[0]
			}
		case r.State != mobula.StateSuspect:
			url, host = "", ""
		}
		if url != rec.URL || host != rec.Host {
			rec.URL, rec.Host = url, host
			c.records.save(rec)
		}
	}
}

func (c *Cluster) hasReplicas(key adapters.Key) bool {
	for _, rec := range c.records.replicas {
		if rec.key() == key {
			return true
		}
	}
	return false
}

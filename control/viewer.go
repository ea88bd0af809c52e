package control

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
)

// Applied is one apply of the past.
type Applied struct {
	Generation int64     `json:"generation"`
	At         time.Time `json:"at"`
	Source     string    `json:"source"`
	File       []byte    `json:"file"`
}

// makeView gives all that is known. c.mu is held.
func (c *Control) makeView(now time.Time) *View {
	v := &View{
		Control: c.id, Version: c.version, Fleet: c.want.name(), Generation: c.want.Generation,
		Hosts: c.observed.hosts, Stale: c.observed.stale,
		Models: []ModelStatus{}, Routers: []RouterStatus{},
		Replicas: make([]ReplicaStatus, 0, len(c.observed.replicas)),
	}
	if v.Stale != "" {
		v.StaleSince = c.observed.since
	}
	if v.Hosts == nil {
		v.Hosts = []mobula.Host{}
	}
	for i := range c.routers.reports {
		r := &c.routers.reports[i]
		if now.Sub(r.heard) < routerForgotten {
			v.Routers = append(v.Routers, RouterStatus{Name: r.report.Router, Heard: r.heard})
		}
	}
	byModel := map[string][]ReplicaStatus{}
	for i := range c.observed.replicas {
		r := c.replicaStatus(&c.observed.replicas[i], now)
		v.Replicas = append(v.Replicas, r)
	}
	slices.SortFunc(v.Replicas, func(a, b ReplicaStatus) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.ID, b.ID))
	})
	for start := 0; start < len(v.Replicas); {
		end := start + 1
		for end < len(v.Replicas) && v.Replicas[end].Model == v.Replicas[start].Model {
			end++
		}
		byModel[v.Replicas[start].Model] = v.Replicas[start:end]
		start = end
	}
	for _, name := range c.modelNames() {
		v.Models = append(v.Models, c.modelStatus(name, byModel[name], now))
	}
	return v
}

// modelNames gives the models in the order of the fleet, those that are being removed after them.
func (c *Control) modelNames() []string {
	left := maps.Clone(c.models)
	var names []string
	if c.want.fleet != nil && !c.want.Deleted {
		for i := range c.want.fleet.Models {
			if m := &c.want.fleet.Models[i]; m.Placed() {
				if mem := c.models[m.Name]; !mem.Deleted || len(mem.Revisions) > 0 {
					names = append(names, m.Name)
				}
				delete(left, m.Name)
			}
		}
	}
	return append(names, slices.Sorted(maps.Keys(left))...)
}

// replicaStatus gives a replica with what we and the routers think of it.
func (c *Control) replicaStatus(r *mobula.Replica, now time.Time) ReplicaStatus {
	s := ReplicaStatus{Replica: *r, LoRAs: c.engines.cards[r.ID].loras}
	if l := c.routers.loads[r.ID]; l != nil && c.routers.any(now) {
		s.Load = &l.EndpointReport
	}
	m, marked := c.models[r.Model].Marks[r.ID]
	away := c.routers.unreachable(r.ID, now)
	switch {
	case marked:
		s.State, s.Since, s.Reason = mobula.StateDraining, m.Since, m.Why
		if m.Asleep {
			s.State = mobula.StateAsleep
		}
		s.Cordoned = m.Person
	case r.State == mobula.StateReady && away >= suspectAfter:
		s.State, s.Since, s.Reason = mobula.StateSuspect, now.Add(-away), strings.TrimSuffix("routers can't reach it: "+s.Load.Reason, ": ")
	}
	return s
}

// modelStatus sums a model up.
func (c *Control) modelStatus(name string, replicas []ReplicaStatus, now time.Time) ModelStatus {
	mem := c.models[name]
	s := ModelStatus{
		Name: name, Revision: mem.Target, Previous: mem.Previous, Replicas: mem.Range,
		ScaleReason: mem.ScaleReason, Scaled: mem.Scaled != nil,
		Deleted: mem.Deleted || c.want.model(name) == nil,
		Rollout: cmp.Or(mem.Phase, RolloutProgressing), Reason: mem.Reason, Since: mem.Since,
		LoRAs: c.engines.status[name], Load: c.routers.model(name, now),
	}
	if want := c.want.model(name); want != nil && !mem.Deleted {
		s.Aliases, s.Source, s.Wanted = want.Aliases, want.From(), mem.wanted()
		if mem.Target == "" || mem.Pin == "" && mem.Target != revisionOf(want, mem.Nonce) {
			// Decided, and not planned for yet: what was complete is not.
			s.Rollout, s.Reason = RolloutProgressing, "waits for the platform"
		}
	}
	if s.Scaled {
		s.ScaleReason = "by hand"
	}
	if mem.Pin == "" && mem.Good != mem.Target {
		s.Previous = mem.Good
	}
	for i := range replicas {
		r := &replicas[i]
		switch r.State {
		case mobula.StateReady:
			s.Ready++
			if r.Revision == mem.Target {
				s.Updated++
			}
		case mobula.StatePending, mobula.StateStarting:
			s.Starting++
		case mobula.StateAsleep:
			s.Asleep++
		case mobula.StateDraining:
			s.Draining++
		case mobula.StateFailed, mobula.StateSuspect:
			s.Failed++
		}
	}
	if s.Rollout == RolloutComplete && s.Ready < s.Wanted {
		s.Rollout, s.Reason = RolloutProgressing, "waits for its replicas"
	}
	if why := c.backoff[name].why; why != "" && s.Rollout == RolloutProgressing {
		s.Reason = "the platform refuses: " + why
	}
	return s
}

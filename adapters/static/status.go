package static

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
)

// endpointGap is the least time between two readings of the endpoints, for fleets in which much changes at once.
const endpointGap = 25 * time.Millisecond

// part gives what its host has told of one part of a replica in its present round; nil for nothing.
func (h *Hosts) part(r *replicaRecord, rank int) *agent.TaskStatus {
	host := h.hosts[r.Parts[rank].Host]
	if host == nil {
		return nil
	}
	if t := host.tasks[r.task(rank)]; t != nil && t.Round == r.Round && t.State != agent.TaskStopping {
		return t
	}
	return nil
}

// status says how a replica fares.
func (h *Hosts) status(r *replicaRecord) mobula.Replica {
	if r.GivenUp == nil {
		return h.observe(r)
	}
	s := r.replica(mobula.StateDraining, *r.GivenUp, "")
	s.Reason = fmt.Sprintf("given up, for a host of it is silent; %s replaces it", r.Successor)
	s.URL = r.URL
	return s
}

// replica gives what is durable of a replica, in this state.
func (r *replicaRecord) replica(state mobula.State, since time.Time, reason string) mobula.Replica {
	s := mobula.Replica{ID: r.ID, Model: r.Model, Revision: r.Revision, State: state, Since: since, Reason: reason}
	for _, p := range r.Parts {
		s.Hosts = append(s.Hosts, p.Host)
		s.Devices = append(s.Devices, strings.Join(p.Devices, ","))
	}
	return s
}

// observe says how a replica fares by what its hosts have told: as its worst part does.
func (h *Hosts) observe(r *replicaRecord) mobula.Replica {
	if len(r.Parts) == 0 {
		s := r.replica(mobula.StatePending, r.Made, cmp.Or(h.reasons[r.key()], "waits for a place"))
		s.NoRoom = true
		return s
	}
	s := r.replica(mobula.StateReady, time.Time{}, "")
	s.Restarts = r.Round
	worst := 0
	for rank := range r.Parts {
		state, since, reason := h.observePart(r, rank)
		switch severity := severity(state); {
		case severity > worst:
			worst, s.State, s.Since, s.Reason = severity, state, since, reason
		case severity == worst && since.After(s.Since):
			s.Since = since // the last part to become so
		}
		if t := h.part(r, rank); t != nil {
			s.Restarts += t.Restarts
			if rank == 0 {
				s.URL = t.URL
				s.Detail = fmt.Sprintf("pid %d", t.PID)
			}
		}
	}
	if s.State == mobula.StateSuspect {
		s.URL = cmp.Or(r.URL, s.URL)
	}
	return s
}

// severity orders states from the one in which all parts must be to the one that any part may bring.
func severity(s mobula.State) int {
	switch s {
	case mobula.StateReady:
		return 0
	case mobula.StateStarting:
		return 1
	case mobula.StatePending:
		return 2
	case mobula.StateSuspect:
		return 3
	default:
		return 4
	}
}

func (h *Hosts) observePart(r *replicaRecord, rank int) (state mobula.State, since time.Time, reason string) {
	name := r.Parts[rank].Host
	host := h.hosts[name]
	if host == nil {
		return mobula.StateSuspect, r.Made, fmt.Sprintf("host %s is not known", name)
	}
	if host.silent != "" {
		return mobula.StateSuspect, host.since, fmt.Sprintf("host %s is silent: %s", name, host.silent)
	}
	t := h.part(r, rank)
	if t == nil {
		switch {
		case host.refused != "":
			return mobula.StatePending, r.Made, fmt.Sprintf("host %s does not take its tasks: %s", name, host.refused)
		case host.state.Epoch < h.records.hosts[name].Epoch && r.Round == 0:
			return mobula.StatePending, r.Made, fmt.Sprintf("waits for host %s to take it", name)
		default:
			return mobula.StateStarting, r.Made, ""
		}
	}
	switch t.State {
	case agent.TaskReady:
		return mobula.StateReady, t.Since, ""
	case agent.TaskFailed:
		return mobula.StateFailed, t.Since, cmp.Or(t.Reason, "it has failed on host "+name)
	case agent.TaskWaiting:
		if r.Attempts >= maxRounds {
			return mobula.StateFailed, t.Since, cmp.Or(t.Reason, "its part on host "+name+" dies again and again")
		}
		return mobula.StateStarting, t.Since, cmp.Or(t.Reason, "starts again after a crash")
	default:
		return mobula.StateStarting, t.Since, t.Reason
	}
}

// leftovers are tasks of no replica: they are being stopped, or they run from before our memory was lost.
// f may be called more than once for one of several parts.
func (h *Hosts) leftovers(f func(host *host, t *agent.TaskStatus)) {
	for name, host := range h.hosts {
		for i := range host.state.Tasks {
			t := &host.state.Tasks[i]
			if r := h.records.replicas[t.Replica]; r == nil || !r.on(name) {
				f(host, t)
			}
		}
	}
}

// Status gives the replicas of a fleet.
func (h *Hosts) Status(_ context.Context, fleet string) ([]mobula.Replica, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt {
		return nil, unavailable(errDoubt)
	}
	all := make([]mobula.Replica, 0, len(h.records.replicas))
	for _, r := range h.records.replicas {
		if r.Fleet == fleet {
			all = append(all, h.status(r))
		}
	}
	stopping := map[string]bool{}
	h.leftovers(func(host *host, t *agent.TaskStatus) {
		if t.Fleet != fleet || stopping[t.Replica] || h.records.replicas[t.Replica] != nil {
			return
		}
		stopping[t.Replica] = true
		s := mobula.Replica{
			ID: t.Replica, Model: t.Model, Revision: t.Revision, State: mobula.StateDraining, Since: t.Since, Reason: "is being stopped",
			Hosts: []string{host.name}, Devices: []string{strings.Join(t.Devices, ",")}, Restarts: t.Restarts,
		}
		if !host.hold.IsZero() {
			s.Reason = "runs, although nobody has asked for it: is stopped unless somebody does"
		}
		all = append(all, s)
	})
	slices.SortFunc(all, func(a, b mobula.Replica) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// Replicas is how many there are of all fleets, those that are on their way out included.
func (h *Hosts) Replicas() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.records.replicas)
}

// Changed gives a channel that is closed at the next change of what Status tells.
func (h *Hosts) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// endpoints gives those of all replicas that serve, or that may: a host that can't be asked removes none.
// ok is false while they are not known for sure.
func (h *Hosts) endpoints() (all []mobula.Endpoint, changed <-chan struct{}, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt {
		return nil, h.changed, false
	}
	all = make([]mobula.Endpoint, 0, len(h.records.replicas))
	for _, r := range h.records.replicas {
		s := h.status(r)
		e := mobula.Endpoint{ID: r.ID, URL: s.URL, Labels: map[string]string{"model": r.Model, "revision": r.Revision}}
		switch {
		case s.URL == "":
			continue
		case r.GivenUp != nil: // it serves, for all we know, until its successor does
			next := h.records.successor(r)
			e.Draining = next == nil || h.status(next).State == mobula.StateReady
		case s.State == mobula.StateReady || s.State == mobula.StateSuspect && r.URL != "":
			e.Draining = h.records.draining(r)
		default:
			continue
		}
		if len(r.Parts) > 0 {
			e.Labels["host"] = r.Parts[0].Host
		}
		all = append(all, e)
	}
	h.leftovers(func(host *host, t *agent.TaskStatus) {
		if !host.hold.IsZero() && t.State == agent.TaskReady && t.URL != "" {
			all = append(all, mobula.Endpoint{
				ID: t.Replica, URL: t.URL, Labels: map[string]string{"model": t.Model, "revision": t.Revision, "host": host.name},
			})
		}
	})
	slices.SortFunc(all, func(a, b mobula.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return all, h.changed, true
}

// Discoverer gives the endpoints of the replicas. It works while Run does, and tells the last known state before.
func (h *Hosts) Discoverer() adapters.Discoverer { return discoverer{h} }

type discoverer struct{ hosts *Hosts }

// Run sends the endpoints, and again when they change. Any number of Runs may go on at once.
func (d discoverer) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	var last []mobula.Endpoint
	for first := true; ; {
		endpoints, changed, ok := d.hosts.endpoints()
		if ok && (first || !slices.EqualFunc(endpoints, last, sameEndpoint)) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed: // nobody took this state yet: send the newer one
				continue
			case up <- endpoints:
				first, last = false, slices.Clone(endpoints)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
		pause(ctx, endpointGap)
	}
}

// sameEndpoint compares what of an endpoint can change here.
func sameEndpoint(a, b mobula.Endpoint) bool {
	return a.ID == b.ID && a.URL == b.URL && a.Draining == b.Draining && a.Labels["host"] == b.Labels["host"]
}

var _ adapters.Discoverer = discoverer{}

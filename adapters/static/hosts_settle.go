package static

import (
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
)

// Rounds of an engine of several parts: how many it gets to become ready, and the pause between two.
const (
	maxRounds     = 5
	firstRoundGap = time.Second
	lastRoundGap  = time.Minute
)

// settle draws the conclusions from what a host has told.
func (h *Hosts) settle(name string, client AgentClient) {
	host := h.hosts[name]
	if host == nil || host.client != client {
		return
	}
	rec := h.records.hosts[name]
	if host.state.Epoch > rec.Epoch && host.hold.IsZero() {
		// It was told things that we don't remember: our memory is lost.
		host.hold = h.now().Add(h.timeout)
	}
	if !host.hold.IsZero() {
		h.adopt()
	}
	for _, r := range h.records.on[name] {
		if r.GivenUp != nil {
			h.comeBack(r)
			continue
		}
		h.nextRound(r)
		h.keepURL(r)
	}
	host.signal()
}

// keepURL keeps where a replica serves, for the time when its host can't be asked.
func (h *Hosts) keepURL(r *replicaRecord) {
	switch status := h.status(r); {
	case status.State == mobula.StateSuspect:
	case status.URL != r.URL:
		r.URL = status.URL
		h.records.save(r, false)
	}
}

// comeBack decides on a replica that was given up once all of its hosts answer: when it serves and its
// successor doesn't, it stays and the successor goes; else it goes. So nothing runs twice, and nothing
// that serves is stopped for something that doesn't.
func (h *Hosts) comeBack(r *replicaRecord) {
	if slices.ContainsFunc(r.Parts, func(p part) bool { return h.hosts[p.Host] == nil || h.hosts[p.Host].silent != "" }) {
		return
	}
	successor, status := h.records.successor(r), h.observe(r)
	if successor == nil || status.State != mobula.StateReady || h.status(successor).State == mobula.StateReady {
		h.log.Info("replica that was given up is stopped", "replica", r.ID, "successor", r.Successor)
		h.records.remove(r)
		h.roomy = true
		return
	}
	h.log.Info("replica that was given up is back", "replica", r.ID, "successor", successor.ID)
	r.GivenUp, r.Successor, r.URL = nil, "", status.URL
	h.records.save(r, true)
	h.records.remove(successor)
	h.roomy = true
}

// nextRound starts all parts of an engine again when one has died.
func (h *Hosts) nextRound(r *replicaRecord) {
	if len(r.Parts) < 2 {
		return
	}
	died, ready := false, true
	for rank := range r.Parts {
		t := h.part(r, rank)
		died = died || t != nil && t.State == agent.TaskWaiting
		ready = ready && t != nil && t.State == agent.TaskReady
	}
	now := h.now()
	switch {
	case ready && r.Attempts > 0:
		r.Attempts = 0
		h.records.save(r, false)
	case died && r.Attempts < maxRounds && now.Sub(r.RoundAt) >= min(firstRoundGap<<r.Attempts, lastRoundGap):
		r.Round, r.Attempts, r.RoundAt = r.Round+1, r.Attempts+1, now
		h.records.save(r, true)
	}
}

// adopt takes running tasks that we don't remember for replicas that are asked for and don't serve.
func (h *Hosts) adopt() {
	for name, host := range h.hosts {
		if host.hold.IsZero() || host.silent != "" {
			continue
		}
		strangers := false
		for i := range host.state.Tasks {
			t := &host.state.Tasks[i]
			known := h.records.replicas[t.Replica]
			if known == nil || !known.on(name) {
				strangers = !h.adoptTask(name, t) || strangers
			}
		}
		if !strangers {
			h.release(host)
		}
	}
}

func (h *Hosts) adoptTask(name string, t *agent.TaskStatus) bool {
	key := adapters.Key{Fleet: t.Fleet, Model: t.Model, Revision: t.Revision}
	if t.ID != t.Replica || t.State != agent.TaskReady && t.State != agent.TaskStarting || h.records.replicas[t.ID] != nil {
		return false
	}
	var instead *replicaRecord
	for _, r := range h.records.wanted(key) {
		waits := len(r.Parts) == 0
		if (waits || h.status(r).State != mobula.StateReady && !h.held(r)) && (instead == nil || waits) {
			instead = r
		}
	}
	if instead == nil {
		return false
	}
	h.log.Info("running replica is adopted", "replica", t.ID, "host", name)
	adopted := &replicaRecord{
		ID: t.ID, Fleet: t.Fleet, Model: t.Model, Revision: t.Revision, Born: instead.Born, Made: t.Since,
		Parts: []part{{Host: name, Devices: slices.Clone(t.Devices)}},
	}
	h.records.remove(instead)
	h.records.save(adopted, false)
	return true
}

// held tells whether a replica is on a host that we hold.
func (h *Hosts) held(r *replicaRecord) bool {
	return slices.ContainsFunc(r.Parts, func(p part) bool { return h.hosts[p.Host] != nil && !h.hosts[p.Host].hold.IsZero() })
}

// release lets a host be told again; tasks that nobody has asked for are stopped by that.
func (h *Hosts) release(host *host) {
	host.hold = time.Time{}
	rec := h.records.hosts[host.name]
	rec.Epoch = max(rec.Epoch, host.state.Epoch)
	delete(h.records.touched, host.name)
	h.records.touch(host.name)
	h.roomy = true
}

// tick does what is due by the clock: hosts are given up, held ones are released, engines of several parts
// are started again.
func (h *Hosts) tick() error {
	now := h.now()
	answers := false
	for _, host := range h.hosts {
		if !host.hold.IsZero() && host.silent == "" && now.After(host.hold) {
			h.log.Warn("tasks that nobody has asked for are stopped", "host", host.name)
			h.release(host)
		}
		answers = answers || host.silent == ""
	}
	for name, host := range h.hosts {
		// When no host answers it is probably us who are cut off.
		if answers && host.silent != "" && now.Sub(host.since) >= h.timeout {
			h.giveUp(name)
		}
	}
	for _, r := range h.records.replicas {
		if len(r.Parts) > 1 && r.GivenUp == nil {
			h.nextRound(r)
		}
	}
	return nil
}

// giveUp replaces what runs on a host that is silent for too long.
func (h *Hosts) giveUp(name string) {
	for _, r := range h.records.on[name] {
		if r.GivenUp == nil {
			h.log.Warn("replica is given up, its host is silent", "replica", r.ID, "host", name)
			r.GivenUp, r.Successor = new(h.now()), h.newReplica(r.key()).ID
			h.records.save(r, true)
		}
	}
}

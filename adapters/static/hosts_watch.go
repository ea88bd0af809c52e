package static

import (
	"cmp"
	"context"
	"fmt"
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

// watch asks a host for its state, again and again.
func (h *Hosts) watch(ctx context.Context, name string, client AgentClient) {
	after, instance, retry := int64(0), "", firstRetry
	for ctx.Err() == nil {
		wait := h.poll()
		s, err := ask(ctx, client, after, wait)
		if err == nil && s.Name != "" && s.Name != name {
			err = fmt.Errorf("the agent there is that of host %s", s.Name)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			h.fellSilent(name, client, err)
			after = 0 // at once, when it is back
			pause(ctx, retry)
			retry = min(2*retry, lastRetry)
			continue
		case s.Instance != instance && after > 0:
			after = 0 // another start of the agent: what it counts has begun anew
		default:
			after = s.Seq
		}
		instance, retry = s.Instance, firstRetry
		h.heard(name, client, s)
	}
}

func ask(ctx context.Context, client AgentClient, after int64, wait time.Duration) (agent.State, error) {
	if after == 0 {
		wait = 0
	}
	ctx, cancel := context.WithTimeout(ctx, wait+pollSlack)
	defer cancel()
	return client.State(ctx, after, wait)
}

// poll gives the wait of a long poll: a silent host should be noticed well before it is given up.
func (h *Hosts) poll() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return min(max(h.timeout/4, shortestPoll), longestPoll)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// teller sends a host its Wish whenever it has not taken the last one. Wishes that come while one
// is under way become one.
func (h *Hosts) teller(ctx context.Context, name string, client AgentClient, tell <-chan struct{}) {
	for retry := firstRetry; ; {
		select {
		case <-ctx.Done():
			return
		case <-tell:
		}
		for {
			wish, due := h.wish(name, client)
			if !due {
				break
			}
			if err := h.tell(ctx, name, client, wish); err == nil {
				retry = firstRetry
				continue
			}
			pause(ctx, retry)
			retry = min(2*retry, lastRetry)
			if ctx.Err() != nil {
				return
			}
		}
	}
}

func (h *Hosts) tell(ctx context.Context, name string, client AgentClient, wish agent.Wish) error {
	select {
	case h.tells <- struct{}{}:
		defer func() { <-h.tells }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	s, err := client.Tell(ctx, wish)
	if err == nil && s.Epoch < wish.Epoch {
		err = fmt.Errorf("the agent took epoch %d, not %d", s.Epoch, wish.Epoch)
	}
	if err != nil {
		h.refused(name, client, err)
		return err
	}
	h.heard(name, client, s)
	return nil
}

// wish gives all that a host is to run; false when it knows already, or must not be told now.
func (h *Hosts) wish(name string, client AgentClient) (agent.Wish, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	host, rec := h.hosts[name], h.records.hosts[name]
	if h.doubt || host == nil || host.client != client || !host.contact || host.silent != "" || !host.hold.IsZero() || host.state.Epoch >= rec.Epoch {
		return agent.Wish{}, false
	}
	w := agent.Wish{Control: h.control, Epoch: rec.Epoch, Tasks: []agent.Task{}}
	for _, r := range h.records.on[name] {
		if r.GivenUp != nil {
			continue
		}
		for rank, p := range r.Parts {
			if p.Host == name {
				w.Tasks = append(w.Tasks, h.task(r, rank))
			}
		}
	}
	slices.SortFunc(w.Tasks, func(a, b agent.Task) int { return cmp.Compare(a.ID, b.ID) })
	return w, true
}

func (h *Hosts) task(r *replicaRecord, rank int) agent.Task {
	t := agent.Task{
		ID: r.task(rank), Replica: r.ID, Fleet: r.Fleet, Model: *h.records.model(r), Revision: r.Revision,
		Devices: r.Parts[rank].Devices, Draining: h.records.draining(r),
	}
	if len(r.Parts) > 1 {
		t.Rank, t.Parts, t.Master, t.MasterPort, t.Round = rank, len(r.Parts), r.Master, r.MasterPort, r.Round
	}
	return t
}

// refused remembers why a host did not take its Wish.
func (h *Hosts) refused(name string, client AgentClient, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	host := h.hosts[name]
	if host == nil || host.client != client || host.refused == err.Error() {
		return
	}
	host.refused = err.Error()
	h.log.Warn("Host did not take its tasks, trying again", "host", name, "error", err)
	h.news = true
	h.tellNews()
}

// fellSilent notes that a host does not answer. Its replicas are Suspect from now on.
func (h *Hosts) fellSilent(name string, client AgentClient, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	host := h.hosts[name]
	if host == nil || host.client != client || host.contact && host.silent != "" || host.silent == err.Error() {
		return
	}
	if host.contact {
		host.since = h.now()
		h.log.Warn("Host is silent", "host", name, "error", err)
	}
	host.silent = err.Error()
	h.news = true
	h.tellNews()
}

// heard takes the state that a host has told.
func (h *Hosts) heard(name string, client AgentClient, s agent.State) {
	h.mu.Lock()
	host := h.hosts[name]
	if host == nil || host.client != client {
		h.mu.Unlock()
		return
	}
	host.heard = h.now()
	if host.older(&s) {
		h.mu.Unlock()
		return
	}
	back := !host.contact || host.silent != ""
	if back {
		h.log.Info("Host answers", "host", name, "address", host.address, "devices", len(s.Devices), "slots", s.Slots)
	}
	h.clock(host, s.Clock)
	tasks := !back && sameTasks(&host.state, &s)
	room := !back && sameRoom(&host.state, &s)
	host.take(s)
	host.contact, host.silent = true, ""
	if s.Epoch >= h.records.hosts[name].Epoch {
		host.refused = ""
	}
	h.roomy = h.roomy || !room
	h.news = h.news || !tasks || !room
	h.mu.Unlock()
	if tasks && room {
		return
	}
	if err := h.do(func() error { h.settle(name, client); return nil }); err != nil {
		h.log.Error("Cannot keep the state of a host, trying again", "host", name, "error", err)
	}
}

// clock warns, once, of an agent whose clock is far from ours.
func (h *Hosts) clock(host *host, theirs time.Time) {
	off := h.now().Sub(theirs).Abs()
	if skewed := !theirs.IsZero() && off > clockSkew; skewed != host.skewed {
		host.skewed = skewed
		if skewed {
			h.log.Warn("Clock of a host is off", "host", host.name, "off", off.Round(time.Second).String())
		}
	}
}

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
		h.log.Info("Replica that was given up is stopped", "replica", r.ID, "successor", r.Successor)
		h.records.remove(r)
		h.roomy = true
		return
	}
	h.log.Info("Replica that was given up is back", "replica", r.ID, "successor", successor.ID)
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
	h.log.Info("Running replica is adopted", "replica", t.ID, "host", name)
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
			h.log.Warn("Tasks that nobody has asked for are stopped", "host", host.name)
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
			h.log.Warn("Replica is given up, its host is silent", "replica", r.ID, "host", name)
			r.GivenUp, r.Successor = new(h.now()), h.newReplica(r.key()).ID
			h.records.save(r, true)
		}
	}
}

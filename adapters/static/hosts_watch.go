package static

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mobula-serve/mobula/agent"
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
	h.log.Warn("host did not take its tasks, trying again", "host", name, "error", err)
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
		h.log.Warn("host is silent", "host", name, "error", err)
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
		h.log.Info("host answers", "host", name, "address", host.address, "devices", len(s.Devices), "slots", s.Slots)
	}
	h.clock(host, s.Clock)
	told := back || !sameTasks(&host.state, &s)
	room := back || roomier(&host.state, &s)
	host.take(s)
	host.contact, host.silent = true, ""
	if s.Epoch >= h.records.hosts[name].Epoch {
		host.refused = ""
	}
	h.roomy = h.roomy || room
	h.news = h.news || told || room
	h.mu.Unlock()
	if !told && !room {
		return
	}
	if err := h.do(func() error { h.settle(name, client); return nil }); err != nil {
		h.log.Error("cannot keep the state of a host, trying again", "host", name, "error", err)
	}
}

// clock warns, once, of an agent whose clock is far from ours.
func (h *Hosts) clock(host *host, theirs time.Time) {
	off := h.now().Sub(theirs).Abs()
	if skewed := !theirs.IsZero() && off > clockSkew; skewed != host.skewed {
		host.skewed = skewed
		if skewed {
			h.log.Warn("clock of a host is off", "host", host.name, "off", off.Round(time.Second).String())
		}
	}
}

package static

import (
	"context"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
)

// Bounds on the talk with an agent.
const (
	longestPoll  = 20 * time.Second
	shortestPoll = 100 * time.Millisecond
	pollSlack    = 5 * time.Second // for the answer of a long poll, after its wait
	tellTimeout  = 20 * time.Second
	firstRetry   = 100 * time.Millisecond
	lastRetry    = 2 * time.Second
	clockSkew    = 5 * time.Minute // beyond which an agent's clock is warned of
)

// host is what is known of a host, beside its record. Hosts.mu guards it.
type host struct {
	name, address string
	client        AgentClient
	cancel        context.CancelFunc // ends its goroutines
	tell          chan struct{}      // signals that its Wish may have changed

	contact bool // it has answered, since we started
	state   agent.State
	tasks   map[string]*agent.TaskStatus // of state, by ID
	heard   time.Time
	// silent says why it is thought to be away, and since when.
	silent string
	since  time.Time
	// hold is until when we tell it nothing, for it runs tasks that we know nothing about; zero for no reason to.
	hold time.Time
	// refused is why it did not take its last Wish.
	refused string
	skewed  bool // its clock has been warned of
}

func newHost(name, address string, client AgentClient, now time.Time) *host {
	return &host{
		name: name, address: address, client: client, cancel: func() {}, tell: make(chan struct{}, 1),
		silent: "has not answered yet", since: now,
	}
}

func (h *host) signal() {
	select {
	case h.tell <- struct{}{}:
	default:
	}
}

// take sets its state.
func (h *host) take(s agent.State) {
	h.state = s
	h.tasks = make(map[string]*agent.TaskStatus, len(s.Tasks))
	for i := range s.Tasks {
		h.tasks[s.Tasks[i].ID] = &h.state.Tasks[i]
	}
}

// node gives the host to the scheduler, with nothing taken.
func (h *host) node() *node {
	n := &node{
		name: h.name, address: h.address, labels: h.state.Labels, slots: h.state.Slots,
		gpus: make([]gpu, len(h.state.Devices)), replicas: map[modelKey]int{}, masters: map[int]bool{},
	}
	if address, _, err := net.SplitHostPort(h.address); err == nil {
		n.address = address
	}
	for i, d := range h.state.Devices {
		n.gpus[i] = gpu{id: d.ID, group: d.Group, memory: d.Memory, ill: d.Unhealthy != ""}
	}
	return n
}

// older tells whether s was made before what is known already.
func (h *host) older(s *agent.State) bool {
	return h.contact && s.Instance == h.state.Instance && (s.Seq < h.state.Seq || s.Epoch < h.state.Epoch)
}

// sameTasks tells whether two states of a host say the same of its tasks.
func sameTasks(a, b *agent.State) bool {
	return a.Epoch == b.Epoch && slices.EqualFunc(a.Tasks, b.Tasks, func(x, y agent.TaskStatus) bool {
		return x.ID == y.ID && x.State == y.State && x.Round == y.Round && x.Reason == y.Reason && x.URL == y.URL &&
			x.Restarts == y.Restarts && x.PID == y.PID && x.Since.Equal(y.Since)
	})
}

// roomier tells whether after may offer room that before did not.
func roomier(before, after *agent.State) bool {
	stay := make(map[string]bool, len(after.Tasks))
	for i := range after.Tasks {
		stay[after.Tasks[i].ID] = true
	}
	return before.Slots != after.Slots || !maps.Equal(before.Labels, after.Labels) ||
		slices.ContainsFunc(before.Tasks, func(t agent.TaskStatus) bool { return !stay[t.ID] }) ||
		!slices.EqualFunc(before.Devices, after.Devices, func(x, y mobula.Device) bool {
			return x.ID == y.ID && x.Memory == y.Memory && x.Group == y.Group && x.Unhealthy == y.Unhealthy
		})
}

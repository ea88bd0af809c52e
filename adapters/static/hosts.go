package static

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/state"
)

const (
	defaultHostTimeout = time.Minute
	tellsAtOnce        = 64 // over all hosts
	maxHosts           = 10_000
	idLetters          = 5 // of a replica's ID, to make it unique
)

// AgentClient speaks to the agent of one host. Its errors are those of the connection, and what the
// agent answered.
type AgentClient interface {
	// Tell says what the host is to run and gives its state after it has made that durable.
	Tell(ctx context.Context, w agent.Wish) (agent.State, error)
	// State gives the host's state: at once when its Seq is beyond after, else after the wait.
	State(ctx context.Context, after int64, wait time.Duration) (agent.State, error)
	// Logs reads what a task has printed.
	Logs(ctx context.Context, task string, tail int, follow bool) (io.ReadCloser, error)
	// Fetch brings source to the host and gives its path there.
	Fetch(ctx context.Context, source string) (string, error)
}

// HostsOptions set up Hosts.
type HostsOptions struct {
	// Store keeps hosts, deployments and where replicas are placed. Required.
	Store state.Store
	// Control names the control plane to agents. Required.
	Control string
	// Dial makes a client for the agent of a host; it does not connect. A client with a method Close() is
	// closed when it is needed no more. Required.
	Dial func(host, address string) AgentClient
	// HostTimeout gives up a host that is silent for so long. Default 1m.
	HostTimeout time.Duration
	// Allowed are the names of the hosts that may get replicas; * stands for any part of a name. Default: all.
	Allowed []string
	// Logger is slog.DiscardHandler's by default.
	Logger *slog.Logger
	// Now is the clock, time.Now by default.
	Now func() time.Time
}

// Hosts places replicas on hosts that have joined, and has their agents run them. What is asked for
// and what is placed where is in the store before an agent hears of it, so that a control plane that is
// killed goes on where it was.
type Hosts struct {
	store   state.Store
	control string
	dial    func(host, address string) AgentClient
	log     *slog.Logger
	now     func() time.Time
	tells   chan struct{} // holds a token for each Tell under way

	mu      sync.Mutex
	timeout time.Duration
	allowed []string
	records *records
	// doubt is set when a write has failed: records are not what is stored until they have been read again.
	doubt   bool
	hosts   map[string]*host        // what is known of each of records.hosts
	reasons map[adapters.Key]string // why replicas have no place
	roomy   bool                    // there may be room that was not there before
	news    bool                    // Status has something new to tell
	changed chan struct{}           // closed when it does
	spawn   func(*host)             // starts a host's goroutines; nil while Run is not under way
}

// NewHosts reads the store. Nothing is asked or told to a host before Run.
func NewHosts(o HostsOptions) (*Hosts, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	h := &Hosts{
		store: o.Store, control: o.Control, dial: o.Dial, log: o.Logger, now: o.Now, tells: make(chan struct{}, tellsAtOnce),
		timeout: cmp.Or(o.HostTimeout, defaultHostTimeout), allowed: slices.Clone(o.Allowed),
		hosts: map[string]*host{}, reasons: map[adapters.Key]string{}, changed: make(chan struct{}),
	}
	if err := h.reload(); err != nil {
		return nil, err
	}
	return h, nil
}

// Update takes the hosts that may be used and the time after which one is given up from s. Replicas stay where they are.
func (h *Hosts) Update(s mobula.Static) error {
	return h.do(func() error {
		h.allowed = slices.Clone(s.Hosts)
		h.timeout = cmp.Or(time.Duration(s.HostTimeout), defaultHostTimeout)
		h.roomy = true
		return nil
	})
}

// Run keeps in touch with the hosts until ctx ends, and then returns its error. Engines run on.
func (h *Hosts) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	h.mu.Lock()
	h.spawn = func(host *host) {
		ctx, cancel := context.WithCancel(ctx)
		host.cancel = cancel
		client := host.client
		wg.Go(func() { h.watch(ctx, host.name, client) })
		wg.Go(func() { h.teller(ctx, host.name, client, host.tell) })
		if c, ok := client.(interface{ Close() }); ok {
			wg.Go(func() {
				<-ctx.Done()
				c.Close() // its calls have ended with ctx
			})
		}
	}
	for _, host := range h.hosts {
		h.spawn(host)
		host.signal()
	}
	h.mu.Unlock()

	h.tickUntil(ctx)

	h.mu.Lock()
	h.spawn = nil
	for _, host := range h.hosts {
		host.cancel()
	}
	h.mu.Unlock()
	wg.Wait()
	return ctx.Err()
}

// tickUntil does what time asks for until ctx ends.
func (h *Hosts) tickUntil(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(h.tickEvery()):
		}
		if err := h.do(h.tick); err != nil {
			h.log.Error("cannot keep the state of the hosts, trying again", "error", err)
		}
	}
}

func (h *Hosts) tickEvery() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return min(max(h.timeout/10, 20*time.Millisecond), time.Second)
}

// do has f change the records, places what has no place, and makes all of it durable before hosts hear
// of it. When f fails it must not have changed anything.
func (h *Hosts) do(f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt {
		if err := h.reload(); err != nil {
			return unavailable(err)
		}
	}
	if err := f(); err != nil {
		return err
	}
	h.place()
	if len(h.records.marked) > 0 {
		h.news = true
	}
	touched, err := h.records.flush(h.store)
	if err != nil {
		h.doubt = true
		if h.reload() == nil {
			h.tellNews()
		}
		return unavailable(err)
	}
	for _, name := range touched {
		if host := h.hosts[name]; host != nil {
			host.signal()
		}
	}
	h.tellNews()
	return nil
}

// tellNews wakes those who wait for changes.
func (h *Hosts) tellNews() {
	if h.news {
		h.news = false
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

// reload takes the records from the store, and keeps what is known of the hosts.
func (h *Hosts) reload() error {
	r, err := load(h.store)
	if err != nil {
		return err
	}
	h.records, h.doubt, h.roomy, h.news = r, false, true, true
	for name, host := range h.hosts {
		if rec := r.hosts[name]; rec == nil || rec.Address != host.address {
			h.drop(host)
		}
		host.signal()
	}
	for name, rec := range r.hosts {
		if h.hosts[name] == nil {
			h.add(name, rec.Address)
		}
	}
	return nil
}

// add begins to look after a host.
func (h *Hosts) add(name, address string) {
	host := newHost(name, address, h.dial(name, address), h.now())
	h.hosts[name] = host
	if h.spawn != nil {
		h.spawn(host)
	}
}

// drop ends it.
func (h *Hosts) drop(host *host) {
	host.cancel()
	delete(h.hosts, host.name)
}

// place finds room for replicas that have none.
func (h *Hosts) place() {
	if !h.roomy || len(h.records.waiting) == 0 {
		return
	}
	h.roomy = false
	wants := make([]want, 0, len(h.records.waiting))
	for id, rec := range h.records.waiting {
		wants = append(wants, want{id: id, born: rec.Born, key: rec.key(), model: h.records.model(rec)})
	}
	places, reasons := schedule(h.nodes(false), wants)
	if !maps.Equal(reasons, h.reasons) {
		h.reasons, h.news = reasons, true
	}
	for _, p := range places {
		rec := h.records.replicas[p.id]
		rec.Parts, rec.Master, rec.MasterPort = p.parts, p.master, p.masterPort
		h.records.save(rec, true)
	}
}

// nodes gives the allowed hosts for the scheduler: with what is free of them, or as if they were empty, well
// and open, and then only those that have told what they have.
func (h *Hosts) nodes(empty bool) []*node {
	nodes := make([]*node, 0, len(h.hosts))
	for name, host := range h.hosts {
		if !h.allows(name) || empty && !host.contact {
			continue
		}
		n := host.node()
		if !empty {
			n.closed = h.closedFor(host)
			h.occupy(n, host)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func (h *Hosts) closedFor(host *host) string {
	switch {
	case h.records.hosts[host.name].Cordoned:
		return "is cordoned"
	case !host.contact:
		return "has not answered yet"
	case host.silent != "":
		return "is silent"
	case !host.hold.IsZero():
		return "runs engines that nobody asked for yet"
	default:
		return ""
	}
}

// occupy takes from n what replicas have and what tasks still use, those that are being stopped too.
func (h *Hosts) occupy(n *node, host *host) {
	taken := map[string]bool{}
	for _, rec := range h.records.on[n.name] {
		if rec.GivenUp != nil {
			continue
		}
		for rank, p := range rec.Parts {
			if p.Host != n.name {
				continue
			}
			taken[rec.task(rank)] = true
			n.occupy(p.Devices)
			if rank == 0 {
				n.replicas[modelKey{rec.Fleet, rec.Model}]++
				if rec.MasterPort > 0 {
					n.masters[rec.MasterPort] = true
				}
			}
		}
	}
	for i := range host.state.Tasks {
		if t := &host.state.Tasks[i]; !taken[t.ID] {
			n.occupy(t.Devices)
		}
	}
}

// occupy takes devices, or a slot for none.
func (n *node) occupy(devices []string) {
	if len(devices) == 0 {
		n.slots--
	}
	for i := range n.gpus {
		if slices.Contains(devices, n.gpus[i].id) {
			n.gpus[i].taken = true
		}
	}
}

func (h *Hosts) allows(name string) bool {
	return len(h.allowed) == 0 || slices.ContainsFunc(h.allowed, func(pattern string) bool { return matches(pattern, name) })
}

// matches tells whether name is pattern, in which * stands for any part.
func matches(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	first, last := parts[0], parts[len(parts)-1]
	if len(parts) == 1 {
		return pattern == name
	}
	if len(name) < len(first)+len(last) || !strings.HasPrefix(name, first) || !strings.HasSuffix(name, last) {
		return false
	}
	name = name[len(first) : len(name)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return true
}

// newID makes an ID that no replica has.
func (h *Hosts) newID(key adapters.Key) string {
	for {
		id := adapters.ReplicaID(key.Model, key.Revision, strings.ToLower(rand.Text()[:idLetters]))
		if h.records.replicas[id] == nil {
			return id
		}
	}
}

// newReplica adds a replica without a place to a deployment.
func (h *Hosts) newReplica(key adapters.Key) *replicaRecord {
	rec := &replicaRecord{
		ID: h.newID(key), Fleet: key.Fleet, Model: key.Model, Revision: key.Revision,
		Born: h.records.next, Made: h.now(),
	}
	h.records.save(rec, false)
	h.roomy = true
	return rec
}

func unavailable(err error) error {
	return fmt.Errorf("%w: the control plane's state: %w", adapters.ErrUnavailable, err)
}

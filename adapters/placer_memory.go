package adapters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
)

// InMemoryPlacer is a Placer without a platform: its replicas start, get ready, fail and crash when the
// caller says so, or get ready at once (Auto). It is a Configurer, Watcher, Hosts, Checker, Fetcher and Discoverer too.
// It begins with the hosts host-1 and host-2 of 8 GPUs each, of which it only keeps the names: how many
// replicas fit is set by Room. An engine of more GPUs than its hosts have is impossible.
type InMemoryPlacer struct {
	now       func() time.Time
	endpoints *InMemory

	mu          sync.Mutex
	changed     chan struct{} // closed at each change
	down        bool
	refusal     error // of Configure
	section     memorySection
	configures  int
	auto        bool
	room        int // replicas that may be placed; negative for no bound
	made        int // replicas so far, which makes IDs unique
	placed      int
	applies     int
	hosts       map[string]*memoryHost
	deployments map[Key]*memoryDeployment
	replicas    map[string]*memoryReplica
	pending     []*memoryReplica // oldest first; ones that are gone are skipped
}

// memorySection is what Configure was told last.
type memorySection struct {
	fleet    string
	platform mobula.Platform
}

type memoryHost struct {
	mobula.Host
	replicas int
}

type memoryDeployment struct {
	Deployment
	replicas []*memoryReplica // oldest first
}

type memoryReplica struct {
	mobula.Replica
	fleet    string
	draining bool
	moved    bool
	gone     bool
}

// NewInMemoryPlacer makes a platform without deployments. now is its clock, time.Now for nil.
func NewInMemoryPlacer(now func() time.Time) *InMemoryPlacer {
	if now == nil {
		now = time.Now
	}
	p := &InMemoryPlacer{
		now: now, endpoints: NewInMemory(), changed: make(chan struct{}), room: -1,
		deployments: map[Key]*memoryDeployment{}, replicas: map[string]*memoryReplica{},
	}
	p.SetHosts(memoryHosts()...)
	return p
}

func memoryHosts() []mobula.Host {
	hosts := make([]mobula.Host, 2)
	for i := range hosts {
		hosts[i] = mobula.Host{Name: fmt.Sprintf("host-%d", i+1), Slots: 8}
		for d := range 8 {
			hosts[i].Devices = append(hosts[i].Devices, mobula.Device{ID: strconv.Itoa(d), Name: "GPU", Memory: 80e9})
		}
	}
	return hosts
}

// SetHosts replaces the hosts. Call it before the first Apply.
func (p *InMemoryPlacer) SetHosts(hosts ...mobula.Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts = make(map[string]*memoryHost, len(hosts))
	for _, h := range hosts {
		p.hosts[h.Name] = &memoryHost{Host: h}
	}
	p.change()
}

// Auto has replicas that are placed get ready at once, those that start now too.
func (p *InMemoryPlacer) Auto(on bool) {
	p.set(func() { p.auto = on })
}

// Room bounds how many replicas may be placed at once, a negative number does not. Those that are placed stay.
func (p *InMemoryPlacer) Room(replicas int) {
	p.set(func() { p.room = replicas })
}

// Down makes the platform unavailable, or available again. Its endpoints stay.
func (p *InMemoryPlacer) Down(down bool) {
	p.set(func() { p.down = down })
}

// Refuse has Configure fail with err, nil for none.
func (p *InMemoryPlacer) Refuse(err error) {
	p.set(func() { p.refusal = err })
}

// Configured gives the section that is in use, and how many times Configure was called so far.
func (p *InMemoryPlacer) Configured() (fleet string, section mobula.Platform, calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.section.fleet, p.section.platform, p.configures
}

func (p *InMemoryPlacer) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.change()
}

// Ready has replicas serve. Unknown ones are passed over, here and below.
func (p *InMemoryPlacer) Ready(ids ...string) {
	p.each(ids, func(r *memoryReplica) { p.ready(r) })
}

// Fail has a replica be Failed for a reason.
func (p *InMemoryPlacer) Fail(id, reason string) {
	p.each([]string{id}, func(r *memoryReplica) { p.state(r, mobula.StateFailed, reason) })
}

// Suspect has a replica's host fall silent, for a reason. Its endpoint stays; Ready brings it back.
func (p *InMemoryPlacer) Suspect(id, reason string) {
	p.each([]string{id}, func(r *memoryReplica) { p.state(r, mobula.StateSuspect, reason) })
}

// Crash has a replica's process die and start again.
func (p *InMemoryPlacer) Crash(id string) {
	p.each([]string{id}, func(r *memoryReplica) {
		r.Restarts++
		p.state(r, mobula.StateStarting, "starts again after a crash")
		if p.auto {
			p.ready(r)
		}
	})
}

// Move has the platform start a replica again on another host, under its ID.
func (p *InMemoryPlacer) Move(id, host string) {
	p.each([]string{id}, func(r *memoryReplica) {
		to := p.hosts[host]
		if to == nil {
			return
		}
		if from := p.hosts[r.Hosts[0]]; from != nil {
			from.replicas--
		}
		to.replicas++
		r.Hosts, r.moved = []string{host}, true
		r.Restarts++
		p.state(r, mobula.StateStarting, "moved to "+host)
		if p.auto {
			p.ready(r)
		}
	})
}

// Replicas gives the replicas of all fleets whose state is one of these (of any state without one), sorted by ID.
func (p *InMemoryPlacer) Replicas(states ...mobula.State) []mobula.Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list(func(r *memoryReplica) bool { return len(states) == 0 || slices.Contains(states, r.State) })
}

// Applies tells how many times Apply or Remove were called so far.
func (p *InMemoryPlacer) Applies() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applies
}

// Configure remembers the section. It refuses another kind of platform while there are replicas: nobody would look
// after them.
func (p *InMemoryPlacer) Configure(ctx context.Context, fleet string, section mobula.Platform, dry bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configures++
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.refusal != nil && !errors.Is(p.refusal, ErrUnavailable) {
		return p.refusal
	}
	if was := p.section.platform; len(p.replicas) > 0 && p.section.fleet != "" && (was.Ray == nil) != (section.Ray == nil) {
		return fmt.Errorf("%d replicas are on the former platform: delete the models first", len(p.replicas))
	}
	if !dry {
		p.section = memorySection{fleet, section}
	}
	return cmp.Or(p.refusal, p.available(ctx))
}

// Apply makes d so at once.
func (p *InMemoryPlacer) Apply(ctx context.Context, d Deployment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applies++
	if err := p.check(ctx, &d); err != nil {
		return err
	}
	have := p.deployments[d.Key]
	if have == nil {
		have = &memoryDeployment{}
		p.deployments[d.Key] = have
	}
	have.Deployment = d
	have.Drain = slices.Clone(d.Drain)
	if extra := len(have.replicas) - d.Replicas; extra > 0 {
		p.take(have, Leaving(snapshot(have.replicas), d.Drain, extra))
	}
	for len(have.replicas) < d.Replicas {
		p.add(have)
	}
	for _, r := range have.replicas {
		r.draining = slices.Contains(d.Drain, r.ID)
	}
	p.change()
	return nil
}

// Check fails as Apply would.
func (p *InMemoryPlacer) Check(ctx context.Context, d Deployment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.check(ctx, &d)
}

func (p *InMemoryPlacer) check(ctx context.Context, d *Deployment) error {
	if err := p.available(ctx); err != nil {
		return err
	}
	if gpus := d.Model.Resources.GPUs; gpus != nil && len(p.hosts) > 0 {
		most := 0
		for _, h := range p.hosts {
			most = max(most, len(h.Devices))
		}
		if *gpus > most*max(1, d.Model.Resources.Hosts) {
			return fmt.Errorf("model %s: %w: needs %d GPUs, the largest host has %d", d.Model.Name, ErrImpossible, *gpus, most)
		}
	}
	return nil
}

func (p *InMemoryPlacer) available(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.down {
		return fmt.Errorf("in memory: %w", ErrUnavailable)
	}
	return nil
}

// Remove takes all replicas of the deployment away at once.
func (p *InMemoryPlacer) Remove(ctx context.Context, key Key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applies++
	if err := p.available(ctx); err != nil {
		return err
	}
	if d := p.deployments[key]; d != nil {
		p.take(d, ids(d.replicas))
		delete(p.deployments, key)
		p.change()
	}
	return nil
}

// Deployments gives what is asked for in a fleet.
func (p *InMemoryPlacer) Deployments(ctx context.Context, fleet string) ([]Deployment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return nil, err
	}
	all := []Deployment{}
	for key, d := range p.deployments {
		if key.Fleet == fleet {
			c := d.Deployment
			c.Drain = slices.Clone(d.Drain)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Deployment) int { return a.Compare(b.Key) })
	return all, nil
}

// Status gives the replicas of a fleet.
func (p *InMemoryPlacer) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return nil, err
	}
	return p.list(func(r *memoryReplica) bool { return r.fleet == fleet }), nil
}

// Logs gives one line; with follow it ends with ctx.
func (p *InMemoryPlacer) Logs(ctx context.Context, replica string, _ int, follow bool) (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return nil, err
	}
	if p.replicas[replica] == nil {
		return nil, fmt.Errorf("replica %s: %w", replica, ErrUnknownReplica)
	}
	log := io.Reader(strings.NewReader("log of " + replica + "\n"))
	if follow {
		log = io.MultiReader(log, untilDone{ctx})
	}
	return io.NopCloser(log), nil
}

// untilDone is a reader that has nothing to say until ctx ends.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, io.EOF
}

// Changed gives a channel that is closed at the next change.
func (p *InMemoryPlacer) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Hosts lists the hosts.
func (p *InMemoryPlacer) Hosts(ctx context.Context) ([]mobula.Host, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return nil, err
	}
	all := make([]mobula.Host, 0, len(p.hosts))
	for _, name := range slices.Sorted(maps.Keys(p.hosts)) {
		h := p.hosts[name].Host
		h.Heard = p.now()
		all = append(all, h)
	}
	return all, nil
}

// Cordon has a host get no new replicas, or get them again.
func (p *InMemoryPlacer) Cordon(ctx context.Context, host string, on bool) error {
	return p.host(ctx, host, func(h *memoryHost) { h.Cordoned = on })
}

// Forget removes a host; its replicas are replaced by others.
func (p *InMemoryPlacer) Forget(ctx context.Context, host string) error {
	return p.host(ctx, host, func(*memoryHost) {
		delete(p.hosts, host)
		for _, d := range p.deployments {
			var lost []string
			for _, r := range d.replicas {
				if slices.Contains(r.Hosts, host) {
					lost = append(lost, r.ID)
				}
			}
			p.take(d, lost)
			for range lost {
				p.add(d)
			}
		}
	})
}

func (p *InMemoryPlacer) host(ctx context.Context, name string, f func(*memoryHost)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return err
	}
	h := p.hosts[name]
	if h == nil {
		return fmt.Errorf("host %s: %w", name, ErrUnknownHost)
	}
	f(h)
	p.change()
	return nil
}

// Fetch gives a path that tells the source.
func (p *InMemoryPlacer) Fetch(ctx context.Context, replica, source string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.available(ctx); err != nil {
		return "", err
	}
	if p.replicas[replica] == nil {
		return "", fmt.Errorf("replica %s: %w", replica, ErrUnknownReplica)
	}
	if strings.HasPrefix(source, "/") {
		return source, nil
	}
	return "/fetched/" + slug(source), nil
}

// Run sends the endpoints of the replicas that serve, or that may: those of Suspect ones stay.
func (p *InMemoryPlacer) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	return p.endpoints.Run(ctx, up)
}

func (p *InMemoryPlacer) add(d *memoryDeployment) {
	p.made++
	r := &memoryReplica{fleet: d.Fleet, Replica: mobula.Replica{
		ID:    ReplicaID(d.Key.Model, d.Revision, strconv.Itoa(p.made)),
		Model: d.Key.Model, Revision: d.Revision,
	}}
	p.state(r, mobula.StatePending, "waits for room")
	p.replicas[r.ID] = r
	d.replicas = append(d.replicas, r)
	p.pending = append(p.pending, r)
}

func (p *InMemoryPlacer) take(d *memoryDeployment, leaving []string) {
	d.replicas = slices.DeleteFunc(d.replicas, func(r *memoryReplica) bool {
		if !slices.Contains(leaving, r.ID) {
			return false
		}
		r.gone = true
		delete(p.replicas, r.ID)
		for _, name := range r.Hosts {
			p.placed--
			if h := p.hosts[name]; h != nil {
				h.replicas--
			}
		}
		return true
	})
}

// change places what waits, and tells of all that has changed.
func (p *InMemoryPlacer) change() {
	if !p.down {
		p.place()
	}
	var endpoints []mobula.Endpoint
	for _, id := range slices.Sorted(maps.Keys(p.replicas)) {
		if r := p.replicas[id]; r.URL != "" {
			endpoints = append(endpoints, mobula.Endpoint{
				ID: id, URL: r.URL, Draining: r.draining,
				Labels: map[string]string{"model": r.Model, "revision": r.Revision},
			})
		}
	}
	p.endpoints.Set(endpoints...)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *InMemoryPlacer) place() {
	waiting := p.pending[:0]
	for _, r := range p.pending {
		host := p.emptiest()
		switch {
		case r.gone:
			continue
		case host == nil || p.room >= 0 && p.placed >= p.room:
			waiting = append(waiting, r)
			r.NoRoom, r.Reason = true, fmt.Sprintf("no room: %d replicas are placed", p.placed)
			continue
		}
		p.placed++
		host.replicas++
		r.Hosts, r.NoRoom = []string{host.Name}, false
		p.state(r, mobula.StateStarting, "")
	}
	p.pending = waiting
	if p.auto {
		for _, r := range p.replicas {
			if r.State == mobula.StateStarting {
				p.ready(r)
			}
		}
	}
}

func (p *InMemoryPlacer) emptiest() *memoryHost {
	var best *memoryHost
	for _, h := range p.hosts {
		if h.Cordoned {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(h.replicas, best.replicas), cmp.Compare(h.Name, best.Name)) < 0 {
			best = h
		}
	}
	return best
}

func (p *InMemoryPlacer) ready(r *memoryReplica) {
	p.state(r, mobula.StateReady, "")
	r.URL = "http://" + r.ID + ":8000"
	if r.moved {
		r.URL = "http://" + r.ID + "." + r.Hosts[0] + ":8000"
	}
}

func (p *InMemoryPlacer) state(r *memoryReplica, s mobula.State, reason string) {
	if r.State != s {
		r.State, r.Since = s, p.now()
	}
	r.Reason = reason
	if s != mobula.StateReady && s != mobula.StateSuspect {
		r.URL = ""
	}
}

func (p *InMemoryPlacer) each(ids []string, f func(*memoryReplica)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if r := p.replicas[id]; r != nil && len(r.Hosts) > 0 {
			f(r)
		}
	}
	p.change()
}

func (p *InMemoryPlacer) list(keep func(*memoryReplica) bool) []mobula.Replica {
	all := make([]mobula.Replica, 0, len(p.replicas))
	for _, r := range p.replicas {
		if keep(r) {
			c := r.Replica
			c.Hosts = slices.Clone(r.Hosts)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b mobula.Replica) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func snapshot(replicas []*memoryReplica) []mobula.Replica {
	all := make([]mobula.Replica, len(replicas))
	for i, r := range replicas {
		all[i] = r.Replica
	}
	return all
}

func ids(replicas []*memoryReplica) []string {
	all := make([]string, len(replicas))
	for i, r := range replicas {
		all[i] = r.ID
	}
	return all
}

var (
	_ Placer     = (*InMemoryPlacer)(nil)
	_ Configurer = (*InMemoryPlacer)(nil)
	_ Watcher    = (*InMemoryPlacer)(nil)
	_ Hosts      = (*InMemoryPlacer)(nil)
	_ Checker    = (*InMemoryPlacer)(nil)
	_ Fetcher    = (*InMemoryPlacer)(nil)
	_ Discoverer = (*InMemoryPlacer)(nil)
)

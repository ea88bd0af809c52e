package ray

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
	"github.com/mobula-serve/mobula/state"
)

const (
	defaultNamespace = "mobula"
	defaultPoll      = time.Second
	lostAfter        = 3 // polls that failed in a row
	never            = math.MaxInt

	firstLook    = 10 * time.Second // how long a call waits for the first look at the cluster
	probeTimeout = 5 * time.Second
)

var (
	errDoubt  = errors.New("the control plane's state: a write has failed, reading it again")
	errNone   = errors.New("no Ray cluster is configured")
	errUnseen = errors.New("the cluster was not looked at yet")
)

// Options set up a Cluster.
type Options struct {
	// Store keeps what is asked for. Required.
	Store state.Store
	// Control is the ID of the control plane: who owns the actors unless the fleet names an owner. Required.
	Control string
	// Dial makes the client of a cluster; it does not connect. A client with a method Close() is closed when it is
	// needed no more. Default: NewDashboard with DashboardOptionsFor.
	Dial func(mobula.Ray) (API, error)
	// Logger is slog.DiscardHandler's by default.
	Logger *slog.Logger
	// Now is the clock, time.Now by default.
	Now func() time.Time
}

// Cluster places replicas on one Ray cluster. What is asked for is in the store before Ray hears of it, so that a control
// plane that is killed goes on where it was.
type Cluster struct {
	store   state.Store
	control string
	dial    func(mobula.Ray) (API, error)
	log     *slog.Logger
	now     func() time.Time
	pkg     string // the launcher's package
	content []byte
	served  *adapters.InMemory // endpoints
	kick    chan struct{}      // wakes Run
	known   chan struct{}      // closed when endpoints are known

	configure sync.Mutex // held by Configure throughout
	mu        sync.Mutex
	records   *records
	// doubt is set when a write has failed: records are not what is stored until they have been read again.
	doubt     bool
	link      *link // nil while there is no cluster to look after
	view      view
	statuses  map[string]mobula.Replica
	endpoints []mobula.Endpoint // as served has them
	news      bool              // Status has something new to tell
	changed   chan struct{}     // closed when it does
}

// link is a cluster as it is configured. It is not changed once it is in use.
type link struct {
	ray     mobula.Ray
	owner   string
	api     API
	serving *serving
}

// New reads the store. Nothing is asked of a cluster before Run or Configure.
func New(o Options) (*Cluster, error) {
	if o.Store == nil || o.Control == "" {
		return nil, errors.New("a Ray cluster needs a store and the control plane's ID")
	}
	name, content, err := raycluster.Package()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		store: o.Store, control: o.Control, dial: o.Dial, log: o.Logger, now: o.Now, pkg: name, content: content,
		served: adapters.NewInMemory(), kick: make(chan struct{}, 1), known: make(chan struct{}),
		statuses: map[string]mobula.Replica{}, changed: make(chan struct{}),
	}
	if c.dial == nil {
		c.dial = dialDashboard
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.records, err = load(o.Store); err != nil {
		return nil, err
	}
	c.view = newView("")
	if r := c.records.settings.Ray; r != nil {
		l, err := c.newLink(*r)
		if err != nil { // a token file that is missing, say: Configure tells the user
			c.log.Error("cannot use the Ray cluster of the last start", "address", r.Address, "error", err)
		} else {
			c.link, c.view = l, newView(l.owner)
		}
	}
	return c, nil
}

// dialDashboard is how a cluster is reached by default.
func dialDashboard(r mobula.Ray) (API, error) {
	o, err := DashboardOptionsFor(r)
	if err != nil {
		return nil, err
	}
	return NewDashboard(o)
}

func (c *Cluster) newLink(r mobula.Ray) (*link, error) {
	return connect(r, c.owner(&r), c.dial, c.store, c.log)
}

// connect makes a link; store is nil for one that only looks.
func connect(r mobula.Ray, owner string, dial func(mobula.Ray) (API, error), store state.Store, log *slog.Logger) (*link, error) {
	r.Namespace, r.Poll = cmp.Or(r.Namespace, defaultNamespace), cmp.Or(r.Poll, mobula.Duration(defaultPoll))
	api, err := dial(r)
	if err != nil {
		return nil, fmt.Errorf("platform.ray: %w", err)
	}
	l := &link{ray: r, owner: owner, api: api}
	if l.serving, err = newServe(store, owner, log); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (c *Cluster) owner(r *mobula.Ray) string { return cmp.Or(r.Owner, c.control) }

func (l *link) close() {
	if api, ok := l.api.(interface{ Close() }); ok {
		api.Close()
	}
}

// Run looks after the cluster until ctx ends, and then returns its error. Engines run on.
func (c *Cluster) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for ctx.Err() == nil {
		deeds, wait := c.round(ctx)
		for _, d := range deeds {
			wg.Go(func() { c.carry(ctx, d) })
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.kick:
		}
		timer.Stop()
	}
	return ctx.Err()
}

// wake has Run look at the cluster soon.
func (c *Cluster) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// do has f change the records and makes that durable before Ray hears of it. When f fails it must not have changed
// anything.
func (c *Cluster) do(f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sure(); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	if len(c.records.marked) == 0 {
		return nil
	}
	err := c.commit()
	c.observe()
	c.tell()
	if err == nil {
		c.wake()
	}
	return err
}

// sure reads the records again if they may not be what is stored.
func (c *Cluster) sure() error {
	if !c.doubt {
		return nil
	}
	r, err := load(c.store)
	if err != nil {
		return unavailable(fmt.Errorf("the control plane's state: %w", err))
	}
	c.records, c.doubt = r, false
	return nil
}

// commit writes what has changed. When it fails nothing has.
func (c *Cluster) commit() error {
	err := c.records.flush(c.store)
	if err == nil {
		return nil
	}
	c.doubt = true
	return errors.Join(unavailable(fmt.Errorf("the control plane's state: %w", err)), c.sure())
}

// tell wakes those who wait for changes, and gives the endpoints out if they have changed.
func (c *Cluster) tell() {
	if c.doubt {
		return
	}
	if all := c.serving(); c.view.looked() && (c.endpoints == nil || !slices.EqualFunc(all, c.endpoints, sameEndpoint)) {
		c.endpoints = all
		c.served.Set(all...)
		select {
		case <-c.known:
		default:
			close(c.known)
		}
	}
	if c.news {
		c.news = false
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// serving gives the endpoints of all replicas that serve as far as we know, and those of Ray Serve.
func (c *Cluster) serving() []mobula.Endpoint {
	all := make([]mobula.Endpoint, 0, len(c.records.replicas)+len(c.view.serve))
	for _, rec := range c.records.replicas {
		if rec.URL == "" || rec.Leaving {
			continue
		}
		all = append(all, mobula.Endpoint{
			ID: rec.ID, URL: rec.URL, Draining: c.records.draining(rec),
			Labels: map[string]string{"model": rec.Model, "revision": rec.Revision, "host": rec.Host},
		})
	}
	all = append(all, c.view.serve...)
	slices.SortFunc(all, func(a, b mobula.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// sameEndpoint compares what of an endpoint can change here.
func sameEndpoint(a, b mobula.Endpoint) bool {
	return a.ID == b.ID && a.URL == b.URL && a.Draining == b.Draining && a.TLSSkipVerify == b.TLSSkipVerify &&
		slices.Equal(a.Models, b.Models) && maps.Equal(a.Labels, b.Labels)
}

// Problems are those of Ray Serve.
func (c *Cluster) Problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.view.trouble)
}

// Discoverer gives the endpoints of the replicas and of Ray Serve. It works while Run does; it sends nothing before the
// cluster was looked at once, with or without success.
func (c *Cluster) Discoverer() adapters.Discoverer { return discoverer{c} }

type discoverer struct{ cluster *Cluster }

// Run sends the endpoints, and again when they change. Any number of Runs may go on at once.
func (d discoverer) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.cluster.known:
		return d.cluster.served.Run(ctx, up)
	}
}

// unavailable has err be one of a platform that can't be asked.
func unavailable(err error) error {
	if errors.Is(err, adapters.ErrUnavailable) {
		return fmt.Errorf("ray: %w", err)
	}
	return fmt.Errorf("ray: %w: %w", adapters.ErrUnavailable, err)
}

var (
	_ adapters.Placer     = (*Cluster)(nil)
	_ adapters.Configurer = (*Cluster)(nil)
	_ adapters.Watcher    = (*Cluster)(nil)
	_ adapters.Checker    = (*Cluster)(nil)
	_ adapters.Hosts      = (*Cluster)(nil)
	_ adapters.Teller     = (*Cluster)(nil)
	_ adapters.Discoverer = discoverer{}
)

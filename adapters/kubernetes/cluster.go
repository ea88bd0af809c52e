package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	callTimeout = 10 * time.Second // of one request to the API server
	firstLook   = 10 * time.Second // how long a call waits until the cluster was looked at once
	lostAfter   = 3 * time.Second  // of watches that fail, and what they told is no longer given out as Status
)

var (
	errNone   = errors.New("no Kubernetes cluster is configured")
	errUnseen = errors.New("the Kubernetes cluster was not looked at yet")
)

// Options set up a Cluster.
type Options struct {
	// Client and Dynamic ask the cluster, and Namespace is that of the engines unless the platform's section names one. Default, for all of
	// them: what Connect makes of the section.
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Namespace string
	// Workloads that engines can be. Default: Deployments and StatefulSets.
	Workloads []kube.Workload
	// Check looks at what else a platform needs of the cluster, such as an operator; its error says what to do. Default: nothing.
	Check func(ctx context.Context, c *Connection, p mobula.Platform) error
	// Owner gives the object that a model's objects belong to and go with, nil for none: then none are made. Poke tells that it gives another
	// one now. Default: the ConfigMap that a deployment is kept in.
	Owner func(model string) *metav1.OwnerReference
	// Tell hears of what was done to a model's objects and nobody has asked for. It does not wait. Default: Problems tells of what was put
	// back, for a while.
	Tell func(Event)
	// OwnImage is the image of simulated engines.
	OwnImage string
	// Version of Mobula, as in ConnectOptions.
	Version string
	// Logger is slog.DiscardHandler's by default.
	Logger *slog.Logger
	// Now is the clock, time.Now by default.
	Now func() time.Time
}

// Event is something that was done to a model's objects.
type Event struct {
	Model string
	// Warning tells events that someone should look at.
	Warning bool
	// Reason is one word in CamelCase, Message a sentence.
	Reason, Message string
}

// Cluster places replicas in a namespace of a Kubernetes cluster. What is asked for is kept there, one ConfigMap for each deployment, before
// anything is made of it; what follows from it is Kubernetes' own objects, whose controllers go on without us.
type Cluster struct {
	options   Options
	workloads map[string]kube.Workload
	log       *slog.Logger
	now       func() time.Time
	alone     bool          // no objects in the cluster say what the fleet is
	anew      chan struct{} // wakes Run: the link is another one
	served    *adapters.InMemory
	known     chan struct{} // closed when endpoints are known
	knownOnce sync.Once

	configure sync.Mutex // held by Configure throughout
	writing   [64]sync.Mutex
	seed      maphash.Seed

	mu        sync.Mutex
	link      *link   // nil while nothing is configured
	keeper    *keeper // of link, nil while Run does not run
	discovery *Discovery
	fleets    map[string]bool // that were configured or asked for over this connection: whether they still are. Others belong to other control planes
	records   map[string]map[string]*record
	statuses  map[string][]mobula.Replica     // by group
	gaps      map[string]map[string]time.Time // pods that are missing, by group and name: since when
	stuck     map[string]map[string]time.Time // replicas that wait for a person, by group and ID: since when
	troubles  map[string]string               // by group: why its objects can't be made
	notes     []putNote
	changed   chan struct{}
}

// link is a cluster as it is configured. It is not changed.
type link struct {
	fleet    string
	platform mobula.Platform
	*Connection
}

// putNote is something that others have changed and that was put back.
type putNote struct {
	ident
	at   time.Time
	text string
}

// New makes a Cluster. Nothing is asked of the API server before Configure.
func New(o Options) (*Cluster, error) {
	if (o.Client == nil) != (o.Dynamic == nil) {
		return nil, errors.New("a Kubernetes cluster needs both Client and Dynamic, or none of them")
	}
	if o.Workloads == nil {
		o.Workloads = []kube.Workload{Deployments{}, StatefulSets{}}
	}
	c := &Cluster{
		options: o, workloads: map[string]kube.Workload{}, log: cmp.Or(o.Logger, slog.New(slog.DiscardHandler)), now: o.Now,
		seed: maphash.MakeSeed(), anew: make(chan struct{}, 1), served: adapters.NewInMemory(), known: make(chan struct{}), fleets: map[string]bool{}, records: map[string]map[string]*record{}, statuses: map[string][]mobula.Replica{},
		gaps: map[string]map[string]time.Time{}, stuck: map[string]map[string]time.Time{}, troubles: map[string]string{}, changed: make(chan struct{}),
	}
	for _, w := range o.Workloads {
		c.workloads[w.Kind()] = w
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.alone = o.Owner == nil; c.alone {
		c.options.Owner = func(string) *metav1.OwnerReference { return nil }
	}
	return c, nil
}

// Run looks after the cluster until ctx ends, and then returns its error. Engines run on.
func (c *Cluster) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		c.mu.Lock()
		l := c.link
		c.mu.Unlock()
		if l != nil {
			c.serve(ctx, l)
			continue
		}
		select {
		case <-ctx.Done():
		case <-c.anew:
		}
	}
	return ctx.Err()
}

// serve runs a keeper until ctx ends or the link is another one.
func (c *Cluster) serve(ctx context.Context, l *link) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	if c.link != l {
		c.mu.Unlock()
		return
	}
	s := newKeeper(c, l) // its queues live until it has run
	c.keeper = s
	clear(c.records) // they are read anew: some may be gone
	clear(c.statuses)
	c.tell()
	c.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { s.run(ctx) })
	wg.Go(func() { c.discover(ctx, l) })
	for here := true; here; {
		select {
		case <-ctx.Done():
			here = false
		case <-c.anew:
			c.mu.Lock()
			here = c.link == l
			c.mu.Unlock()
		}
	}
	cancel()
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keeper = nil
}

// Poke tells that a model's owner is another one: what the one before owned goes over to it, unless it is gone by now.
func (c *Cluster) Poke(model string) {
	c.mu.Lock()
	s, l := c.keeper, c.link
	c.mu.Unlock()
	if s != nil {
		s.queue.Add(groupOf(l.fleet, kube.Label(model)))
	}
}

// reach gives the keeper once the cluster was looked at.
func (c *Cluster) reach(ctx context.Context) (*keeper, error) {
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	for {
		c.mu.Lock()
		l, s, changed := c.link, c.keeper, c.changed
		c.mu.Unlock()
		switch {
		case l == nil:
			return nil, unavailable(errNone)
		case s != nil && s.link == l && s.looked.Load():
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if s != nil && s.link == l {
				if err := s.away(0); err != nil {
					return nil, unavailable(err)
				}
			}
			return nil, unavailable(errUnseen)
		}
	}
}

// tell wakes those who wait for changes. c.mu is held.
func (c *Cluster) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Changed gives a channel that is closed at the next change of what Status tells.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// learn takes up a record as it is in the cluster, unless a later one is known.
func (c *Cluster) learn(r *record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := r.group()
	if c.records[g] == nil {
		c.records[g] = map[string]*record{}
	}
	was := c.records[g][r.Base]
	if was != nil && was.uid == r.uid && !newer(r.version, was.version) {
		return
	}
	if was != nil && was.written == r.written { // as it was applied: JSON does not keep all of a model's types
		r.Model, r.Made = was.Model, was.Made
	}
	c.records[g][r.Base] = r
}

// unlearn forgets a record that is gone.
func (c *Cluster) unlearn(group, base string, uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.records[group][base]; r != nil && (uid == "" || r.uid == uid) {
		if delete(c.records[group], base); len(c.records[group]) == 0 {
			delete(c.records, group)
		}
	}
}

// of gives the records of a group, by base.
func (c *Cluster) of(group string) []*record {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*record, 0, len(c.records[group]))
	for _, r := range c.records[group] {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *record) int { return strings.Compare(a.Base, b.Base) })
	return all
}

// ours tells whether a group is of a fleet that is looked after here.
func (c *Cluster) ours(group string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fleets[fleetOf(group)]
}

// live gives the record of what is asked for under a key, nil for nothing.
func (c *Cluster) live(key adapters.Key) *record {
	for _, r := range c.of(groupOf(key.Fleet, kube.Label(key.Model))) {
		if r.Key == key && !r.Removed {
			return r
		}
	}
	return nil
}

// resources are those of the workloads that a platform can have, and of what all of them share.
func (c *Cluster) resources(p mobula.Platform) []schema.GroupVersionResource {
	all := []schema.GroupVersionResource{budgets()}
	for _, w := range c.options.Workloads {
		if w.Kind() != kube.KindRayCluster || p.KubeRay != nil {
			all = append(all, w.Resources()...)
		}
	}
	slices.SortFunc(all, func(a, b schema.GroupVersionResource) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}

func budgets() schema.GroupVersionResource {
	return policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
}

func plural(kind string) string {
	resource, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: kind})
	return resource.Resource
}

// unavailable has err be one of a platform that can't be asked.
func unavailable(err error) error {
	if err == nil || errors.Is(err, adapters.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", adapters.ErrUnavailable, err)
}

var (
	_ adapters.Placer     = (*Cluster)(nil)
	_ adapters.Configurer = (*Cluster)(nil)
	_ adapters.Watcher    = (*Cluster)(nil)
	_ adapters.Checker    = (*Cluster)(nil)
	_ adapters.Hosts      = (*Cluster)(nil)
	_ adapters.Teller     = (*Cluster)(nil)
)

// Package kubernetes is the platform of a Kubernetes cluster: the pods that serve, ours and those of others (Discovery), and engines that are
// made to exist as objects that the cluster's own controllers look after (Cluster).
package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	// coalesce is the least time between two states: a rollout of many pods is not a state for each.
	coalesce = 20 * time.Millisecond
	// grace is how long a Run's first state waits for watches that have not answered yet.
	grace = time.Second
	// maxFormer bounds the watches of former settings that go on until the present ones have answered.
	maxFormer = 64

	byPods, byServices = "pods", "services"
)

// DiscoveryOptions set up a Discovery.
type DiscoveryOptions struct {
	// Client asks the cluster. Default: what Connect gives.
	Client kubernetes.Interface
	// Namespace of the platform when its section has none; it goes with Client. Default "default".
	Namespace string
	// LookupEnv finds an environment variable that holds an API key. Default os.LookupEnv.
	LookupEnv func(name string) (string, bool)
	// Logger is slog.DiscardHandler's by default.
	Logger *slog.Logger
	// Version of Mobula, as in ConnectOptions.
	Version string
}

// Discovery only looks: it reports the engines of a fleet that serve in a Kubernetes cluster, whoever looks after them, and those of others that
// platform.kubernetes.discover selects. It needs to list and watch pods, and with services those and their EndpointSlices.
//
// It learns of changes by watches, one for each namespace and selector. While the API server is away what was known stays; what has been
// missed is found when it is back. Own engines have the ID of their replica, pods of others namespace/name:port, Services name.namespace:port.
type Discovery struct {
	options DiscoveryOptions
	log     *slog.Logger

	mu      sync.Mutex
	source  *source
	changed chan struct{} // closed by Update
	runs    map[*looking]bool
}

// source is what is looked at. It is not changed.
type source struct {
	connection *Connection
	queries    []query
}

// query is what one finder looks for.
type query struct {
	fleet     string
	namespace string // empty for all
	home      string // the namespace of the fleet's own engines
	own       bool   // the fleet's own engines; else entry's
	index     int    // of entry in platform.kubernetes.discover
	entry     mobula.KubernetesDiscover
	key       mobula.Secret
}

// NewDiscovery makes a Discovery of a fleet on platform.kubernetes or platform.kuberay. It asks nobody; it fails when there is no
// configuration of a cluster, and when a selector or an API key can't be read.
func NewDiscovery(fleet string, p mobula.Platform, o DiscoveryOptions) (*Discovery, error) {
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	d := &Discovery{options: o, log: o.Logger, changed: make(chan struct{}), runs: map[*looking]bool{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, d.Update(fleet, p)
}

// Update reports what p says from now on, with API keys and configuration read again. On an error the old state stays; what is not
// changed is not asked for again.
func (d *Discovery) Update(fleet string, p mobula.Platform) error {
	k := p.OnKubernetes()
	if k == nil {
		return errors.New("the fleet is on no Kubernetes platform")
	}
	connection, err := d.connect(*k)
	if err != nil {
		return err
	}
	queries, err := d.queries(fleet, *k, connection.Namespace)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.source != nil && d.source.connection.same(connection) {
		connection = d.source.connection
	}
	d.source = &source{connection, queries}
	close(d.changed)
	d.changed = make(chan struct{})
	return nil
}

func (d *Discovery) connect(k mobula.Kubernetes) (*Connection, error) {
	if d.options.Client != nil {
		return &Connection{Client: d.options.Client, Namespace: cmp.Or(k.Namespace, d.options.Namespace, "default")}, nil
	}
	return Connect(k, ConnectOptions{Version: d.options.Version, Logger: d.log})
}

// queries are the fleet's own engines first: they win over what else finds them.
func (d *Discovery) queries(fleet string, k mobula.Kubernetes, home string) ([]query, error) {
	ours, err := labels.ValidatedSelectorFromSet(labels.Set{kube.LabelFleet: fleet, kube.LabelServes: "true"})
	if err != nil {
		return nil, fmt.Errorf("the fleet's name can't be a label: %w", err)
	}
	all := []query{{fleet: fleet, namespace: home, home: home, own: true, entry: mobula.KubernetesDiscover{Selector: ours.String()}}}
	for i, entry := range k.Discover {
		field := fmt.Sprintf("platform.kubernetes.discover[%d]", i)
		if err := checkEntry(entry); err != nil {
			return nil, fmt.Errorf("%s.%w", field, err)
		}
		key, err := adapters.ReadKey(entry.APIKeyFile, entry.APIKeyEnv, d.options.LookupEnv)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		for _, namespace := range namespaces(entry.Namespaces, home) {
			all = append(all, query{fleet: fleet, namespace: namespace, home: home, index: i, entry: entry, key: key})
		}
	}
	return all, nil
}

// checkEntry's error begins with the field.
func checkEntry(e mobula.KubernetesDiscover) error {
	selector, err := labels.Parse(e.Selector)
	port, notNumber := strconv.Atoi(e.Port)
	switch {
	case err != nil:
		return fmt.Errorf("selector: %w", err)
	case selector.Empty():
		return errors.New("selector: it selects everything: name a label that only engines have")
	case e.By != "" && e.By != byPods && e.By != byServices:
		return fmt.Errorf("by: want %s or %s, got %q", byPods, byServices, e.By)
	case notNumber == nil && (port < 1 || port > 65535):
		return fmt.Errorf("port: %d is none: want 1 to 65535, or a name", port)
	case slices.Contains(e.Namespaces, ""):
		return errors.New("namespaces: one is empty: * stands for all")
	}
	return nil
}

// namespaces gives those to look in, each once; an empty one is all.
func namespaces(named []string, home string) []string {
	switch {
	case slices.Contains(named, "*"):
		return []string{""}
	case len(named) == 0:
		return []string{home}
	}
	named = slices.Clone(named)
	slices.Sort(named)
	return slices.Compact(named)
}

// same tells whether both find the same in the same way.
func (q query) same(o query) bool { return reflect.DeepEqual(q, o) }

// String says for people what is looked for.
func (q query) String() string {
	where := "namespace " + q.namespace
	if q.namespace == "" {
		where = "all namespaces"
	}
	if q.own {
		return "engines of the fleet in " + where
	}
	return fmt.Sprintf("platform.kubernetes.discover[%d] (%s) in %s", q.index, q.entry.Selector, where)
}

func (d *Discovery) get() (*source, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.source, d.changed
}

// Problems gives what keeps engines from being found, a sentence each that says what to do. There are none while no Run goes on.
func (d *Discovery) Problems() []string {
	var all []string
	for _, l := range d.lookings() {
		for _, n := range l.told() {
			if n.problem {
				all = append(all, n.text)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (d *Discovery) lookings() []*looking {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*looking, 0, len(d.runs))
	for l := range d.runs {
		all = append(all, l)
	}
	return all
}

// Run sends the endpoints when the cluster has answered, and again when they change: the first change at once, those that follow it
// closely together. Several Runs each ask for themselves.
func (d *Discovery) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	l := newLooking(ctx, d.log)
	defer l.stop()
	d.mu.Lock()
	d.runs[l] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.runs, l)
	}()

	source, changed := d.get()
	l.follow(source)
	var (
		sent, next []mobula.Endpoint
		out        chan<- []mobula.Endpoint
		soon       = time.NewTimer(0) // when to look
		dirty      = l.dirty
		looked     time.Time
	)
	defer soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			source, changed = d.get()
			l.follow(source)
			continue
		case out <- next:
			sent, out = next, nil
			continue
		case <-dirty:
			dirty = nil // until it was looked at
			soon.Reset(coalesce - time.Since(looked))
			continue
		case <-soon.C:
		}
		looked, dirty = time.Now(), l.dirty
		state, known := l.look(looked)
		if !known {
			soon.Reset(grace) // look again then, though nothing changes
		}
		if out = nil; known && (sent == nil || !slices.EqualFunc(state, sent, sameEndpoint)) {
			next, out = state, up
		}
	}
}

var _ adapters.Discoverer = (*Discovery)(nil)

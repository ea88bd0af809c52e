package ray

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
)

// DiscoveryOptions set up a Discovery.
type DiscoveryOptions struct {
	// Dial makes the client of a cluster, as in Options.
	Dial func(mobula.Ray) (API, error)
	// Logger is slog.DiscardHandler's by default.
	Logger *slog.Logger
}

// Discovery only looks: it reports the replicas of a fleet that serve on a Ray cluster, whoever looks after them, and its
// Ray Serve applications. It is for a router without a control plane.
type Discovery struct {
	dial func(mobula.Ray) (API, error)
	log  *slog.Logger

	mu      sync.Mutex
	source  *source
	changed chan struct{} // closed by Update
}

// source is what is looked at; an owner that is empty is any. It is not changed.
type source struct {
	fleet string
	*link
}

// NewDiscovery makes a Discovery of a fleet's platform.ray section. It does not connect; it fails when the token or the
// certificates can't be read.
func NewDiscovery(fleet string, r mobula.Ray, o DiscoveryOptions) (*Discovery, error) {
	d := &Discovery{dial: o.Dial, log: o.Logger, changed: make(chan struct{})}
	if d.dial == nil {
		d.dial = dialDashboard
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, d.Update(fleet, r)
}

// Update reports r from now on. On an error the old state stays.
func (d *Discovery) Update(fleet string, r mobula.Ray) error {
	l, err := connect(r, r.Owner, d.dial, nil, d.log)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.source != nil {
		d.source.close()
	}
	d.source = &source{fleet, l}
	close(d.changed)
	d.changed = make(chan struct{})
	return nil
}

func (d *Discovery) get() (*source, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.source, d.changed
}

// Run sends the endpoints when the cluster has answered, and again when they change. While it does not answer the last known
// ones stay. Several Runs each ask for themselves.
func (d *Discovery) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	var sent []mobula.Endpoint
	var failing string
	for ctx.Err() == nil {
		s, changed := d.get()
		now, err := s.endpoints(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && err.Error() != failing:
			failing = err.Error()
			d.log.Warn("cannot look at the Ray cluster, trying again", "address", s.ray.Address, "error", err)
		case err == nil:
			failing = ""
		}
		out := up
		if err != nil || sent != nil && slices.EqualFunc(now, sent, sameEndpoint) {
			out = nil
		}
		timer := time.NewTimer(time.Duration(s.ray.Poll))
		select { // who does not take this state gets a newer one
		case <-ctx.Done():
		case <-timer.C:
		case <-changed:
		case out <- now:
			sent = slices.Clone(now)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-changed:
			}
		}
		timer.Stop()
	}
	return ctx.Err()
}

// endpoints asks the cluster.
func (s *source) endpoints(ctx context.Context) ([]mobula.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	state, err := s.api.State(ctx, s.ray.Namespace)
	if err != nil {
		return nil, err
	}
	all := published(state, s.fleet, s.owner)
	if len(s.ray.Serve) > 0 {
		serve, _, err := s.serving.round(ctx, s.api, s.ray.Serve)
		if err != nil && len(serve) == 0 { // else they are the last known ones
			return nil, err
		}
		all = append(all, serve...)
	}
	slices.SortFunc(all, func(a, b mobula.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	return slices.CompactFunc(all, func(a, b mobula.Endpoint) bool { return a.ID == b.ID }), nil
}

// published gives the replicas of a fleet that say that they serve; owner is whose, empty for anybody's.
func published(state *State, fleet, owner string) []mobula.Endpoint {
	tellApart(state.Nodes)
	names := make(map[string]string, len(state.Nodes))
	for i := range state.Nodes {
		names[state.Nodes[i].ID] = nodeName(&state.Nodes[i])
	}
	all := []mobula.Endpoint{}
	for i := range state.Actors {
		a := &state.Actors[i]
		whose, replica, rank, ours := raycluster.ParseName(a.Name)
		p, says := raycluster.ParsePublication(a.Repr)
		if !ours || !says || rank != 0 || a.State != "ALIVE" || a.Class != raycluster.ActorClass || owner != "" && whose != owner ||
			p.Fleet != fleet || p.Replica != replica || p.PID != a.PID || p.URL == "" {
			continue
		}
		all = append(all, mobula.Endpoint{
			ID: replica, URL: p.URL,
			Labels: map[string]string{"model": p.Model, "revision": p.Revision, "host": cmp.Or(names[a.NodeID], a.NodeID)},
		})
	}
	return all
}

var _ adapters.Discoverer = (*Discovery)(nil)

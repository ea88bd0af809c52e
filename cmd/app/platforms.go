package app

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/ray"
	"github.com/mobula-serve/mobula/adapters/static"
)

// platform is all that a platform of a control plane can do.
type platform interface {
	adapters.Placer
	adapters.Watcher
	adapters.Checker
	adapters.Hosts
	Discoverer() adapters.Discoverer
}

// platforms is the platform that the fleet names, and hosts of mobula agent before there is a fleet.
type platforms struct {
	hosts   *static.Hosts
	cluster *ray.Cluster
	// endpoints are those of the platform; it is not known before the first Configure.
	endpoints *switched

	current atomic.Pointer[platform]
}

func newPlatforms(hosts *static.Hosts, cluster *ray.Cluster) *platforms {
	p := &platforms{hosts: hosts, cluster: cluster, endpoints: newSwitched()}
	p.current.Store(new(platform(hosts)))
	return p
}

func (p *platforms) use(now platform) {
	if was := p.current.Swap(&now); *was != now || !p.endpoints.known() {
		p.endpoints.set(now.Discoverer())
	}
}

func (p *platforms) now() platform { return *p.current.Load() }

// Configure has the fleet's platform be the one that is asked from now on. The other one has to be empty: nobody
// would look after what it runs.
func (p *platforms) Configure(ctx context.Context, fleet string, want mobula.Platform, dry bool) error {
	if want.Ray == nil {
		if err := p.cluster.Configure(ctx, fleet, want, dry); err != nil {
			return err
		}
		if dry {
			return nil
		}
		p.use(p.hosts)
		if want.Static == nil {
			return nil
		}
		return p.hosts.Update(*want.Static)
	}
	if n := p.hosts.Replicas(); n > 0 {
		return fmt.Errorf("%s on hosts of mobula agent: delete the models before the fleet moves to a Ray cluster", count(n, "replica"))
	}
	err := p.cluster.Configure(ctx, fleet, want, dry)
	if !dry && p.cluster.Configured() {
		p.use(p.cluster)
	}
	return err
}

func (p *platforms) Apply(ctx context.Context, d adapters.Deployment) error {
	return p.now().Apply(ctx, d)
}

func (p *platforms) Check(ctx context.Context, d adapters.Deployment) error {
	return p.now().Check(ctx, d)
}

func (p *platforms) Remove(ctx context.Context, key adapters.Key) error {
	return p.now().Remove(ctx, key)
}

func (p *platforms) Deployments(ctx context.Context, fleet string) ([]adapters.Deployment, error) {
	return p.now().Deployments(ctx, fleet)
}

func (p *platforms) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	return p.now().Status(ctx, fleet)
}

func (p *platforms) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	return p.now().Logs(ctx, replica, tail, follow)
}

// Problems are those of a platform that has some to tell of.
func (p *platforms) Problems() []string {
	if t, ok := p.now().(adapters.Teller); ok {
		return t.Problems()
	}
	return nil
}

func (p *platforms) Changed() <-chan struct{} { return p.now().Changed() }

func (p *platforms) Hosts(ctx context.Context) ([]mobula.Host, error) { return p.now().Hosts(ctx) }

func (p *platforms) Cordon(ctx context.Context, host string, on bool) error {
	return p.now().Cordon(ctx, host, on)
}

func (p *platforms) Forget(ctx context.Context, host string) error { return p.now().Forget(ctx, host) }

// Fetch is for the hosts' agents: on a Ray cluster nothing of ours runs beside an engine.
func (p *platforms) Fetch(ctx context.Context, replica, source string) (string, error) {
	f, ok := p.now().(adapters.Fetcher)
	if !ok {
		return "", fmt.Errorf("%s: no URL can be fetched on a Ray cluster: give a folder that all nodes have, or a name on the Hugging Face hub", source)
	}
	return f.Fetch(ctx, replica, source)
}

var (
	_ platform            = (*static.Hosts)(nil)
	_ platform            = (*ray.Cluster)(nil)
	_ adapters.Configurer = (*platforms)(nil)
	_ adapters.Fetcher    = (*platforms)(nil)
	_ adapters.Teller     = (*platforms)(nil)
)

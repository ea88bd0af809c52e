package app

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
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

// settable is a platform that is there once it has been configured. Told of a section that is not its own it lets go of what it had,
// and refuses while it looks after replicas.
type settable interface {
	platform
	adapters.Configurer
	Configured() bool
}

// platforms is the platform that the fleet names, and hosts of mobula agent before there is a fleet.
type platforms struct {
	hosts   *static.Hosts
	cluster *ray.Cluster
	pods    *kubernetes.Cluster
	shared  sharedRay
	// endpoints are those of the platform; it is not known before the first Configure.
	endpoints *switched

	current atomic.Pointer[platform]
}

func newPlatforms(hosts *static.Hosts, cluster *ray.Cluster, pods *kubernetes.Cluster, shared sharedRay) *platforms {
	p := &platforms{hosts: hosts, cluster: cluster, pods: pods, shared: shared, endpoints: newSwitched()}
	p.current.Store(new(platform(hosts)))
	return p
}

func (p *platforms) use(now platform) {
	if was := p.current.Swap(&now); *was != now || !p.endpoints.known() {
		p.endpoints.set(now.Discoverer())
	}
}

func (p *platforms) now() platform { return *p.current.Load() }

// Configure has the fleet's platform be the one that is asked from now on. The others have to be empty: nobody
// would look after what they run.
func (p *platforms) Configure(ctx context.Context, fleet string, want mobula.Platform, dry bool) error {
	want, err := p.shared.platform(want)
	if err != nil {
		return err
	}
	var to settable // nil for hosts of mobula agent
	switch {
	case want.Ray != nil:
		to = p.cluster
	case want.OnKubernetes() != nil:
		to = p.pods
	}
	if n := p.hosts.Replicas(); to != nil && n > 0 {
		return fmt.Errorf("%s on hosts of mobula agent: delete the models before the fleet moves to another platform", count(n, "replica"))
	}
	for _, other := range []settable{p.cluster, p.pods} {
		if other == to {
			continue
		}
		if err := other.Configure(ctx, fleet, want, dry); err != nil {
			return err
		}
	}
	if to != nil {
		err := to.Configure(ctx, fleet, want, dry)
		if !dry && to.Configured() {
			p.use(to)
		}
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

// Fetch is for the hosts' agents: elsewhere nothing of ours runs beside an engine.
func (p *platforms) Fetch(ctx context.Context, replica, source string) (string, error) {
	f, ok := p.now().(adapters.Fetcher)
	if !ok {
		return "", fmt.Errorf("%s: on this platform no URL can be fetched: give a folder that all engines have, or a name on the Hugging Face hub", source)
	}
	return f.Fetch(ctx, replica, source)
}

var (
	_ platform            = (*static.Hosts)(nil)
	_ settable            = (*ray.Cluster)(nil)
	_ settable            = (*kubernetes.Cluster)(nil)
	_ adapters.Configurer = (*platforms)(nil)
	_ adapters.Fetcher    = (*platforms)(nil)
	_ adapters.Teller     = (*platforms)(nil)
)

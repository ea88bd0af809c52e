package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kuberay"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/ray"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/api"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/state"
	"github.com/mobula-serve/mobula/trust"
)

// planeOptions is what a running control plane needs.
type planeOptions struct {
	Store    state.Store
	ID       string // of the control plane, as its agents know it
	Dial     func(host, address string) static.AgentClient
	Listener net.Listener // TLS and all
	Token    mobula.Secret
	// RouterToken is what routers may show instead, for what they do.
	RouterToken mobula.Secret
	Gate        *gate // takes hosts in; nil takes none
	// EngineKey is what vLLM engines ask for, if anything.
	EngineKey mobula.Secret
	// RouterStart is control.Options'.
	RouterStart time.Duration
	// Kubernetes sets up the platforms of Kubernetes clusters.
	Kubernetes kubernetes.Options
	// Backend is what the admin API speaks to. Default: the control plane itself.
	Backend func(*control.Control) api.Backend
	Logger  *slog.Logger
	Version string
}

// plane is one running control plane: its rooms, wired.
type plane struct {
	control *control.Control
	hosts   *static.Hosts
	cluster *ray.Cluster
	pods    *kubernetes.Cluster
	// platforms is the one of them that the fleet names.
	platforms *platforms
	// endpoints are those of the platform.
	endpoints adapters.Discoverer
	api       *api.Server
	engines   *engine.Client
	listener  net.Listener
	logger    *slog.Logger
	registry  *prometheus.Registry
}

func newPlane(o planeOptions) (*plane, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(o.Version, ""))
	p := &plane{engines: engine.NewClient(engine.Options{}), listener: o.Listener, registry: registry, logger: o.Logger}
	var err error
	p.hosts, err = static.NewHosts(static.HostsOptions{Store: o.Store, Control: o.ID, Dial: o.Dial, Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("hosts: %w", err)
	}
	shared := sharedRay{client: o.Kubernetes.Dynamic, namespace: o.Kubernetes.Namespace, version: o.Version, logger: o.Logger}
	p.cluster, err = ray.New(ray.Options{Store: o.Store, Control: o.ID, Dial: shared.dial, Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("platform ray: %w", err)
	}
	o.Kubernetes.Logger, o.Kubernetes.Version = o.Logger, o.Version
	o.Kubernetes.Workloads = []kube.Workload{kubernetes.Deployments{}, kubernetes.StatefulSets{}, kuberay.New()}
	o.Kubernetes.Check = func(ctx context.Context, c *kubernetes.Connection, want mobula.Platform) error {
		if want.KubeRay == nil {
			return nil
		}
		return kuberay.Check(ctx, c.Client.Discovery())
	}
	if p.pods, err = kubernetes.New(o.Kubernetes); err != nil {
		return nil, fmt.Errorf("platform kubernetes: %w", err)
	}
	p.platforms = newPlatforms(p.hosts, p.cluster, p.pods, shared)
	p.control, err = control.New(control.Options{
		Store: o.Store, Placer: p.platforms, Engines: keyedEngines{p.engines, o.EngineKey}, Logger: o.Logger, Registerer: registry,
		RouterStart: o.RouterStart,
	})
	if err != nil {
		return nil, err
	}
	p.endpoints = withKey(p.platforms.endpoints, o.EngineKey)
	backend := api.Backend(p.control)
	if o.Backend != nil {
		backend = o.Backend(p.control)
	}
	serve := api.Options{
		Backend: backend, Endpoints: p.endpoints, Token: o.Token, RouterToken: o.RouterToken, Role: peerRole,
		Logger: o.Logger, Registerer: registry, Gatherer: registry, Version: o.Version,
	}
	if o.Gate != nil {
		o.Gate.hosts = p.hosts
		serve.Tokens, serve.Joiner = o.Gate, o.Gate
	}
	p.api = api.New(serve)
	return p, nil
}

// peerRole gives the role of a connection's client certificate.
func peerRole(conn *tls.ConnectionState) string {
	id, ok := trust.PeerIdentity(conn)
	if !ok {
		return ""
	}
	return string(id.Role)
}

// Bounds on the admin port.
const (
	adminHeader = 10 * time.Second // to read a request's header
	adminIdle   = 2 * time.Minute
	adminStop   = 5 * time.Second // for running calls when the control plane stops
)

// run looks after the fleet until ctx ends. Engines run on.
func (p *plane) run(ctx context.Context) error {
	defer p.engines.Close()
	srv := &http.Server{
		Handler: p.api.Handler(), ReadHeaderTimeout: adminHeader, IdleTimeout: adminIdle,
		ErrorLog: slog.NewLogLogger(p.logger.Handler(), slog.LevelDebug),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.hosts.Run(ctx) })
	g.Go(func() error { return p.cluster.Run(ctx) })
	g.Go(func() error { return p.pods.Run(ctx) })
	g.Go(func() error { return p.control.Run(ctx) })
	served := make(chan struct{})
	g.Go(func() error {
		defer close(served)
		if err := srv.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the control plane: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		err := p.api.Run(ctx) // its end ends all calls that wait
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminStop)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			_ = srv.Close()
		}
		<-served
		return err
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// fleetSource is where a fleet that is applied elsewhere comes from: the control plane itself, or a client of it.
type fleetSource interface {
	Settings(ctx context.Context, after int64) (*control.Settings, error)
}

// Pace of following a control plane.
const (
	followWait  = 30 * time.Second // one long poll
	followPause = time.Second      // after a failure
)

// follow calls apply with the fleet as it was applied last, less what was deleted since, and again when that changes, until
// ctx ends. A fleet that can't be taken changes nothing.
func follow(ctx context.Context, from fleetSource, logger *slog.Logger, apply func(*mobula.Fleet) error) error {
	var version int64
	for ctx.Err() == nil {
		fleet, seen, err := fetchFleet(ctx, from, version)
		switch {
		case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded), err == nil && seen == version:
			continue
		case seen == 0:
			pause(ctx, followPause)
			continue
		case err == nil && fleet != nil:
			err = apply(fleet)
		}
		if err != nil {
			logger.Warn("the fleet that was applied can't be taken, the running one stays", "err", err)
			pause(ctx, followPause)
			version = 0 // look again at once
			continue
		}
		version = seen
	}
	return ctx.Err()
}

// fetchFleet gives the fleet that was applied last and the version of these settings, as soon as that is not after, or nil
// before the first apply. A fleet that is not right comes with its version, one that can't be read without.
func fetchFleet(ctx context.Context, from fleetSource, after int64) (fleet *mobula.Fleet, version int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, followWait)
	defer cancel()
	s, err := from.Settings(ctx, after)
	if err != nil {
		return nil, 0, err
	}
	if s.File == "" {
		return nil, s.Version, nil
	}
	if fleet, err = mobula.Load([]byte(s.File), "the applied fleet"); err != nil {
		return nil, s.Version, err
	}
	fleet.Models = slices.DeleteFunc(fleet.Models, func(m mobula.Model) bool { return slices.Contains(s.Deleted, m.Name) })
	return fleet, s.Version, nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

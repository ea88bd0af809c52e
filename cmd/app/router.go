package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/providers"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/flow"
	"github.com/mobula-serve/mobula/router/front"
	"github.com/mobula-serve/mobula/router/health"
	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/openai"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// routerOptions is what a running router needs.
type routerOptions struct {
	Fleet     *mobula.Fleet
	FleetPath string // "" = no file, no reload
	Listener  net.Listener
	Logger    *slog.Logger
	Version   string
	// Plane is the control plane that the router follows and reports to, nil for none; Endpoints are what that runs, nil when the router
	// is to look for them itself.
	Plane     planeLink
	Endpoints adapters.Discoverer
	// Shared are the engines in a RayCluster of others, nil when the router is to look for them itself.
	Shared adapters.Discoverer
	// Kubernetes is how the router finds the engines of a fleet on a Kubernetes cluster by itself.
	Kubernetes kubernetes.DiscoveryOptions
}

// planeLink is what a router needs of a control plane: the one in this process, or a client of another.
type planeLink interface {
	fleetSource
	Report(ctx context.Context, r mobula.Report) error
}

// router is one running router: its rooms, wired.
type router struct {
	logger   *slog.Logger
	registry *prometheus.Registry
	source   *source
	others   *providers.Discovery
	flow     *flow.Holder
	reporter *metrics.Reporter
	client   *engine.Client
	keeper   *health.Keeper
	proxy    *proxy.Proxy
	edge     *openai.Edge
	front    *front.Server
	changed  chan struct{} // holds one: there is a new snapshot
	fleet    *mobula.Fleet // the running one; touched by the reload goroutine only, after newRouter
	policy   pick.Policy   // likewise
}

// runRouter serves until ctx ends, then drains.
func runRouter(ctx context.Context, o routerOptions) error {
	r, err := newRouter(o)
	if err != nil {
		return err
	}
	defer r.client.Close()
	defer r.proxy.Close()
	// What serves requests outlives ctx: it goes on until the last stream has ended.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	up := make(chan []mobula.Endpoint)
	sources := []adapters.Discoverer{r.source, r.others}
	if o.Endpoints != nil {
		sources = append(sources, o.Endpoints)
	}
	g.Go(func() error { return adapters.Merge(sources...).Run(work, up) })
	g.Go(func() error { return r.keeper.Run(work, up) })
	if o.FleetPath != "" {
		g.Go(func() error { return r.reload(work, o.FleetPath) })
	}
	if o.Plane != nil {
		g.Go(func() error { return follow(work, o.Plane, o.Logger, r.apply) })
		g.Go(func() error { return r.report(work, o.Plane) })
	}
	g.Go(func() error {
		if err := r.front.Serve(o.Listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		defer stop()
		select {
		case <-work.Done(): // something else failed
		case <-ctx.Done():
		}
		return r.drain(context.WithoutCancel(ctx))
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func newRouter(o routerOptions) (*router, error) {
	f := o.Fleet
	r := &router{logger: o.Logger, registry: prometheus.NewRegistry(), changed: make(chan struct{}, 1), fleet: f}
	r.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.registry.MustRegister(buildInfo(o.Version, f.Name))
	var err error
	if r.source, err = newSource(f, o.Plane != nil && o.Endpoints != nil, o.Shared, o.Kubernetes, o.Logger); err != nil {
		return nil, err
	}
	if r.others, err = providers.New(f.Providers, providers.Options{}); err != nil {
		return nil, fmt.Errorf("providers: %w", err)
	}
	if r.policy, err = newPolicy(f); err != nil {
		return nil, err
	}
	set := metrics.New(r.registry)
	r.client = engine.NewClient(engine.Options{})
	r.proxy = proxy.New(proxyOptions(f, o.Logger))
	r.keeper = health.New(health.Options{
		Client: r.client, Logger: o.Logger, Registerer: r.registry, Health: f.Router.Health, Models: f.Models,
		OnChange: func(s *pick.Snapshot) {
			r.proxy.Keep(s)
			r.edge.Keep(s)
			r.flow.Changed()
			select {
			case r.changed <- struct{}{}:
			default:
			}
		},
	})
	r.flow = flow.New(flow.Options{Snapshot: r.keeper.Snapshot, Registerer: r.registry})
	r.edge = openai.New(openai.Options{
		Fleet: r.keeper, Proxy: r.proxy, Policy: r.policy, Router: f.Router, Metrics: set, Flow: r.flow,
		Gatherer: r.registry, Logger: o.Logger, Version: o.Version,
	})
	r.reporter = &metrics.Reporter{Router: routerName(), Set: set, Keeper: r.keeper, Traffic: r.edge}
	r.front = front.New(front.Options{
		Accepts: r.edge.Accepts, Handler: r.edge, Fallback: r.edge.Handler(), ErrorBody: r.edge.ErrorBody,
		Limits: f.Router.Limits, Timeouts: f.Router.Timeouts, Logger: o.Logger, Registerer: r.registry,
	})
	return r, nil
}

// buildInfo is a metric that is always 1.
func buildInfo(version, fleet string) prometheus.Collector {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mobula_build_info", Help: "Always 1; the labels tell what is running.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version(), "fleet": fleet},
	})
	build.Set(1)
	return build
}

// routerName is unique, also among routers of one host and one that is started again.
func routerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "router"
	}
	return host + "-" + strings.ToLower(rand.Text()[:6])
}

// Pace of reports to the control plane. Those of a large fleet are large, so they come less often.
const (
	reportEvery = time.Second
	reportMost  = 4 * time.Second        // well below the time after which the control plane thinks that a router is away
	reportShare = 400 * time.Microsecond // between two reports, for each endpoint
	changeShare = 50 * time.Microsecond  // the same, when something has changed
)

// reportPauses gives the least time to the next report and what is waited after that if nothing changes.
func reportPauses(endpoints int) (least, rest time.Duration) {
	n := time.Duration(endpoints)
	least = min(n*changeShare, reportEvery)
	return least, min(max(n*reportShare, reportEvery), reportMost) - least
}

// report tells the control plane how engines and models fare, until ctx ends. What can't be told is told a second later.
func (r *router) report(ctx context.Context, to planeLink) error {
	for away := false; ; {
		least, rest := reportPauses(len(r.keeper.Snapshot().Endpoints))
		pause(ctx, least)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rest):
		case <-r.changed: // a replica that drains waits for this
		}
		err := r.reportOnce(ctx, to)
		if err != nil && !away && ctx.Err() == nil {
			r.logger.Warn("the control plane is away: serving goes on with the endpoints that are known", "err", err)
		} else if err == nil && away {
			r.logger.Info("the control plane is back")
		}
		away = err != nil
	}
}

func (r *router) reportOnce(ctx context.Context, to planeLink) error {
	ctx, cancel := context.WithTimeout(ctx, 5*reportEvery)
	defer cancel()
	return to.Report(ctx, r.reporter.Report(time.Now()))
}

func newPolicy(f *mobula.Fleet) (pick.Policy, error) {
	p, err := pick.New(pick.Options{Name: f.Router.Policy.Name, LoadFactor: f.Router.Policy.LoadFactor, IndexMemory: int64(f.KV.Index.Memory)})
	if err != nil {
		return nil, fmt.Errorf("router.policy: %w", err)
	}
	return p, nil
}

func proxyOptions(f *mobula.Fleet, l *slog.Logger) proxy.Options {
	return proxy.Options{Timeouts: f.Router.Timeouts, Retries: f.Router.Retries, IdleConnections: f.Router.Limits.IdleConnections, Logger: l}
}

// reload applies the fleet file whenever it changes, and on SIGHUP.
func (r *router) reload(ctx context.Context, path string) error {
	w, err := NewReloader(path, r.apply, r.logger, r.registry)
	if err != nil {
		return err
	}
	return reloadOnHangup(ctx, w)
}

// reloadOnHangup runs w, and has it load the file on SIGHUP.
func reloadOnHangup(ctx context.Context, w *Reloader) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Run(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-hup:
				w.Trigger()
			}
		}
	})
	return g.Wait()
}

// apply takes a new fleet file. Either all of it is taken or, with an error, nothing.
func (r *router) apply(f *mobula.Fleet) error {
	if f.Router.Listen != r.fleet.Router.Listen || f.Router.Log != r.fleet.Router.Log {
		r.logger.Warn("router.listen and router.log take effect at the next start")
	}
	policy := r.policy
	if f.Router.Policy.Name != r.fleet.Router.Policy.Name || f.Router.Policy.LoadFactor != r.fleet.Router.Policy.LoadFactor || f.KV.Index != r.fleet.KV.Index {
		var err error
		if policy, err = newPolicy(f); err != nil {
			return err
		}
	}
	if err := r.others.Check(f.Providers); err != nil {
		return fmt.Errorf("providers: %w", err)
	}
	if err := r.source.update(f); err != nil {
		return err
	}
	if err := r.others.Update(f.Providers); err != nil {
		return fmt.Errorf("providers: %w", err)
	}
	r.policy, r.fleet = policy, f
	r.proxy.Update(proxyOptions(f, r.logger))
	r.keeper.Update(f.Router.Health, slices.Clone(f.Models))
	r.edge.Update(f.Router, policy)
	r.front.Update(f.Router.Limits, f.Router.Timeouts)
	return nil
}

// drain stops the router: /ready fails first, then nothing new is taken, and what runs may
// end within the bound that the fleet gives.
func (r *router) drain(ctx context.Context) error {
	r.edge.Drain()
	t := r.edge.Timeouts()
	if n := r.edge.InFlight(); n > 0 || t.Lameduck > 0 {
		r.logger.Info("draining", "in_flight", n, "lameduck", time.Duration(t.Lameduck), "bound", time.Duration(t.Drain))
	}
	time.Sleep(time.Duration(t.Lameduck))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(t.Drain))
	defer cancel()
	err := r.front.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		r.logger.Warn("cut what had not ended in time", "in_flight", r.edge.InFlight())
		return nil
	}
	return err
}

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent/daemon"
	"github.com/mobula-serve/mobula/agent/gpu"
	"github.com/mobula-serve/mobula/agent/shim"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/state"
)

const (
	routerReady = 10 * time.Second // bounds the wait between the engines' readiness and the banner
	adminPort   = 8100
	upSlots     = 1024 // engines without a GPU: whoever asks for many on one machine gets them
	upHost      = "this-machine"
)

// local is a whole fleet in this process, but for its engines.
type local struct {
	o      upOptions
	fleet  *mobula.Fleet
	file   []byte // fleet as it is applied
	plane  *plane
	daemon *daemon.Daemon
	gpus   *gpu.Reader
	folder string // of the engines
	access client.Config
	c      *console
	logger *slog.Logger
}

func (a *app) up(ctx context.Context, o upOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	fleet, addr, err := upFleet(o)
	if err != nil {
		return err
	}
	defer outliveReaders()()
	if o.quick() {
		var stop context.CancelFunc
		ctx, stop = untilHangup(ctx)
		defer stop()
	}
	logger, err := newLogger(a.stderr, fleet.Router.Log)
	if err != nil {
		return err
	}
	// The router's port comes first: an engine may take minutes to start.
	l, err := listen(ctx, addr, "--port")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	here, err := newLocal(ctx, o, fleet, newConsole(a.stderr), logger)
	if err != nil {
		return err
	}
	defer here.end()
	return a.runLocal(ctx, here, l)
}

func newLocal(ctx context.Context, o upOptions, fleet *mobula.Fleet, c *console, logger *slog.Logger) (*local, error) {
	here := &local{o: o, c: c, logger: logger}
	gpus, err := gpu.Open(gpu.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	here.gpus = gpus
	if err := here.prepare(ctx, fleet); err != nil {
		_ = gpus.Close()
		return nil, err
	}
	return here, nil
}

// prepare says what to run, and where.
func (h *local) prepare(ctx context.Context, fleet *mobula.Fleet) error {
	devices, err := h.gpus.Devices(ctx)
	if err != nil {
		return err
	}
	if fleet.Platform.Static == nil && h.o.quick() {
		fleet.Platform.Static = &mobula.Static{HostTimeout: mobula.Duration(time.Minute)}
	}
	if h.fleet, err = h.o.withModels(fleet, len(devices)); err != nil {
		return err
	}
	if h.file, err = fleetYAML(h.fleet); err != nil {
		return err
	}
	if len(h.o.models) > 0 && len(devices) == 0 {
		h.c.line("no GPU found: engines run on the CPU")
	}
	if h.folder, err = engineFolder(); err != nil {
		return err
	}
	if err := h.wire(ctx); err != nil {
		_ = os.RemoveAll(h.folder)
		return err
	}
	return nil
}

// end frees what newLocal took.
func (h *local) end() {
	_ = os.RemoveAll(h.folder)
	_ = h.gpus.Close()
}

// wire makes the agent and the control plane. Nothing is remembered: with this process all of it ends.
func (h *local) wire(ctx context.Context) error {
	store := state.NewInMemory()
	id, err := control.ID(store)
	if err != nil {
		return err
	}
	h.daemon, err = daemon.New(daemon.Options{
		Name: upHost, Control: id, DataDir: h.folder, GPUs: h.gpus.Devices, Slots: upSlots, Lifeline: true,
		Logger: h.logger, Version: thisBuild().Version,
	})
	if err != nil {
		return err
	}
	token := randomToken()
	l, err := adminListener(ctx)
	if err != nil {
		return err
	}
	h.access = client.Config{URL: baseURL(l.Addr()), Token: token}
	h.plane, err = newPlane(planeOptions{
		Store: store, ID: id, Listener: l, Token: token, Logger: h.logger, Version: thisBuild().Version, EngineKey: engineKey(),
		Dial: func(string, string) static.AgentClient { return h.daemon },
	})
	if err != nil {
		_ = l.Close()
	}
	return err
}

// adminListener binds the control plane's port, or another one if it is taken, say by another `mobula up`.
func adminListener(ctx context.Context) (net.Listener, error) {
	all, err := listenFrom(ctx, adminPort, 1)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// engineFolder makes a folder for the engines of one run, in the user's cache or where temporary files go.
func engineFolder() (string, error) {
	parent := ""
	if cache, err := os.UserCacheDir(); err == nil {
		parent = filepath.Join(cache, "mobula")
		if os.MkdirAll(parent, 0o700) != nil {
			parent = ""
		}
	}
	if parent != "" {
		sweep(parent)
	}
	folder, err := os.MkdirTemp(parent, "up-")
	if err != nil && parent != "" {
		folder, err = os.MkdirTemp("", "mobula-up-")
	}
	if err != nil {
		return "", fmt.Errorf("folder for the engines' logs: %w", err)
	}
	return folder, nil
}

// sweep removes the folders of runs that were killed and could not do it: those whose locks nobody holds, the agent's own
// and those of the engines.
func sweep(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, "up-*", "lock"))
	for _, lock := range locks {
		folder := filepath.Dir(lock)
		all, _ := filepath.Glob(filepath.Join(folder, "tasks", "*"))
		if !slices.ContainsFunc(append(all, folder), func(dir string) bool { return shim.Dir(dir).Alive() }) {
			_ = os.RemoveAll(folder)
		}
	}
}

// runLocal runs all parts until ctx ends or one can't go on, and stops them in order: the router first, so that running
// requests may finish, the engines last.
func (a *app) runLocal(ctx context.Context, here *local, l net.Listener) error {
	c := here.c
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, background := errgroup.WithContext(background)
	g.Go(func() error { return here.daemon.Run(background) })
	g.Go(func() error { return here.plane.run(background) })
	failed := make(chan error, 1)
	go func() { failed <- g.Wait() }()

	routing, stopRouter := context.WithCancel(ctx)
	defer stopRouter()
	var done <-chan error
	err := here.start(ctx)
	if err == nil {
		done = a.startRouter(routing, routerOptions{
			Fleet: here.fleet, Listener: l, Logger: here.logger, Version: thisBuild().Version,
			Plane: here.plane.control, Endpoints: here.plane.endpoints,
		})
		if here.o.file != "" {
			g.Go(func() error { return here.reload(background) })
		}
		err = a.serveLocal(ctx, here, baseURL(l.Addr()), &done, failed)
	}
	if ctx.Err() != nil {
		c.line("stopping: running requests may finish; Ctrl-C again stops at once")
		if errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	stopRouter()
	if done != nil {
		select {
		case stopped := <-done:
			err = errors.Join(err, stopped)
		case <-forced(ctx):
		}
	}
	if n := here.running(); n > 0 {
		c.line("stopping %s", count(n, "engine"))
	}
	stop()
	select {
	case stopped := <-failed:
		if stopped != nil && !errors.Is(stopped, context.Canceled) {
			err = errors.Join(err, stopped)
		}
	case <-forced(ctx): // the engines' shims see this process end, and kill
	}
	c.line("stopped")
	return err
}

// start applies the fleet and waits for its engines, unless they are those of a file, which may be ready when they like.
func (h *local) start(ctx context.Context) error {
	if err := h.plane.hosts.Join(ctx, upHost, net.JoinHostPort(loopback, "0")); err != nil {
		return err
	}
	if _, err := h.plane.control.Apply(ctx, h.file, "mobula up", false, true); err != nil {
		return err
	}
	return h.awaitEngines(ctx)
}

// serveLocal shows the banner and waits for the end. done is set to nil when the router has ended.
func (a *app) serveLocal(ctx context.Context, here *local, url string, done *<-chan error, failed chan error) error {
	router := newChatServer(url, "")
	defer router.close()
	ended, err := awaitReady(ctx, router, *done)
	if ended {
		*done = nil
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	forget := here.saveAccess()
	defer forget()
	a.banner(ctx, router, here)
	defer here.tell(ctx)()
	select {
	case err := <-*done:
		*done = nil
		return err
	case err := <-failed:
		failed <- nil
		return cmp.Or(err, errors.New("the control plane ended"))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// saveAccess lets the commands of this user find the control plane while it runs.
func (h *local) saveAccess() (forget func()) {
	path, err := localAccess()
	if err != nil || client.SaveConfig(path, h.access) != nil {
		return func() {}
	}
	return func() {
		if c, err := client.LoadConfig(path); err == nil && c.URL == h.access.URL {
			_ = os.Remove(path)
		}
	}
}

// reload applies the file again when it changes.
func (h *local) reload(ctx context.Context) error {
	gpus := len(h.devices(ctx))
	w, err := NewReloader(h.o.file, func(f *mobula.Fleet) error {
		fleet, err := h.o.withModels(f, gpus)
		if err != nil {
			return err
		}
		file, err := fleetYAML(fleet)
		if err != nil {
			return err
		}
		_, err = h.plane.control.Apply(ctx, file, "mobula up", false, true)
		return err
	}, h.logger, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	return reloadOnHangup(ctx, w)
}

func (h *local) devices(ctx context.Context) []mobula.Device {
	hosts, err := h.plane.hosts.Hosts(ctx)
	if err != nil || len(hosts) == 0 {
		return nil
	}
	return hosts[0].Devices
}

// running is how many engines there are.
func (h *local) running() int {
	v, err := h.plane.control.View(context.Background(), 0)
	if err != nil {
		return 0
	}
	return len(v.Replicas)
}

// awaitReady waits until the router has an engine to send requests to, for a while. ended
// says that the router has stopped instead, with err.
func awaitReady(ctx context.Context, client *chatServer, done <-chan error) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, routerReady)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !client.ready(ctx) {
		select {
		case err := <-done:
			return true, err
		case <-ctx.Done():
			return false, nil
		case <-tick.C:
		}
	}
	return false, nil
}

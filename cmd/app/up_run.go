package app

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent/daemon"
	"github.com/mobula-serve/mobula/agent/gpu"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/state"
)

const (
	routerReady   = 10 * time.Second // bounds the wait between the engines' readiness and the banner
	plainProgress = 30 * time.Second // between two lines of progress where there is no terminal
	adminPort     = 8100
	upSlots       = 1024 // engines without a GPU: whoever asks for many on one machine gets them
	upHost        = "this-machine"
)

// local is a whole fleet in this process, but for its engines.
type local struct {
	o      upOptions
	fleet  *mobula.Fleet
	file   []byte // fleet as it is applied
	plane  *plane
	daemon *daemon.Daemon
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
	defer func() { _ = os.RemoveAll(here.folder) }()
	return a.runLocal(ctx, here, l)
}

func newLocal(ctx context.Context, o upOptions, fleet *mobula.Fleet, c *console, logger *slog.Logger) (*local, error) {
	here := &local{o: o, c: c, logger: logger}
	gpus, err := gpu.Open(gpu.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	devices, err := gpus.Devices(ctx)
	_ = gpus.Close() // the agent opens its own
	if err != nil {
		return nil, err
	}
	if fleet.Platform.Static == nil && o.quick() {
		fleet.Platform.Static = &mobula.Static{HostTimeout: mobula.Duration(time.Minute)}
	}
	if here.fleet, err = o.withModels(fleet, len(devices)); err != nil {
		return nil, err
	}
	if here.file, err = fleetYAML(here.fleet); err != nil {
		return nil, err
	}
	if len(o.models) > 0 && len(devices) == 0 {
		c.line("no GPU found: engines run on the CPU")
	}
	if here.folder, err = engineFolder(); err != nil {
		return nil, err
	}
	if err := here.wire(ctx); err != nil {
		_ = os.RemoveAll(here.folder)
		return nil, err
	}
	return here, nil
}

// wire makes the agent and the control plane. Nothing is remembered: with this process all of it ends.
func (h *local) wire(ctx context.Context) error {
	gpus, err := gpu.Open(gpu.Options{Logger: h.logger})
	if err != nil {
		return err
	}
	store := state.NewInMemory()
	id, err := control.ID(store)
	if err != nil {
		return err
	}
	h.daemon, err = daemon.New(daemon.Options{
		Name: upHost, Control: id, DataDir: h.folder, GPUs: gpus.Devices, Slots: upSlots, Lifeline: true,
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
	folder, err := os.MkdirTemp(parent, "up-")
	if err != nil && parent != "" {
		folder, err = os.MkdirTemp("", "mobula-up-")
	}
	if err != nil {
		return "", fmt.Errorf("folder for the engines' logs: %w", err)
	}
	return folder, nil
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

// awaitEngines waits until all engines that the fleet wants are ready. Without a fleet file the first one that dies ends it:
// what is wrong then is mostly an argument, which no restart mends.
func (h *local) awaitEngines(ctx context.Context) error {
	if !h.o.quick() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, h.o.startTimeout)
	defer cancel()
	began, said := time.Now(), time.Now()
	seen := map[string]bool{}
	for version := int64(0); ; {
		step, stop := context.WithTimeout(wait, time.Second)
		v, err := h.plane.control.View(step, version)
		stop()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case wait.Err() != nil:
			return hinted(fmt.Errorf("engines not ready after %s", h.o.startTimeout), "see %s, or wait longer with --start-timeout", h.folder)
		case err == nil:
			version = v.Version
			waiting, failure := h.look(ctx, v, seen, began)
			if failure != nil || waiting == 0 {
				return failure
			}
			state := fmt.Sprintf("waiting for %s, %s%s", count(waiting, "engine"), time.Since(began).Round(time.Second), h.lastLine(ctx, v))
			h.c.progress(state)
			if !h.c.terminal && time.Since(said) > plainProgress {
				said = time.Now()
				h.c.line("%s", printable(state, 200))
			}
		}
	}
}

// look tells what is new of the engines, and how many are waited for.
func (h *local) look(ctx context.Context, v *control.View, seen map[string]bool, began time.Time) (waiting int, failure error) {
	for i := range h.fleet.Models {
		if m := &h.fleet.Models[i]; m.Placed() {
			waiting += m.Replicas.Min
		}
	}
	for _, r := range v.Replicas {
		what := fmt.Sprintf("%s: %s", cmp.Or(r.URL, r.ID), r.Model)
		if where := strings.Join(r.Devices, ","); where != "" {
			what += " on GPU " + where
		}
		switch {
		case r.State == mobula.StateReady:
			waiting--
			if !seen[r.ID] {
				seen[r.ID] = true
				if len(h.o.models) > 0 {
					h.c.line("%s is ready after %s", what, time.Since(began).Round(time.Second))
				}
			}
		case r.State == mobula.StateFailed, r.Restarts > 0, r.NoRoom:
			h.printTail(ctx, r.ID)
			return waiting, fmt.Errorf("the engine %s ended before it was ready: %s", cmp.Or(r.URL, r.ID), r.Reason)
		case r.URL != "" && len(h.o.models) > 0 && !seen[r.URL]:
			seen[r.URL] = true
			h.c.line("%s, log %s", what, filepath.Join(h.folder, "tasks", r.ID, "engine.log"))
		}
	}
	return max(waiting, 0), nil
}

// logLines are what is shown of a failed engine's log.
const logLines = 15

func (h *local) tail(ctx context.Context, replica string, lines int) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	log, err := h.plane.control.Logs(ctx, replica, lines, false)
	if err != nil {
		return nil
	}
	defer func() { _ = log.Close() }()
	text, _ := io.ReadAll(io.LimitReader(log, 64<<10))
	return strings.Split(strings.TrimRight(string(text), "\n"), "\n")
}

func (h *local) printTail(ctx context.Context, replica string) {
	for _, line := range h.tail(ctx, replica, logLines) {
		h.c.line("  %s %s", h.c.dim("|"), printable(line, 500))
	}
}

// lastLine is what the first engine that is waited for says.
func (h *local) lastLine(ctx context.Context, v *control.View) string {
	for _, r := range v.Replicas {
		if r.State != mobula.StateReady {
			if last := h.tail(ctx, r.ID, 1); len(last) > 0 && last[0] != "" {
				return ": " + last[0]
			}
		}
	}
	return ""
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

// banner says where everything is and what to type.
func (a *app) banner(ctx context.Context, client *chatServer, here *local) {
	c := newConsole(a.stdout)
	models, err := client.models(ctx)
	if err != nil || len(models) == 0 {
		models = []string{"MODEL"}
	}
	quoted, _ := json.Marshal(models[0])
	urls := here.engineURLs(ctx)
	chat := "mobula chat"
	if client.base != defaultURL {
		chat += " --url " + client.base
	}
	body := fmt.Sprintf(`{"model":%s,"messages":[{"role":"user","content":"Hello!"}]}`, quoted)
	python := fmt.Sprintf(`from openai import OpenAI; print(OpenAI(base_url="%s/v1", api_key="-").chat.completions.create(model=%s, messages=[{"role":"user","content":"Hello!"}]).choices[0].message.content)`, client.base, quoted)

	c.line("%s %s: policy %s", c.strong("mobula"), thisBuild().Version, here.fleet.Router.Policy.Name)
	c.line("")
	field := func(label, text string) { c.line("  %s  %s", c.strong(fmt.Sprintf("%-10s", label)), text) }
	field("OpenAI API", c.good(client.base+"/v1"))
	field("models", strings.Join(models, ", "))
	field("metrics", client.base+"/metrics")
	field("control", here.access.URL)
	field("engines", strings.Join(urls, " "))
	if len(here.o.models) == 0 && here.o.simulated() > 0 {
		field("", c.dim("simulated: they need no GPU and make their text up; for a real model: mobula up --model NAME"))
	}
	c.line("")
	c.line("  curl %s/v1/chat/completions -H 'Content-Type: application/json' -d %s", client.base, shellQuote(body))
	c.line("")
	c.line("  python -c %s", shellQuote(python))
	c.line("")
	c.line("  %s", chat)
	c.line("  %s", "mobula get"+here.configFlag())
	c.line("")
	if !client.ready(ctx) {
		c.line("%s no engine answers yet", c.bad("warning:"))
	}
	c.line("%s", c.dim("Ctrl-C stops everything."))
}

// shellQuote makes one word of s for a POSIX shell.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// engineURLs are those of the file and those that were started.
func (h *local) engineURLs(ctx context.Context) []string {
	var urls []string
	for _, e := range h.fleet.Platform.Static.Endpoints {
		urls = append(urls, e.URL)
	}
	if v, err := h.plane.control.View(ctx, 0); err == nil {
		for _, r := range v.Replicas {
			if r.URL != "" {
				urls = append(urls, r.URL)
			}
		}
	}
	return urls
}

// configFlag is what commands need to find this control plane and not the one in the user's settings.
func (h *local) configFlag() string {
	usual, err := client.DefaultConfigPath()
	if err != nil {
		return ""
	}
	if _, err := os.Stat(usual); err != nil {
		return ""
	}
	path, err := localAccess()
	if err != nil {
		return ""
	}
	return " --config " + path
}

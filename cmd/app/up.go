package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
)

// routerReady bounds the wait between the router's start and the banner.
const routerReady = 10 * time.Second

// upOptions are the flags of `mobula up`.
type upOptions struct {
	file         string
	models       []string
	vllm         string
	port         int // -1 for the fleet file's
	engines      int // 0 for as many as fit
	startTimeout time.Duration
	args         []string // for vLLM
}

func (a *app) upCommand() *cobra.Command {
	o := upOptions{}
	cmd := &cobra.Command{
		Use:                   "up [-f FILE] [--model NAME]... [-- VLLM ARGUMENTS]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a router and its engines on this machine",
		Long: `Runs a router and engines on this machine, reachable from it only, until Ctrl-C.

Without a model or a file: two simulated engines, which need no GPU and make their text up.
With --model: real vLLM engines, one for each GPU, or one on the CPU when there is none.
With -f: the router as the fleet file says, in front of the file's engines; --model adds engines to them.`,
		Example: `  # Router and two simulated engines
  mobula up

  # vLLM on every GPU of this machine
  mobula up --model Qwen/Qwen2.5-0.5B-Instruct

  # Arguments after -- are vLLM's
  mobula up --model Qwen/Qwen2.5-7B-Instruct -- --tensor-parallel-size 2 --max-model-len 8192

  # A fleet file's router, on the loopback
  mobula up -f fleet.yaml --port 9000`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				return usagef("what is %q? arguments for vLLM come after --", args[0])
			}
			o.args = args
			if !cmd.Flags().Changed("port") {
				o.port = -1
			}
			return a.up(cmd.Context(), o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "fleet file")
	f.StringArrayVar(&o.models, "model", nil, "model to serve with vLLM, a name on the hub or a folder; may be repeated")
	f.StringVar(&o.vllm, "vllm", "vllm", "vllm command")
	f.IntVar(&o.port, "port", 8000, "port of the router, 0 for a free one")
	f.IntVar(&o.engines, "engines", 0, "number of engines (default 2 simulated ones, or one for each GPU)")
	f.DurationVar(&o.startTimeout, "start-timeout", 30*time.Minute, "time for the engines to start; a model may have to be downloaded")
	yamlFiles(cmd, "file")
	return cmd
}

func (o upOptions) check() error {
	switch {
	case o.engines < 0 || o.engines > 64:
		return usagef("--engines %d: want 0 to 64", o.engines)
	case o.port > 65535 || o.port < -1:
		return usagef("--port %d: want 0 to 65535", o.port)
	case slices.Contains(o.models, ""):
		return usagef("--model: the name is empty")
	case len(o.args) > 0 && len(o.models) == 0:
		return usagef("arguments for vLLM need a --model; simulated engines take none (mobula sim has flags)")
	}
	return checkEngineArgs(o.args)
}

// reloads tells whether the fleet file is read again: not with engines of our own, which a
// reload would forget.
func (o upOptions) reloads() bool { return o.file != "" && len(o.models) == 0 && o.engines == 0 }

func (a *app) up(ctx context.Context, o upOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	fleet, addr, err := upFleet(o)
	if err != nil {
		return err
	}
	defer outliveReaders()()
	if !o.reloads() {
		var stop context.CancelFunc
		ctx, stop = untilHangup(ctx)
		defer stop()
	}
	c := newConsole(a.stderr)
	logger, err := newLogger(a.stderr, fleet.Router.Log)
	if err != nil {
		return err
	}
	// The router's port comes first: an engine may take minutes to start.
	l, err := listen(ctx, addr, "--port")
	if err != nil {
		return err
	}
	set, err := a.startEngines(ctx, o, c, logger)
	if err != nil {
		_ = l.Close()
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return nil // Ctrl-C while the engines start
		}
		return err
	}
	defer set.stop()

	router := routerOptions{Fleet: withEndpoints(fleet, set.endpoints), Listener: l, Logger: logger, Version: thisBuild().Version}
	if o.reloads() {
		router.FleetPath = o.file
	}
	return a.serve(ctx, router, set, c)
}

// serve runs the router in front of the engines until ctx ends or one of them can't go on,
// then stops them in order.
func (a *app) serve(ctx context.Context, o routerOptions, set *engines, c *console) error {
	routerCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := a.startRouter(routerCtx, o)
	url := baseURL(o.Listener.Addr())
	client := newAPI(url, "")
	defer client.close()
	ended, err := awaitReady(ctx, client, done)
	if !ended && ctx.Err() == nil {
		a.banner(ctx, client, o, set)
	}
	if !ended {
		select {
		case err = <-done:
			ended = true
		case err = <-set.failed:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		c.line("stopping: running requests may finish; Ctrl-C again stops at once")
	}
	cancel()
	if !ended {
		select {
		case stopped := <-done:
			err = errors.Join(err, stopped)
		case <-forced(ctx):
		}
	}
	if n := len(set.endpoints); n > 0 {
		c.line("stopping %s", count(n, set.kind))
	}
	set.stop()
	c.line("stopped")
	return err
}

// awaitReady waits until the router has an engine to send requests to, for a while. ended
// says that the router has stopped instead, with err.
func awaitReady(ctx context.Context, client *api, done <-chan error) (ended bool, err error) {
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

// upFleet gives the fleet to run, and the address of its router: on the loopback whatever
// the file says.
func upFleet(o upOptions) (*mobula.Fleet, string, error) {
	fleet := new(mobula.Default())
	if o.file == "" {
		fleet.Router.Log.Level = "warn" // the banner says what there is to know
	} else {
		loaded, err := mobula.LoadFile(o.file)
		if err != nil {
			return nil, "", fleetError(o.file, err)
		}
		fleet = loaded
	}
	port := strconv.Itoa(o.port)
	if o.port < 0 {
		_, listen, err := net.SplitHostPort(fleet.Router.Listen)
		if err != nil {
			return nil, "", fmt.Errorf("router.listen: %w", err)
		}
		port = listen
	}
	return fleet, net.JoinHostPort(loopback, port), nil
}

// withEndpoints gives the fleet with more static endpoints.
func withEndpoints(f *mobula.Fleet, more []mobula.StaticEndpoint) *mobula.Fleet {
	fleet := *f
	static := mobula.Static{}
	if f.Platform.Static != nil {
		static = *f.Platform.Static
	}
	static.Endpoints = slices.Concat(static.Endpoints, more)
	fleet.Platform.Static = &static
	return &fleet
}

// startEngines starts what o asks for; with a fleet file and nothing else that is none.
func (a *app) startEngines(ctx context.Context, o upOptions, c *console, logger *slog.Logger) (*engines, error) {
	switch {
	case len(o.models) > 0:
		return a.startVLLM(ctx, o, c, logger)
	case o.file == "" || o.engines > 0:
		return startSims(ctx, o.engines, logger)
	}
	return newEngines(ctx, "engine"), nil
}

// banner says where everything is and what to type.
func (a *app) banner(ctx context.Context, client *api, o routerOptions, set *engines) {
	c := newConsole(a.stdout)
	models, err := client.models(ctx)
	if err != nil || len(models) == 0 {
		models = []string{"MODEL"}
	}
	quoted, _ := json.Marshal(models[0])
	urls := make([]string, 0, len(o.Fleet.Platform.Static.Endpoints))
	for _, e := range o.Fleet.Platform.Static.Endpoints {
		urls = append(urls, e.URL)
	}
	chat := "mobula chat"
	if client.base != defaultURL {
		chat += " --url " + client.base
	}
	body := fmt.Sprintf(`{"model":%s,"messages":[{"role":"user","content":"Hello!"}]}`, quoted)
	python := fmt.Sprintf(`from openai import OpenAI; print(OpenAI(base_url="%s/v1", api_key="-").chat.completions.create(model=%s, messages=[{"role":"user","content":"Hello!"}]).choices[0].message.content)`, client.base, quoted)

	c.line("%s %s: policy %s", c.strong("mobula"), o.Version, o.Fleet.Router.Policy.Name)
	c.line("")
	field := func(label, text string) { c.line("  %s  %s", c.strong(fmt.Sprintf("%-10s", label)), text) }
	field("OpenAI API", c.good(client.base+"/v1"))
	field("models", strings.Join(models, ", "))
	field("metrics", client.base+"/metrics")
	field("engines", strings.Join(urls, " "))
	if set.kind == simKind && len(set.endpoints) > 0 {
		field("", c.dim("simulated: they need no GPU and make their text up; for a real model: mobula up --model NAME"))
	}
	c.line("")
	c.line("  curl %s/v1/chat/completions -H 'Content-Type: application/json' -d %s", client.base, shellQuote(body))
	c.line("")
	c.line("  python -c %s", shellQuote(python))
	c.line("")
	c.line("  %s", chat)
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

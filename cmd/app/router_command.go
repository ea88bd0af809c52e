package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/client"
)

// routerCommandOptions are the flags of `mobula router`.
type routerCommandOptions struct {
	file, addr string
	access     access
	objects    objectFlags
}

func (a *app) routerCommand() *cobra.Command {
	o := routerCommandOptions{}
	cmd := &cobra.Command{
		Use:                   "router -f FILE | --config FILE | --kubernetes",
		DisableFlagsInUseLine: true,
		Short:                 "Run a router of a fleet",
		Long: `Runs a router. With -f for engines that already run, as a fleet file lists them: the file is read again when it
changes and on SIGHUP; a bad one changes nothing and is reported. With --config or --control for a control plane's
fleet: it follows what is applied there, and goes on with what it knows while the control plane is away. With --kubernetes
for a fleet of a Kubernetes cluster: it reads the Fleet and Model objects and finds the engines' pods by itself.

The first SIGINT or SIGTERM stops taking requests and lets running ones finish, a second one stops at once.`,
		Example: `  mobula router -f fleet.yaml

  # On another address than the file's
  mobula router -f fleet.yaml --listen 127.0.0.1:9000

  # For the engines that a control plane runs
  mobula router --config /etc/mobula/client.json

  # In a Kubernetes cluster, as the Helm chart runs it
  mobula router --kubernetes --namespace serving --control-secret mobula-control`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.objects.check(cmd); err != nil {
				return err
			}
			switch given := countTrue(o.file != "", o.access.given(), o.objects.on); {
			case given == 0:
				return usagef("which fleet? give its file with -f, its control plane with --config or --control, or --kubernetes")
			case given > 1:
				return usagef("-f, a control plane and --kubernetes: want one of them")
			}
			return a.router(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "fleet file")
	cmd.Flags().StringVar(&o.addr, "listen", "", "address to listen on, host:port, in place of the file's")
	o.access.flags(cmd)
	o.objects.flags(cmd)
	yamlFiles(cmd, "file")
	return cmd
}

// countTrue is how many are true.
func countTrue(all ...bool) (n int) {
	for _, is := range all {
		if is {
			n++
		}
	}
	return n
}

func (a *app) router(ctx context.Context, o routerCommandOptions) error {
	defer outliveReaders()()
	r := routerOptions{FleetPath: o.file, Version: thisBuild().Version}
	from := "router.listen of the fleet or --listen"
	switch {
	case o.file != "":
		fleet, err := mobula.LoadFile(o.file)
		if err != nil {
			return fleetError(o.file, err)
		}
		r.Fleet, from = fleet, "router.listen of "+o.file+" or --listen"
	case o.objects.on:
		stop, err := a.followObjects(ctx, o.objects, &r)
		if err != nil {
			return err
		}
		defer stop()
	default:
		plane, err := o.access.client(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer plane.Close()
		if r.Fleet, err = a.firstFleet(ctx, plane); err != nil {
			return err
		}
		r.Plane, r.Endpoints = plane, plane.Discoverer()
	}
	var err error
	if r.Logger, err = newLogger(a.stderr, r.Fleet.Router.Log); err != nil {
		return err
	}
	if r.Listener, err = listen(ctx, cmp.Or(o.addr, r.Fleet.Router.Listen), from); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.stdout, "listening on %s\n", baseURL(r.Listener.Addr()))
	done := a.startRouter(ctx, r)
	select {
	case err := <-done:
		return err
	case <-forced(ctx):
		return nil
	}
}

// firstFleet waits for the control plane to have a fleet.
func (a *app) firstFleet(ctx context.Context, plane fleetSource) (*mobula.Fleet, error) {
	c := newConsole(a.stderr)
	for said := ""; ; {
		fleet, _, err := fetchFleet(ctx, plane, 0)
		if fleet != nil {
			return fleet, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		why := "nothing has been applied there yet"
		if err != nil {
			if e, ok := errors.AsType[*client.Error](err); ok && e.Code == client.CodeUnauthorized {
				return nil, err // waiting does not help
			}
			why = err.Error()
		}
		if why != said {
			said = why
			c.line("waiting for the fleet: %s", why)
		}
		pause(ctx, followPause)
	}
}

// startRouter runs a router. Its error, or nil, comes when it has stopped.
func (a *app) startRouter(ctx context.Context, o routerOptions) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer func() { _ = o.Listener.Close() }()
		err := a.route(ctx, o)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // a stop that was asked for
		}
		done <- err
	}()
	return done
}

// baseURL is how a client on this machine reaches addr.
func baseURL(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = loopback
	}
	return "http://" + net.JoinHostPort(host, port)
}

// newLogger makes the logger that a fleet asks for.
func newLogger(w io.Writer, l mobula.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cmp.Or(l.Level, "info"))); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	if strings.EqualFold(l.Format, "json") {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

// yamlFiles completes a flag with YAML files.
func yamlFiles(cmd *cobra.Command, flag string) {
	_ = cmd.MarkFlagFilename(flag, "yaml", "yml")
}

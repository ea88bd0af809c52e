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
)

func (a *app) routerCommand() *cobra.Command {
	var file, addr string
	cmd := &cobra.Command{
		Use:                   "router -f FILE",
		DisableFlagsInUseLine: true,
		Short:                 "Run the router of a fleet whose engines already run",
		Long: `Runs the router of a fleet file. It reads the file again when it changes and on
SIGHUP; a bad file changes nothing and is reported. The first SIGINT or SIGTERM stops
taking requests and lets running ones finish, a second one stops at once.`,
		Example: `  mobula router -f fleet.yaml

  # On another address than the file's
  mobula router -f fleet.yaml --listen 127.0.0.1:9000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("which fleet? give its file with -f")
			}
			return a.router(cmd.Context(), file, addr)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "fleet file")
	cmd.Flags().StringVar(&addr, "listen", "", "address to listen on, host:port, in place of the file's")
	yamlFiles(cmd, "file")
	return cmd
}

func (a *app) router(ctx context.Context, file, addr string) error {
	defer outliveReaders()()
	fleet, err := mobula.LoadFile(file)
	if err != nil {
		return fleetError(file, err)
	}
	l, err := listen(ctx, cmp.Or(addr, fleet.Router.Listen), "router.listen of "+file+" or --listen")
	if err != nil {
		return err
	}
	logger, err := newLogger(a.stderr, fleet.Router.Log)
	if err != nil {
		_ = l.Close()
		return err
	}
	_, _ = fmt.Fprintf(a.stdout, "listening on %s\n", baseURL(l.Addr()))
	done := a.startRouter(ctx, routerOptions{Fleet: fleet, FleetPath: file, Listener: l, Logger: logger, Version: thisBuild().Version})
	select {
	case err := <-done:
		return err
	case <-forced(ctx):
		return nil
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

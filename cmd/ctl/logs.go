package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

const (
	maxLogs    = 64       // replicas that are read at once
	maxLogLine = 64 << 10 // bytes; a longer line is printed in pieces
)

type logsOptions struct {
	follow bool
	tail   int
}

func (c *ctl) logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs REPLICA|MODEL",
		Short: "Show what engines print",
		Long: `Shows what the engine of a replica prints, or those of all replicas of a model: then each line
begins with the replica.`,
		Example: `  mobula logs llama-3fa9c1-xk2p4

  # All engines of a model, as they print
  mobula logs llama -f --tail 10`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tail < 0 {
				return usagef("--tail %d: want at least 0", o.tail)
			}
			return c.logs(cmd.Context(), args[0], o)
		},
		ValidArgsFunction: c.completer(1, kindModel, kindReplica),
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on as more is printed, until Ctrl-C")
	cmd.Flags().IntVar(&o.tail, "tail", 100, "how many of the last lines")
	return cmd
}

func (c *ctl) logs(ctx context.Context, name string, o logsOptions) error {
	var replicas []string
	v, kind, found, err := c.target(ctx, name, []string{kindReplica, kindModel}, func(context.Context, client.API, *control.View, string, string) error { return nil })
	if err != nil {
		return err
	}
	replicas = []string{found}
	if kind == kindModel {
		replicas = nil
		for _, r := range replicasOf(v, found) {
			replicas = append(replicas, r.ID)
		}
	}
	switch {
	case len(replicas) == 0:
		c.err.line("no replicas of %s: mobula describe %s shows why", clean(found), clean(found))
		return nil
	case len(replicas) > maxLogs:
		return fmt.Errorf("%s has %d replicas, the logs of at most %d can be read at once: name one", clean(found), len(replicas), maxLogs)
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	p := &logPrinter{console: c.out, raw: !c.out.terminal}
	if len(replicas) == 1 {
		return p.print(ctx, api, replicas[0], "", o)
	}
	width := 0
	for _, r := range replicas {
		width = max(width, len(clean(r)))
	}
	problems := make([]error, len(replicas))
	var reading sync.WaitGroup
	for i, r := range replicas {
		prefix := c.out.paint(prefixColour(i), pad(clean(r), width, false)+" |") + " "
		if !o.follow {
			problems[i] = named(r, p.print(ctx, api, r, prefix, o))
			continue
		}
		reading.Go(func() { problems[i] = named(r, p.print(ctx, api, r, prefix, o)) })
	}
	reading.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(slices.DeleteFunc(problems, func(err error) bool { return err == nil })...)
}

func named(replica string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", replica, err)
}

// prefixColour tells replicas apart.
func prefixColour(i int) string {
	colours := [...]string{cyan, green, yellow, "35", "34", "96", "92", "95"}
	return colours[i%len(colours)]
}

// logPrinter prints lines of several engines, each line whole.
type logPrinter struct {
	*console
	mu  sync.Mutex
	raw bool // as the engine has written it: not for a terminal
}

func (p *logPrinter) print(ctx context.Context, api client.API, replica, prefix string, o logsOptions) error {
	if !o.follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	log, err := api.Logs(ctx, replica, o.tail, o.follow)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	// A reader that does not know ctx is ended by closing it.
	stop := context.AfterFunc(ctx, func() { _ = log.Close() })
	defer stop()
	lines := bufio.NewReaderSize(log, maxLogLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			p.write(prefix, string(line))
		}
		switch {
		case err == nil || errors.Is(err, bufio.ErrBufferFull):
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read the log: %w", err)
		}
	}
}

// write writes a line. A progress bar's carriage returns end a line on a terminal, where it would overwrite its prefix.
func (p *logPrinter) write(prefix, line string) {
	text := prefix + line
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if !p.raw {
		var b strings.Builder
		for part := range strings.FieldsFuncSeq(line, func(r rune) bool { return r == '\r' || r == '\n' }) {
			b.WriteString(prefix + clean(part) + "\n")
		}
		if text = b.String(); text == "" {
			text = prefix + "\n"
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.w, text)
}

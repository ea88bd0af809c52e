// Package ctl is the commands that speak to a control plane: apply, get, describe, top and their like.
package ctl

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mobula-serve/mobula/control/client"
)

// callTimeout bounds one call to the control plane that is not to wait for anything.
const callTimeout = 30 * time.Second

// Options are what the commands need of the world. Only Client is required.
type Options struct {
	// Client makes the client when a command needs it, from flags that are parsed by then.
	Client func() (client.API, error)
	// JoinCommand gives the command line with which a host joins by a token. Default: mobula agent with a URL to be filled in.
	JoinCommand func(token string) string
	// Default: the process's own.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// IsTerminal tells whether one of the three is a terminal. Default: asks the system.
	IsTerminal func(v any) bool
	// Size gives the terminal's columns and rows. Default: asks the system; 80×24 when it does not know.
	Size func() (width, height int)
	// Now is the clock that ages are counted by. Default time.Now.
	Now func() time.Time
}

// ctl is the commands' common ground.
type ctl struct {
	Options
	out, err *console
}

// Commands gives the commands, to be added to the root. Their errors tell the exit code by ExitCode
// and what to do by Hint; what ends because its context does returns the context's error.
func Commands(o Options) []*cobra.Command {
	c := newCtl(o)
	all := []*cobra.Command{
		c.applyCommand(), c.diffCommand(), c.getCommand(), c.describeCommand(), c.topCommand(),
		c.eventsCommand(), c.logsCommand(), c.scaleCommand(), c.drainCommand(), c.cordonCommand(),
		c.restartCommand(), c.rollbackCommand(), c.deleteCommand(), c.tokenCommand(), c.forgetCommand(),
	}
	for _, cmd := range all {
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error { return presentable(run(cmd, args)) }
		cmd.DisableFlagsInUseLine = true
	}
	return all
}

func newCtl(o Options) *ctl {
	if o.JoinCommand == nil {
		o.JoinCommand = func(token string) string { return "mobula agent --join https://CONTROL-PLANE:8100 --token " + token }
	}
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.IsTerminal == nil {
		o.IsTerminal = func(v any) bool {
			f, ok := v.(*os.File)
			return ok && term.IsTerminal(int(f.Fd()))
		}
	}
	if o.Size == nil {
		o.Size = func() (int, int) {
			if f, ok := o.Stdout.(*os.File); ok {
				if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
					return width, height
				}
			}
			return 80, 24
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &ctl{Options: o, out: newConsole(o.Stdout, o), err: newConsole(o.Stderr, o)}
}

// call makes one call to the control plane, within callTimeout.
func (c *ctl) call(ctx context.Context, do func(context.Context, client.API) error) error {
	api, err := c.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return do(ctx, api)
}

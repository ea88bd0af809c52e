// Package app is the mobula command: its sub-commands, and the wiring of all other rooms.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/cmd/ctl"
	"github.com/mobula-serve/mobula/control/client"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// app is one run of the command. It holds no global state: several may run in one process.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// route is runRouter but in tests.
	route func(context.Context, routerOptions) error
}

// Main runs the command with these arguments, without the program's name, until it is done
// or ctx ends, and returns the exit code: 0, 1 when it failed, 2 when the command line is
// wrong, 130 when it was cut short.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, route: runRouter}
	return a.main(ctx, args)
}

type forceKey struct{}

// WithForce gives ctx a second, harder stop: once force has ended too, commands kill what
// they would have waited for.
func WithForce(ctx, force context.Context) context.Context {
	return context.WithValue(ctx, forceKey{}, force)
}

// forced is closed when ctx's command is to stop at once; it is nil, so never, without WithForce.
func forced(ctx context.Context) <-chan struct{} {
	if force, ok := ctx.Value(forceKey{}).(context.Context); ok {
		return force.Done()
	}
	return nil
}

func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean the process's own
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitInterrupted
	}
	code, quiet := ctl.ExitCode(err)
	if quiet {
		return code
	}
	if started && !isUsage(err) {
		a.printError(err, ctl.Hint(err))
		return code
	}
	a.printError(err, cmp.Or(ctl.Hint(err), usageHint(root, cmd, args)))
	return exitUsage
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:                   "mobula",
		DisableFlagsInUseLine: true,
		Short:                 "A serving stack for vLLM",
		Long: `Mobula serves OpenAI requests with vLLM engines: a router that finds the engine that answers first and takes another one
when an engine fails, and a control plane that makes engines exist where a fleet file wants them.`,
		Example: `  # Router and two simulated engines on this machine, no GPU needed
  mobula up

  # Talk to it
  mobula chat

  # What runs, and how it fares
  mobula get
  mobula top

  # A router for engines that already run
  mobula router -f fleet.yaml`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // usageHint gives them in a line
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a part of Mobula:"},
		&cobra.Group{ID: groupFleet, Title: "Look at a fleet and change it:"},
		&cobra.Group{ID: groupTools, Title: "Tools:"},
	)
	add := func(group string, all ...*cobra.Command) {
		for _, cmd := range all {
			cmd.GroupID = group
		}
		root.AddCommand(all...)
	}
	add(groupRun, a.upCommand(), a.controlCommand(), a.agentCommand(), a.routerCommand(), a.simCommand())
	add(groupFleet, a.fleetCommands()...)
	add(groupTools, a.chatCommand(), a.validateCommand(), a.convertCommand(), a.caCommand(), a.versionCommand())
	root.AddCommand(a.shimCommand())
	root.SetHelpCommandGroupID(groupTools)
	root.SetCompletionCommandGroupID(groupTools)
	return root
}

// Groups of commands in the help.
const (
	groupRun   = "run"
	groupFleet = "fleet"
	groupTools = "tools"
)

// fleetCommands are those that speak to a control plane.
func (a *app) fleetCommands() []*cobra.Command {
	var which access
	all := ctl.Commands(ctl.Options{
		Client: func() (client.API, error) { return which.client(nil) },
		JoinCommand: func(token string) string {
			url := "https://CONTROL-PLANE:8100"
			if c, err := which.load(); err == nil {
				url = c.URL
			}
			return "mobula agent --join " + url + " --token " + token
		},
		Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
	})
	for _, cmd := range all {
		which.flags(cmd)
	}
	return all
}

// usageError is a command line that can't be meant.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

func isUsage(err error) bool {
	_, ours := errors.AsType[*usageError](err)
	_, theirs := errors.AsType[*ctl.UsageError](err)
	return ours || theirs
}

// hintedError is an error with a line on what to do about it.
type hintedError struct {
	error
	hint string
}

// Unwrap gives the error without the hint.
func (e *hintedError) Unwrap() error { return e.error }

// hinted adds a hint to err.
func hinted(err error, format string, args ...any) error {
	return &hintedError{err, fmt.Sprintf(format, args...)}
}

// printError shows err and its hint, or the given one if it has none.
func (a *app) printError(err error, hint string) {
	c := newConsole(a.stderr)
	text, rest, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	c.line("%s %s", c.bad("error:"), text)
	if rest != "" {
		c.line("%s", rest)
	}
	if h, ok := errors.AsType[*hintedError](err); ok {
		hint = h.hint
	}
	if hint != "" {
		c.line("%s %s", c.dim("hint:"), hint)
	}
}

// usageHint says where to read on, or which command was meant.
func usageHint(root, cmd *cobra.Command, args []string) string {
	if cmd == root {
		for _, arg := range args {
			if strings.HasPrefix(arg, "-") {
				continue
			}
			root.SuggestionsMinimumDistance = 2
			if like := root.SuggestionsFor(arg); len(like) > 0 {
				return "did you mean: mobula " + strings.Join(like, ", mobula ") + "?"
			}
			break
		}
	}
	return cmd.CommandPath() + " --help"
}

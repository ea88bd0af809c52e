package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// waitFlags adds --wait and --timeout.
func waitFlags(cmd *cobra.Command, o *waitOptions) {
	cmd.Flags().BoolVar(&o.wait, "wait", false, "wait until it has come true")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Minute, "bound on the wait")
}

// target finds the object of a command and calls do with it. It gives the view from before.
func (c *ctl) target(ctx context.Context, name string, among []string, do func(ctx context.Context, api client.API, v *control.View, kind, name string) error) (v *control.View, kind, found string, err error) {
	err = c.call(ctx, func(ctx context.Context, api client.API) error {
		if v, err = api.View(ctx, 0); err != nil {
			return err
		}
		if kind, found, err = resolve(v, name, among...); err != nil {
			return err
		}
		return do(ctx, api, v, kind, found)
	})
	return v, kind, found, err
}

// awaitModels waits until models that were touched since before are as wanted.
func (c *ctl) awaitModels(ctx context.Context, o waitOptions, what string, before *control.View, models ...string) error {
	if !o.wait {
		return nil
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	r := rollout{models: models, moved: marks(before, models...)}
	return c.await(ctx, api, o.timeout, awaited{
		what: what, steps: r.steps,
		stay: what + " goes on; mobula get shows how far it is",
	})
}

func (c *ctl) drainCommand() *cobra.Command {
	var o waitOptions
	var off bool
	cmd := &cobra.Command{
		Use:   "drain REPLICA|host/NAME",
		Short: "Move requests away from a replica or a host",
		Long: `Lets a replica finish the requests it has and sends it no new ones; another replica takes its
place. For a host (host/NAME) it is all replicas there, one after the other, and the host gets
no new ones. --off takes it back.`,
		Example: `  mobula drain llama-3fa9c1-xk2p4

  # Before a machine is serviced
  mobula drain host/gpu-1 --wait

  # And after it
  mobula drain host/gpu-1 --off`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if off && o.wait {
				return usagef("--wait: there is nothing to wait for with --off")
			}
			if err := o.check(); err != nil {
				return err
			}
			return c.drain(cmd.Context(), args[0], off, o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			all := c.completions(cmd.Context(), nil, kindReplica)
			for _, host := range c.completions(cmd.Context(), nil, kindHost) {
				all = append(all, kindHost+"/"+host)
			}
			return all, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "take it back")
	waitFlags(cmd, &o)
	return cmd
}

func (c *ctl) drain(ctx context.Context, name string, off bool, o waitOptions) error {
	_, kind, name, err := c.target(ctx, name, []string{kindReplica, kindHost}, func(ctx context.Context, api client.API, _ *control.View, kind, name string) error {
		if kind == kindHost {
			return api.Cordon(ctx, name, !off, !off)
		}
		return api.Drain(ctx, name, !off)
	})
	if err != nil {
		return err
	}
	if off {
		c.out.line("%s %s is no longer drained", kind, clean(name))
		return nil
	}
	c.out.line("%s %s drains", kind, clean(name))
	if !o.wait {
		return nil
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	what := "the drain of " + clean(name)
	return c.await(ctx, api, o.timeout, awaited{
		what: what, stay: what + " goes on; mobula get replicas shows how far it is",
		steps: func(v *control.View) []step { return drainSteps(v, kind, name) },
	})
}

// drainSteps gives how far a drain is: it is done when the replica, or all on the host, are gone.
func drainSteps(v *control.View, kind, name string) []step {
	s := step{name: name}
	left := replicasOn(v, name)
	if kind == kindReplica {
		left = nil
		if r := findReplica(v, name); r != nil {
			left = []control.ReplicaStatus{*r}
		}
	}
	if len(left) == 0 {
		s.done = true
		return []step{s}
	}
	var states []string
	for _, r := range left {
		state := r.ID + " " + string(r.State)
		if r.Load != nil {
			state += ", " + strconv.Itoa(r.Load.InFlight) + " in flight"
		}
		states = append(states, state)
	}
	if more := len(states) - maxWaiting; more > 0 {
		states = append(states[:maxWaiting:maxWaiting], fmt.Sprintf("%d more", more))
	}
	s.text = strings.Join(states, "; ")
	return []step{s}
}

func (c *ctl) cordonCommand() *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use:   "cordon HOST",
		Short: "Keep new replicas off a host",
		Long: `Has a host get no new replicas. Those that run there stay; mobula drain host/NAME moves them
away too. --off takes it back.`,
		Example: `  mobula cordon gpu-1
  mobula cordon gpu-1 --off`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, host, err := c.target(cmd.Context(), args[0], []string{kindHost}, func(ctx context.Context, api client.API, _ *control.View, _, host string) error {
				return api.Cordon(ctx, host, !off, false)
			})
			switch {
			case err != nil:
				return err
			case off:
				c.out.line("host %s gets new replicas again", clean(host))
			default:
				c.out.line("host %s gets no new replicas", clean(host))
			}
			return nil
		},
		ValidArgsFunction: c.completer(1, kindHost),
	}
	cmd.Flags().BoolVar(&off, "off", false, "take it back")
	return cmd
}

func (c *ctl) forgetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forget HOST",
		Short: "Remove a host that is gone for good",
		Long: `Removes a host that is gone for good; what ran there is placed elsewhere at once. A host that
still runs joins again with a new token. The nodes of a Ray cluster come and go with it.`,
		Example: `  mobula forget gpu-1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, host, err := c.target(cmd.Context(), args[0], []string{kindHost}, func(ctx context.Context, api client.API, _ *control.View, _, host string) error {
				return api.Forget(ctx, host)
			})
			if err == nil {
				c.out.line("host %s is forgotten", clean(host))
			}
			return err
		},
		ValidArgsFunction: c.completer(1, kindHost),
	}
}

func (c *ctl) restartCommand() *cobra.Command {
	var o waitOptions
	var all bool
	cmd := &cobra.Command{
		Use:   "restart MODEL|--all",
		Short: "Replace all replicas of a model, one after the other",
		Example: `  mobula restart llama --wait

  # Every model
  mobula restart --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOrAll(args, all); err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			return c.restart(cmd.Context(), args, o)
		},
		ValidArgsFunction: c.completer(1, kindModel),
	}
	cmd.Flags().BoolVar(&all, "all", false, "every model")
	waitFlags(cmd, &o)
	return cmd
}

// oneOrAll checks that one model is named, or all are meant.
func oneOrAll(args []string, all bool) error {
	switch {
	case all && len(args) > 0:
		return usagef("%s or --all? both can't be", args[0])
	case !all && len(args) == 0:
		return usagef("which model? name it, or give --all")
	}
	return nil
}

func (c *ctl) restart(ctx context.Context, args []string, o waitOptions) error {
	if len(args) == 0 {
		return c.restartAll(ctx, o)
	}
	before, _, model, err := c.target(ctx, args[0], []string{kindModel}, func(ctx context.Context, api client.API, _ *control.View, _, model string) error {
		return api.Restart(ctx, model)
	})
	if err != nil {
		return err
	}
	c.out.line("model %s restarts", clean(model))
	return c.awaitModels(ctx, o, "the restart", before, model)
}

func (c *ctl) restartAll(ctx context.Context, o waitOptions) error {
	var before *control.View
	if err := c.call(ctx, func(ctx context.Context, api client.API) (err error) {
		if before, err = api.View(ctx, 0); err != nil {
			return err
		}
		return api.Restart(ctx, "")
	}); err != nil {
		return err
	}
	c.out.line("%s restart", count(len(before.Models), "model"))
	return c.awaitModels(ctx, o, "the restart", before, namesOf(before, kindModel)...)
}

func (c *ctl) rollbackCommand() *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "rollback MODEL",
		Short: "Go back to a model's last good revision",
		Long: `Makes the revision of a model that was good before the wanted one again. The fleet file stays
as it is: the next apply that changes the model goes forward again.`,
		Example: `  mobula rollback llama --wait`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			before, _, model, err := c.target(cmd.Context(), args[0], []string{kindModel}, func(ctx context.Context, api client.API, _ *control.View, _, model string) error {
				return api.Rollback(ctx, model)
			})
			if err != nil {
				return err
			}
			line := "model " + clean(model) + " goes back"
			if previous := findModel(before, model).Previous; previous != "" {
				line += " to revision " + clean(previous)
			}
			c.out.line("%s", line)
			return c.awaitModels(cmd.Context(), o, "the rollback", before, model)
		},
		ValidArgsFunction: c.completer(1, kindModel),
	}
	waitFlags(cmd, &o)
	return cmd
}

func (c *ctl) deleteCommand() *cobra.Command {
	var all, yes bool
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "delete MODEL|--all",
		Short: "Remove a model, or the whole fleet",
		Long: `Removes a model from the fleet, or with --all the fleet: replicas finish the requests they
have and stop. It asks first; elsewhere than on a terminal it wants --yes.`,
		Example: `  mobula delete llama

  # Everything, from a script, and until nothing is left
  mobula delete --all --yes --wait`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOrAll(args, all); err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			return c.delete(cmd.Context(), args, yes, o)
		},
		ValidArgsFunction: c.completer(1, kindModel),
	}
	cmd.Flags().BoolVar(&all, "all", false, "the whole fleet")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	waitFlags(cmd, &o)
	return cmd
}

func (c *ctl) delete(ctx context.Context, args []string, yes bool, o waitOptions) error {
	if !yes && !c.IsTerminal(c.Stdin) {
		return usagef("nobody can be asked here: give --yes if it is meant")
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	v, err := api.View(asking, 0)
	cancel()
	if err != nil {
		return err
	}
	model, what := "", fmt.Sprintf("the fleet %s with %s and %s", clean(v.Fleet), count(len(v.Models), "model"), count(len(v.Replicas), "replica"))
	if len(args) > 0 {
		if _, model, err = resolve(v, args[0], kindModel); err != nil {
			return err
		}
		what = fmt.Sprintf("model %s with %s", clean(model), count(len(replicasOf(v, model)), "replica"))
	}
	if !yes {
		c.out.print("Delete " + what + "? [y/N] ")
		answer, err := readLine(ctx, c.Stdin)
		if err != nil {
			return err
		}
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("nothing was deleted")
		}
	}
	err = c.call(ctx, func(ctx context.Context, api client.API) error {
		if err := api.Delete(ctx, model); err != nil {
			return err
		}
		c.out.line("%s is deleted: its replicas drain and stop", strings.TrimPrefix(what, "the "))
		return nil
	})
	if err != nil || !o.wait {
		return err
	}
	gone := rollout{removed: []string{model}}
	if model == "" {
		gone.removed = modelNames(v)
	}
	return c.await(ctx, api, o.timeout, awaited{what: "the deletion", steps: gone.steps, stay: "the deletion goes on; mobula get shows how far it is"})
}

func modelNames(v *control.View) []string {
	names := make([]string, 0, len(v.Models))
	for i := range v.Models {
		names = append(names, v.Models[i].Name)
	}
	return names
}

// readLine reads a line of at most 1 KiB, byte by byte so that nothing after it is taken. It ends with ctx; a blocked
// read of a terminal can't be taken back, so its goroutine may outlive that until the process ends.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type answer struct {
		line string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		var line []byte
		one := make([]byte, 1)
		for len(line) < 1<<10 {
			n, err := r.Read(one)
			if n > 0 && one[0] == '\n' {
				break
			}
			line = append(line, one[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				answered <- answer{err: fmt.Errorf("read the answer: %w", err)}
				return
			}
		}
		answered <- answer{line: string(line)}
	}()
	select {
	case a := <-answered:
		return a.line, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (c *ctl) tokenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "token",
		Short: "Make a join token for hosts",
		Long: `Makes a join token and prints it, once: the control plane keeps no copy. The command with which
a host joins goes to standard error.`,
		Example: `  mobula token

  # Only the token
  mobula token 2>/dev/null`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd.Context(), func(ctx context.Context, api client.API) error {
				token, err := api.Token(ctx)
				if err != nil {
					return err
				}
				c.out.line("%s", clean(token))
				c.err.line("%s", c.err.paint(dim, "on each host:"))
				c.err.line("  %s", clean(c.JoinCommand(token)))
				return nil
			})
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
}

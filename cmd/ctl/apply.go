package ctl

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

type applyOptions struct {
	waitOptions
	file       string
	dry, force bool
}

func (c *ctl) applyCommand() *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make a fleet file what is wanted",
		Long: `Makes a fleet file what is wanted, says what changes, and shows how it comes true until the
rollout of every model is complete. A file that is not valid or can't fit changes nothing.

Ctrl-C leaves the apply in force. Exits with 1 and the reason when a rollout fails or is
rolled back, and when it takes longer than --timeout.`,
		Example: `  mobula apply -f fleet.yaml

  # What would it do?
  mobula apply -f fleet.yaml --dry-run

  # From a script that goes on at once
  envsubst < fleet.tmpl | mobula apply -f - --wait=false`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd.Context(), o) },
	}
	fileFlag(cmd, &o.file)
	cmd.Flags().BoolVar(&o.dry, "dry-run", false, "only say what would change")
	cmd.Flags().BoolVar(&o.force, "force", false, "also replace a fleet of another name, or remove models that another file has brought")
	cmd.Flags().BoolVar(&o.wait, "wait", true, "wait until every rollout is complete")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Minute, "bound on the wait")
	return cmd
}

func (c *ctl) apply(ctx context.Context, o applyOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	f, err := c.readFleet(o.file)
	if err != nil {
		return err
	}
	var before *control.View
	var change *control.Change
	err = c.call(ctx, func(ctx context.Context, api client.API) error {
		var err error
		if before, err = api.View(ctx, 0); err != nil {
			return err
		}
		change, err = api.Apply(ctx, f.data, f.source, o.dry, o.force)
		return err
	})
	switch {
	case hasCode(err, "conflict"):
		return hinted(err, "see what it would do with: mobula diff -f %s; if that is meant, --force does it", o.file)
	case err != nil:
		return err
	}
	c.showChange(change)
	if o.dry {
		c.out.line("%s", c.out.paint(dim, "nothing was done: it was a dry run"))
		return nil
	}
	r := rolloutOf(before, f, change)
	if !o.wait || len(r.models)+len(r.removed) == 0 {
		return nil
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	return c.await(ctx, api, o.timeout, awaited{
		what: "the apply", steps: r.steps,
		stay: "the apply stays in force; mobula get shows how it goes on",
	})
}

// rolloutOf gives what an apply waits for.
func rolloutOf(before *control.View, f *fleetFile, change *control.Change) rollout {
	r := rollout{generation: change.Generation, moved: map[string]mark{}}
	for i := range f.fleet.Models {
		if m := &f.fleet.Models[i]; m.Placed() {
			r.models = append(r.models, m.Name)
		}
	}
	for _, m := range change.Models {
		switch m.Action {
		case actionRoll:
			if at, ok := marks(before, m.Name)[m.Name]; ok {
				r.moved[m.Name] = at
			}
		case actionRemove:
			if findModel(before, m.Name) != nil {
				r.removed = append(r.removed, m.Name)
			}
		}
	}
	return r
}

func (c *ctl) diffCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what an apply would change",
		Long: `Shows what applying a fleet file would change: model by model, and line by line against the
file that is in force. Exits with 0 when nothing would change, 1 when something would, 2 when
that can't be told.`,
		Example: `  mobula diff -f fleet.yaml

  # Apply only what differs
  mobula diff -f fleet.yaml || mobula apply -f fleet.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			differs, err := c.diff(cmd.Context(), file)
			switch {
			case err != nil && cmd.Context().Err() != nil:
				return err
			case err != nil:
				return &StatusError{Code: exitUsage, Err: err}
			case differs:
				return &StatusError{Code: exitFailed}
			}
			return nil
		},
	}
	fileFlag(cmd, &file)
	return cmd
}

func (c *ctl) diff(ctx context.Context, file string) (differs bool, err error) {
	f, err := c.readFleet(file)
	if err != nil {
		return false, err
	}
	err = c.call(ctx, func(ctx context.Context, api client.API) error {
		// Only what is shown is forced: a conflict is a difference too.
		change, err := api.Apply(ctx, f.data, f.source, true, true)
		if err != nil {
			return err
		}
		inForce, err := api.Fleet(ctx)
		if err != nil && !hasCode(err, "notfound") {
			return err
		}
		differs = changes(change)
		lines := unified(string(inForce), string(f.data), "in force", f.name)
		c.showChange(change)
		if len(lines) > 0 {
			c.out.line("")
		}
		for _, line := range lines {
			c.out.line("%s", c.out.paint(diffColour(line), clean(line)))
		}
		if len(lines) > 0 && !differs {
			c.err.line("the files differ, but only in what changes nothing")
		}
		return nil
	})
	return differs, err
}

func diffColour(line string) string {
	switch {
	case strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
		return strong
	case strings.HasPrefix(line, "@@"):
		return cyan
	case strings.HasPrefix(line, "+"):
		return green
	case strings.HasPrefix(line, "-"):
		return red
	}
	return ""
}

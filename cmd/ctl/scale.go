package ctl

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// auto gives the number of replicas back to the fleet file.
const auto = -1

func (c *ctl) scaleCommand() *cobra.Command {
	var o waitOptions
	var all bool
	cmd := &cobra.Command{
		Use:   "scale MODEL|--all N|auto",
		Short: "Set how many replicas of a model run",
		Long: `Sets how many replicas of a model are wanted, until an apply changes its replicas. auto gives
the decision back to the fleet file and its range.`,
		Example: `  mobula scale llama 3

  # Back to the fleet file
  mobula scale llama auto

  # Every model to zero, and until all replicas are gone
  mobula scale --all 0 --wait`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			models, last := args[:len(args)-1], args[len(args)-1]
			if len(args) == 1 && !all { // that one is the model, most likely
				return usagef("how many replicas of %s? give a number or auto", args[0])
			}
			if err := oneOrAll(models, all); err != nil {
				return err
			}
			n := auto
			if last != "auto" {
				var err error
				if n, err = strconv.Atoi(last); err != nil || n < 0 || n > mobula.MaxReplicas {
					return usagef("%q is no number of replicas: want 0 to %d, or auto", last, mobula.MaxReplicas)
				}
			} else if o.wait {
				return usagef("--wait: auto is no number of replicas to wait for")
			}
			if err := o.check(); err != nil {
				return err
			}
			return c.scale(cmd.Context(), models, n, o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return c.completions(cmd.Context(), nil, kindModel), cobra.ShellCompDirectiveNoFileComp
			case 1:
				return []cobra.Completion{cobra.CompletionWithDesc("auto", "as the fleet file says")}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every model")
	waitFlags(cmd, &o)
	return cmd
}

// scale sets the number of replicas of a model, or with none named of every one.
func (c *ctl) scale(ctx context.Context, models []string, n int, o waitOptions) error {
	var before *control.View
	var names []string
	err := c.call(ctx, func(ctx context.Context, api client.API) (err error) {
		if before, err = api.View(ctx, 0); err != nil {
			return err
		}
		if names = modelNames(before); len(models) > 0 {
			_, name, err := resolve(before, models[0], kindModel)
			if err != nil {
				return err
			}
			names = []string{name}
		}
		for _, name := range names {
			if err := api.Scale(ctx, name, n); err != nil {
				return fmt.Errorf("model %s: %w", clean(name), err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		m := findModel(before, name)
		if n == auto {
			c.out.line("%s: as the fleet file says, %s", clean(name), m.Replicas)
			continue
		}
		c.out.line("%s: %s wanted, %d before; the fleet file says %s", clean(name), count(n, "replica"), m.Wanted, m.Replicas)
	}
	if !o.wait {
		return nil
	}
	api, err := c.Client()
	if err != nil {
		return err
	}
	const what = "the scaling"
	return c.await(ctx, api, o.timeout, awaited{what: what, steps: scaling{names, n}.steps, stay: what + " goes on; mobula get shows how far it is"})
}

// scaling is what is waited for when models are scaled: so many replicas, all of them ready.
type scaling struct {
	models []string
	want   int
}

func (s scaling) steps(v *control.View) []step {
	steps := make([]step, 0, len(s.models))
	for _, name := range s.models {
		st := step{name: name, want: s.want, unit: "ready"}
		if m := findModel(v, name); m != nil {
			st.have = m.Ready
		}
		there := len(replicasOf(v, name))
		st.done = st.have == s.want && there == s.want
		if over := there - s.want; over > 0 {
			st.text = "waits for " + count(over, "replica") + " to end"
		}
		steps = append(steps, st)
	}
	return steps
}

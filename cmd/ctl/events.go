package ctl

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/control"
)

type eventsOptions struct {
	output      string
	watch, bare bool
}

func (c *ctl) eventsCommand() *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what has happened",
		Long: `Shows what has happened in the fleet, the latest last. With --watch it goes on and shows what
happens.`,
		Example: `  mobula events

  # As it happens
  mobula events -w

  # What should be looked at
  mobula events -o json | jq '.[] | select(.warning)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output != asTable && !slices.Contains(outputs(), o.output) {
				return usagef("-o %s: want one of %s", o.output, strings.Join(outputs(), ", "))
			}
			return c.events(cmd.Context(), o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	outputFlag(cmd, &o.output)
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on and show what happens, until Ctrl-C")
	cmd.Flags().BoolVar(&o.bare, "no-headers", false, "without the line of headers")
	return cmd
}

func (c *ctl) events(ctx context.Context, o eventsOptions) error {
	api, err := c.Client()
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	events, err := api.Events(asking, 0, false)
	cancel()
	if err != nil {
		return err
	}
	if len(events) == 0 {
		c.err.line("nothing has happened yet: mobula apply -f fleet.yaml")
	}
	if err := c.printEvents(events, o); err != nil || !o.watch {
		return err
	}
	last, pause, away := lastSeq(events, 0), awayLeast, false
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, waitFor)
		more, err := api.Events(asking, last, true)
		waited := errors.Is(asking.Err(), context.DeadlineExceeded)
		cancel()
		switch {
		case err == nil:
			away, pause = false, awayLeast
			o.bare = o.bare || len(events) > 0
			if err := c.printEvents(more, o); err != nil {
				return err
			}
			events = append(events, more...)[:min(1, len(events)+len(more))]
			last = lastSeq(more, last)
		case waited, ctx.Err() != nil:
		case refused(err):
			return err
		default:
			if !away {
				c.err.line("the control plane is away: %s", clean(err.Error()))
			}
			away = true
			sleep(ctx, pause)
			pause = min(2*pause, awayMost)
		}
	}
	return ctx.Err()
}

func lastSeq(events []control.Event, least int64) int64 {
	for _, e := range events {
		least = max(least, e.Seq)
	}
	return least
}

// printEvents prints events: a list, but in a watch one JSON object or YAML document after the other.
func (c *ctl) printEvents(events []control.Event, o eventsOptions) error {
	switch o.output {
	case asJSON, asYAML:
		encode := toJSON
		if o.output == asYAML {
			encode = toYAML
		}
		if !o.watch {
			text, err := encode(listed(events))
			c.out.print(text)
			return err
		}
		for _, e := range events {
			text, err := encode(e)
			if err != nil {
				return err
			}
			if o.output == asYAML {
				text = "---\n" + text
			}
			c.out.print(text)
		}
		return nil
	case asName:
		for _, e := range events {
			c.out.line("%s", clean(e.Object))
		}
		return nil
	}
	if len(events) == 0 {
		return nil
	}
	width := c.out.width()
	if o.output == asWide {
		width = 0
	}
	c.out.print(joined(c.eventTable(events).lines(width, o.bare, c.out.colour)))
	return nil
}

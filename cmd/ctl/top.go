package ctl

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

const (
	maxTopEvents = 200
	// eventsWithin bounds the question for events, while which the screen stands still.
	eventsWithin = 2 * time.Second
	// plainWidth is how wide one frame may be where there is no terminal.
	plainWidth = 160
)

func (c *ctl) topCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch models, replicas and hosts live",
		Long: `Shows models, replicas, hosts and the last events live: how much is asked, held, waiting and
running, TTFT and ITL, KV cache and GPUs. Latencies and rates are over the last ten seconds.

  tab          next pane                 s   sort by another column
  ↑ ↓  k j     move in the pane          p   pause
  /            show only what matches    q   leave

With --once, or when the output is no terminal, it prints all of it once and exits.`,
		Example: `  mobula top
  mobula top --once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if once || !c.out.terminal || !c.IsTerminal(c.Stdin) {
				return c.topOnce(cmd.Context())
			}
			return c.top(cmd.Context())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&once, "once", false, "print once and exit")
	return cmd
}

// topOnce prints all of it, in as many lines as it takes.
func (c *ctl) topOnce(ctx context.Context) error {
	return c.call(ctx, func(ctx context.Context, api client.API) error {
		first, err := c.firstSight(ctx, api)
		if err != nil {
			return err
		}
		m := newTop(c.out.colour)
		if m.width = c.out.width(); m.width == 0 {
			m.width = plainWidth
		}
		m = m.see(first)
		c.out.print(strings.Join(m.frame(), "\n") + "\n")
		return nil
	})
}

// topSight is what top is shown next.
type topSight struct {
	sight
	events []control.Event // the last ones, the newest last
	now    time.Time
}

func (c *ctl) firstSight(ctx context.Context, api client.API) (topSight, error) {
	v, err := api.View(ctx, 0)
	if err != nil {
		return topSight{}, err
	}
	events, err := api.Events(ctx, 0, false)
	if err != nil {
		return topSight{}, err
	}
	return topSight{sight{view: v}, latest(events), c.Now()}, nil
}

func latest(events []control.Event) []control.Event {
	return events[max(0, len(events)-maxTopEvents):]
}

// topError ends top.
type topError struct{ error }

// top runs the live view until the user leaves, ctx ends or the control plane refuses.
func (c *ctl) top(ctx context.Context) error {
	api, err := c.Client()
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, callTimeout)
	first, err := c.firstSight(asking, api)
	cancel()
	if err != nil {
		return err
	}
	m := newTop(c.out.colour)
	m.width, m.height = c.Size()
	program := tea.NewProgram(m.see(first), tea.WithContext(ctx), tea.WithInput(c.Stdin), tea.WithOutput(c.Stdout),
		tea.WithWindowSize(m.width, m.height), tea.WithoutSignalHandler())
	feeding, stop := context.WithCancel(ctx)
	var feeder sync.WaitGroup
	feeder.Go(func() {
		if err := c.feed(feeding, api, first, func(msg tea.Msg) { program.Send(msg) }); feeding.Err() == nil {
			program.Send(topError{err})
		}
	})
	last, err := program.Run()
	stop()
	feeder.Wait()
	switch m, _ := last.(topModel); {
	case m.failed != nil:
		return m.failed
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, tea.ErrInterrupted):
		return nil
	}
	return err
}

// feed sends what is new to the view, and the time.
func (c *ctl) feed(ctx context.Context, api client.API, last topSight, send func(tea.Msg)) error {
	seq := lastSeq(last.events, 0)
	return follow(ctx, api, func(s sight) (bool, error) {
		if s.away == nil && s.view != last.view {
			asking, cancel := context.WithTimeout(ctx, eventsWithin)
			// Without an answer the next view asks again.
			if more, err := api.Events(asking, seq, false); err == nil {
				seq = lastSeq(more, seq)
				last.events = latest(append(slices.Clip(last.events), more...))
			}
			cancel()
		}
		last.sight, last.now = s, c.Now()
		send(last)
		return false, nil
	})
}

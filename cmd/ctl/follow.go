package ctl

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

const (
	// waitFor is how long one question for a newer view may stay open.
	waitFor = 30 * time.Second
	// Pauses between questions to a control plane that can't be reached.
	awayLeast = 250 * time.Millisecond
	awayMost  = 3 * time.Second
	// redraw is how often a terminal is drawn again, for the ages on it.
	redraw = time.Second
)

// sight is the last that is known of the control plane.
type sight struct {
	view *control.View
	// away is why it can't be asked now, nil when it can.
	away error
}

// follow calls see with the first view, with each new one, when the control plane goes away, and each redraw with
// what was seen last. It ends when see is done or gives an error, when ctx ends, when the control plane refuses, or
// when there is not even a first view.
func follow(ctx context.Context, api client.API, see func(sight) (done bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	sights := make(chan sight)
	var asking sync.WaitGroup
	asking.Go(func() {
		defer close(sights)
		ask(ctx, api, sights)
	})
	defer asking.Wait()
	defer cancel()
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	var last sight
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s, open := <-sights:
			if !open {
				return ctx.Err()
			}
			if s.away != nil && (last.view == nil || refused(s.away)) {
				return s.away
			}
			if s.view == nil {
				s.view = last.view
			}
			last = s
		case <-tick.C:
			if last.view == nil {
				continue
			}
		}
		if done, err := see(last); done || err != nil {
			return err
		}
	}
}

// ask asks for views until ctx ends.
func ask(ctx context.Context, api client.API, sights chan<- sight) {
	after, pause := int64(0), awayLeast
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, waitFor)
		view, err := api.View(call, after)
		waited := errors.Is(call.Err(), context.DeadlineExceeded)
		cancel()
		switch {
		case err == nil && view.Version == after:
			continue
		case err == nil:
			after, pause = view.Version, awayLeast
		case waited && after != 0:
			after = 0 // nothing new, or a control plane that counts anew: the next answer comes at once
			continue
		}
		select {
		case sights <- sight{view, err}:
		case <-ctx.Done():
			return
		}
		if err != nil && !sleep(ctx, pause) {
			return
		}
		if err != nil {
			after, pause = 0, min(2*pause, awayMost)
		}
	}
}

// sleep waits, and tells whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// refused tells whether asking again would not help.
func refused(err error) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Status >= 400 && e.Status < 500 && e.Status != 429
}

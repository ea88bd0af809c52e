package app

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/engine"
)

const plainProgress = 30 * time.Second // between two lines of progress where there is no terminal

// awaitEngines waits until all engines that the fleet wants are ready. Without a fleet file the first one that dies ends it:
// what is wrong then is mostly an argument, which no restart mends.
func (h *local) awaitEngines(ctx context.Context) error {
	if !h.o.quick() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, h.o.startTimeout)
	defer cancel()
	began, said := time.Now(), time.Now()
	seen := map[string]bool{}
	for version := int64(0); ; {
		step, stop := context.WithTimeout(wait, time.Second)
		v, err := h.plane.control.View(step, version)
		stop()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case wait.Err() != nil:
			return hinted(fmt.Errorf("engines not ready after %s", h.o.startTimeout), "see %s, or wait longer with --start-timeout", h.folder)
		case err == nil:
			version = v.Version
			waiting, failure := h.look(ctx, v, seen, began)
			if failure != nil || waiting == 0 {
				return failure
			}
			if time.Since(began) < time.Second {
				continue // nothing flickers by
			}
			state := fmt.Sprintf("waiting for %s, %s%s", count(waiting, "engine"), time.Since(began).Round(time.Second), h.lastLine(ctx, v))
			h.c.progress(state)
			if !h.c.terminal && time.Since(said) > plainProgress {
				said = time.Now()
				h.c.line("%s", printable(state, 200))
			}
		}
	}
}

// roomWait is how long the agent of this process may take to say what room there is.
const roomWait = 5 * time.Second

// hopeless tells that waiting for a replica is in vain: it has died, for another reason than a port that somebody else was quicker
// to take, or there is no room for it.
func hopeless(r *mobula.Replica, waited time.Duration) bool {
	died := r.State == mobula.StateStarting && r.Reason != "" && !engine.AddressInUse(r.Reason)
	return died || r.State == mobula.StateFailed || r.NoRoom && waited > roomWait
}

// look tells what is new of the engines, and how many are waited for.
func (h *local) look(ctx context.Context, v *control.View, seen map[string]bool, began time.Time) (waiting int, failure error) {
	for i := range h.fleet.Models {
		if m := &h.fleet.Models[i]; m.Placed() {
			waiting += m.Replicas.Min
		}
	}
	for _, r := range v.Replicas {
		what := fmt.Sprintf("%s: %s", cmp.Or(r.URL, r.ID), r.Model)
		if where := strings.Join(r.Devices, ","); where != "" {
			what += " on GPU " + where
		}
		switch {
		case r.State == mobula.StateReady:
			waiting--
			if !seen[r.ID] {
				seen[r.ID] = true
				if len(h.o.models) > 0 {
					h.c.line("%s is ready after %s", what, time.Since(began).Round(time.Second))
				}
			}
		case hopeless(&r.Replica, time.Since(began)):
			h.printTail(ctx, r.ID)
			return waiting, fmt.Errorf("the engine %s ended before it was ready: %s", cmp.Or(r.URL, r.ID), r.Reason)
		case r.URL != "" && len(h.o.models) > 0 && !seen[r.URL]:
			seen[r.URL] = true
			h.c.line("%s, log %s", what, filepath.Join(h.folder, "tasks", r.ID, "engine.log"))
		}
	}
	return max(waiting, 0), nil
}

// logLines are what is shown of a failed engine's log.
const logLines = 15

func (h *local) tail(ctx context.Context, replica string, lines int) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	log, err := h.plane.control.Logs(ctx, replica, lines, false)
	if err != nil {
		return nil
	}
	defer func() { _ = log.Close() }()
	text, _ := io.ReadAll(io.LimitReader(log, 64<<10))
	return strings.Split(strings.TrimRight(string(text), "\n"), "\n")
}

func (h *local) printTail(ctx context.Context, replica string) {
	for _, line := range h.tail(ctx, replica, logLines) {
		h.c.line("  %s %s", h.c.dim("|"), printable(line, 500))
	}
}

// lastLine is what the first engine that is waited for says.
func (h *local) lastLine(ctx context.Context, v *control.View) string {
	for _, r := range v.Replicas {
		if r.State != mobula.StateReady {
			if last := h.tail(ctx, r.ID, 1); len(last) > 0 && last[0] != "" {
				return ": " + last[0]
			}
		}
	}
	return ""
}

// tell shows what goes wrong with the engines from now on, and when they are well again, until it is stopped. With a fleet
// file the log says so, if it is to.
func (h *local) tell(ctx context.Context) (stop func()) {
	if !h.o.quick() {
		return func() {}
	}
	last := int64(0)
	if past, err := h.plane.control.Events(ctx, 0, false); err == nil && len(past) > 0 {
		last = past[len(past)-1].Seq
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ill := map[string]bool{}
		for {
			events, err := h.plane.control.Events(ctx, last, true)
			if err != nil || ctx.Err() != nil {
				return
			}
			for _, e := range events {
				last = e.Seq
				if e.Warning || ill[e.Object] {
					h.c.line("%s: %s", e.Object, printable(e.Message, 500))
				}
				if ill[e.Object] = e.Warning; !e.Warning {
					delete(ill, e.Object)
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Package conformance holds the tests that every adapters.Discoverer must pass.
package conformance

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// patience is how long a state may take to come. It is no claim on speed.
const patience = 30 * time.Second

// Subject is a Discoverer under test with a platform behind it.
type Subject struct {
	Discoverer adapters.Discoverer
	// Want is what the platform holds.
	Want []mobula.Endpoint
	// Change changes the platform and gives what it holds then. It may be called many
	// times, gives something else each time, and does not wait for Run.
	Change func(t testing.TB) []mobula.Endpoint
}

// Discoverer tests the contract of adapters.Discoverer. subject makes a fresh Subject for
// each test; what it starts ends with t.
func Discoverer(t *testing.T, subject func(t testing.TB) Subject) {
	t.Helper()
	t.Run("sends the full state first", func(t *testing.T) {
		s := subject(t)
		r := start(t, s.Discoverer, 0)
		r.expect(t, s.Want)
	})
	t.Run("sends the full state on each change", func(t *testing.T) {
		s := subject(t)
		r := start(t, s.Discoverer, 0)
		r.expect(t, s.Want)
		for range 3 {
			r.await(t, s.Change(t))
		}
	})
	t.Run("a slow consumer gets the latest state", func(t *testing.T) {
		s := subject(t)
		r := start(t, s.Discoverer, 0)
		var want []mobula.Endpoint
		for range 10 { // nobody receives: neither Run nor the platform may get stuck
			want = s.Change(t)
		}
		r.await(t, want)
		r.await(t, s.Change(t))
	})
	t.Run("the end of ctx ends Run before the first state is taken", func(t *testing.T) {
		r := start(t, subject(t).Discoverer, 0)
		r.stop(t)
	})
	t.Run("the end of ctx ends Run while it waits for changes", func(t *testing.T) {
		s := subject(t)
		r := start(t, s.Discoverer, 1)
		r.expect(t, s.Want)
		r.stop(t)
		select {
		case _, open := <-r.up:
			if !open {
				t.Error("Run closed up")
			}
		default:
		}
	})
	t.Run("Run again starts with the full state", func(t *testing.T) {
		s := subject(t)
		r := start(t, s.Discoverer, 0)
		r.expect(t, s.Want)
		r.stop(t)
		r = start(t, s.Discoverer, 0)
		r.expect(t, s.Want)
	})
}

// run is one Run in progress.
type run struct {
	up     chan []mobula.Endpoint
	cancel context.CancelFunc
	done   chan struct{} // closed when Run returned
	err    error         // valid when done is closed
}

func start(t *testing.T, d adapters.Discoverer, buffer int) *run {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{up: make(chan []mobula.Endpoint, buffer), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = d.Run(ctx, r.up)
	}()
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *run) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case <-r.done:
		if !errors.Is(r.err, context.Canceled) {
			t.Errorf("Run returned %v, want context.Canceled", r.err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on after the end of ctx")
	}
}

// expect takes the next state, which must be want.
func (r *run) expect(t *testing.T, want []mobula.Endpoint) {
	t.Helper()
	if diff := diff(want, r.next(t)); diff != "" {
		t.Fatalf("state (-want +got):\n%s", diff)
	}
}

// await takes states until want comes.
func (r *run) await(t *testing.T, want []mobula.Endpoint) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if last = diff(want, r.next(t)); last == "" {
			return
		}
	}
	t.Fatalf("state did not come; last difference (-want +got):\n%s", last)
}

func (r *run) next(t *testing.T) []mobula.Endpoint {
	t.Helper()
	select {
	case state, open := <-r.up:
		if !open {
			t.Fatal("Run closed up")
		}
		return state
	case <-r.done:
		t.Fatalf("Run returned %v", r.err)
	case <-time.After(patience):
		t.Fatal("no state came")
	}
	return nil
}

func diff(want, got []mobula.Endpoint) string {
	byID := func(s []mobula.Endpoint) []mobula.Endpoint {
		return slices.SortedFunc(slices.Values(s), func(a, b mobula.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	}
	return gocmp.Diff(byID(want), byID(got), cmpopts.EquateEmpty())
}

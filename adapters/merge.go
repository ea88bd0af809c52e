package adapters

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
)

// mergeGrace is how long Merge's first state waits for those that have not reported yet.
const mergeGrace = time.Second

// Merge is a Discoverer of what several others report, in their order. Its first state comes
// when all have reported, or has what is there after a second: a platform that can't be asked does not
// keep the others' endpoints from serving. IDs are left as they are: no two of them may report the same one.
func Merge(all ...Discoverer) Discoverer {
	if len(all) == 1 {
		return all[0]
	}
	return merged(all)
}

type merged []Discoverer

// latest is what each of several Discoverers reported last.
type latest struct {
	mu      sync.Mutex
	states  [][]mobula.Endpoint
	missing int           // have not reported
	dirty   chan struct{} // holds one: something was reported
}

func (l *latest) set(i int, state []mobula.Endpoint, first bool) {
	l.mu.Lock()
	l.states[i] = state
	if first {
		l.missing--
	}
	l.mu.Unlock()
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

func (l *latest) get() (state []mobula.Endpoint, missing int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Concat(l.states...), l.missing
}

// Run sends the state of all together whenever one changes. A Discoverer that can never work ends it.
func (m merged) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	l := &latest{states: make([][]mobula.Endpoint, len(m)), missing: len(m), dirty: make(chan struct{}, 1)}
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range m {
		mine := make(chan []mobula.Endpoint)
		g.Go(func() error { return d.Run(ctx, mine) })
		g.Go(func() error {
			for first := true; ; first = false {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case state := <-mine:
					l.set(i, state, first)
				}
			}
		})
	}
	g.Go(func() error { return l.send(ctx, up) })
	return g.Wait()
}

// send gives a slow consumer the latest state only.
func (l *latest) send(ctx context.Context, up chan<- []mobula.Endpoint) error {
	var (
		grace = time.NewTimer(mergeGrace)
		late  bool
		out   chan<- []mobula.Endpoint
		state []mobula.Endpoint
	)
	defer grace.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grace.C:
			late = true
		case <-l.dirty:
		case out <- state:
			out, state = nil, nil
			continue
		}
		var missing int
		if state, missing = l.get(); (missing == 0 || late) && missing < len(l.states) {
			out = up
		}
	}
}

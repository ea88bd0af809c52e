package app

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mobula-serve/mobula"
)

// firstEnginePort is where `mobula up` looks for free ports for its engines.
const firstEnginePort = 8701

// engines are the engines that `mobula up` has started.
type engines struct {
	kind      string // "simulated engine" or "vLLM engine"
	endpoints []mobula.StaticEndpoint
	// failed gets an error when the last engine has ended although nobody asked for it.
	failed chan error

	ctx    context.Context // of all engines; stop ends it
	cancel context.CancelFunc
	wg     sync.WaitGroup
	live   atomic.Int32
}

// newEngines makes an empty set. Its engines outlive ctx until stop: on Ctrl-C the router
// drains first.
func newEngines(ctx context.Context, kind string) *engines {
	e := &engines{kind: kind, failed: make(chan error, 1)}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return e
}

// add runs one more engine, which serves at url until its context ends.
func (e *engines) add(endpoint mobula.StaticEndpoint, run func(context.Context) error) {
	e.endpoints = append(e.endpoints, endpoint)
	e.live.Add(1)
	e.wg.Go(func() {
		err := run(e.ctx)
		if e.live.Add(-1) == 0 && e.ctx.Err() == nil {
			e.failed <- fmt.Errorf("no engine is left: %w", err)
		}
	})
}

// stop ends all engines and waits for them. It may be called again.
func (e *engines) stop() {
	e.cancel()
	e.wg.Wait()
}

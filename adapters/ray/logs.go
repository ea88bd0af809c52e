package ray

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
)

// restartTail is how much of a new run's output is read when an actor has started again, in lines.
const restartTail = 1000

// restartGrace is how long an output that has ended may wait for another life of its actor.
const restartGrace = 30 * time.Second

// Logs reads what a replica's engine prints; for one of several nodes, the part that serves. Following goes on when
// its actor starts again.
func (c *Cluster) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	if err := c.reach(ctx, false); err != nil {
		return nil, err
	}
	l, run, _, err := c.life(replica)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	log, err := l.api.Logs(ctx, run.actor, tail, follow)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("logs of replica %s: %w", replica, err)
	}
	f := &followed{
		ctx: ctx, cancel: cancel, cluster: c, replica: replica, follow: follow, next: make(chan struct{}, 1), run: run, log: log,
	}
	if follow {
		f.wg.Go(f.watch)
	}
	return f, nil
}

// run is one life of an actor.
type run struct {
	actor string
	pid   int
}

// life finds the actor whose output is a replica's, and the channel that tells of changes.
func (c *Cluster) life(replica string) (*link, run, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil, run{}, c.changed, unavailable(errNone)
	}
	if at := c.view.sights[replica]; at != nil && at.actors[0] != nil {
		return c.link, run{at.actors[0].ID, at.actors[0].PID}, c.changed, nil
	}
	rec := c.records.replicas[replica]
	if rec == nil {
		return nil, run{}, c.changed, fmt.Errorf("replica %s: %w", replica, adapters.ErrUnknownReplica)
	}
	if a := c.view.dead[raycluster.ActorName(c.view.owner, replica)]; a != nil {
		return c.link, run{a.ID, a.PID}, c.changed, nil
	}
	return nil, run{}, c.changed, fmt.Errorf("replica %s has not started: %s", replica, c.statuses[replica].Reason)
}

// followed is the output of a replica, when it is followed over all lives of its actor.
type followed struct {
	ctx     context.Context //nolint:containedctx // of the call that it is the answer to
	cancel  context.CancelFunc
	cluster *Cluster
	replica string
	follow  bool
	next    chan struct{} // has a token when log is another one
	wg      sync.WaitGroup

	mu  sync.Mutex
	run run
	log io.ReadCloser
}

// Read gives the output. When the actor has another life it goes on with that.
func (f *followed) Read(p []byte) (int, error) {
	for {
		f.mu.Lock()
		log := f.log
		f.mu.Unlock()
		n, err := log.Read(p)
		if n > 0 || err == nil {
			return n, nil //nolint:nilerr // it comes again
		}
		if !f.follow {
			return 0, err
		}
		select {
		case <-f.next:
		case <-f.ctx.Done():
			return 0, io.EOF
		case <-time.After(restartGrace):
			return 0, err
		}
	}
}

// watch opens the output anew when the actor has started again, and ends it when the replica is gone.
func (f *followed) watch() {
	for f.ctx.Err() == nil {
		l, now, changed, err := f.cluster.life(f.replica)
		switch {
		case errors.Is(err, adapters.ErrUnknownReplica):
			f.cancel()
		case err == nil && now.pid != 0 && now != f.run:
			if log, err := l.api.Logs(f.ctx, now.actor, restartTail, true); err == nil {
				f.swap(now, log)
			}
		}
		select {
		case <-f.ctx.Done():
		case <-changed:
		}
	}
}

func (f *followed) swap(now run, log io.ReadCloser) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.log.Close() // has Read look again
	f.run, f.log = now, log
	select {
	case f.next <- struct{}{}:
	default:
	}
}

// Close ends it.
func (f *followed) Close() error {
	f.cancel()
	f.wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Close()
}

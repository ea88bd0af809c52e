package sim

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

var (
	// errAborted says that the engine is shutting down.
	errAborted = errors.New("engine is shutting down")
	// errQueueFull says that too many requests wait already.
	errQueueFull = errors.New("queue is full")
)

// scheduler decides who runs: prompts are prefilled one after the other in order of arrival,
// and at most max sequences are decoded at once, as far as the cache has room.
type scheduler struct {
	max, maxQueue int
	blockSize     int
	base          time.Duration // of each prefill
	rate          float64       // prompt tokens a second, 0 for no time at all
	aborted       <-chan struct{}
	metrics       *metrics

	mu      sync.Mutex
	cache   *cache
	queue   list.List // of *waiter
	running int
	busy    bool      // somebody prefills
	asleep  bool      // nobody may start
	freeAt  time.Time // when the last prefill was due to end: timers that fire late don't add up
}

type waiter struct {
	s     *seq
	found int           // cached tokens, set before ready is closed
	ready chan struct{} // closed when it is the waiter's turn
}

// start waits for s's turn and prefills it. Afterwards s runs until stop.
func (q *scheduler) start(ctx context.Context, s *seq) error {
	w := &waiter{s: s, ready: make(chan struct{})}
	arrived := time.Now()
	q.mu.Lock()
	again := len(s.out) > 0
	if !again && q.queue.Len() >= q.maxQueue {
		q.mu.Unlock()
		return errQueueFull
	}
	var place *list.Element
	if again {
		place = q.queue.PushFront(w) // preempted: its turn comes first
	} else {
		place = q.queue.PushBack(w)
	}
	q.dispatch()
	q.mu.Unlock()
	select {
	case <-w.ready:
	default:
		if err := q.wait(ctx, w, place); err != nil {
			return err
		}
	}
	if !again {
		s.cached = w.found
		s.waited = time.Since(arrived)
	}
	return q.prefill(ctx, s, s.kv.tokens-w.found)
}

// wait ends with w's turn, or takes w out of the queue.
func (q *scheduler) wait(ctx context.Context, w *waiter, place *list.Element) error {
	var err error
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-q.aborted:
		err = errAborted
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-w.ready: // its turn came at the same moment
		q.busy = false
		q.leave(w.s)
	default:
		q.queue.Remove(place)
		q.dispatch()
	}
	return err
}

// prefill spends the time that the uncached tokens take, then lets the next one in.
func (q *scheduler) prefill(ctx context.Context, s *seq, tokens int) error {
	cost := q.base
	if q.rate > 0 {
		cost += time.Duration(float64(tokens) / q.rate * float64(time.Second))
	}
	var err error
	if cost > 0 {
		now := time.Now()
		if now.Sub(q.freeAt) > time.Millisecond {
			q.freeAt = now // it was idle; else go on from when the last one was due
		}
		due := q.freeAt.Add(cost)
		if err = sleepUntil(ctx, due, q.aborted); err == nil {
			q.freeAt = due
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy = false
	if err != nil {
		q.leave(s)
		return err
	}
	q.cache.publish(&s.kv, 0)
	q.dispatch()
	return nil
}

// grow takes up a generated token. It waits when the cache is full: then s is preempted,
// gives all its blocks back and is computed again later.
func (q *scheduler) grow(ctx context.Context, s *seq, id int32) error {
	full := len(s.kv.hashes)
	if s.kv.tokens < len(s.kv.blocks)*q.blockSize {
		if s.kv.add(id, q.blockSize) {
			q.mu.Lock()
			q.cache.publish(&s.kv, full)
			q.mu.Unlock()
		}
		return nil
	}
	q.mu.Lock()
	ok := q.cache.grow(&s.kv, q.blockSize)
	s.kv.add(id, q.blockSize)
	if ok {
		q.cache.publish(&s.kv, full)
		q.mu.Unlock()
		return nil
	}
	q.metrics.preemptions.Add(1)
	q.leave(s)
	q.mu.Unlock()
	return q.start(ctx, s)
}

// stop ends s, whether it runs or not.
func (q *scheduler) stop(s *seq) {
	q.mu.Lock()
	q.leave(s)
	q.mu.Unlock()
}

// leave gives s's place and blocks to the others, once. The caller locks.
func (q *scheduler) leave(s *seq) {
	if !s.kv.runs {
		return
	}
	s.kv.runs = false
	q.cache.drop(&s.kv)
	q.running--
	q.dispatch()
}

// dispatch lets the first in the queue in, if it can run. The caller locks.
func (q *scheduler) dispatch() {
	if q.busy || q.asleep || q.running >= q.max || q.queue.Len() == 0 {
		return
	}
	front := q.queue.Front()
	w := front.Value.(*waiter)
	found, ok := q.cache.reserve(&w.s.kv, q.blockSize)
	if !ok {
		return
	}
	q.queue.Remove(front)
	w.found = found
	w.s.kv.runs = true
	q.busy = true
	q.running++
	close(w.ready)
}

// sleep keeps requests from starting until it is called again with false.
func (q *scheduler) sleep(asleep bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asleep = asleep
	if asleep {
		q.cache.reset()
	}
	q.dispatch()
}

// reset forgets all cached prefixes.
func (q *scheduler) reset() {
	q.mu.Lock()
	q.cache.reset()
	q.mu.Unlock()
}

// load tells how many requests run and wait, and how much of the cache is in use.
func (q *scheduler) load() (running, waiting int, usage float64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running, q.queue.Len(), q.cache.usage()
}

// sleepUntil waits until t, and shorter when ctx or the engine ends.
func sleepUntil(ctx context.Context, t time.Time, aborted <-chan struct{}) error {
	d := time.Until(t)
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-aborted:
		return errAborted
	}
}

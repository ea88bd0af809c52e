package proxy

import (
	"context"
	"time"
)

// Cancel tells that the client went away. Whatever Do waits for ends at once.
func (t *task) Cancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = true
	if t.conn != nil {
		t.conn.shut()
	}
	if t.stop != nil {
		t.stop()
	}
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
}

func (t *task) isGone() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.gone
}

// attach has Cancel close c from now on. It reports false when the client is gone.
func (t *task) attach(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return false
	}
	t.conn = c
	return true
}

// detach takes the connection from Cancel's reach, and keeps it for another request if it is
// good for one and Cancel has not closed it.
func (t *task) detach(keep bool) {
	t.mu.Lock()
	c, gone := t.conn, t.gone
	t.conn = nil
	t.mu.Unlock()
	switch {
	case c == nil:
	case keep && !gone:
		t.pool.put(c, t.opts.IdleConnections, t.now)
	default:
		c.shut()
	}
}

// dial connects to the endpoint, unless the client goes away meanwhile.
func (t *task) dial() (*conn, error) {
	// A request has no context: its client's going away is its only cancellation.
	ctx, stop := context.WithTimeout(context.Background(), time.Duration(t.opts.Timeouts.Connect))
	defer stop()
	t.mu.Lock()
	t.stop = stop
	gone := t.gone
	t.mu.Unlock()
	if gone {
		return nil, errGone
	}
	c, err := t.pool.dial(ctx, t.opts.TLS)
	t.mu.Lock()
	t.stop = nil
	t.mu.Unlock()
	return c, err
}

// sleep waits for d. It reports false when the client goes away meanwhile.
func (t *task) sleep(d time.Duration) bool {
	t.mu.Lock()
	if t.gone {
		t.mu.Unlock()
		return false
	}
	wake := make(chan struct{})
	t.wake = wake
	t.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
		return false
	case <-timer.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wake = nil
	return !t.gone
}

var _ Canceler = (*task)(nil)

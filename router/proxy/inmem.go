package proxy

import (
	"errors"
	"sync"
)

// ErrMemoryGone is what a MemoryClient that went away answers.
var ErrMemoryGone = errors.New("in-memory client is gone")

// MemoryClient is a Client in memory: it records an answer, and can go away on cue.
type MemoryClient struct {
	// LeaveAfter has the client go away with the Write that makes the body this long or longer; 0 is never.
	LeaveAfter int
	// OnWrite, if not nil, is called with each piece of a body before it is recorded.
	OnWrite func(p []byte)

	mu       sync.Mutex
	gone     bool
	canceler Canceler
	status   int
	fields   []byte
	length   int64
	body     []byte
	writes   int
}

// Head records the head of the answer.
func (c *MemoryClient) Head(status int, fields []byte, length int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return ErrMemoryGone
	}
	c.status, c.fields, c.length = status, append([]byte(nil), fields...), length
	return nil
}

// Write records a piece of the body.
func (c *MemoryClient) Write(p []byte) error {
	if c.OnWrite != nil {
		c.OnWrite(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return ErrMemoryGone
	}
	c.body = append(c.body, p...)
	c.writes++
	if c.LeaveAfter > 0 && len(c.body) >= c.LeaveAfter {
		c.leave()
	}
	return nil
}

// Flush does nothing but tell whether the client is there.
func (c *MemoryClient) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return ErrMemoryGone
	}
	return nil
}

// Watch has Leave call k.Cancel.
func (c *MemoryClient) Watch(k Canceler) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return false
	}
	c.canceler = k
	return true
}

// Unwatch ends Watch.
func (c *MemoryClient) Unwatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.canceler = nil
}

// Leave has the client go away now. It may be called from any goroutine.
func (c *MemoryClient) Leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
}

func (c *MemoryClient) leave() {
	c.gone = true
	if k := c.canceler; k != nil {
		c.canceler = nil
		k.Cancel() // under the lock, so that Unwatch waits for it
	}
}

// Answer gives what has come so far: the status, 0 before a head, the fields, the length that
// was announced, the body and the number of writes that it came in.
func (c *MemoryClient) Answer() (status int, fields string, length int64, body string, writes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status, string(c.fields), c.length, string(c.body), c.writes
}

var _ Client = (*MemoryClient)(nil)

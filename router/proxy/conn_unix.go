//go:build unix

package proxy

import (
	"errors"
	"io"
	"syscall"
	"time"
)

// start sends a request, out and then body, and waits for the first bytes of the answer.
// errStale means that nothing was sent.
func (c *conn) start(out, body, in []byte, until time.Time) (int, error) {
	c.partial = false
	if !c.plain {
		return c.startPlainly(out, body, in, until)
	}
	c.out, c.body, c.in, c.until = out, body, in, until
	c.sent, c.n, c.err = false, 0, nil
	defer func() { c.out, c.body, c.in = nil, nil, nil }()
	for {
		if err := c.arm(until); err != nil {
			return 0, err
		}
		if err := c.raw.Read(c.step); err == nil {
			return c.n, c.err
		} else if !c.early(err, until) {
			return 0, err
		}
	}
}

// exchange is called by the runtime, first at once and then whenever there may be something
// to read. A read has to fail before one can wait for the answer, so that read is made before
// the request is sent, where it tells whether the idle connection is still good. An answer
// after that read wakes us up even if it comes before we wait.
func (c *conn) exchange(fd uintptr) bool {
	n, err := read(int(fd), c.in)
	if errors.Is(err, syscall.EAGAIN) {
		if c.sent {
			return false
		}
		c.sent = true
		werr := c.write(c.until)
		if werr == nil {
			return false
		}
		// An engine may answer and close before it has read a whole body.
		c.partial = true
		if n, err = read(int(fd), c.in); err != nil || n == 0 {
			n, err = 0, werr
		}
	} else if !c.sent {
		n, err = 0, errStale
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	c.n, c.err = max(n, 0), err
	return true
}

// await is read into a small buffer that is taken when there is something to read and not
// before: a stream that idles holds none, and the few that are in use stay in the CPU's cache.
func (c *conn) await(b *buffer, until time.Time) (int, error) {
	b.release()
	if !c.plain {
		b.take(b.from)
		return c.read(b.b, until)
	}
	c.into, c.n, c.err = b, 0, nil
	for {
		err := c.arm(until)
		if err == nil {
			err = c.raw.Read(c.ready)
		}
		if err == nil || !c.early(err, until) {
			c.into = nil
			if err == nil {
				err = c.err
			}
			return c.n, err
		}
	}
}

// readReady is called by the runtime, first at once and then whenever there may be something to read.
func (c *conn) readReady(fd uintptr) bool {
	b := c.into
	b.take(b.from)
	n, err := read(int(fd), b.b)
	if errors.Is(err, syscall.EAGAIN) {
		b.release()
		return false
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	c.n, c.err = max(n, 0), err
	return true
}

func read(fd int, p []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, p)
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// alive tells whether an idle connection is open and has nothing to read.
func (c *conn) alive() bool {
	open := false
	err := c.raw.Control(func(fd uintptr) {
		var p [1]byte
		_, _, err := syscall.Recvfrom(int(fd), p[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		open = errors.Is(err, syscall.EAGAIN)
	})
	return err == nil && open
}

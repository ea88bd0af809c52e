package front

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	errPanic   = errors.New("front: handler panicked")
	errNoHead  = errors.New("front: no answer was begun")
	errTooLong = errors.New("front: body longer than announced")
	errTwice   = errors.New("front: answer begun twice")
)

// States of a connection. Shutdown wakes an idle one to its end, and leaves an active one alone.
const (
	stateIdle int32 = iota
	stateActive
	stateTaken
)

// conn is one client connection. All of it but state and gone belongs to its goroutine.
type conn struct {
	s      *Server
	nc     net.Conn
	remote string
	state  atomic.Int32

	in   *buffer // unread bytes are in.b[r:w]; nil while idle
	r, w int
	body *buffer // the body, when it does not fit in
	head head
	req  Request

	answer answer
	gone   gone
	watch  watchState

	raw     syscall.RawConn // for fill
	try     func(fd uintptr) bool
	tryErr  error
	readBy  time.Time // the deadlines that are set
	writeBy time.Time
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{s: s, nc: nc, remote: nc.RemoteAddr().String()}
}

// run serves the connection until it ends or is handed over.
func (c *conn) run() {
	defer c.s.untrack(c)
	wait := c.s.settings.Load().readHeader
	for c.await(wait) {
		switch c.readHead() {
		case verdictFast:
			if !c.serve() {
				c.end()
				return
			}
		case verdictOther:
			c.handOver()
			return
		default:
			c.end()
			return
		}
		wait = c.s.settings.Load().keepAlive
	}
	c.end()
}

// end closes the connection and gives everything back.
func (c *conn) end() {
	c.s.watcher.forget(c, false)
	_ = c.nc.Close()
	c.release()
	c.s.open.Add(-1)
}

func (c *conn) release() {
	c.s.pools.put(c.in)
	c.in, c.r, c.w = nil, 0, 0
	c.releaseBody()
}

func (c *conn) releaseBody() {
	c.s.pools.put(c.body)
	c.body = nil
}

// await waits for the first bytes of a request, with no buffer held meanwhile.
func (c *conn) await(d time.Duration) bool {
	if c.w > c.r {
		return true
	}
	c.release()
	if c.watch.taken {
		c.in = c.s.pools.get(headSize)
		c.w, _ = c.read(c.in.b[:1])
		return true
	}
	c.armRead(time.Now(), d)
	c.state.Store(stateIdle)
	if c.s.draining.Load() && !c.lastCall() {
		return false
	}
	if c.fill() != nil {
		return false
	}
	if !c.state.CompareAndSwap(stateIdle, stateActive) && c.state.Load() == stateTaken {
		c.readBy = time.Time{} // Shutdown came with the request: it is served, with new deadlines
	}
	return true
}

// lastCallTime is how long a connection stays open for one more request when the head of its
// last answer, sent before the drain, promised that it would.
const lastCallTime = 200 * time.Millisecond

// lastCall prepares for that request during a drain: its answer will say that it is the last.
func (c *conn) lastCall() bool {
	if c.req.c == nil || !c.state.CompareAndSwap(stateIdle, stateActive) {
		return false // nothing was promised, or Shutdown has taken it
	}
	c.armRead(time.Now(), lastCallTime)
	return true
}

// readHead reads until the scanner has made up its mind.
func (c *conn) readHead() verdict {
	set := c.s.settings.Load()
	c.req.Received = time.Now()
	armed := false
	for {
		switch v := c.scan(); v {
		case verdictMore:
		case verdictFast:
			h := &c.head
			if int64(h.size) > set.header || h.length > set.body || !c.s.accepts(h.method, h.path) {
				return verdictOther
			}
			return v
		default:
			return v
		}
		if c.w == len(c.in.b) {
			if c.r == 0 {
				return verdictOther
			}
			c.r, c.w = 0, copy(c.in.b, c.in.b[c.r:c.w])
		}
		if !armed {
			c.armRead(c.req.Received, set.readHeader)
			armed = true
		}
		n, err := c.read(c.in.b[c.w:])
		c.w += n
		if n == 0 && err != nil {
			if c.r < c.w && errors.Is(err, os.ErrDeadlineExceeded) {
				c.s.slowHeads.Add(1)
				c.refuse(nil, http.StatusRequestTimeout, "the request's header took too long")
			}
			return verdictDead
		}
	}
}

// scan scans the unread bytes. An empty line between two requests is passed over, as net/http
// does for old clients that end a body with it.
func (c *conn) scan() verdict {
	p := c.in.b[c.r:c.w]
	if c.req.c != nil && len(p) > 0 && p[0] == '\r' {
		if len(p) == 1 {
			return verdictMore
		}
		if p[1] == '\n' {
			c.r += 2
			p = p[2:]
		}
	}
	return c.head.scan(p)
}

// serve serves the request whose head was read, and tells whether another may follow.
func (c *conn) serve() bool {
	h := &c.head
	c.r += h.size
	body, err := c.readBody(int(h.length))
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.s.slowBodies.Add(1)
			c.refuse(h.path, http.StatusRequestTimeout, "the request's body took too long")
		}
		return false
	}
	c.req = Request{
		Method: h.method, Path: h.path, Target: h.target, Fields: h.fields, Host: h.host,
		Body: body, Remote: c.remote, Received: c.req.Received, c: c,
	}
	c.answer = answer{}
	c.s.requests.Add(1)
	err = c.call()
	c.Unwatch()
	keep := c.finish(err)
	c.releaseBody()
	return keep
}

// call runs the handler and makes an error of a panic.
func (c *conn) call() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = errPanic
			c.s.panics.Add(1)
			if e, ok := v.(error); !ok || !errors.Is(e, http.ErrAbortHandler) {
				c.s.log.Error("handler panicked", "panic", v, "client", c.remote, "stack", string(debug.Stack()))
			}
		}
	}()
	return c.s.handler.ServeFast(&c.req, c)
}

// readBody gives the n bytes of the body. Memory follows what has arrived, not what was
// promised: at most 16 times of it, or 16 KiB.
func (c *conn) readBody(n int) ([]byte, error) {
	have := c.w - c.r
	if have < n {
		c.armRead(time.Now(), c.s.settings.Load().readBody)
	}
	if n <= len(c.in.b)-c.r {
		for c.w-c.r < n {
			m, err := c.read(c.in.b[c.w:])
			c.w += m
			if m == 0 && err != nil {
				return nil, err
			}
		}
		p := c.in.b[c.r : c.r+n]
		c.r += n
		return p, nil
	}
	c.body = c.s.pools.get(min(n, max(16*have, 16<<10)))
	copy(c.body.b, c.in.b[c.r:c.w])
	c.r = c.w
	for have < n {
		if have == len(c.body.b) {
			old := c.body
			c.body = c.s.pools.get(min(n, 16*have))
			copy(c.body.b, old.b)
			c.s.pools.put(old)
		}
		m, err := c.read(c.body.b[have:min(n, len(c.body.b))])
		have += m
		if m == 0 && err != nil {
			return nil, err
		}
	}
	return c.body.b[:n], nil
}

// read is one read, first of the byte that a watch may have taken.
func (c *conn) read(p []byte) (int, error) {
	if c.watch.taken {
		p[0], c.watch.taken = c.watch.peek[0], false
		return 1, nil
	}
	return c.nc.Read(p)
}

// armRead sets the read deadline, unless one within a tenth of d is set.
func (c *conn) armRead(now time.Time, d time.Duration) {
	if by := now.Add(d); by.Sub(c.readBy).Abs() > d/10 {
		c.readBy = by
		_ = c.nc.SetReadDeadline(by) // on a broken connection the read fails
	}
}

// armWrite is armRead for writes.
func (c *conn) armWrite(now time.Time) {
	d := c.s.settings.Load().write
	if by := now.Add(d); by.Sub(c.writeBy).Abs() > d/10 {
		c.writeBy = by
		_ = c.nc.SetWriteDeadline(by)
	}
}

// refuse answers a request that was not read to its end, and waits a moment for the client to
// take the answer: closing on unread bytes would reset the connection and lose it.
func (c *conn) refuse(path []byte, status int, message string) {
	c.fail(path, status, message)
	linger(c.nc)
}

// lingerTime is how long a refused client may take to read why.
const lingerTime = 500 * time.Millisecond

// linger half-closes nc and drains some of it.
func linger(nc net.Conn) {
	if w, ok := nc.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		_ = nc.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, nc, 1<<20)
	}
}

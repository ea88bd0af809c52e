package proxy

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// errStale tells that an idle connection turned out to be closed, or to hold bytes that
// nobody asked for, before anything was sent on it.
var errStale = errors.New("idle connection is closed")

// conn is one connection to an engine. But for close it belongs to one goroutine at a time.
type conn struct {
	net.Conn // the TCP connection, or TLS over it
	tcp      *net.TCPConn
	raw      syscall.RawConn
	plain    bool // no TLS
	reused   bool
	partial  bool      // the request was not sent in full
	armed    time.Time // the read deadline that is set, zero for none
	checkAt  time.Time // when check is asked, zero for never
	// check tells of a wait that goes on whether to give it up, and when to ask again.
	check func(now time.Time) (next time.Time, giveUp bool)
	since time.Time // idle since

	ready func(fd uintptr) bool
	into  *buffer // for ready

	// The request on its way, for step.
	step  func(fd uintptr) bool
	out   []byte
	body  []byte
	in    []byte
	until time.Time
	sent  bool
	n     int
	err   error
	vec   [2][]byte
	bufs  net.Buffers
}

func newConn(tcp *net.TCPConn, c net.Conn) (*conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	k := &conn{Conn: c, tcp: tcp, raw: raw, plain: c == net.Conn(tcp)}
	k.step, k.ready = k.exchange, k.readReady
	return k, nil
}

// shut closes the connection at once, from any goroutine. TLS's goodbye is left out: it could block.
func (c *conn) shut() { _ = c.tcp.Close() }

// read waits for bytes until the deadline.
func (c *conn) read(p []byte, until time.Time) (int, error) {
	for {
		if err := c.arm(until); err != nil {
			return 0, err
		}
		n, err := c.Read(p)
		if n > 0 {
			return n, nil
		}
		if err != nil && !c.early(err, until) {
			return 0, err
		}
	}
}

// arm sees to it that a read ends at until or before. Setting a deadline costs more than a
// look at the clock, so one that ends too early is left alone and set anew when it has passed.
func (c *conn) arm(until time.Time) error {
	if !c.checkAt.IsZero() && c.checkAt.Before(until) {
		until = c.checkAt
	}
	if !c.armed.IsZero() && !c.armed.After(until) {
		return nil
	}
	c.armed = until
	return c.SetReadDeadline(until)
}

// early tells whether err is a deadline that passed before until, and forgets that deadline.
// A wait that check gives up has come to its end.
func (c *conn) early(err error, until time.Time) bool {
	now := time.Now()
	if !errors.Is(err, os.ErrDeadlineExceeded) || !now.Before(until) {
		return false
	}
	c.armed = time.Time{}
	if c.checkAt.IsZero() || now.Before(c.checkAt) {
		return true
	}
	next, giveUp := c.check(now)
	c.checkAt = next
	return !giveUp
}

// write sends the request that start was given.
func (c *conn) write(until time.Time) error {
	if c.plain && c.body == nil && len(c.out) <= smallSize {
		// A few KiB on a connection with nothing in flight never wait for the engine.
		_, err := c.Write(c.out)
		return err
	}
	if err := c.SetWriteDeadline(until); err != nil {
		return err
	}
	c.vec = [2][]byte{c.out, c.body}
	c.bufs = c.vec[:]
	if c.body == nil {
		c.bufs = c.vec[:1]
	}
	_, err := c.bufs.WriteTo(c.Conn)
	c.vec = [2][]byte{}
	if err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

// startPlainly is start without help from the system.
func (c *conn) startPlainly(out, body, in []byte, until time.Time) (int, error) {
	if c.reused && !c.alive() {
		return 0, errStale
	}
	c.out, c.body = out, body
	err := c.write(until)
	c.out, c.body = nil, nil
	if err != nil {
		return 0, err
	}
	return c.read(in, until)
}

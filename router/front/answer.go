package front

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula/router/proxy"
)

// answer is where a connection is in writing an answer.
type answer struct {
	out  *buffer // backs held
	held []byte  // composed and not sent: the head, until the first Write or Flush
	left int64   // bytes of the body to come, -1 when it is chunked

	begun bool // Head was called
	sent  bool // bytes have left
	close bool // the connection ends with this answer
	err   error
	bufs  net.Buffers
	vec   [3][]byte // backs bufs
}

var _ proxy.Client = (*conn)(nil)

// Head implements proxy.Client.
func (c *conn) Head(status int, fields []byte, length int64) error {
	a := &c.answer
	if a.begun {
		return errTwice
	}
	if status < 200 || status > 999 {
		return fmt.Errorf("front: status %d cannot end a request", status)
	}
	a.begun = true
	a.close = c.head.close || c.s.draining.Load()
	a.left = length
	c.take(len(fields) + 256)
	b := append(a.held, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\n"...)
	b = append(b, fields...)
	if !hasDate(fields) {
		b = c.s.date.append(b, time.Now())
	}
	switch {
	case status == http.StatusNoContent || status == http.StatusNotModified:
		a.left = 0
	case length >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, length, 10)
		b = append(b, "\r\n"...)
	default:
		a.left = -1
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if a.close {
		b = append(b, "Connection: close\r\n"...)
	}
	a.held = append(b, "\r\n"...)
	return nil
}

// Write implements proxy.Client. Whatever is held goes out with p in one system call.
func (c *conn) Write(p []byte) error {
	a := &c.answer
	switch {
	case a.err != nil:
		return a.err
	case !a.begun:
		return errNoHead
	case len(p) == 0: // as a chunk it would end the body
		return c.Flush()
	case a.left >= 0 && int64(len(p)) > a.left:
		a.err = errTooLong
		return a.err
	}
	tail := ""
	if a.left < 0 {
		c.take(0)
		a.held = strconv.AppendUint(a.held, uint64(len(p)), 16)
		a.held = append(a.held, "\r\n"...)
		tail = "\r\n"
	} else {
		a.left -= int64(len(p))
	}
	if a.out == nil {
		return c.send(p, nil, nil)
	}
	if len(a.held)+len(p)+len(tail) <= len(a.out.b) {
		a.held = append(a.held, p...)
		a.held = append(a.held, tail...)
		return c.Flush()
	}
	n := len(a.held)
	a.held = append(a.held, tail...)
	err := c.send(a.held[:n], p, a.held[n:])
	c.drop()
	return err
}

// Flush implements proxy.Client.
func (c *conn) Flush() error {
	a := &c.answer
	if a.err != nil || a.out == nil {
		return a.err
	}
	err := c.send(a.held, nil, nil)
	c.drop()
	return err
}

// take sees to it that something can be held: n bytes and some more.
func (c *conn) take(n int) {
	if a := &c.answer; a.out == nil {
		a.out = c.s.pools.get(n)
		a.held = a.out.b[:0]
	}
}

// drop gives up what is held. A stream holds no memory between two chunks.
func (c *conn) drop() {
	c.s.pools.put(c.answer.out)
	c.answer.out, c.answer.held = nil, nil
}

// send writes p, q and r. A client that takes nothing for the write timeout is given up; one
// that takes something gets more time.
func (c *conn) send(p, q, r []byte) error {
	a := &c.answer
	a.sent = true
	if q == nil {
		for len(p) > 0 && a.err == nil {
			c.armWrite(time.Now())
			n, err := c.nc.Write(p)
			p = p[n:]
			a.fault(int64(n), err)
		}
		return a.err
	}
	a.vec = [3][]byte{p, q, r}
	a.bufs = a.vec[:]
	for len(a.bufs) > 0 && a.err == nil {
		c.armWrite(time.Now())
		a.fault(a.bufs.WriteTo(c.nc))
	}
	a.vec, a.bufs = [3][]byte{}, nil
	return a.err
}

// fault notes the error of a write that took n bytes.
func (a *answer) fault(n int64, err error) {
	if err != nil && (n == 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
		a.err = fmt.Errorf("write to client: %w", err)
	}
}

// finish ends the answer after the handler's return and tells whether the connection goes on.
func (c *conn) finish(err error) bool {
	a := &c.answer
	defer c.drop()
	switch {
	case a.err != nil:
		c.s.log.Debug("answer cut", "client", c.remote, "error", a.err)
		return false
	case err != nil || !a.begun || a.left > 0:
		c.s.log.Debug("answer incomplete", "client", c.remote, "error", err, "left", a.left)
		if !a.sent {
			status, message := http.StatusBadGateway, "no answer from an engine"
			if errors.Is(err, errPanic) {
				status, message = http.StatusInternalServerError, "internal error"
			}
			c.fail(c.head.path, status, message)
		}
		return false
	case a.left < 0:
		c.take(0)
		a.held = append(a.held, "0\r\n\r\n"...)
	}
	return c.Flush() == nil && !a.close
}

// fail answers with an error and Connection: close, in place of what is held.
func (c *conn) fail(path []byte, status int, message string) {
	c.drop()
	body := c.s.errorBody(path, status, message)
	c.answer = answer{}
	c.head.close = true
	fields := "Content-Type: application/json\r\n"
	if status == http.StatusServiceUnavailable {
		fields += "Retry-After: 1\r\n"
	}
	if c.Head(status, []byte(fields), int64(len(body))) == nil {
		_ = c.Write(body)
	}
	c.drop()
}

// hasDate looks for a Date field.
func hasDate(fields []byte) bool {
	for len(fields) > 5 {
		if fields[4] == ':' && fold(fields[:4], "date") {
			return true
		}
		i := bytes.IndexByte(fields, '\n')
		if i < 0 {
			break
		}
		fields = fields[i+1:]
	}
	return false
}

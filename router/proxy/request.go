package proxy

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"
)

// maxInterim bounds the 1xx answers before the real one.
const maxInterim = 16

// send puts the request on a connection and reads the first bytes of the answer. An idle
// connection that turns out to be closed, which is what engines do with them, is replaced by
// a new one to the same engine, without anybody being told.
func (t *task) send() *Error {
	t.pool = t.proxy.pool(t.endpoint)
	for c := t.pool.get(); ; c = nil {
		if c == nil {
			var err error
			if c, err = t.dial(); err != nil {
				return t.failDial(err)
			}
		}
		if !t.attach(c) {
			c.shut()
			return t.fail(CauseClientGone, errGone)
		}
		out, body := t.request(t.buf.b[:0])
		now := time.Now()
		t.wait(now, t.opts.firstByte(t.x.Stream))
		if !t.x.Stream {
			t.asked = now
			c.checkAt, c.check = now.Add(overdueEvery), t.look
		}
		n, err := c.start(out, body, t.buf.b, t.until)
		c.checkAt, c.check = time.Time{}, nil
		if err == nil {
			t.n = n
			return nil
		}
		fresh := !c.reused
		t.detach(false)
		if fresh || errors.Is(err, os.ErrDeadlineExceeded) || t.isGone() {
			return t.fail(CauseReset, err)
		}
	}
}

// overdueEvery is the time between two looks at an engine that may hang.
const overdueEvery = time.Second

// overdue looks at a plain answer that has not begun in the time that a stream's first byte
// has. That alone says nothing: it begins when all of it is generated. But when the engine
// has answered nobody else meanwhile it may hang, and when it does, waiting on is in vain. So it is
// when not even its /health answers any more.
func (t *task) overdue(now time.Time) (next time.Time, giveUp bool) {
	live := t.endpoint.Live
	if live.Silent.Load() {
		return time.Time{}, true
	}
	heard := time.Unix(0, live.Heard.Load())
	if t.asked.After(heard) {
		heard = t.asked
	}
	if now.Sub(heard) < time.Duration(t.opts.Timeouts.FirstByte) {
		return now.Add(overdueEvery), false
	}
	if live.Hung.Load() {
		return time.Time{}, true
	}
	t.x.Hooks.Overdue(t.endpoint)
	return now.Add(overdueEvery), false
}

// failDial is fail for a connection that could not be made.
func (t *task) failDial(err error) *Error {
	if t.isGone() {
		return &Error{Cause: CauseClientGone, Err: errGone}
	}
	return &Error{Cause: CauseConnect, Err: err}
}

// request appends the request's head to p. The body is appended too when it fits in the
// buffer behind p, so that all of it goes out in one piece, and returned otherwise.
func (t *task) request(p []byte) (out, body []byte) {
	x, e := t.x, t.endpoint
	target, fields, content := x.Target, x.Fields, x.Body
	if e.Provider != nil {
		target, fields, content = x.Outside(e)
	}
	p = append(p, x.Method...)
	p = append(p, ' ')
	p = append(p, target...)
	p = append(p, " HTTP/1.1\r\nHost: "...)
	p = append(p, t.pool.host...)
	p = append(p, '\r', '\n')
	if e.APIKey == "" || e.Provider != nil {
		p = append(p, fields...)
	} else {
		p = appendWithout(p, fields, "authorization")
		p = append(p, "Authorization: Bearer "...)
		p = append(p, string(e.APIKey)...)
		p = append(p, '\r', '\n')
	}
	if len(content) > 0 || (x.Method != http.MethodGet && x.Method != http.MethodHead && x.Method != http.MethodDelete) {
		p = append(p, "Content-Length: "...)
		p = strconv.AppendInt(p, int64(len(content)), 10)
		p = append(p, '\r', '\n')
	}
	p = append(p, '\r', '\n')
	if len(content) > cap(p)-len(p) {
		return p, content
	}
	return append(p, content...), nil
}

// appendWithout appends header lines but those of one name, which is in lower case.
func appendWithout(dst, fields []byte, name string) []byte {
	for len(fields) > 0 {
		n := bytes.IndexByte(fields, '\n') + 1
		if n == 0 {
			n = len(fields)
		}
		if line := fields[:n]; !hasFold(line, name) || len(line) <= len(name) || line[len(name)] != ':' {
			dst = append(dst, line...)
		}
		fields = fields[n:]
	}
	return dst
}

// readHead reads the head of the answer and leaves what came of the body at the front of buf.
func (t *task) readHead() *Error {
	seen := 0
	for interim := 0; ; {
		end, err := headEnd(t.buf.b[:t.n], seen)
		if err != nil {
			return t.fail(CauseProtocol, err)
		}
		if end == 0 {
			seen = t.n
			if t.n == len(t.buf.b) {
				t.buf.grow(t.n)
			}
			n, err := t.conn.read(t.buf.b[t.n:], t.until)
			if err != nil {
				return t.fail(CauseReset, err)
			}
			t.n += n
			continue
		}
		t.now = time.Now()
		t.endpoint.Live.Heard.Store(t.now.UnixNano())
		if t.fields, err = t.head.parse(t.buf.b[:end], t.fields[:0], t.now); err != nil {
			t.head.status = 0
			return t.fail(CauseProtocol, err)
		}
		t.n = copy(t.buf.b, t.buf.b[end:t.n])
		if t.head.status >= 200 {
			return nil
		}
		if interim++; interim > maxInterim || t.head.status == 101 {
			return t.fail(CauseProtocol, protocolError("bad interim answer"))
		}
		seen, t.head.status = 0, 0
	}
}

// drop leaves an answer that nobody gets. Its connection is good only if all of it is here.
func (t *task) drop() {
	t.body.start(&t.head, t.x.Method)
	n, used, done, err := t.body.decode(t.buf.b[:t.n])
	t.outcome.Bytes = int64(n)
	t.reusable = done && err == nil && used == t.n && t.keeps()
}

// keeps tells whether the connection can be used again once the answer has been read.
func (t *task) keeps() bool { return !t.head.close && !t.conn.partial }

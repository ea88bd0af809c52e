package proxy

import (
	"errors"
	"io"
	"strings"
	"time"
)

var (
	// errEnded tells that a stream has no end of its own although its framing has one.
	errEnded = errors.New("stream ended early")
	// errEvent tells that the engine reported an error of its own in the stream.
	errEvent = errors.New("engine sent an error event")
	// errAborted tells that the engine gave a choice up, as it does when it is told to stop.
	errAborted = errors.New("engine aborted the request")
)

// deliver passes the answer on: all that one read brings in one Write, at once. Held back is
// only what may yet be tried on another engine without the client noticing: the start of a
// stream that may be an error event, and a plain answer that fits in the buffer.
func (t *task) deliver() *Error {
	t.prepare()
	for {
		piece, done, bad := t.decode()
		switch {
		case bad == nil && t.holds(piece, done):
			t.held = len(piece)
		case bad != nil && !t.passed && !t.complete():
			return t.broken(bad)
		default:
			if err := t.forward(piece, done); err != nil {
				return err
			}
		}
		switch {
		case bad != nil:
			return t.broken(bad)
		case done:
			return t.verdict()
		}
		if err := t.more(); err != nil {
			return t.broken(err)
		}
	}
}

// prepare looks at the head for how the body is to be treated.
func (t *task) prepare() {
	t.body.start(&t.head, t.x.Method)
	good := t.head.status < 300 && !t.head.encoded
	t.scanning, t.json = good && t.head.sse, good && t.head.json
	if t.scanning {
		t.scan.reset()
	}
	t.events = 0
	t.collect = t.body.whole >= 0 && t.body.whole <= bigSize
	if t.collect && t.body.whole > int64(len(t.buf.b)) {
		t.buf.grow(t.n)
	}
}

// complete tells whether a stream has said that it is.
func (t *task) complete() bool { return t.scanning && t.scan.done }

// forward passes piece on, unless it is the start of a stream that is none.
func (t *task) forward(piece []byte, done bool) *Error {
	if t.scanning && !t.passed {
		if t.scan.failedFirst() {
			return t.fail(CauseTruncated, errEvent)
		}
		if done && t.scan.events == 0 && !t.scan.done {
			return t.fail(CauseTruncated, errEnded)
		}
	}
	if err := t.pass(piece); err != nil {
		return &Error{Cause: CauseClientGone, Err: err}
	}
	t.held = 0
	if t.scanning && t.scan.events > t.events {
		t.x.Hooks.Events(t.scan.events-t.events, t.now)
		t.events = t.scan.events
	}
	return nil
}

// decode takes the framing off the bytes that came and gives them with the held ones, also
// those before an error.
func (t *task) decode() (piece []byte, done bool, err error) {
	raw := t.buf.b[t.held : t.held+t.n]
	n, used, done, err := t.body.decode(raw)
	t.outcome.Bytes += int64(n)
	t.reusable = done && err == nil && used == len(raw) && t.keeps()
	if t.scanning {
		t.scan.feed(raw[:n])
	}
	return t.buf.b[:t.held+n], done, err
}

// holds tells whether piece is held back until more has come.
func (t *task) holds(piece []byte, done bool) bool {
	switch {
	case done || t.passed || len(piece) == len(t.buf.b):
		return false
	case t.scanning:
		return t.scan.undecided()
	}
	return t.collect || len(piece) == 0
}

// pass gives piece to the client, and the head before the first one.
func (t *task) pass(piece []byte) error {
	x := t.x
	if t.json {
		t.tail.add(piece, t.proxy.buffers)
	}
	if t.passed {
		if len(piece) == 0 {
			return nil
		}
		return x.Client.Write(piece)
	}
	t.waiting = false
	t.endpoint.Live.Waiting.Add(-1)
	x.Hooks.First(t.endpoint, t.head.status, piece, t.now)
	if t.endpoint.Provider != nil {
		t.fields = strip(t.fields)
	}
	if x.AnswerFields != nil {
		t.fields = x.AnswerFields(t.fields, t.endpoint)
	}
	t.passed = true
	if err := x.Client.Head(t.head.status, t.fields, t.body.whole); err != nil {
		return err
	}
	t.status = t.head.status
	if len(piece) == 0 {
		return x.Client.Flush()
	}
	return x.Client.Write(piece)
}

// more reads on, into a buffer that fits what comes: an idling stream holds none.
func (t *task) more() error {
	idle := t.held == 0 && !t.full && t.body.whole < 0
	if t.held == 0 && t.full && len(t.buf.b) < bigSize {
		t.buf.grow(0)
	}
	if t.outcome.Bytes > 0 { // else it is still the first byte that is waited for
		t.wait(t.now, time.Duration(t.opts.Timeouts.Idle))
	}
	var n int
	var err error
	if idle {
		n, err = t.conn.await(&t.buf, t.until)
	} else {
		n, err = t.conn.read(t.buf.b[t.held:], t.until)
	}
	t.n, t.full, t.now = n, n == len(t.buf.b)-t.held, time.Now()
	t.endpoint.Live.Heard.Store(t.now.UnixNano())
	if err != nil && errors.Is(err, io.EOF) {
		if t.body.toEOF {
			t.body.ended = true
			return nil
		}
		return io.ErrUnexpectedEOF
	}
	return err
}

// broken is the end of an answer that did not end properly.
func (t *task) broken(err error) *Error {
	e := t.fail(CauseTruncated, err)
	if t.complete() && e.Cause != CauseClientGone {
		return t.verdict() // all that matters has come
	}
	return e
}

// verdict judges an answer that came to its end.
func (t *task) verdict() *Error {
	switch {
	case t.json:
		t.outcome.Usage.last(t.tail.bytes())
	case !t.scanning:
	case t.scan.failed:
		return &Error{Cause: CauseTruncated, Err: errEvent}
	case t.scan.abort:
		return &Error{Cause: CauseTruncated, Err: errAborted}
	case !t.scan.done && saysEnd(t.x.Target):
		return &Error{Cause: CauseTruncated, Err: errEnded}
	}
	return nil
}

// saysEnd tells whether streams of a route say when they are complete, by [DONE] or an event.
func saysEnd(target string) bool {
	for _, route := range [...]string{"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"} {
		if strings.HasPrefix(target, route) {
			return true
		}
	}
	return false
}

// tell ends a stream with an error event, unless the engine sent one or gave the request up
// in so many words. It never says that the stream is complete. Other answers can't be told.
func (t *task) tell(c Cause) {
	if !t.scanning {
		return
	}
	if t.scan.failed || t.scan.abort {
		t.told = true
		return
	}
	t.told = t.x.Client.Write(t.scan.errorEvent(t.x.Target, c)) == nil
}

// errorEvent is an event that tells of a failure in the dialect of a route. The empty lines
// before it end what the engine left open.
func (s *scanner) errorEvent(target string, c Cause) []byte {
	message, code := "the engine failed before the end of its answer", "502"
	if c == CauseIdle {
		message, code = "the engine stopped sending before the end of its answer", "504"
	}
	start := "\n\n"
	if s.n == 0 && !s.long {
		start = "\n"
		if s.blank {
			start = ""
		}
	}
	if strings.HasPrefix(target, "/v1/messages") {
		return []byte(start + "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"" + message + "\"}}\n\n")
	}
	return []byte(start + "data: {\"error\":{\"message\":\"" + message + "\",\"type\":\"EngineError\",\"param\":null,\"code\":" + code + "}}\n\n")
}

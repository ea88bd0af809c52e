package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/mobula-serve/mobula/router/pick"
)

// errGone tells that the client went away.
var errGone = errors.New("client went away")

// task is the state of one Do, reused for others.
type task struct {
	proxy *Proxy

	// What each piece of a stream touches comes first and together: with a thousand streams
	// it has left the cache since the last piece.
	x        *Exchange
	opts     *Options
	conn     *conn
	endpoint *pick.Endpoint
	limit    time.Time // of the whole request
	now      time.Time
	until    time.Time // when the wait at hand ends
	n        int       // bytes in buf that came and are not decoded
	held     int       // decoded bytes at the front of buf that wait to be passed on
	full     bool      // the last read filled the buffer
	passed   bool      // the answer has begun to go to the client
	scanning bool      // the answer is a stream
	json     bool      // the answer is plain and may have a usage
	collect  bool      // the answer is passed on in one piece
	waiting  bool      // counted as such
	reusable bool      // the connection can go back to its pool
	told     bool      // the client knows of a failure by the stream
	over     bool      // the answer is kept from the client, and nobody else is asked
	outcome  Outcome
	buf      buffer
	body     body
	events   int // of the stream that Hooks know of
	scan     scanner

	// What Cancel needs, with conn.
	mu   sync.Mutex
	gone bool
	stop context.CancelFunc // of a dial
	wake chan struct{}      // of a pause

	look       func(time.Time) (time.Time, bool) // overdue, made once
	asked      time.Time                         // when the attempt was sent, for overdue
	tried      int                               // attempts begun
	at, next   int                               // places in the list of the attempt at hand and of one that follows
	pause      time.Duration                     // before the next attempt
	retryAfter time.Duration                     // the last that an engine gave
	status     int                               // sent to the client
	pool       *pool                             // of the attempt at hand
	head       head
	fields     []byte
	tail       tail
}

// Do carries x to the first engine of its list that takes it and the answer to its client.
// It returns when the answer is passed on, or can't be; then the client has got nothing
// (Status 0), an error in the stream, or part of an answer (Cut).
func (p *Proxy) Do(x *Exchange) Result {
	t := p.tasks.Get().(*task)
	t.x, t.opts = x, p.opts.Load()
	now := time.Now()
	if t.limit = x.Limit; t.limit.IsZero() {
		t.limit = now.Add(time.Duration(t.opts.Timeouts.Total))
	}
	t.endpoint = x.List[0]
	p.budget.request(now)
	defer t.free()
	if !x.Client.Watch(t) {
		return t.result(&Error{Cause: CauseClientGone, Err: errGone})
	}
	defer x.Client.Unwatch()
	if !t.enter(0) {
		return t.result(t.refusal())
	}
	for {
		err, again := t.attempt(x.List[t.at])
		if !again {
			return t.result(err)
		}
		if t.pause > 0 && !t.sleep(t.pause) {
			return t.result(&Error{Cause: CauseClientGone, Err: errGone})
		}
		if !t.enter(t.next) { // it began to drain just now
			return t.result(err)
		}
	}
}

func (t *task) result(err *Error) Result {
	r := Result{Endpoint: t.endpoint, Status: t.status, Attempts: t.tried}
	if err != nil {
		err.Endpoint, err.RetryAfter = t.endpoint.ID, t.retryAfter
		r.Err, r.Cut = err, t.status != 0 && !t.told
	}
	return r
}

// free makes t ready for another Do. Cancel is not called any more.
func (t *task) free() {
	t.x, t.opts, t.endpoint, t.pool = nil, nil, nil, nil
	t.gone, t.stop, t.wake = false, nil, nil
	t.tried, t.at, t.next, t.pause, t.retryAfter, t.status, t.told = 0, 0, 0, 0, 0, 0, false
	if cap(t.fields) > smallSize {
		t.fields = nil
	}
	t.proxy.tasks.Put(t)
}

// attempt sends the request to e, which it has entered. A nil error means that a whole answer went
// through; again that another attempt is to follow, after t.pause.
func (t *task) attempt(e *pick.Endpoint) (err *Error, again bool) {
	t.begin(e)
	defer t.end()
	t.x.Hooks.Sent(e)
	err = t.send()
	if err == nil {
		err = t.readHead()
	}
	if err == nil {
		if c := t.fault(); c != CauseOK && (t.again(c) || t.ours(c)) {
			t.drop()
			t.outcome.Cause, t.outcome.Retried = c, !t.over
			return &Error{Cause: c, Err: statusError(t.head.status)}, !t.over
		}
		err = t.deliver()
	}
	if err == nil {
		t.outcome.Cause = t.fault()
		return nil, false
	}
	t.outcome.Cause = err.Cause
	if !t.passed && t.again(err.Cause) {
		t.outcome.Retried = true
		t.opts.Logger.LogAttrs(context.Background(), slog.LevelDebug, "retry", slog.String("endpoint", e.ID), slog.String("cause", err.Cause.String()), slog.Any("error", err.Err))
		return err, true
	}
	if t.passed && err.Cause.Failed() {
		t.tell(err.Cause)
	}
	return err, false
}

func (t *task) begin(e *pick.Endpoint) {
	t.endpoint, t.outcome = e, Outcome{Usage: noUsage()}
	t.waiting, t.reusable, t.passed, t.full = true, false, false, false
	t.scanning, t.json, t.over = false, false, false
	t.head.status, t.head.hasRetryAfter, t.n, t.held = 0, false, 0, 0
	t.tried++
	t.buf.take(t.proxy.buffers)
	e.Live.Waiting.Add(1)
	e.Live.Tokens.Add(int64(t.x.Tokens))
	// Until it is known better, as after a panic in a hook, the client's side is at fault.
	t.outcome.Cause = CauseClientGone
}

// end gives back what the attempt holds. It runs whatever happened.
func (t *task) end() {
	t.buf.release()
	t.tail.release()
	t.detach(t.reusable)
	e := t.endpoint
	if t.waiting {
		e.Live.Waiting.Add(-1)
	}
	e.Live.InFlight.Add(-1)
	e.Live.Tokens.Add(-int64(t.x.Tokens))
	if t.scanning {
		t.outcome.Usage, t.outcome.Events = t.scan.usage, t.scan.events
	}
	t.outcome.Status = t.head.status
	t.x.Hooks.Ended(e, t.outcome)
}

// fault is what the status of the answer says of the engine.
func (t *task) fault() Cause {
	switch s := t.head.status; {
	case t.endpoint.Provider != nil && refusesUs(s):
		return CauseStatus
	case s == http.StatusTooManyRequests:
		return CauseBusy
	case s == http.StatusNotFound && t.x.MayMiss && t.endpoint.Provider == nil:
		return CauseMissing
	case s < 500 || s == http.StatusNotImplemented || s == http.StatusHTTPVersionNotSupported:
		return CauseOK
	case s == http.StatusInternalServerError && len(t.x.Body) > 0 && t.x.Body[0] == '{' && !utf8.Valid(t.x.Body):
		return CauseOK // it would be the same on every engine
	}
	return CauseStatus
}

// again decides whether the request, of which the client has got nothing, is tried once more,
// and takes that out of the budget.
func (t *task) again(c Cause) bool {
	o := t.opts
	now := time.Now()
	if c == CauseClientGone || t.tried > o.Retries.Attempts || !now.Before(t.limit) {
		return false
	}
	said := t.head.hasRetryAfter && (t.head.status == http.StatusTooManyRequests || t.head.status == http.StatusServiceUnavailable)
	if said {
		t.retryAfter = t.head.retryAfter
	}
	t.pause = 0
	if t.next = t.at + 1; t.following(t.next) < 0 {
		// Nobody is left: only after an engine that said when to come back is the first asked again.
		if !said || t.retryAfter > time.Duration(o.Retries.MaxRetryAfter) || t.following(0) < 0 {
			return false
		}
		t.next, t.pause = 0, t.retryAfter
	}
	return t.moves(c) || t.proxy.budget.retry(now, o.Retries.Budget)
}

// moves tells whether the next attempt takes over from an engine that is gone. That makes no
// more work than there was, so the budget, which is there against multiplying it, is left
// alone: when one of two engines dies, half of all requests in flight move at once.
func (t *task) moves(c Cause) bool {
	next := t.following(t.at + 1)
	switch {
	case next < 0:
		return false
	case c == CauseConnect || c == CauseReset || c == CauseMissing:
		return true
	}
	return t.endpoint.Live.Ejected.Load() && !t.x.List[next].Live.Ejected.Load()
}

// fail makes an Error of err, which came up where cause is the likely one.
func (t *task) fail(cause Cause, err error) *Error {
	e := &Error{Cause: cause, Err: err}
	switch {
	case t.isGone():
		e.Cause, e.Err = CauseClientGone, errGone
	case errors.Is(err, errProtocol):
		e.Cause = CauseProtocol
	case !errors.Is(err, os.ErrDeadlineExceeded):
	case t.outcome.Bytes == 0:
		e.Cause = CauseFirstByte
	default:
		e.Cause = CauseIdle
	}
	return e
}

// wait sets the end of the next wait, d from now but not beyond the request's limit.
func (t *task) wait(now time.Time, d time.Duration) {
	t.until = now.Add(d)
	if t.until.After(t.limit) {
		t.until = t.limit
	}
}

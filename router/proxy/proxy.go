// Package proxy carries a request to engines and the answer back: pooled connections,
// bytes passed through, retries before the first byte, a timeout on every wait.
package proxy

import (
	"time"

	"github.com/mobula-serve/mobula/router/pick"
)

// Client is the side that asked. All methods are called by the
// goroutine that calls Do.
type Client interface {
	// Head starts the answer. fields are raw header lines, each "Name: value\r\n", without
	// framing or hop-by-hop fields. length is the body's, -1 when it is not known: then the
	// client side frames it. The head may be held back until the first Write or Flush, so
	// that both go out in one system call.
	Head(status int, fields []byte, length int64) error
	// Write sends p now; it does not keep it.
	Write(p []byte) error
	// Flush sends what Head holds back.
	Flush() error
	// Watch has c.Cancel called, at most once and from any goroutine, when the client goes
	// away before Unwatch returns. It reports false when it is gone already.
	Watch(c Canceler) bool
	// Unwatch ends Watch: after it Cancel is neither running nor called again.
	Unwatch()
}

// Canceler is told that a client went away.
type Canceler interface{ Cancel() }

// Exchange is one request, read and checked, with all that Do needs to serve it.
type Exchange struct {
	Method string
	Target string // path and query for the engine
	// Fields are the request's header lines, each "Name: value\r\n", without Host, framing,
	// hop-by-hop fields, and with X-Request-Id set.
	Fields []byte
	Body   []byte
	Stream bool // the client asked for a stream
	// Tokens is the estimated prompt tokens, added to Live.Tokens of the endpoint that works on it.
	Tokens int
	// List is the pick, best first. It is not empty.
	List   []*pick.Endpoint
	Client Client
	Hooks  Hooks
	// Outside gives what goes to a provider in place of Target, Fields and Body: nothing of the
	// client's that is not meant for it. Without it the list's providers are passed over.
	Outside func(e *pick.Endpoint) (target string, fields, body []byte)
	// Owned has the request go to an endpoint that drains too, for it is about what that one has begun.
	Owned bool
	// MayMiss tells that engines have the model for a time only, as they have LoRAs: a 404 of one that does not have it
	// any more is tried elsewhere, and does not go to the client.
	MayMiss bool
	// Limit is when all must have ended; zero is Timeouts.Total from now.
	Limit time.Time
	// AnswerFields, if not nil, appends header lines to an answer's, for what depends on the endpoint.
	AnswerFields func(dst []byte, e *pick.Endpoint) []byte
}

// Hooks are told what happens, in order, by the goroutine of Do. Each Sent is followed by
// exactly one Ended.
type Hooks interface {
	// Sent: an attempt begins at e.
	Sent(e *pick.Endpoint)
	// First: an answer begins to go to the client, p being the first bytes of its body, empty
	// when it has none. The client has not seen it yet. p is valid during the call.
	First(e *pick.Endpoint, status int, p []byte, now time.Time)
	// Overdue: a plain answer has not begun in the time that a stream's first byte has, and
	// the engine has answered nobody else meanwhile. It is said again every second.
	Overdue(e *pick.Endpoint)
	// Events: n more SSE events of a stream have come.
	Events(n int, now time.Time)
	// Ended: the attempt is over.
	Ended(e *pick.Endpoint, o Outcome)
}

// Cause is why an attempt ended.
type Cause uint8

// Causes. Only those from CauseConnect on are the engine's failures.
const (
	CauseOK         Cause = iota // a whole answer, whatever its status below 500 (but 429)
	CauseClientGone              // the client left, or took nothing for too long
	CauseBusy                    // 429: the engine is alive and wants no more now; or a provider has all that it may have
	CauseDraining                // nobody in the list takes new requests any more; nothing was sent
	CauseMissing                 // 404 to what may be missing (Exchange.MayMiss)
	CauseConnect                 // no connection: refused, unreachable or timed out
	CauseReset                   // the connection ended before the answer's first byte
	CauseFirstByte               // no first byte in time
	CauseStatus                  // 5xx
	CauseProtocol                // what came is not HTTP
	CauseTruncated               // the answer ended early: EOF, reset, "abort" or an error event in a stream
	CauseIdle                    // the answer stalled
)

// String gives the cause as a metric label.
func (c Cause) String() string {
	return [...]string{"ok", "client_gone", "busy", "draining", "missing", "connect", "reset", "first_byte_timeout", "status_5xx", "protocol", "truncated", "idle_timeout"}[c]
}

// Failed tells whether the engine is to blame.
func (c Cause) Failed() bool { return c >= CauseConnect }

// Outcome is what an attempt came to.
type Outcome struct {
	Cause  Cause
	Status int // the engine's, 0 without one
	// Retried: the attempt came to nothing for the client and another one follows.
	Retried bool
	Usage   Usage
	Events  int   // SSE events with data, [DONE] not counted
	Bytes   int64 // of the answer's body
}

// Usage is the engine's own count of tokens; Seen is false when the answer had none.
type Usage struct {
	Seen                       bool
	Prompt, Completion, Cached int // Cached is -1 when not said
}

// Result is what Do came to, for the caller to log, count, or answer the client with when
// nothing was sent to it.
type Result struct {
	Endpoint *pick.Endpoint // the last one tried; the first of the list when the client left before any was
	Status   int            // sent to the client, 0 when nothing was
	Attempts int
	Err      error // nil when a whole answer went through; else an *Error
	// Cut: the answer has begun and will not be whole, so the client's connection must be cut
	// lest it look whole. Not set with an Err that the client was told in the stream.
	Cut bool
}

// Error is why a request failed at the proxy.
type Error struct {
	Cause      Cause
	Endpoint   string
	RetryAfter time.Duration // from an engine's 429 or 503, 0 without one
	Err        error
}

// Error gives the cause in words.
func (e *Error) Error() string {
	s := "engine " + e.Endpoint + ": " + e.Cause.String()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the underlying error.
func (e *Error) Unwrap() error { return e.Err }

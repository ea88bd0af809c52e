// Package pick chooses: which engines may serve a request, and in which order they are
// tried. It is pure: no I/O, no clock and no randomness of its own.
package pick

import (
	"sync/atomic"
	"time"

	"github.com/mobula-serve/mobula"
)

// Endpoint is one engine as the choice sees it. All but Live is immutable; a changed
// endpoint is a new value in a new Snapshot that shares the old one's Live.
type Endpoint struct {
	mobula.Endpoint
	// Hash of the ID, the point that consistent hashing starts from.
	Hash uint64
	// Cards are the models it serves, as the engine lists them.
	Cards []mobula.Card
	// Serving is false while the endpoint is ejected or has never answered.
	Serving bool
	// CacheTokens is the engine's KV cache in tokens, 0 while unknown.
	CacheTokens int
	// Live is shared by all snapshots.
	Live *Live
}

// Live is what changes about an endpoint from request to request. Counts return to zero
// when all requests have ended, however they ended.
type Live struct {
	InFlight atomic.Int64 // requests sent and not ended
	Waiting  atomic.Int64 // of these, requests without a first byte
	Tokens   atomic.Int64 // estimated prompt tokens of requests in flight
	Heard    atomic.Int64 // when bytes of an answer came last, to whomever; Unix nanoseconds, 0 for never
	Ejected  atomic.Bool  // taken out of service
	Hung     atomic.Bool  // ejected because its inference does not answer
	Silent   atomic.Bool  // ejected because its /health does not answer either
	Draining atomic.Bool  // it gets nothing new: marked so, or not reported any more
	TTFT     atomic.Int64 // running mean of its streams' time to first byte, nanoseconds; kept for policies that estimate none
}

// Request is what a policy may know of a request.
type Request struct {
	Model   string        // the engine's own name for the model, not an alias
	Session string        // session id, empty for none
	Blocks  []uint64      // chained hashes of the prompt's blocks of BlockBytes, filled only for policies that need them
	Tokens  int           // estimated prompt tokens, at least 1
	Output  int           // most tokens asked for, 0 when not said
	Stream  bool          // the answer comes as it is generated: its first byte tells when the prompt was computed
	Now     time.Duration // since the router's start, monotonic
	Rand    uint64        // random bits, one draw a request
	Depth   int           // endpoints wanted, at least 1
	Kinds   []string      // kinds of providers that can take the request
	Explain *Explanation  // filled in when not nil
	// Reason is set by Order, always: why the first one is first. One of a policy's few
	// constants ("prefix", "load", "session", "turn", ...), so that it can be a metric label.
	Reason string
}

// BlockBytes is the size of a prefix block. 1 KiB costs a thirtieth of 64-byte blocks and
// finds the same prefixes (measured; docs/performance.md).
const BlockBytes = 1024

// Policy orders the endpoints of a group.
type Policy interface {
	// Order appends to dst up to r.Depth endpoints of g, best first and each once. g has at
	// least one. It is called by many goroutines at once and must not block on I/O.
	Order(r *Request, g *Group, dst []*Endpoint) []*Endpoint
	// Needs says what of a Request must be filled in.
	Needs() Needs
}

// Needs names the costly fields of a Request.
type Needs struct{ Blocks, Session bool }

// Observer is the optional power of a policy that learns from what becomes of its choices.
// Each Sent is followed by at most one First and exactly one Done with the same ticket.
type Observer interface {
	// Sent is called when r goes to e, which need not be the first of the order.
	Sent(r *Request, e *Endpoint, t *Ticket)
	// First is called with the first byte of the answer.
	First(t *Ticket, now time.Duration)
	// Done is called once when the attempt is over. t may be used again after it.
	Done(t *Ticket, o Outcome)
	// Keep is called with each new snapshot: what is kept of endpoints not in it may go.
	Keep(s *Snapshot)
}

// Ticket is a policy's note on one attempt. The caller owns the memory and sees to it that
// a zero Ticket goes into Sent.
type Ticket struct {
	Endpoint *Endpoint
	SentAt   time.Duration
	FirstAt  time.Duration // 0 until the first byte
	Tokens   int           // prompt tokens predicted
	Cached   int           // of these, tokens predicted to be in the engine's cache
	Seconds  float64       // service seconds predicted (cost)
	Blocks   []uint64      // the request's blocks; valid until Done returns
	Seq      uint64        // for the policy
}

// Outcome is how an attempt ended.
type Outcome struct {
	Now        time.Duration
	OK         bool // a whole answer below 400 was received
	Prompt     int  // tokens by the engine's own count, 0 when not said
	Cached     int  // of these, from its cache; -1 when not said
	Completion int  // tokens generated, counted by events when the engine does not say
	Refused    bool // the engine is to blame for there being no whole answer: an error, a timeout, 429; not a 4xx, nor a client that left
}

// Explanation says why an order came out as it did; the debug header shows it.
type Explanation struct {
	Policy string
	Scores []Score
}

// Score is one endpoint's part in a decision. Lower cost is better.
type Score struct {
	Endpoint string
	Cost     float64 // the policy's own unit; seconds for cost
	Hit      float64 // share of the prompt predicted to be cached, 0 to 1
	Load     int64   // requests in flight
}

// Package scale decides how many replicas a model should have. It is pure: clocks, measurements and
// memory come in as values and a number goes out. docs/autoscaling.md explains the method.
package scale

import (
	"time"

	"github.com/mobula-serve/mobula"
)

// Input is what a decision rests on: one model at one moment. Decide wants one about once a second.
type Input struct {
	Now  time.Time
	Spec mobula.Scaling
	// Range that the number stays in.
	Range mobula.Range
	// Replicas that serve, and others that are being started or sleep.
	Ready, Starting, Asleep int
	// StartTime is how many seconds a replica needs until it is ready, as it was learnt; 0 when that is not known.
	StartTime float64
	// Heard tells that a router has reported lately. Nothing is changed on old reports.
	Heard bool
	// Demand is the model's report over all routers: sums, and the worst quantiles.
	Demand mobula.ModelReport
	// InFlight requests and WaitingTokens, the prompt tokens that wait for prefill, of all replicas that serve.
	InFlight, WaitingTokens int
	// PrefillRate of one replica in tokens a second, the mean of those that are known; 0 when none is.
	PrefillRate float64
	// KVMean and KVMax are the usage of the KV caches of the replicas that serve, 0 to 1; negative when not known.
	KVMean, KVMax float64
}

// Decision is how many replicas should be awake.
type Decision struct {
	Replicas int
	// Reason is why it is this number, for people: "TTFT p90 3.1s over 2s: 2 → 3". It changes with the number only.
	Reason string
}

// reportWindow is how many seconds a report's counts span.
const reportWindow = 10.0

// State is what is remembered from one decision to the next. The zero value knows nothing. It is a value: Decide
// changes none. It may be kept as JSON, and has a bounded size.
type State struct {
	Wanted int       `json:"wanted"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at,omitzero"`     // of the last decision
	Active time.Time `json:"active,omitzero"` // when somebody last asked for the model
	// Ups and Downs are the least that was needed in parts of the last UpAfter, and the most in those of DownAfter.
	Ups   []Span `json:"ups,omitempty"`
	Downs []Span `json:"downs,omitempty"`
	// Ready is the number that served at the last decision, and Moved when it changed.
	Ready int       `json:"ready,omitempty"`
	Moved time.Time `json:"moved,omitzero"`
	// Fell is when Wanted went down last.
	Fell time.Time `json:"fell,omitzero"`
	// TooFew replicas could not carry so many Requests a second, as a step down has shown at TooFewAt.
	TooFew   int       `json:"tooFew,omitempty"`
	Requests float64   `json:"requests,omitempty"`
	TooFewAt time.Time `json:"tooFewAt,omitzero"`
	Learnt   Learnt    `json:"learnt"`
}

// Learnt are running means, and the line that relates ITL to concurrency. Rates are per second.
type Learnt struct {
	Known       bool    `json:"known,omitempty"`
	Tokens      float64 `json:"tokens,omitempty"`      // prompt tokens, over the last seconds
	TokensSlow  float64 `json:"tokensSlow,omitempty"`  // and over the last minute
	Requests    float64 `json:"requests,omitempty"`    // over the last minute
	Running     float64 `json:"running,omitempty"`     // requests that get their answer, over the last seconds
	Waiting     float64 `json:"waiting,omitempty"`     // prompt tokens, over the last seconds
	PrefillRate float64 `json:"prefillRate,omitempty"` // of a replica
	Proven      float64 `json:"proven,omitempty"`      // requests that a replica has carried within its objectives
	Line        Line    `json:"line"`
}

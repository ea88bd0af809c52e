package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// FaultKind names a failure to inject.
type FaultKind string

// Fault kinds. Those from FaultHangInference on befall requests for inference only, unless
// the fault says All; /sim/ is never befallen.
const (
	// FaultRefuse cuts all connections and listens no more (Run only).
	FaultRefuse FaultKind = "refuse"
	// FaultHang takes requests and answers none, /health included.
	FaultHang FaultKind = "hang"
	// FaultHangInference answers /health and never an inference.
	FaultHangInference FaultKind = "hang_inference"
	// FaultSlow adds Duration before each answer.
	FaultSlow FaultKind = "slow"
	// FaultStatus answers with Status, and Retry-After if set.
	FaultStatus FaultKind = "status"
	// FaultResetBeforeHeaders resets the connection instead of answering.
	FaultResetBeforeHeaders FaultKind = "reset_before_headers"
	// FaultResetMidstream resets the connection after AfterTokens tokens.
	FaultResetMidstream FaultKind = "reset_midstream"
	// FaultEOFMidstream closes the connection after AfterTokens tokens, without the stream's end.
	FaultEOFMidstream FaultKind = "eof_midstream"
	// FaultStallMidstream says nothing more after AfterTokens tokens while the fault is on.
	FaultStallMidstream FaultKind = "stall_midstream"
	// FaultAbort ends answers after AfterTokens tokens with finish_reason "abort", as vLLM does on SIGTERM.
	FaultAbort FaultKind = "abort"
	// FaultEngineDead ends streams after AfterTokens tokens with an error event and [DONE], and
	// plain answers with 500, as vLLM does when its EngineCore is killed; /health is 503.
	FaultEngineDead FaultKind = "engine_dead"
	// FaultGarbage answers with bytes that are not HTTP.
	FaultGarbage FaultKind = "garbage"
	// FaultWrongLength says a Content-Length that is Size more (or less) than the body.
	FaultWrongLength FaultKind = "wrong_length"
	// FaultGzip compresses the answer, asked for or not.
	FaultGzip FaultKind = "gzip"
	// FaultEarlyHints sends a 103 before the answer.
	FaultEarlyHints FaultKind = "early_hints"
	// FaultTrailingJunk sends bytes after the end of the answer.
	FaultTrailingJunk FaultKind = "trailing_junk"
	// FaultLongLine answers with one line of Size bytes.
	FaultLongLine FaultKind = "long_line"
)

const (
	defaultLongLine    = 100 << 20
	defaultWrongLength = 16
)

// Fault is a failure to inject.
type Fault struct {
	// Kind says what fails.
	Kind FaultKind
	// AfterTokens is how many tokens of an answer come before a midstream fault.
	AfterTokens int
	// Count is how many requests it befalls. Default 0: all until it is cleared.
	Count int
	// Duration of FaultSlow is the time added to each request; every other fault clears
	// itself after it. Default 0: never.
	Duration time.Duration
	// Status of FaultStatus. Default 503.
	Status int
	// RetryAfter of FaultStatus is the header's value, seconds or a date. Default: no header.
	RetryAfter string
	// Size of FaultLongLine in bytes, default 100 MiB; of FaultWrongLength the difference,
	// default 16, negative for a length too short.
	Size int64
	// All lets it befall /health, /v1/models and the like too.
	All bool
}

func (f *Fault) fill() error {
	switch f.Kind {
	case FaultRefuse, FaultHang, FaultHangInference, FaultSlow, FaultStatus, FaultResetBeforeHeaders, FaultResetMidstream,
		FaultEOFMidstream, FaultStallMidstream, FaultAbort, FaultEngineDead, FaultGarbage, FaultWrongLength, FaultGzip,
		FaultEarlyHints, FaultTrailingJunk, FaultLongLine:
	default:
		return fmt.Errorf("sim: unknown fault kind %q", f.Kind)
	}
	if f.Status == 0 {
		f.Status = http.StatusServiceUnavailable
	}
	if f.Size == 0 && f.Kind == FaultLongLine {
		f.Size = defaultLongLine
	}
	if f.Size == 0 && f.Kind == FaultWrongLength {
		f.Size = defaultWrongLength
	}
	switch {
	case f.Status < 400 || f.Status > 599:
		return fmt.Errorf("sim: fault status %d is not from 400 to 599", f.Status)
	case f.AfterTokens < 0 || f.Count < 0 || f.Duration < 0:
		return errors.New("sim: a fault's numbers must not be negative")
	case f.Size < 0 && f.Kind != FaultWrongLength:
		return errors.New("sim: a fault's size must not be negative")
	}
	return nil
}

// active is the fault that is on.
type active struct {
	Fault
	left  atomic.Int64  // requests to befall, when Count is set
	until time.Time     // zero for ever
	gone  chan struct{} // closed when it is cleared or replaced
}

// over tells whether its time has passed or it has befallen all it should.
func (a *active) over() bool {
	return !a.until.IsZero() && !time.Now().Before(a.until) || a.Count > 0 && a.left.Load() <= 0
}

// wait waits until the fault is gone; its error says that ctx or the engine ended first.
func (a *active) wait(ctx context.Context, aborted <-chan struct{}) error {
	var end <-chan time.Time
	if !a.until.IsZero() {
		t := time.NewTimer(time.Until(a.until))
		defer t.Stop()
		end = t.C
	}
	select {
	case <-a.gone:
	case <-end:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-aborted:
		return errAborted
	}
	return nil
}

// faults holds the fault that is on, if any.
type faults struct {
	current atomic.Pointer[active]
	mu      sync.Mutex
	changed chan struct{} // closed and replaced on every change
}

func newFaults() *faults { return &faults{changed: make(chan struct{})} }

// SetFault lets requests from now on fail. There is one fault at a time.
func (e *Engine) SetFault(f Fault) error {
	if err := f.fill(); err != nil {
		return err
	}
	a := &active{Fault: f, gone: make(chan struct{})}
	a.left.Store(int64(f.Count))
	if f.Duration > 0 && f.Kind != FaultSlow {
		a.until = time.Now().Add(f.Duration)
	}
	e.faults.set(a)
	e.logger.Info("fault set", "kind", string(f.Kind))
	return nil
}

// ClearFault ends the fault that is on.
func (e *Engine) ClearFault() { e.faults.set(nil) }

func (s *faults) set(a *active) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.current.Swap(a); old != nil {
		close(old.gone)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// watch gives the fault that is on, and a channel that is closed when that changes.
func (s *faults) watch() (*active, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.current.Load()
	if a != nil && a.over() {
		a = nil
	}
	return a, s.changed
}

// draw gives the fault that befalls a request, nil for none.
func (s *faults) draw(inference bool) *active {
	a := s.current.Load()
	if a == nil || a.Kind == FaultRefuse || !inference && !a.All && a.Kind != FaultHang || a.over() {
		return nil
	}
	if a.Count > 0 && a.left.Add(-1) < 0 {
		return nil
	}
	return a
}

// dead tells whether /health should say that the engine process is gone.
func (s *faults) dead() bool {
	a := s.current.Load()
	return a != nil && a.Kind == FaultEngineDead && !a.over()
}

// wireFault is the body of POST /sim/fault.
type wireFault struct {
	Kind        FaultKind `json:"kind"`
	AfterTokens int       `json:"after_tokens"`
	Count       int       `json:"count"`
	Duration    string    `json:"duration"`
	Status      int       `json:"status"`
	RetryAfter  string    `json:"retry_after"`
	Size        int64     `json:"size"`
	All         bool      `json:"all"`
}

// postFault serves POST /sim/fault. The answer is out before the fault sets in.
func (c *call) postFault() {
	var in wireFault
	f := Fault{}
	err := json.Unmarshal([]byte(c.body), &in)
	if err == nil && in.Duration != "" {
		f.Duration, err = time.ParseDuration(in.Duration)
	}
	if err == nil {
		f.Kind, f.AfterTokens, f.Count, f.Status = in.Kind, in.AfterTokens, in.Count, in.Status
		f.RetryAfter, f.Size, f.All = in.RetryAfter, in.Size, in.All
		check := f
		err = check.fill()
	}
	if err != nil {
		c.fail(badRequest("", "%s", err))
		return
	}
	c.json(http.StatusOK, []byte(`{"status":"set"}`))
	_ = c.flush()
	_ = c.e.SetFault(f) // checked above
}

// deleteFault serves DELETE /sim/fault.
func (c *call) deleteFault() {
	c.e.ClearFault()
	c.json(http.StatusOK, []byte(`{"status":"cleared"}`))
}

// getStats serves GET /sim/stats.
func (c *call) getStats() {
	b, err := json.Marshal(c.e.Stats())
	if err != nil {
		c.fail(toAPIError(err))
		return
	}
	c.json(http.StatusOK, b)
}

// Package flow holds requests for models that are to have engines and have none right now: first
// come, first served, within bounds of number and time, for as long as their clients stay.
package flow

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// Why a request is not held, or no longer.
var (
	// ErrFull: as many requests as the model may have are held.
	ErrFull = errors.New("as many requests wait as may")
	// ErrTimeout: no engine came in time.
	ErrTimeout = errors.New("no engine in time")
	// ErrDraining: the router stops.
	ErrDraining = errors.New("the router stops")
	// ErrGone: the client left.
	ErrGone = errors.New("client went away")
)

// Options set up a Holder. Snapshot is required.
type Options struct {
	// Snapshot gives the fleet as it is now; it must not block.
	Snapshot func() *pick.Snapshot
	// Registerer takes the room's metrics. Default: none.
	Registerer prometheus.Registerer
	// Beat is the time between two signs of life to a client that waits. Default 10s.
	Beat time.Duration
	// PerEngine is how many held requests an engine is sent that have no first byte yet. Default 256,
	// which is what vLLM works on at once.
	PerEngine int
}

// Holder holds requests. Its methods may be called by many goroutines at once; it has none of its own.
type Holder struct {
	options Options
	metrics *metrics
	held    atomic.Int64 // over all models

	mu       sync.Mutex
	lines    map[string]*line // by model; those with nobody in them and no pass out are forgotten
	byBase   map[string]int   // held requests by base model
	draining chan struct{}    // closed by Drain
	drainAt  time.Time        // set before that
}

// New makes a Holder.
func New(o Options) *Holder {
	if o.Beat <= 0 {
		o.Beat = 10 * time.Second
	}
	if o.PerEngine <= 0 {
		o.PerEngine = 256
	}
	return &Holder{
		options: o, metrics: newMetrics(o.Registerer),
		lines: map[string]*line{}, byBase: map[string]int{}, draining: make(chan struct{}),
	}
}

// Request is one that may have to wait.
type Request struct {
	// Group is its model's. Model and Base name the line that it stands in; Held bounds it.
	Group *pick.Group
	// Tokens is its estimated prompt.
	Tokens int
	// Kinds of providers that can take it.
	Kinds []string
	// Since is when it was held first. Again tells that it was let go and comes back: it goes before
	// those who have not been let go yet.
	Since time.Time
	Again bool
	// Until is when it gives up.
	Until time.Time
	// Client is watched while it waits.
	Client proxy.Client
	// Beat, if not nil, tells the client that it waits, with how many ahead of it; with an error it has left.
	Beat func(ahead int) error
}

// Held is the number of requests that wait. It costs one atomic load.
func (h *Holder) Held() int64 { return h.held.Load() }

// Hold waits until an engine or a provider can take r. One that had to wait gets a Pass, on which Done must
// be called once it has been taken; who comes when nobody waits goes at once and gets nil. It fails with
// one of the errors of this room.
func (h *Holder) Hold(r *Request) (*Pass, error) {
	w := &waiter{request: r, released: make(chan struct{}), gone: make(chan struct{})}
	if err := h.join(w); err != nil {
		h.metrics.refused(r.Group.Model, err)
		return nil, err
	}
	select {
	case <-w.released:
		return w.pass, nil // it need not wait
	default:
	}
	h.metrics.begin(r.Group.Model)
	defer h.metrics.end(r.Group.Model, time.Now())
	err := h.wait(w)
	if err == nil {
		return w.pass, nil
	}
	if h.leave(w) { // it was let go at the same moment, and its client is gone
		w.pass.Done()
	}
	h.metrics.refused(r.Group.Model, err)
	return nil, err
}

// wait waits for w's release.
func (h *Holder) wait(w *waiter) error {
	r := w.request
	if !r.Client.Watch(w) {
		return ErrGone
	}
	defer r.Client.Unwatch()
	until := time.NewTimer(time.Until(r.Until))
	defer until.Stop()
	var beat <-chan time.Time
	if r.Beat != nil {
		ticker := time.NewTicker(h.options.Beat)
		defer ticker.Stop()
		beat = ticker.C
	}
	late, draining := ErrTimeout, h.draining
	for {
		select {
		case <-w.released:
			return nil
		case <-w.gone:
			return ErrGone
		case <-until.C:
			return late
		case <-beat:
			if r.Beat(h.ahead(w)) != nil {
				return ErrGone
			}
		case <-draining:
			draining = nil
			if h.drainAt.Before(r.Until) {
				late = ErrDraining
				until.Reset(time.Until(h.drainAt))
			}
		}
	}
}

// Drain has nobody wait beyond at: the router stops. Calls after the first do nothing.
func (h *Holder) Drain(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.drainAt.IsZero() {
		h.drainAt = at
		close(h.draining)
	}
}

// Changed lets go whom it can. It is to be called when there is a new snapshot, and when a provider has
// one request fewer.
func (h *Holder) Changed() {
	if h.held.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		h.pump(l)
	}
}

// Pause waits for d. It reports false when the client leaves meanwhile.
func Pause(client proxy.Client, d time.Duration) bool {
	w := &waiter{gone: make(chan struct{})}
	if !client.Watch(w) {
		return false
	}
	defer client.Unwatch()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.gone:
		return false
	case <-timer.C:
		return true
	}
}

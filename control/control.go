package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control/scale"
	"github.com/mobula-serve/mobula/state"
)

// Engines are the calls to engines that LoRAs and sleep need. *engine.Client has them.
type Engines interface {
	Models(ctx context.Context, e mobula.Endpoint) ([]mobula.Card, error)
	LoadLoRA(ctx context.Context, e mobula.Endpoint, name, path string) error
	UnloadLoRA(ctx context.Context, e mobula.Endpoint, name string) error
	Sleep(ctx context.Context, e mobula.Endpoint, level int) error
	Wake(ctx context.Context, e mobula.Endpoint) error
}

// Options set up a Control.
type Options struct {
	// Store holds what is remembered. Required; the caller closes it.
	Store state.Store
	// Placer is the platform. Required. Its optional powers (Configurer, Watcher, Hosts, Checker, Fetcher) are used.
	Placer adapters.Placer
	// Engines, nil for no LoRAs and no sleep.
	Engines Engines
	// Logger, nil for none.
	Logger *slog.Logger
	// Registerer of metrics, nil for none.
	Registerer prometheus.Registerer
	// Now is the clock, time.Now for nil.
	Now func() time.Time
	// RouterStart is how long routers that reported to another control plane before may need to find this one; no replica counts as
	// drained until then. Default 5s.
	RouterStart time.Duration
	// Interval between two looks at the platform if nothing else wakes us. Default 1s.
	Interval time.Duration
}

const (
	defaultInterval = time.Second
	callTimeout     = 10 * time.Second // of a call to the platform
	parallelCalls   = 8
)

// Control is the control plane: it holds what is wanted against what there is, once Run runs. Its methods
// may be called at once and before Run.
type Control struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	hosts   adapters.Hosts // nil for a platform without
	id      string

	configurer adapters.Configurer // nil for a platform without settings
	applying   sync.Mutex          // held by a command that asks the platform in between
	round      sync.Mutex          // held by a round, and by an apply that moves to another platform; after applying
	kick       chan struct{}
	looks      atomic.Int64 // reconciliations so far

	mu        sync.Mutex
	want      desired
	using     *section // what the platform was configured with; nil when that is to be done
	models    map[string]memory
	events    events
	routers   *routers
	observed  observation
	problems  []string                             // of the platform, as it told them last
	asked     map[adapters.Key]adapters.Deployment // what the platform holds; nil when it has to be asked
	askedAt   time.Time
	backoff   map[string]backoff // models whose calls failed
	suspects  map[string]bool    // replicas that routers can't reach
	scaling   map[string]scale.State
	startTime map[string]float64 // seconds that a model's replicas take to get ready
	version   int64
	viewDirty bool
	view      *View
	settings  *Settings
	changed   chan struct{} // closed when there is another view or event
	engines   *engineCalls
}

// observation is what the platform says.
type observation struct {
	at       time.Time
	replicas []mobula.Replica // sorted by ID
	byModel  map[string][]mobula.Replica
	hosts    []mobula.Host
	// stale is why it can't be asked, since when.
	stale string
	since time.Time
}

// hear notes what problems the platform has beside those of replicas. c.mu is held.
func (c *Control) hear() {
	teller, ok := c.o.Placer.(adapters.Teller)
	if !ok {
		return
	}
	now := teller.Problems()
	for _, p := range now {
		if !slices.Contains(c.problems, p) {
			c.notef("fleet", "PlatformProblem", true, "%s", p)
		}
	}
	c.problems = now
}

// backoff is a pause after a failure, which doubles with each in a row.
type backoff struct {
	tries int
	until time.Time
	why   string // of the last failure, for people
}

func (b backoff) next(now time.Time) backoff {
	b.tries++
	b.until = now.Add(min(time.Minute, time.Second<<min(b.tries-1, 6)))
	return b
}

// New makes a Control with what the Store remembers.
func New(o Options) (*Control, error) {
	if o.Store == nil || o.Placer == nil {
		return nil, errors.New("control plane: want a store and a placer")
	}
	o.Interval = cmp.Or(o.Interval, defaultInterval)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Control{
		o: o, log: o.Logger, metrics: newMetrics(o.Registerer),
		kick: make(chan struct{}, 1), changed: make(chan struct{}),
		models: map[string]memory{}, backoff: map[string]backoff{}, suspects: map[string]bool{},
		scaling: map[string]scale.State{}, startTime: map[string]float64{},
	}
	c.hosts, _ = o.Placer.(adapters.Hosts)
	c.configurer, _ = o.Placer.(adapters.Configurer)
	c.engines = newEngineCalls(c)
	if _, err := ID(o.Store); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	start := cmp.Or(o.RouterStart, defaultRouterStart)
	if c.want.fleet == nil { // no control plane was there before this one
		start = min(start, defaultRouterStart)
	}
	c.routers = &routers{found: o.Now().Add(start)}
	c.version = o.Now().UnixMilli() // beyond those of the process before
	c.view, c.settings = c.makeView(o.Now()), c.makeSettings()
	return c, nil
}

func newID() string { return strings.ToLower(rand.Text()[:10]) }

// Run looks after the fleet until ctx ends, and returns its error. Call it once.
func (c *Control) Run(ctx context.Context) error {
	defer c.flush()
	defer c.engines.wait()
	watcher, _ := c.o.Placer.(adapters.Watcher)
	tick := time.NewTicker(c.o.Interval)
	defer tick.Stop()
	var changed <-chan struct{} // a nil channel never fires
	for ctx.Err() == nil {
		if watcher != nil {
			select {
			case <-changed: // also when something else has ended the wait
				c.look()
			default:
			}
			changed = watcher.Changed()
		}
		start := time.Now()
		again := c.reconcile(ctx)
		if !pause(ctx, max(10*time.Millisecond, time.Since(start))) { // a burst of changes is one
			break
		}
		if again {
			continue
		}
		select {
		case <-ctx.Done():
		case <-c.kick:
		case <-changed:
		case <-tick.C:
		}
	}
	return ctx.Err()
}

// flush writes the events that the Store has not seen.
func (c *Control) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.commit(draft{}); err != nil {
		c.log.Warn("can't write the last events", "error", err)
	}
}

// pause waits, and tells whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// wakeUp has Run go round soon.
func (c *Control) wakeUp() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// look has the next round ask the platform.
func (c *Control) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observed.at = time.Time{}
}

// note adds an event. c.mu is held.
func (c *Control) note(e Event) {
	if e.At.IsZero() {
		e.At = c.o.Now()
	}
	c.events.add(e)
	c.noted(&e)
}

// noted tells of an event that is among the others now. c.mu is held.
func (c *Control) noted(e *Event) {
	c.viewDirty = true
	c.log.Info("event", "object", e.Object, "reason", e.Reason, "message", e.Message, "warning", e.Warning)
}

// Tell notes something that has happened outside of the control plane: its Object, Reason, Message and Warning.
func (c *Control) Tell(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(e)
	c.wakeUp()
}

func (c *Control) notef(object, reason string, warning bool, format string, args ...any) {
	c.note(Event{Object: object, Reason: reason, Warning: warning, Message: fmt.Sprintf(format, args...)})
}

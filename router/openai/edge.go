// Package openai is the router's HTTP edge: the paths of OpenAI, Anthropic and vLLM, what
// is read of a request, and the answers that the router gives itself.
package openai

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gin-gonic/gin"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/flow"
	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// Fleet is what the edge asks about the endpoints; router/health's Keeper is one.
type Fleet interface {
	// Snapshot is the fleet now; never nil and never blocking.
	Snapshot() *pick.Snapshot
	// Report tells how an attempt at an endpoint ended; never blocking.
	Report(e *pick.Endpoint, o proxy.Outcome)
	// Overdue tells that an endpoint has answered nobody for the time of a first byte.
	Overdue(e *pick.Endpoint)
	// Ready tells whether some model can be served.
	Ready() bool
	// Scraped is what an endpoint's own /metrics said last, false when that is not known.
	Scraped(id string) (engine.Metrics, bool)
}

// Doer carries an exchange to engines; proxy.Proxy is one.
type Doer interface {
	Do(x *proxy.Exchange) proxy.Result
}

// Options are what an Edge is made of. All fields but Flow and Logger are needed.
type Options struct {
	Fleet   Fleet
	Proxy   Doer
	Policy  pick.Policy
	Router  mobula.Router
	Metrics *metrics.Set
	// Flow holds requests that wait for engines; its Snapshot is the Fleet's. Default: one without metrics.
	Flow     *flow.Holder
	Gatherer prometheus.Gatherer
	Logger   *slog.Logger
	Version  string
}

// Edge answers clients.
type Edge struct {
	fleet    Fleet
	proxy    Doer
	metrics  *metrics.Set
	flow     *flow.Holder
	logger   *slog.Logger
	debug    bool // the logger takes debug lines
	version  string
	start    time.Time
	settings atomic.Pointer[settings]
	hot      map[string]*route // POST paths
	gin      *gin.Engine
	inFlight atomic.Int64
	draining atomic.Bool
	calls    sync.Pool
	owners   *lru.Cache[string, string] // Responses id → endpoint ID
	models   atomic.Pointer[modelList]
}

// maxOwners bounds the Responses ids whose engine is remembered.
const maxOwners = 1 << 16

// settings are what a reload changes.
type settings struct {
	router        mobula.Router
	policy        pick.Policy
	observer      pick.Observer // nil when the policy does not learn
	gauge         pick.Gauge    // nil when the policy estimates no waits
	needs         pick.Needs
	sessionHeader string // lower case, empty when the policy has no use for it
	sessionField  string
	depth         int
}

// New makes an edge.
func New(o Options) *Edge {
	owners, err := lru.New[string, string](maxOwners)
	if err != nil {
		panic(err) // only for a size below 1
	}
	e := &Edge{
		fleet: o.Fleet, proxy: o.Proxy, metrics: o.Metrics, flow: o.Flow, logger: o.Logger, version: o.Version,
		start: time.Now(), hot: map[string]*route{}, owners: owners,
	}
	if e.flow == nil {
		e.flow = flow.New(flow.Options{Snapshot: o.Fleet.Snapshot})
	}
	if e.logger == nil {
		e.logger = slog.New(slog.DiscardHandler)
	}
	e.debug = e.logger.Enabled(context.Background(), slog.LevelDebug)
	for _, r := range routes() {
		if r.engine == "" {
			r.engine = r.path
		}
		e.hot[r.path] = &r
	}
	e.calls.New = func() any {
		c := &call{edge: e}
		c.outside, c.fieldsOf = c.Outside, c.answerFields
		return c
	}
	e.Update(o.Router, o.Policy)
	o.Metrics.Loads(e.loads)
	e.gin = e.handler(o.Gatherer)
	return e
}

// Update takes new settings; requests under way keep the old ones.
func (e *Edge) Update(r mobula.Router, p pick.Policy) {
	s := &settings{router: r, policy: p, needs: p.Needs(), depth: r.Retries.Attempts + 1}
	s.observer, _ = p.(pick.Observer)
	s.gauge, _ = p.(pick.Gauge)
	if s.needs.Session {
		s.sessionHeader = strings.ToLower(r.Policy.SessionHeader)
		s.sessionField = r.Policy.SessionField
	}
	e.settings.Store(s)
}

// Handler serves every path, over net/http.
func (e *Edge) Handler() http.Handler { return e.gin }

// Keep forgets what it kept of endpoints that are not in s, and lets go requests that waited for
// what is. It is to be called with every new snapshot.
func (e *Edge) Keep(s *pick.Snapshot) {
	if o := e.settings.Load().observer; o != nil {
		o.Keep(s)
	}
	present := make(map[string]bool, len(s.Endpoints))
	for _, ep := range s.Endpoints {
		present[ep.ID] = true
	}
	e.metrics.Keep(func(id string) bool { return present[id] })
	e.flow.Changed()
}

// Timeouts are those of the settings in force.
func (e *Edge) Timeouts() mobula.Timeouts { return e.settings.Load().router.Timeouts }

// Drain makes /ready fail, so that load balancers look away before the listener closes. Requests that
// wait for an engine are refused shortly before the time that the settings give them is over.
func (e *Edge) Drain() {
	e.draining.Store(true)
	t := e.Timeouts()
	e.flow.Drain(time.Now().Add(time.Duration(t.Lameduck) + time.Duration(t.Drain)*9/10))
}

// InFlight is the number of proxied requests under way, those that wait for an engine included.
func (e *Edge) InFlight() int64 { return e.inFlight.Load() }

// Accepts tells whether ServeFast serves a request.
func (e *Edge) Accepts(method, path []byte) bool {
	return string(method) == http.MethodPost && e.hot[string(path)] != nil
}

func (e *Edge) now() time.Duration { return time.Since(e.start) }

// Queue gives the prompt tokens that wait for prefill at an endpoint, and how many it computes a second,
// 0 when the policy does not know.
func (e *Edge) Queue(ep *pick.Endpoint) (waiting int, rate float64) {
	if g := e.settings.Load().gauge; g != nil && ep.Provider == nil {
		waiting, rate, _ = g.Queue(ep.ID, e.now())
		return waiting, rate
	}
	// As many of the tokens in flight as requests have no first byte.
	tokens, requests := ep.Live.Tokens.Load(), ep.Live.InFlight.Load()
	if requests > 0 {
		waiting = int(tokens * min(ep.Live.Waiting.Load(), requests) / requests)
	}
	return waiting, 0
}

// Held are the lines of requests that wait for engines.
func (e *Edge) Held() []metrics.Held {
	var all []metrics.Held
	for _, l := range e.flow.Lines() {
		all = append(all, metrics.Held{Model: l.Model, Base: l.Base, Requests: l.Held, Tokens: l.Tokens, Oldest: l.Oldest})
	}
	return all
}

// loads gives the live counts of all endpoints for /metrics.
func (e *Edge) loads() []metrics.Load {
	s := e.fleet.Snapshot()
	out := make([]metrics.Load, 0, len(s.Endpoints))
	for _, p := range s.Endpoints {
		l := metrics.Load{ID: p.ID, Serving: p.Serving && !p.Draining, InFlight: p.Live.InFlight.Load(), Waiting: p.Live.Waiting.Load()}
		if m, ok := e.fleet.Scraped(p.ID); ok {
			l.Queued = m.Waiting
		}
		out = append(out, l)
	}
	return out
}

var _ metrics.Traffic = (*Edge)(nil)

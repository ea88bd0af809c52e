package health

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/pick"
)

// member is one endpoint in the keeper's care.
type member struct {
	keeper *Keeper
	url    string // of spec; another one is another member
	live   *pick.Live
	cancel context.CancelFunc // ends watch
	wake   chan struct{}      // holds one: something changed that watch should look at

	// What a request that ended well looks at, and no more.
	calm      atomic.Bool // machine.calm
	succeeded atomic.Bool // a request succeeded since the last health probe began

	mu        sync.Mutex
	spec      mobula.Endpoint
	machine   machine
	since     time.Time // of machine.state
	healthErr error     // of the last probe
	modelsErr error     // of the last reading
	cards     []mobula.Card
	learned   bool // cards are the engine's own
	relearn   bool // read them again now
	missing   bool // read them again soon: a request has missed one of them
	heard     bool // the first answers are in, or are known not to come
	scraped   engine.Metrics
	scrapedAt time.Time
	view      *pick.Endpoint // what snapshots show; nil when it is to be made anew
	notes     []note         // for watch to log
	ended     bool           // discovery has it no more
}

// note is a change of state.
type note struct {
	from, to state
	reason   string
	err      error
}

// maxNotes bounds what waits to be logged.
const maxNotes = 16

// take runs the machine. err is what the probe met with, if one did.
func (m *member) take(in input, err error) {
	ejectAfter := m.keeper.settings.Load().health.EjectAfter
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return
	}
	before := m.machine
	m.machine = before.next(in, ejectAfter)
	m.calm.Store(m.machine.calm())
	m.live.Hung.Store(m.machine.state == stateHung)
	m.live.Silent.Store(m.machine.silent)
	m.live.Ejected.Store(m.machine.state != stateUp)
	changed := m.machine.state != before.state
	doubted := m.machine.doubted && !before.doubted
	if changed {
		m.since = time.Now()
		m.view = nil
		m.relearn = m.relearn || m.machine.state == stateUp && before.state != stateNew
		if m.machine.epoch != before.epoch {
			m.keeper.metrics.ejections.WithLabelValues(m.spec.ID, m.machine.reason).Inc()
		}
		if len(m.notes) < maxNotes {
			m.notes = append(m.notes, note{before.state, m.machine.state, m.machine.reason, err})
		}
	}
	m.mu.Unlock()
	if changed {
		m.keeper.touch()
	}
	if changed || doubted {
		m.poke()
	}
}

// poke has watch look up.
func (m *member) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// change takes over what discovery says now. It reports false when e is another server,
// of which nothing is known.
func (m *member) change(e mobula.Endpoint) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.URL != m.spec.URL || e.TLSSkipVerify != m.spec.TLSSkipVerify || (e.Provider == nil) != (m.spec.Provider == nil) {
		return false
	}
	if e.Provider != nil {
		if e.APIKey != m.spec.APIKey || e.Provider.Kind != m.spec.Provider.Kind || e.Provider.BasePath != m.spec.Provider.BasePath {
			return false // what was wrong may be mended
		}
		m.cards = configured(e)
	}
	m.live.Draining.Store(e.Draining)
	if e.APIKey != m.spec.APIKey || !slices.Equal(e.Models, m.spec.Models) {
		m.relearn = true
		m.poke()
	}
	m.spec, m.view = e, nil
	return true
}

// endpoint is the member as snapshots show it.
func (m *member) endpoint() *pick.Endpoint {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.view == nil {
		m.view = pick.NewEndpoint(m.spec, m.live)
		m.view.Cards = m.cards
		m.view.Serving = m.machine.state == stateUp
		m.view.CacheTokens = m.scraped.CacheTokens
	}
	return m.view
}

// end stops watch, and take from counting for an endpoint that is gone.
func (m *member) end() {
	m.cancel()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
}

// task is one of the things that watch does.
type task int

const (
	taskHealth task = iota
	taskInfer
	taskModels
	taskMetrics
	tasks
)

// result is what became of a task.
type result struct {
	task    task
	err     error
	epoch   int  // of the machine when the task began
	before  bool // a request succeeded between the last health probe and this one
	cards   []mobula.Card
	metrics engine.Metrics
}

// schedule is when what is done next; watch's own.
type schedule struct {
	busy [tasks]bool
	last [tasks]time.Time // end of the last one, zero for never
	part [tasks]float64   // of the interval that is waited, drawn anew each time
}

// watch does each task when it is due, at most one of a kind at once, until ctx ends.
func (m *member) watch(ctx context.Context) {
	if m.isProvider() {
		m.rest(ctx)
		return
	}
	var (
		s       schedule
		running sync.WaitGroup
		results = make(chan result, tasks) // never blocks: one of a kind at once
		timer   = time.NewTimer(0)
	)
	defer running.Wait()
	defer timer.Stop()
	for {
		m.log(ctx)
		now := time.Now()
		wait := time.Hour
		for t := range tasks {
			if s.busy[t] {
				continue
			}
			due, wanted := m.due(t, &s)
			switch {
			case !wanted:
			case due.After(now):
				wait = min(wait, due.Sub(now))
			default:
				s.busy[t] = true
				begin := m.begin(t)
				running.Go(func() { results <- begin(ctx) })
			}
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.wake:
		case r := <-results:
			s.busy[r.task], s.last[r.task] = false, time.Now()
			// Never later than configured, and never in step with the others.
			s.part[r.task] = 1 - rand.Float64()/4
			if ctx.Err() == nil {
				m.finish(ctx, r, &s)
			}
		}
	}
}

// Pace and patience that the fleet file does not say.
const (
	learnEvery   = time.Second            // while models could not be read, or a LoRA is sought
	missingAfter = 100 * time.Millisecond // between two readings for requests that miss a model
	slowTimeout  = 5 * time.Second        // at least, for all but /health
)

// due tells when t is to be done next, and whether at all in this state.
func (m *member) due(t task, s *schedule) (at time.Time, wanted bool) {
	h := m.keeper.settings.Load().health
	m.mu.Lock()
	defer m.mu.Unlock()
	var every time.Duration
	switch up := m.machine.state == stateUp; t {
	case taskHealth:
		every, wanted = m.machine.healthEvery(time.Duration(h.Interval)), true
	case taskInfer:
		if m.machine.doubted {
			return s.last[t].Add(hungFirst), true
		}
		if m.machine.state != stateHung {
			return at, false
		}
		at = m.since // since the ejection, or since the last try after it
		if s.last[t].After(at) {
			at = s.last[t]
		}
		return at.Add(m.machine.inferAfter()), true
	case taskModels:
		if m.relearn && up {
			return at, true
		}
		if m.missing && up {
			return s.last[t].Add(missingAfter), true
		}
		every, wanted = time.Duration(h.ModelsInterval), up || m.machine.state == stateNew
		if (*m.keeper.sought.Load())[m.baseModel()] {
			every = min(every, learnEvery)
		}
		if !m.learned && !engine.Unauthorized(m.modelsErr) {
			every = min(every, learnEvery)
			if !up {
				every = min(every, newEvery)
			}
		}
	case taskMetrics:
		every, wanted = time.Duration(h.MetricsInterval), up
	}
	if s.last[t].IsZero() {
		return at, wanted
	}
	return s.last[t].Add(time.Duration(float64(every) * s.part[t])), wanted
}

// begin prepares t; what it returns does it, on any goroutine.
func (m *member) begin(t task) func(context.Context) result {
	client := m.keeper.client
	timeout := time.Duration(m.keeper.settings.Load().health.Timeout)
	if t != taskHealth {
		timeout = max(timeout, slowTimeout)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, model := m.spec, m.baseModel()
	r := result{task: t, epoch: m.machine.epoch}
	switch t {
	case taskHealth:
		r.before = m.succeeded.Swap(false)
	case taskModels:
		m.relearn, m.missing = false, false
	}
	return func(ctx context.Context) result {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		switch t {
		case taskHealth:
			r.err = client.Health(ctx, e)
		case taskInfer:
			r.err = client.Complete(ctx, e, model)
		case taskModels:
			r.cards, r.err = client.Models(ctx, e)
		case taskMetrics:
			r.metrics, r.err = client.Metrics(ctx, e)
		}
		return r
	}
}

// baseModel is what an inference probe asks for: not a LoRA if that can be helped.
func (m *member) baseModel() string {
	for _, c := range m.cards {
		if c.Parent == "" {
			return c.ID
		}
	}
	if len(m.cards) > 0 {
		return m.cards[0].ID
	}
	return ""
}

// finish takes in what a task found.
func (m *member) finish(ctx context.Context, r result, s *schedule) {
	switch r.task {
	case taskHealth:
		m.finishHealth(ctx, r, s)
	case taskInfer:
		event := inferGood
		switch {
		case r.err == nil:
		case engine.Refused(r.err):
			event = inferRefused
		case errors.Is(r.err, context.DeadlineExceeded):
			event = inferSlow
		default:
			event = inferBad
		}
		m.take(input{event: event}, r.err)
	case taskModels:
		m.finishModels(ctx, r)
	case taskMetrics:
		m.finishMetrics(r)
	}
}

func (m *member) finishHealth(ctx context.Context, r result, s *schedule) {
	m.mu.Lock()
	first := m.healthErr == nil && m.machine.state == stateNew
	m.healthErr = r.err
	stale := m.machine.epoch != r.epoch
	learned := m.learned
	fresh := m.machine.state == stateNew && !learned
	m.mu.Unlock()

	during := m.succeeded.Swap(false)
	in := input{event: healthGood, recent: during || r.before}
	switch {
	case r.err == nil && stale:
		s.last[taskHealth] = time.Time{} // it was alive before it was ejected; ask again now
		return
	case r.err == nil:
		if fresh && !s.busy[taskModels] {
			s.last[taskModels] = time.Time{} // the last reading came too early
		}
	case engine.Refused(r.err):
		in.event = healthRefused
	case engine.Status(r.err) != 0:
		in.event = healthSick
	default:
		// A probe that waits in vain takes long: what succeeded before it says nothing for its time.
		in.event, in.recent = healthSilent, during
	}
	if r.err != nil && first {
		m.keeper.log.InfoContext(ctx, "endpoint does not answer yet", "endpoint", m.id(), "error", r.err)
	}
	m.take(in, r.err)
	if r.err != nil || learned {
		m.hear()
	}
}

// hear notes that the first answers are in.
func (m *member) hear() {
	m.mu.Lock()
	first := !m.heard
	m.heard = true
	m.mu.Unlock()
	if first {
		m.keeper.touch()
	}
}

func (m *member) isHeard() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard
}

func (m *member) finishModels(ctx context.Context, r result) {
	m.mu.Lock()
	before, id := m.modelsErr, m.spec.ID
	m.modelsErr = r.err
	cards := r.cards
	if r.err != nil {
		cards = m.cards // keep what was learnt
		if !m.learned {
			cards = promised(m.spec, r.err)
		}
	} else {
		m.learned = true
	}
	changed := !sameCards(cards, m.cards)
	if changed {
		m.cards, m.view = cards, nil
	}
	serving := m.machine.state == stateUp
	m.mu.Unlock()
	if serving {
		m.hear()
	}

	if engine.Unauthorized(r.err) && !engine.Unauthorized(before) {
		m.keeper.log.WarnContext(ctx, "engine wants an API key for its model list: set apiKeyFile or apiKeyEnv, or name its models", "endpoint", id, "error", r.err)
	}
	if changed {
		m.keeper.log.InfoContext(ctx, "models changed", "endpoint", id, "models", names(cards))
		m.keeper.touch()
	}
}

// promised are the models that the configuration names, for an engine that has no list or
// does not show it.
func promised(e mobula.Endpoint, err error) []mobula.Card {
	if s := engine.Status(err); s < 400 || s >= 500 {
		return nil
	}
	return configured(e)
}

// configured are the models that an endpoint is said to serve.
func configured(e mobula.Endpoint) []mobula.Card {
	var cards []mobula.Card
	for _, name := range e.Models {
		cards = append(cards, mobula.Card{ID: name})
	}
	return cards
}

// sameCards leaves out Raw: vLLM makes up times and permission ids for each answer.
func sameCards(a, b []mobula.Card) bool {
	return slices.EqualFunc(a, b, func(a, b mobula.Card) bool {
		return a.ID == b.ID && a.Parent == b.Parent && a.MaxModelLen == b.MaxModelLen
	})
}

// names are the ids of cards, the first few.
func names(cards []mobula.Card) []string {
	ids := []string{}
	for _, c := range cards[:min(len(cards), 20)] {
		ids = append(ids, c.ID)
	}
	return ids
}

func (m *member) finishMetrics(r result) {
	if r.err != nil {
		return // Scraped says how old the last ones are
	}
	m.mu.Lock()
	changed := m.scraped.CacheTokens != r.metrics.CacheTokens
	m.scraped, m.scrapedAt = r.metrics, time.Now()
	if changed {
		m.view = nil
	}
	m.mu.Unlock()
	if changed {
		m.keeper.touch()
	}
}

func (m *member) id() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spec.ID
}

// log writes the notes, off the path of requests.
func (m *member) log(ctx context.Context) {
	m.mu.Lock()
	notes, id := m.notes, m.spec.ID
	m.notes = nil
	m.mu.Unlock()
	for _, n := range notes {
		attrs := []slog.Attr{slog.String("endpoint", id), slog.String("from", n.from.String()), slog.String("to", n.to.String())}
		if n.err != nil {
			attrs = append(attrs, slog.Any("error", n.err))
		}
		switch {
		case n.to == stateUp && n.from == stateNew:
			m.keeper.log.LogAttrs(ctx, slog.LevelInfo, "endpoint up", attrs...)
		case n.to == stateUp:
			m.keeper.log.LogAttrs(ctx, slog.LevelInfo, "endpoint readmitted", append(attrs, slog.String("reason", n.reason))...)
		case n.from == stateUp:
			m.keeper.log.LogAttrs(ctx, slog.LevelInfo, "endpoint ejected", append(attrs, slog.String("reason", n.reason))...)
		default:
			m.keeper.log.LogAttrs(ctx, slog.LevelDebug, "endpoint state", attrs...)
		}
	}
}

package metrics

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/health"
	"github.com/mobula-serve/mobula/router/pick"
)

// Held is what waits for engines of one model. A model that is a LoRA counts under its Base.
type Held struct {
	Model, Base      string
	Requests, Tokens int
	Oldest           time.Time
}

// Keeper is what a Reporter asks about the endpoints; health.Keeper is one.
type Keeper interface {
	Snapshot() *pick.Snapshot
	Statuses() []health.Status
	Scraped(id string) (engine.Metrics, bool)
	// Departed are endpoints that are gone but for their running requests.
	Departed() map[string]*pick.Live
}

// Traffic is what a Reporter asks about the requests; openai.Edge is one.
type Traffic interface {
	// Queue gives the prompt tokens that wait for prefill at an endpoint and the tokens that it computes
	// a second, 0 when that is not known.
	Queue(e *pick.Endpoint) (waiting int, rate float64)
	// Held are the lines of requests that wait for engines.
	Held() []Held
}

// Reporter makes reports for the control plane. All fields are needed.
type Reporter struct {
	// Router is the router's name, unique among the fleet's.
	Router  string
	Set     *Set
	Keeper  Keeper
	Traffic Traffic
}

// Report tells how the router's engines fare now and how its models fared over the last ten seconds.
// Endpoints are sorted by ID and models by name; they are those of the snapshot, LoRAs under the model
// that they are of, and endpoints that are gone for as long as requests to them run.
func (r *Reporter) Report(now time.Time) mobula.Report {
	s := r.Keeper.Snapshot()
	return mobula.Report{Router: r.Router, At: now, Endpoints: r.endpoints(s), Models: r.models(s, now)}
}

func (r *Reporter) endpoints(s *pick.Snapshot) []mobula.EndpointReport {
	statuses := map[string]health.Status{}
	for _, status := range r.Keeper.Statuses() {
		statuses[status.ID] = status
	}
	all := make([]mobula.EndpointReport, 0, len(s.Endpoints))
	for _, e := range s.Endpoints {
		status := statuses[e.ID]
		waiting, rate := r.Traffic.Queue(e)
		report := mobula.EndpointReport{
			ID: e.ID, State: status.State, Reason: status.Reason, Draining: e.Draining, InFlight: int(e.Live.InFlight.Load()),
			WaitingTokens: waiting, PrefillRate: rate, Running: -1, Waiting: -1, KVUsage: -1,
		}
		if m, known := r.Keeper.Scraped(e.ID); known {
			report.Running, report.Waiting, report.KVUsage = int(m.Running), int(m.Waiting), m.KVUsage
		}
		all = append(all, report)
	}
	for id, live := range r.Keeper.Departed() {
		if n := live.InFlight.Load(); n > 0 {
			all = append(all, mobula.EndpointReport{
				ID: id, State: "down", Reason: "departed", Draining: true, InFlight: int(n), Running: -1, Waiting: -1, KVUsage: -1,
			})
		}
	}
	slices.SortFunc(all, func(a, b mobula.EndpointReport) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func (r *Reporter) models(s *pick.Snapshot, now time.Time) []mobula.ModelReport {
	sums, reports := map[string]*totals{}, map[string]*mobula.ModelReport{}
	base := func(name string) string {
		if g := s.Lookup(name); g != nil {
			return g.Base
		}
		return name
	}
	for _, g := range s.Models() {
		if reports[g.Base] == nil {
			reports[g.Base], sums[g.Base] = &mobula.ModelReport{Model: g.Base}, &totals{}
		}
	}
	r.Set.mu.Lock()
	for name, lately := range r.Set.recent {
		if t := sums[base(name)]; t != nil {
			lately.sum(now, t)
		}
	}
	r.Set.mu.Unlock()
	for _, h := range r.Traffic.Held() {
		m := reports[h.Base]
		if m == nil {
			continue
		}
		m.Held += h.Requests
		m.HeldTokens += h.Tokens
		m.OldestHeld = max(m.OldestHeld, now.Sub(h.Oldest).Seconds())
	}
	all := make([]mobula.ModelReport, 0, len(reports))
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		m, t := reports[name], sums[name]
		m.Requests, m.Answered, m.Failed = t.requests, t.answered, t.failed
		m.PromptTokens = t.prompt
		if t.last > 0 {
			m.LastRequest = time.Unix(0, t.last)
		}
		m.TTFT50, m.TTFT90 = t.ttft.quantile(.5), t.ttft.quantile(.9)
		m.ITL50, m.ITL90 = t.itl.quantile(.5), t.itl.quantile(.9)
		all = append(all, *m)
	}
	return all
}

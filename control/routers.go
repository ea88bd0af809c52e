package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

const (
	// A router that has not reported for routerSilent is away: what it holds is unknown and not waited for.
	routerSilent = 10 * time.Second
	// defaultRouterStart is enough where routers find a control plane that has just started at once: they
	// report every second, four in a very large fleet.
	defaultRouterStart = 5 * time.Second
	// One that has not for routerForgotten is forgotten.
	routerForgotten = time.Minute
	// maxRouters bounds how many are remembered.
	maxRouters = 256
	// unlistedFor is how long a router must go on not naming a replica until it is thought to know nothing of it.
	unlistedFor = 2 * time.Second
)

// routers is what all routers report, at one moment. It is not changed once it is made.
type routers struct {
	found   time.Time // by when all of them have found this control plane, which has heard nobody before its start
	reports []routerReport
	// loads are the endpoints' reports over the routers that are not silent.
	loads map[string]*load
	// models are sums over the same.
	models map[string]*mobula.ModelReport
}

type routerReport struct {
	report mobula.Report
	heard  time.Time
}

// load is one endpoint over all routers.
type load struct {
	mobula.EndpointReport
	listed  int // routers that know it
	down    int // those that can't reach it
	drained int // those that know its mark and have nothing left there
	// since is when no router could reach it any more, zero while one can.
	since time.Time
}

// with gives the routers after one more report.
func (rs *routers) with(r mobula.Report, now time.Time) *routers {
	next := &routers{found: rs.found, reports: make([]routerReport, 0, len(rs.reports)+1)}
	for _, o := range rs.reports {
		if o.report.Router != r.Router && now.Sub(o.heard) < routerForgotten {
			next.reports = append(next.reports, o)
		}
	}
	if len(next.reports) >= maxRouters { // the one that is silent longest makes room
		oldest := 0
		for i := range next.reports {
			if next.reports[i].heard.Before(next.reports[oldest].heard) {
				oldest = i
			}
		}
		next.reports = slices.Delete(next.reports, oldest, oldest+1)
	}
	next.reports = append(next.reports, routerReport{r, now})
	slices.SortFunc(next.reports, func(a, b routerReport) int { return cmp.Compare(a.report.Router, b.report.Router) })
	next.sum(rs.loads, now)
	return next
}

// sum makes loads of the reports.
func (rs *routers) sum(before map[string]*load, now time.Time) {
	rs.loads = make(map[string]*load, len(before))
	rs.models = map[string]*mobula.ModelReport{}
	for i := range rs.reports {
		if now.Sub(rs.reports[i].heard) >= routerSilent {
			continue
		}
		for _, e := range rs.reports[i].report.Endpoints {
			l := rs.loads[e.ID]
			if l == nil {
				l = &load{EndpointReport: mobula.EndpointReport{ID: e.ID, Running: -1, Waiting: -1, KVUsage: -1, Draining: true}}
				rs.loads[e.ID] = l
			}
			l.add(&e)
		}
		for _, m := range rs.reports[i].report.Models {
			if rs.models[m.Model] == nil {
				rs.models[m.Model] = &mobula.ModelReport{Model: m.Model}
			}
			addModel(rs.models[m.Model], &m)
		}
	}
	for id, l := range rs.loads {
		if l.down < l.listed {
			continue
		}
		l.since = now
		if b := before[id]; b != nil && !b.since.IsZero() {
			l.since = b.since
		}
	}
}

// add adds what one router says. The engine's own figures are everybody's, so the highest one counts.
func (l *load) add(e *mobula.EndpointReport) {
	l.listed++
	if e.State == "down" || e.State == "hung" {
		l.down++
		l.Reason = cmp.Or(l.Reason, e.Reason)
	}
	if e.Draining && e.InFlight == 0 {
		l.drained++
	}
	if l.State == "" || e.State == "up" {
		l.State = e.State
	}
	l.Draining = l.Draining && e.Draining
	l.InFlight += e.InFlight
	l.WaitingTokens += e.WaitingTokens
	l.Running, l.Waiting = max(l.Running, e.Running), max(l.Waiting, e.Waiting)
	l.KVUsage, l.PrefillRate = max(l.KVUsage, e.KVUsage), max(l.PrefillRate, e.PrefillRate)
}

// unreachable gives for how long no router has been able to reach a replica; 0 when one can or nobody knows.
func (rs *routers) unreachable(id string, now time.Time) time.Duration {
	l := rs.loads[id]
	if l == nil || l.since.IsZero() || !rs.any(now) {
		return 0
	}
	return now.Sub(l.since)
}

// any tells whether a router is there.
func (rs *routers) any(now time.Time) bool {
	return slices.ContainsFunc(rs.reports, func(r routerReport) bool { return now.Sub(r.heard) < routerSilent })
}

// inFlight gives the requests at a replica.
func (rs *routers) inFlight(id string, now time.Time) int {
	if l := rs.loads[id]; l != nil && rs.any(now) {
		return l.InFlight
	}
	return 0
}

// idle tells whether a replica that is marked since then has nothing left to do: every router knows the mark and has no
// request there, or has said after it that it knows no such replica.
func (rs *routers) idle(id string, since, now time.Time) bool {
	if now.Before(rs.found) { // there may be routers that have not found us yet
		return false
	}
	anyone := false
	for i := range rs.reports {
		r := &rs.reports[i]
		if now.Sub(r.heard) >= routerSilent {
			continue
		}
		anyone = true
		if !r.heard.After(since) {
			return false
		}
		at := slices.IndexFunc(r.report.Endpoints, func(e mobula.EndpointReport) bool { return e.ID == id })
		if at < 0 {
			if r.heard.Sub(since) < unlistedFor {
				return false
			}
			continue
		}
		if e := &r.report.Endpoints[at]; !e.Draining || e.InFlight > 0 {
			return false
		}
	}
	return anyone || now.Sub(since) >= routerPause
}

// model gives what routers say of a model.
func (rs *routers) model(name string, now time.Time) mobula.ModelReport {
	if m := rs.models[name]; m != nil && rs.any(now) {
		return *m
	}
	return mobula.ModelReport{Model: name}
}

func addModel(sum, m *mobula.ModelReport) {
	sum.Held += m.Held
	sum.HeldTokens += m.HeldTokens
	sum.OldestHeld = max(sum.OldestHeld, m.OldestHeld)
	sum.Requests += m.Requests
	sum.PromptTokens += m.PromptTokens
	sum.Answered += m.Answered
	sum.Failed += m.Failed
	if m.LastRequest.After(sum.LastRequest) {
		sum.LastRequest = m.LastRequest
	}
	sum.TTFT50, sum.TTFT90 = max(sum.TTFT50, m.TTFT50), max(sum.TTFT90, m.TTFT90)
	sum.ITL50, sum.ITL90 = max(sum.ITL50, m.ITL50), max(sum.ITL90, m.ITL90)
}

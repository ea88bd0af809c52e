package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

// routerPause is how long a mark has to be out when there is no router that could tell of it.
const routerPause = 2 * time.Second

// wakeUp takes back sleepers while replicas are missing, and lets go those that can't be used any more.
func (p *planner) wakeUp() {
	if p.want == nil {
		p.dropSleepers(0)
		return
	}
	missing := p.wanted - len(p.fresh) - p.waking()
	for _, id := range p.sleepers() {
		m := p.mem.Marks[id]
		r := p.replica(id)
		switch {
		case m.Waking, missing <= 0, m.Revision != p.mem.Target:
		case !m.Asleep: // it only drains so far
			delete(p.mem.Marks, id)
			p.fresh = append(p.fresh, r)
			missing--
		case r.Serving():
			m.Waking = true
			p.mem.Marks[id] = m
			missing--
		}
	}
	p.dropSleepers(max(0, p.mem.Range.Max-p.wanted))
	for _, id := range p.sleepers() {
		m, r := p.mem.Marks[id], p.replica(id)
		switch {
		case m.Asleep && r.Restarts != m.Restarts: // a new process is awake
			m.Asleep = false
			if m.Waking {
				delete(p.mem.Marks, id)
				p.fresh = append(p.fresh, r)
				continue
			}
			p.mem.Marks[id] = m
		case m.Waking && r.Serving():
			p.wake = append(p.wake, r)
		}
		if !m.Asleep && r.Serving() && p.idle(id, &m) {
			p.sleep = append(p.sleep, r)
		}
	}
}

// dropSleepers lets those of other revisions go, and those beyond most.
func (p *planner) dropSleepers(most int) {
	for _, id := range p.sleepers() {
		m := p.mem.Marks[id]
		switch {
		case m.Waking && m.Revision == p.mem.Target:
		case m.Revision == p.mem.Target && p.want.Scaling.Sleep && most > 0:
			most--
		default:
			m.Sleep, m.Waking = false, false
			p.mem.Marks[id] = m
		}
	}
}

// sleepers gives the marks of replicas that sleep or are to, by ID.
func (p *planner) sleepers() (ids []string) {
	for id, m := range p.mem.Marks {
		if m.Sleep && !m.Released {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (p *planner) waking() (n int) {
	for _, m := range p.mem.Marks {
		if m.Waking && !m.Released {
			n++
		}
	}
	return n
}

// resize brings the number of fresh replicas to what is wanted and has stale ones make way, within the bounds.
func (p *planner) resize() {
	frozen := p.mem.Phase == RolloutFailed && len(p.stale) > 0 && p.want != nil
	waking, stay := p.waking(), 0
	for _, s := range p.stale {
		if s.Revision == p.mem.Target {
			stay++
		}
	}
	live := p.mem.Revisions[p.mem.Target].Live
	fresh := max(live-stay, len(p.fresh)+waking)
	if capacity := p.capacity() - len(p.stale); !frozen {
		fresh = max(fresh, capacity)
	}
	fresh = min(fresh, p.wanted)
	p.markSurplus(len(p.fresh) + waking - fresh)
	if !frozen {
		p.markStale(p.wanted - fresh)
	}
	p.count(fresh, frozen)
}

// capacity gives how many replicas there may be besides those that are marked.
func (p *planner) capacity() int {
	if p.want == nil {
		return 0
	}
	n := p.wanted + p.want.Rollout.Surge
	for _, m := range p.mem.Marks {
		if m.counts() && (!m.Sleep || m.Revision != p.mem.Target) {
			n--
		}
	}
	return n
}

// markSurplus holds n fresh replicas back that nobody needs.
func (p *planner) markSurplus(n int) {
	if n <= 0 {
		return
	}
	slices.SortFunc(p.fresh, p.cheaper)
	n = min(n, len(p.fresh))
	for _, r := range p.fresh[:n] {
		asleep := p.want != nil && p.want.Scaling.Sleep && r.Serving() && p.mem.Range.Max > p.wanted+len(p.sleepers())
		p.mark(r, "it is not needed", asleep)
	}
	p.fresh = p.fresh[n:]
}

// cheaper orders replicas by how little is lost with them: failed, not serving, perhaps serving, few requests, young.
func (p *planner) cheaper(a, b *mobula.Replica) int {
	rank := func(r *mobula.Replica) int {
		switch {
		case r.State == mobula.StateFailed:
			return 0
		case r.State == mobula.StatePending:
			return 1
		case r.State == mobula.StateSuspect:
			return 3
		case !p.serving(r):
			return 2
		}
		return 4
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)),
		cmp.Compare(p.routers.inFlight(a.ID, p.now), p.routers.inFlight(b.ID, p.now)),
		b.Since.Compare(a.Since), cmp.Compare(a.ID, b.ID))
}

// markStale has stale replicas make way: those that don't serve as soon as their room is needed or fresh ones serve
// in their place, the others while enough serve without them. Suspect ones may serve for all we know, as every one does
// for a platform that has just started. missing fresh replicas have no room yet.
func (p *planner) markStale(missing int) {
	ready := p.readyFresh()
	serving := ready
	for _, s := range p.stale {
		if p.serving(s.Replica) {
			serving++
		}
	}
	done := ready + len(p.stale) - p.wanted // so many are replaced already
	slices.SortFunc(p.stale, func(a, b staleReplica) int { return p.cheaper(a.Replica, b.Replica) })
	unavailable := 0
	if p.want != nil {
		unavailable = p.want.Rollout.Unavailable
	}
	least, leastOld := p.wanted-unavailable, p.wanted-p.unavailable(serving)
	kept := p.stale[:0]
	for _, s := range p.stale {
		bound := least
		if s.old && !s.moving {
			bound = leastOld
		}
		switch {
		case p.serving(s.Replica) && serving > max(0, bound):
			serving--
		case s.State == mobula.StateSuspect && serving >= max(0, bound):
		case s.State != mobula.StateSuspect && !p.serving(s.Replica) && (done > 0 || missing > 0 && (s.old || p.want.Rollout.Surge == 0)):
		default:
			kept = append(kept, s)
			continue
		}
		done--
		missing--
		p.mark(s.Replica, s.why, false)
	}
	p.stale = kept
}

// unavailable gives how many replicas may be missing: one, whatever the model says, when the next one has no room
// as long as the old ones hold theirs.
func (p *planner) unavailable(serving int) int {
	if p.want == nil {
		return 0
	}
	n := p.want.Rollout.Unavailable
	if n > 0 || !slices.ContainsFunc(p.fresh, func(r *mobula.Replica) bool { return r.State == mobula.StatePending && r.NoRoom }) {
		return n
	}
	if !slices.ContainsFunc(p.stale, func(s staleReplica) bool { return s.old && p.serving(s.Replica) }) {
		return n
	}
	switch {
	case serving < p.wanted: // one is missing already
		return n
	case serving > 1:
		p.event("NoRoom", false, "no room for a replica of revision %s beside the old ones: one of them goes first", p.mem.Target)
		return 1
	case p.want.Scaling.Held > 0:
		p.event("NoRoom", true, "no room for a replica of revision %s beside the only old one: that goes first, and routers hold requests until the new one is ready", p.mem.Target)
		return 1
	}
	return n
}

// mark holds a replica back.
func (p *planner) mark(r *mobula.Replica, why string, sleep bool) {
	p.mem.Marks[r.ID] = mark{Revision: r.Revision, Since: p.now, Why: why, Sleep: sleep, Restarts: r.Restarts}
}

// count sets each revision's number of live replicas. Those of other revisions that were asked for and are
// nowhere to be seen are not made any more, unless the roll has failed and they are all there is.
func (p *planner) count(fresh int, frozen bool) {
	observed := map[string]int{}
	for _, s := range p.stale {
		observed[s.Revision]++
	}
	for rev, r := range p.mem.Revisions {
		switch {
		case p.want != nil && rev == p.mem.Target:
			r.Live = fresh + observed[rev]
		case !frozen || observed[rev] > r.Live:
			r.Live = observed[rev]
		}
		p.mem.Revisions[rev] = r
	}
}

// release lets marked replicas go that have nothing left to do.
func (p *planner) release() {
	for id, m := range p.mem.Marks {
		r := p.replica(id)
		if r == nil || m.Released || m.Sleep && (m.Asleep || r.Serving()) || m.Waking {
			continue
		}
		drain := time.Duration(p.mem.Revisions[m.Revision].Model.Rollout.Drain)
		switch {
		case !r.Serving() && r.State != mobula.StateSuspect:
		case p.idle(id, &m):
			p.replicaEvent(id, "Drained", false, "it has no requests left and stops: "+m.Why)
		case p.now.Sub(m.Since) >= drain:
			p.replicaEvent(id, "DrainTimeout", true, "it stops with requests that took longer than "+mobula.Duration(drain).String()+" (rollout.drain): "+m.Why)
		default:
			continue
		}
		m.Released = true
		p.mem.Marks[id] = m
	}
}

// idle tells whether all routers know the mark and have nothing left at the replica.
func (p *planner) idle(id string, m *mark) bool {
	if !slices.Contains(p.asked[m.Revision].Drain, id) {
		return false // the platform has not heard of it
	}
	since := m.Since
	if r := p.replica(id); r != nil && r.Since.After(since) { // routers that had given it up may not have found that it is back
		since = r.Since
	}
	return p.routers.idle(id, since, p.now)
}

func (p *planner) replicaEvent(id, reason string, warning bool, message string) {
	p.events = append(p.events, Event{At: p.now, Warning: warning, Object: "replica/" + id, Reason: reason, Message: message})
}

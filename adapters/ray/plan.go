package ray

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula/raycluster"
)

const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// sight is what of one replica is on the cluster.
type sight struct {
	group  *Group
	actors map[int]*part // by rank, those of our class that are not dead
	taken  *Actor        // somebody else's, which has a name that should be ours
}

// part is the actor of one part, with what it says of itself.
type part struct {
	*Actor
	says *raycluster.Publication // nil for nothing that can be read
}

// published gives what the process says that runs now, nil for nothing.
func (p *part) published() *raycluster.Publication {
	if p == nil || p.State != "ALIVE" || p.says == nil || p.says.PID != p.PID {
		return nil
	}
	return p.says
}

func (s *sight) exists() bool { return s != nil && (s.group != nil || len(s.actors) > 0) }

// whole tells whether all of so many parts have an actor.
func (s *sight) whole(parts int) bool {
	if s == nil {
		return false
	}
	for rank := range parts {
		if s.actors[rank] == nil {
			return false
		}
	}
	return true
}

// look finds the replicas of an owner in a State; before is what was found in the one before.
func look(s *State, owner string, before map[string]*sight) map[string]*sight {
	all := make(map[string]*sight, len(s.Groups))
	of := func(name string) (at, last *sight, rank int) {
		whose, replica, rank, ok := raycluster.ParseName(name)
		if !ok || whose != owner {
			return nil, nil, 0
		}
		if all[replica] == nil {
			all[replica] = &sight{}
		}
		return all[replica], before[replica], rank
	}
	for i := range s.Actors {
		a := &s.Actors[i]
		if a.State == "DEAD" {
			continue
		}
		at, last, rank := of(a.Name)
		switch {
		case at == nil:
		case a.Class != raycluster.ActorClass:
			at.taken = a
		default:
			if at.actors == nil {
				at.actors = map[int]*part{}
			}
			at.actors[rank] = &part{a, last.said(rank, a.Repr)}
		}
	}
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.State == "REMOVED" {
			continue
		}
		if at, _, _ := of(g.Name); at != nil {
			at.group = g
		}
	}
	return all
}

// said reads what an actor says of itself, unless that is what it said before.
func (s *sight) said(rank int, repr string) *raycluster.Publication {
	if s != nil && s.actors[rank] != nil && s.actors[rank].Repr == repr {
		return s.actors[rank].says
	}
	if p, ok := raycluster.ParsePublication(repr); ok {
		return &p
	}
	return nil
}

// try counts the orders for a replica that did not come true, in a row.
type try struct {
	orders int
	failed time.Time // when the last one was seen to have failed; zero while it is under way
	reason string    // of the last failure, empty for none
	told   string    // what the last order's job says of it, if that failed
	death  string    // ID of the dead actor that has explained the last failure
}

// due tells whether another order may be given.
func (t *try) due(now time.Time) bool {
	return t == nil || t.orders == 0 || !t.failed.IsZero() && !now.Before(t.failed.Add(retryAfter(t.orders)))
}

// retryAfter is the time from the n-th failure in a row to the next order.
func retryAfter(n int) time.Duration {
	return min(firstRetry<<min(n-1, 10), lastRetry)
}

// situation is all that a plan follows from.
type situation struct {
	now     time.Time
	records *records
	sights  map[string]*sight
	partial bool // nothing follows from what is not in sights
	// busy are replicas with an order under way; jobs are the IDs of the running jobs of replicas that have one each.
	busy map[string]bool
	jobs map[string][]string
	// parts gives the number of parts of a replica.
	parts func(*replicaRecord) int
	tries map[string]*try
	// astray tells that a replica's group may only be placed where it should not, or not where it should.
	astray func(*replicaRecord, *Group) bool
}

// actions are what is to be done about replicas, each list sorted.
type actions struct {
	start, stop []string
	end         []string // jobs
	gone        []string // nothing of them is left
}

// plan compares what is wanted with what is there.
func plan(s situation) actions {
	var a actions
	for _, id := range slices.Sorted(maps.Keys(s.records.replicas)) {
		rec, at := s.records.replicas[id], s.sights[id]
		switch {
		case s.busy[id]:
		case rec.Leaving:
			s.leave(&a, id, at)
		case at != nil && at.taken != nil: // not ours to touch
		case at != nil && at.group != nil && !placed(at.group) && s.astray(rec, at.group):
			if len(s.jobs[id]) > 0 {
				a.end = append(a.end, s.jobs[id]...)
			} else {
				a.stop = append(a.stop, id)
			}
		case at.whole(s.parts(rec)) || len(s.jobs[id]) > 0:
		case s.partial && rec.Starts > 0:
		case s.tries[id].due(s.now):
			a.start = append(a.start, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.sights)) {
		if s.records.replicas[id] == nil && !s.busy[id] && s.sights[id].exists() && s.tries[id].due(s.now) {
			s.leave(&a, id, s.sights[id])
		}
	}
	slices.Sort(a.stop)
	return a
}

// leave takes a replica off the cluster, by what holds it there.
func (s *situation) leave(a *actions, id string, at *sight) {
	switch {
	case len(s.jobs[id]) > 0:
		a.end = append(a.end, s.jobs[id]...)
	case at.exists():
		if s.tries[id].due(s.now) {
			a.stop = append(a.stop, id)
		}
	case !s.partial:
		a.gone = append(a.gone, id)
	}
}

// placed tells whether all bundles of a group have a node.
func placed(g *Group) bool { return g.State == "CREATED" }

// notes brings tries up to date: a replica that is as wanted has none, one whose order is over without that has failed.
// why tells the reason, and by which dead actor; ok is false while it is not known yet. It tells whether anything was noted.
func (s *situation) notes(ready func(id string) bool, why func(id string) (reason, death string, ok bool)) (noted bool) {
	for id, t := range s.tries {
		rec, at := s.records.replicas[id], s.sights[id]
		switch {
		case s.busy[id]:
		case rec == nil || rec.Leaving:
			if !at.exists() && !s.partial {
				delete(s.tries, id)
			} else if t.failed.IsZero() {
				t.failed = s.now
			}
			noted = true
		case ready(id):
			delete(s.tries, id)
			noted = true
		case len(s.jobs[id]) > 0 || at.whole(s.parts(rec)) || s.partial || !t.failed.IsZero():
		default:
			if reason, death, ok := why(id); ok {
				t.failed, t.reason, t.death = s.now, strings.TrimSpace(reason), death
				noted = true
			}
		}
	}
	return noted
}

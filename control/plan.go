package control

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control/lora"
)

const (
	// startGrace is added to an engine's StartTimeout before its replica has failed in our eyes: the
	// platform is the first to say so, and knows why.
	startGrace = time.Minute
	// suspectAfter is how long routers must not reach a replica before it is Suspect, replaceAfter how long
	// one may be Suspect or Failed before another takes its place.
	suspectAfter = 10 * time.Second
	replaceAfter = 5 * time.Minute
)

// situation is all that a model's plan rests on. plan reads it only.
type situation struct {
	now   time.Time
	fleet string
	name  string        // of the model
	want  *mobula.Model // nil for a model that is not to be placed
	was   memory
	// asked is what the platform holds for the model, by revision; replicas is what there is of it.
	asked    map[string]adapters.Deployment
	replicas []mobula.Replica
	routers  *routers
	// leaving hosts are being emptied.
	leaving map[string]bool
}

// decision is what is to be done for a model: remember mem first, then the rest.
type decision struct {
	name   string
	mem    memory
	apply  []adapters.Deployment
	remove []adapters.Key
	// sleep and wake are replicas whose engines are to be told so, ask those whose LoRAs are to be read.
	sleep, wake, ask []*mobula.Replica
	loras            []lora.Action
	events           []Event
	// forget tells that nothing is left of a model that nobody wants.
	forget bool
}

// planner is a plan in the making.
type planner struct {
	*situation
	decision
	wanted int
	fresh  []*mobula.Replica // unmarked, of the target revision, to stay
	stale  []staleReplica    // unmarked, to be replaced
}

// staleReplica is one that has to make way.
type staleReplica struct {
	*mobula.Replica
	why string
	// old tells that it runs another revision than the target.
	old bool
	// moving tells that it leaves its host, so that its room is of no use to the one that replaces it.
	moving bool
}

// plan decides what to do for one model. It is a function of its argument only, does one step at a time,
// and gives the memory back unchanged when there is nothing to do. Its bounds: replicas that serve are held back only
// while as many as wanted, less Rollout.Unavailable, go on serving, and no more are asked for than wanted and Rollout.Surge.
func plan(s *situation) decision {
	own := *s
	p := &planner{situation: &own, decision: decision{name: s.name, mem: s.was.clone()}}
	p.adopt()
	p.prune()
	p.aim()
	p.sort()
	if p.judge() { // the target is another one now
		p.sort()
	}
	p.wakeUp()
	p.resize()
	p.release()
	p.phase()
	p.render()
	return p.decision
}

// adopt takes over deployments that the platform has and nobody remembers.
func (p *planner) adopt() {
	for rev, d := range p.asked {
		if _, known := p.mem.Revisions[rev]; known {
			continue
		}
		live := d.Replicas
		for _, id := range d.Drain {
			if r := p.replica(id); r != nil && r.State != mobula.StateDraining {
				p.mem.Marks[id] = mark{Revision: rev, Since: p.now, Why: "was draining"}
				live--
			}
		}
		p.mem.Revisions[rev] = revision{Model: d.Model, Live: max(0, live)}
		p.mem.Nonce = max(p.mem.Nonce, p.nonceOf(rev))
	}
}

// nonceOf finds the number of restarts that makes the fleet file's model this revision: else taking a
// model over would roll it.
func (p *planner) nonceOf(rev string) int {
	const most = 100
	if p.want != nil && p.mem.Target == "" {
		for nonce := range most {
			if revisionOf(p.want, nonce) == rev {
				return nonce
			}
		}
	}
	return 0
}

// prune forgets marks of replicas that are gone.
func (p *planner) prune() {
	for id := range p.mem.Marks {
		if p.replica(id) == nil {
			delete(p.mem.Marks, id)
		}
	}
}

// replica finds one by its ID; they are sorted.
func (p *planner) replica(id string) *mobula.Replica {
	i, ok := slices.BinarySearchFunc(p.replicas, id, func(r mobula.Replica, id string) int { return cmp.Compare(r.ID, id) })
	if !ok {
		return nil
	}
	return &p.replicas[i]
}

// aim sets the target revision and the number that is wanted of it.
func (p *planner) aim() {
	if p.want == nil || p.mem.Deleted {
		p.want, p.wanted, p.mem.Target = nil, 0, ""
		return
	}
	p.wanted = p.mem.wanted()
	target := revisionOf(p.want, p.mem.Nonce)
	if _, known := p.mem.Revisions[p.mem.Pin]; known {
		target = p.mem.Pin
	} else {
		p.mem.Pin = ""
		known := p.mem.Revisions[target]
		known.Model = engineModel(p.want)
		p.mem.Revisions[target] = known
	}
	if target != p.mem.Target {
		if p.mem.Target != "" && p.mem.Pin == "" {
			p.event("RolloutStarted", false, "revision %s replaces %s", target, p.mem.Target)
		}
		p.mem.Target = target
		p.mem.Since = p.now
	}
}

// sort tells fresh replicas from stale ones.
func (p *planner) sort() {
	p.fresh, p.stale = nil, nil
	for i := range p.replicas {
		r := &p.replicas[i]
		if _, marked := p.mem.Marks[r.ID]; marked || r.State == mobula.StateDraining {
			continue
		}
		if s := p.makesWay(r); s.why != "" {
			p.stale = append(p.stale, s)
		} else {
			p.fresh = append(p.fresh, r)
		}
	}
}

// makesWay says why a replica has to be replaced, with an empty why when it may stay.
func (p *planner) makesWay(r *mobula.Replica) staleReplica {
	s := staleReplica{Replica: r}
	switch {
	case p.want == nil:
		s.why, s.old = "its model is removed", true
	case r.Revision != p.mem.Target:
		s.why, s.old = "revision "+p.mem.Target+" replaces it", true
	case slices.ContainsFunc(r.Hosts, func(h string) bool { return p.leaving[h] }):
		s.why, s.moving = "its host is emptied", true
	case p.mem.Target != p.mem.Good:
	case r.State == mobula.StateFailed && p.now.Sub(r.Since) >= replaceAfter:
		s.why = "it failed and another takes its place"
	case r.State == mobula.StateReady && p.routers.unreachable(r.ID, p.now) >= replaceAfter:
		s.why = "routers can't reach it and another takes its place"
	}
	return s
}

// serving tells whether a replica takes requests as far as we know.
func (p *planner) serving(r *mobula.Replica) bool {
	return r.Serving() && p.routers.unreachable(r.ID, p.now) < suspectAfter
}

// failing says why the target revision fails, empty while it may still come true.
func (p *planner) failing() string {
	limit := startGrace + time.Duration(p.want.Engine.StartTimeout)
	for _, r := range p.fresh {
		if r.State == mobula.StateFailed {
			return "replica " + r.ID + " failed: " + r.Reason
		}
		away := p.routers.unreachable(r.ID, p.now)
		if p.serving(r) || p.now.Sub(r.Since) <= limit || r.Serving() && away <= limit {
			continue
		}
		why := r.Reason
		if r.Serving() {
			why = "routers can't reach it"
		}
		return fmt.Sprintf("replica %s is not ready after %s: %s", r.ID, mobula.Duration(limit), cmp.Or(why, string(r.State)))
	}
	return ""
}

// judge gives a revision up that fails, and tells whether the target is another one now.
func (p *planner) judge() bool {
	if p.want == nil {
		return false
	}
	if p.mem.Pin != "" || p.mem.Target == p.mem.Good {
		if p.mem.Phase == RolloutFailed {
			p.turn(RolloutProgressing, "")
		}
		return false
	}
	why := p.failing()
	if why == "" {
		if p.mem.Phase == RolloutFailed {
			p.turn(RolloutProgressing, "")
		}
		return false
	}
	_, known := p.mem.Revisions[p.mem.Good]
	if !p.want.Rollout.Rollback || !known {
		if p.mem.Phase != RolloutFailed {
			p.event("RolloutFailed", true, "revision %s: %s", p.mem.Target, why)
		}
		p.turn(RolloutFailed, why)
		return false
	}
	p.event("RolledBack", true, "back to revision %s, for %s failed: %s", p.mem.Good, p.mem.Target, why)
	p.turn(RolloutRolledBack, "revision "+p.mem.Target+": "+why)
	p.mem.Pin, p.mem.Target = p.mem.Good, p.mem.Good
	return true
}

// turn sets the phase.
func (p *planner) turn(ph Phase, reason string) {
	if p.mem.Phase != ph {
		p.mem.Since = p.now
	}
	p.mem.Phase, p.mem.Reason = ph, reason
}

// phase tells how far the target has come.
func (p *planner) phase() {
	ready := p.readyFresh()
	complete := p.want != nil && ready >= p.wanted && len(p.stale) == 0
	if complete && ready > 0 && p.mem.Good != p.mem.Target {
		p.event("RolloutComplete", false, "revision %s serves with %d replicas", p.mem.Target, ready)
		p.mem.Previous, p.mem.Good = p.mem.Good, p.mem.Target
	}
	switch {
	case p.want == nil:
		p.turn(RolloutProgressing, "the model is removed")
	case p.mem.Phase == RolloutRolledBack && p.mem.Pin != "", p.mem.Phase == RolloutFailed && !complete:
	case complete:
		p.turn(RolloutComplete, "")
	default:
		p.turn(RolloutProgressing, p.waits(ready))
	}
}

func (p *planner) readyFresh() (n int) {
	for _, r := range p.fresh {
		if p.serving(r) {
			n++
		}
	}
	return n
}

// waits says what keeps the model from being complete.
func (p *planner) waits(ready int) string {
	for _, r := range p.fresh {
		if !p.serving(r) && r.Reason != "" {
			return fmt.Sprintf("%d of %d ready; replica %s is %s: %s", ready, p.wanted, r.ID, r.State, r.Reason)
		}
	}
	if ready >= p.wanted {
		return fmt.Sprintf("%d of %d ready; %d old replicas make way", ready, p.wanted, len(p.stale))
	}
	return fmt.Sprintf("%d of %d ready", ready, p.wanted)
}

// render gives what the platform is to be told.
func (p *planner) render() {
	asks, drains := p.mem.asks(), p.drains()
	for _, rev := range slices.Sorted(maps.Keys(p.mem.Revisions)) {
		r, held := p.mem.Revisions[rev], p.asked[rev]
		_, has := p.asked[rev]
		if asks[rev] == 0 && (p.want == nil || rev != p.mem.Target) {
			if has {
				p.remove = append(p.remove, adapters.Key{Fleet: p.fleet, Model: p.situation.name, Revision: rev})
			} else if rev != p.mem.Good && rev != p.mem.Previous || p.want == nil {
				delete(p.mem.Revisions, rev)
			}
			continue
		}
		d := adapters.Deployment{
			Key:   adapters.Key{Fleet: p.fleet, Model: p.situation.name, Revision: rev},
			Model: r.Model, Replicas: asks[rev], Drain: drains[rev],
		}
		if !has || !sameDeployment(&d, &held) {
			p.apply = append(p.apply, d)
		}
	}
	if p.want == nil && len(p.mem.Revisions) == 0 {
		p.forget = !p.mem.Deleted // else the file would bring it back
		p.mem = memory{Deleted: p.mem.Deleted, Nonce: p.mem.Nonce, Range: p.mem.Range}.clone()
	}
}

// drains gives the marked replicas of each revision, those that may go first.
func (p *planner) drains() map[string][]string {
	drains := map[string][]string{}
	for _, id := range slices.Sorted(maps.Keys(p.mem.Marks)) {
		rev := p.mem.Marks[id].Revision
		drains[rev] = append(drains[rev], id)
	}
	for _, ids := range drains {
		slices.SortStableFunc(ids, func(a, b string) int {
			return cmp.Compare(order(p.mem.Marks[a]), order(p.mem.Marks[b]))
		})
	}
	return drains
}

func order(m mark) int {
	if m.Released {
		return 0
	}
	return 1
}

func sameDeployment(a, b *adapters.Deployment) bool {
	return a.Key == b.Key && a.Replicas == b.Replicas && slices.Equal(a.Drain, b.Drain) && reflect.DeepEqual(a.Model, b.Model)
}

// event notes something about the model for people.
func (p *planner) event(reason string, warning bool, format string, args ...any) {
	p.events = append(p.events, Event{
		At: p.now, Warning: warning, Object: "model/" + p.situation.name, Reason: reason, Message: fmt.Sprintf(format, args...),
	})
}

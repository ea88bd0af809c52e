package ray

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/raycluster"
)

// account is all that the status of one replica follows from.
type account struct {
	rec       *replicaRecord
	need      need
	at        *sight // nil for nothing of it
	try       *try
	pending   string // what the job that starts it says, empty for none under way
	namespace string
	nodes     []Node
	byID      map[string]*Node
	cordoned  func(*Node) bool
}

// status says how a replica fares. Since is for the caller, who knows how it was before.
func (a *account) status() mobula.Replica {
	r := mobula.Replica{ID: a.rec.ID, Model: a.rec.Model, Revision: a.rec.Revision, Restarts: max(0, a.rec.Starts-1)}
	a.where(&r)
	if a.rec.Leaving {
		r.State, r.Reason = mobula.StateDraining, "is being stopped"
		if a.try != nil && a.try.reason != "" {
			r.Reason += ", again after: " + a.try.reason
		}
		return r
	}
	switch {
	case a.at != nil && a.at.taken != nil:
		t := a.at.taken
		r.State = mobula.StateFailed
		r.Reason = fmt.Sprintf("an actor named %s is in the Ray namespace %s already and is not Mobula's (class %s): it is left alone; end it, or give the fleet another platform.ray.namespace",
			t.Name, a.namespace, t.Class)
	case a.at.whole(a.need.parts) && a.need.parts > 0 && (a.at.group == nil || a.at.group.State != "RESCHEDULING"):
		a.observe(&r)
	case a.try != nil && !a.try.failed.IsZero():
		r.State, r.Reason = mobula.StateFailed, a.try.reason
	case a.at.exists() && a.at.group != nil && !placed(a.at.group):
		a.wait(&r)
	case a.at.exists():
		r.State, r.Reason = mobula.StateStarting, a.again("")
	default:
		r.State = mobula.StatePending
		r.Reason = a.again(cmp.Or(a.pending, "Ray is told to start it"))
	}
	return r
}

// again adds the last failure to a reason.
func (a *account) again(reason string) string {
	if a.try == nil || a.try.reason == "" {
		return reason
	}
	if reason != "" {
		reason += ", "
	}
	return reason + "again after: " + a.try.reason
}

// where says on which hosts and devices it is.
func (a *account) where(r *mobula.Replica) {
	if !a.at.exists() {
		return
	}
	for rank := range a.need.parts {
		id := ""
		if g := a.at.group; g != nil && rank < len(g.Nodes) {
			id = g.Nodes[rank]
		}
		actor := a.at.actors[rank]
		if actor != nil && actor.State == "ALIVE" {
			id = cmp.Or(actor.NodeID, id)
		}
		if id == "" {
			r.Hosts, r.Devices = nil, nil // as long as one part has no place, none is for sure
			return
		}
		name := id
		if n := a.byID[id]; n != nil {
			name = nodeName(n)
		}
		devices := ""
		if p := actor.published(); p != nil {
			devices = p.Devices
		}
		r.Hosts, r.Devices = append(r.Hosts, name), append(r.Devices, devices)
	}
}

// wait is for one whose group has no place.
func (a *account) wait(r *mobula.Replica) {
	g := a.at.group
	r.State, r.NoRoom, r.Hosts, r.Devices = mobula.StatePending, g.State != "PREPARED", nil, nil
	if !r.NoRoom { // it has its resources, and is about to have its place
		r.Reason = a.again("Ray places it (placement group PREPARED)")
		return
	}
	lost := ""
	if g.State == "RESCHEDULING" {
		lost = "its node was lost; "
	}
	r.Reason = a.again(fmt.Sprintf("%swaits for %s: %s (Ray: placement group %s)", lost, a.need.String(), a.need.why(a.nodes, a.full),
		strings.Join(slices.DeleteFunc([]string{g.State, g.Scheduling}, func(s string) bool { return s == "" }), ", ")))
}

// full says why a node that has all in total has no room.
func (a *account) full(n *Node) string {
	if a.cordoned(n) {
		return "is cordoned"
	}
	return "has that in total, but not free"
}

// observe is for one all of whose parts have an actor: it fares as the part that is furthest from serving.
func (a *account) observe(r *mobula.Replica) {
	r.State = mobula.StateReady
	for _, rank := range slices.Sorted(maps.Keys(a.at.actors)) {
		if rank >= a.need.parts {
			continue
		}
		actor := a.at.actors[rank]
		if rank == 0 {
			r.Detail = fmt.Sprintf("actor %s of job %s", short(actor.ID), actor.JobID)
			if actor.PID > 0 {
				r.Detail += fmt.Sprintf(", pid %d", actor.PID)
			}
		}
		r.Restarts = max(r.Restarts, a.rec.Starts-1+actor.Restarts)
		switch p := actor.published(); {
		case actor.State != "ALIVE":
			if r.State == mobula.StateReady || r.State == mobula.StateSuspect {
				r.State, r.Reason = mobula.StateStarting, ""
			}
			if r.Reason == "" && actor.State == "RESTARTING" {
				r.Reason = cmp.Or(engineReason(actor.Death), "Ray starts its actor again and does not say why it ended")
			}
		case r.State == mobula.StateStarting:
		case p == nil || !a.speaks(p, rank):
			r.State, r.Reason = mobula.StateStarting, "its actor does not say yet where it serves"
		default:
			if rank == 0 {
				r.URL = p.URL
				r.Restarts = max(r.Restarts, p.Generation)
			}
			if n := a.byID[actor.NodeID]; n != nil && !n.Alive {
				r.State = mobula.StateSuspect
				r.Reason = strings.TrimSuffix(fmt.Sprintf("Ray says that its node %s is dead: %s", nodeName(n), n.Died), ": ")
			}
		}
	}
	switch {
	case r.State == mobula.StateStarting && a.at.group != nil && a.at.group.State == "PENDING":
		a.wait(r)
	case r.State == mobula.StateStarting:
		r.URL = ""
		r.Reason = a.again(r.Reason)
	}
}

// speaks tells whether it is this replica's part that says p.
func (a *account) speaks(p *raycluster.Publication, rank int) bool {
	return p.Replica == a.rec.ID && p.Fleet == a.rec.Fleet && p.Model == a.rec.Model && p.Revision == a.rec.Revision &&
		p.Rank == rank && (rank > 0 || p.URL != "")
}

// engineReason makes one sentence of why an actor died. A launcher's own begins with a line that says it, and the
// engine's last lines follow.
func engineReason(death string) string {
	head, lines, _ := strings.Cut(strings.TrimSpace(death), "\n")
	head = strings.TrimSpace(strings.TrimPrefix(head, raycluster.FailureMark))
	last := engine.FailureReason(strings.Split(lines, "\n"))
	if last == "" || strings.Contains(head, last) {
		return head
	}
	return strings.TrimSuffix(head, ":") + ": " + last
}

// deathReason says why an actor is gone for good.
func deathReason(death string) string {
	reason := engineReason(death)
	if reason == "" {
		return "its actor is gone from the cluster, and Ray does not say why"
	}
	low := strings.ToLower(reason)
	if strings.Contains(low, "runtime_env") || strings.Contains(low, "runtime env") {
		return "its runtime environment could not be made (platform.ray.runtimeEnv, ray.runtimeEnv of the model): " + reason
	}
	return reason
}

// jobReason says why a launcher job failed replica's order, by what the job has printed.
func jobReason(j *Job, log, name string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for i, line := range slices.Backward(lines) {
		if strings.HasPrefix(line, "name taken: "+name) {
			return strings.TrimSpace(line)
		}
		if said, ok := strings.CutPrefix(line, "failed "+name+":"); ok { // the engine's last lines follow
			rest := lines[i+1:]
			if end := slices.IndexFunc(rest, launcherLine); end >= 0 {
				rest = rest[:end]
			}
			return engineReason(said + "\n" + strings.Join(rest, "\n"))
		}
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, " job_manager.py:") }) // Ray's, of the start
	last := engine.FailureReason(lines)
	low := strings.ToLower(j.Message + "\n" + last)
	switch {
	case strings.Contains(log, "No module named 'ray'") || strings.Contains(log, "No module named ray"):
		return "the launcher job ran with a Python that has no Ray: set platform.ray.interpreter to one that has (" + last + ")"
	case strings.Contains(low, "not found") && (strings.Contains(low, "python") || strings.Contains(low, "exec")):
		return "the launcher job found no Python: set platform.ray.interpreter to one that has Ray (" + last + ")"
	case strings.Contains(low, "runtime_env setup failed"):
		return "the launcher job's runtime environment could not be made: " + endOf(j.Message)
	}
	return strings.TrimSuffix(fmt.Sprintf("the launcher job %s ended as %s: %s", j.ID, j.Status, cmp.Or(last, endOf(j.Message))), ": ")
}

// launcherLine tells whether a line is the launcher's own.
func launcherLine(line string) bool {
	verb, _, _ := strings.Cut(line, " ")
	return slices.Contains([]string{"started", "stopped", "there", "failed", "name"}, verb)
}

func endOf(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

func short(id string) string { return id[:min(len(id), 8)] }

// since is when a replica got into its state: as before, or now. A Ready one that was not known before may say so itself.
func since(r *mobula.Replica, before *mobula.Replica, made, ready, now time.Time) time.Time {
	switch {
	case before != nil && before.State == r.State:
		return before.Since
	case before == nil && r.State == mobula.StatePending:
		return made
	case before == nil && ready.After(made) && ready.Before(now):
		return ready
	default:
		return now
	}
}

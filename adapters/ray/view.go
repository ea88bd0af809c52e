package ray

import (
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/raycluster"
)

const (
	jobsEvery  = 10 * time.Second // how often jobs are listed while nothing needs it
	rivalQuiet = time.Minute
	jobRest    = 5 * time.Second // from the end of a job to its deletion: Ray's job monitor looks each second
	logsAtOnce = 8               // failed jobs whose output is read in one round
)

// view is what is known of a cluster, and what it was told.
type view struct {
	owner    string
	rounds   int
	failures int // polls that failed in a row
	err      error
	version  Version
	state    *State // nil before the first one
	sights   map[string]*sight
	nodes    map[string]*Node  // by ID, those of state
	dead     map[string]*Actor // by name, the last one that died; of the last time they were asked for
	serve    []mobula.Endpoint
	trouble  []string // with Ray Serve

	jobs   []Job                // of our owner, as listed last
	ghosts []string             // jobs of ours whose records came back after they were deleted
	over   map[string]time.Time // when a job was first seen to be over
	listed time.Time
	logs   map[string]string  // what failed jobs have printed
	orders map[string]*order  // by job
	tries  map[string]*try    // by replica
	asked  map[deed]time.Time // jobs to stop and to delete, by when Ray was told last

	strangers map[string]bool // jobs of our owner that another control plane has begun
	rival     string          // the control plane that uses our owner too
	rivalAt   time.Time
}

func newView(owner string) view {
	return view{
		owner: owner,
		logs:  map[string]string{}, orders: map[string]*order{}, tries: map[string]*try{},
		asked: map[deed]time.Time{},
	}
}

// looked tells whether the cluster was looked at, with success or without.
func (v *view) looked() bool { return v.state != nil || v.failures > 0 }

// busy are the replicas with an order under way.
func (v *view) busy() map[string]bool {
	all := map[string]bool{}
	for _, o := range v.orders {
		for _, id := range o.replicas() {
			all[id] = true
		}
	}
	return all
}

// single gives the IDs of the running jobs that keep one replica each, by replica.
func (v *view) single() map[string][]string {
	all := map[string][]string{}
	for i := range v.jobs {
		if id := v.jobs[i].Metadata[metaReplica]; id != "" && !v.jobs[i].Over() {
			all[id] = append(all[id], v.jobs[i].ID)
		}
	}
	return all
}

// isGhost tells of a record that nobody wrote: Ray's job monitor makes a failed job out of one that is deleted just when it
// ends, under the ID that we gave it and without all else.
func isGhost(j *Job) bool {
	tail := j.ID[strings.LastIndexByte(j.ID, '-')+1:]
	return len(j.Metadata) == 0 && j.Status == "FAILED" && len(tail) == jobLetters &&
		strings.Trim(tail, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// list takes the jobs of the owner, as they were when round began.
func (v *view) list(jobs []Job, control string, now time.Time) (rival bool) {
	v.jobs, v.ghosts = v.jobs[:0:0], nil
	strangers, over := map[string]bool{}, map[string]time.Time{}
	for _, j := range jobs {
		if j.Metadata[metaOwner] != v.owner { // an owner whose name begins like ours
			if isGhost(&j) {
				v.ghosts = append(v.ghosts, j.ID)
			}
			continue
		}
		v.jobs = append(v.jobs, j)
		if j.Over() {
			over[j.ID] = now
			if since, known := v.over[j.ID]; known {
				over[j.ID] = since
			}
		}
		if by := j.Metadata[metaControl]; by != "" && by != control {
			strangers[j.ID] = true
			if v.strangers != nil && !v.strangers[j.ID] {
				v.rivalAt = now
				rival, v.rival = rival || v.rival != by, by
			}
		}
	}
	v.strangers, v.listed, v.over = strangers, now, over
	if v.rival != "" && now.Sub(v.rivalAt) >= rivalQuiet {
		v.rival = ""
	}
	known := make(map[string]bool, len(v.jobs))
	for i := range v.jobs {
		known[v.jobs[i].ID] = true
	}
	for id := range v.logs {
		if !known[id] {
			delete(v.logs, id)
		}
	}
	for d := range v.asked {
		if !known[d.stop] && !known[d.forget] {
			delete(v.asked, d)
		}
	}
	return rival
}

// settle drops the orders whose job is over, as the list tells that was just taken: what follows from a State that is read
// after it. It gives the jobs that take too long.
func (v *view) settle(r *records, now time.Time) (end []string) {
	byID := make(map[string]*Job, len(v.jobs))
	for i := range v.jobs {
		byID[v.jobs[i].ID] = &v.jobs[i]
	}
	for id, o := range v.orders {
		j := byID[id]
		switch {
		case j == nil && (o.told == 0 || o.told >= v.rounds):
			continue // it may be on its way
		case j == nil && o.refused != "":
			for _, id := range o.start {
				if rec := r.replicas[id]; rec != nil && rec.Starts > 0 { // it never was one
					rec.Starts--
					r.save(rec)
				}
			}
			v.failed(o, func(string) string { return "Ray did not take the launcher job: " + o.refused })
		case j == nil:
			v.failed(o, func(string) string { return "the launcher job " + id + " is gone from the cluster" })
		case j.Over():
			log, read := v.logs[id]
			if j.Status == "FAILED" && !read {
				continue // the next round knows why
			}
			if j.Status != "SUCCEEDED" {
				v.failed(o, func(name string) string { return jobReason(j, log, name) })
			}
		case o.single != "" && j.Status == "RUNNING":
			// It stays; from now on it is found in the list.
		case now.Sub(o.at) < o.limit:
			o.note = note(j)
			continue
		case !o.ended:
			o.ended, end = true, append(end, id)
			continue
		case now.Sub(o.at) < o.limit+orderLimit:
			continue
		default:
			v.failed(o, func(string) string { return "the launcher job " + id + " has not ended in time: " + endOf(j.Message) })
		}
		delete(v.orders, id)
	}
	return end
}

// failed notes, for the replicas of an order, why it may not have come true.
func (v *view) failed(o *order, why func(name string) string) {
	for _, id := range o.replicas() {
		if t := v.tries[id]; t != nil {
			t.told = why(raycluster.ActorName(v.owner, id))
		}
	}
}

func note(j *Job) string {
	if j.Status == "PENDING" && j.Message != "" {
		return "the launcher job " + j.ID + " has not started yet: " + endOf(j.Message)
	}
	return "the launcher job " + j.ID + " starts it"
}

// why tells why a replica is not there after an order; ok is false while it is not known. dead tells that v.dead is new.
func (v *view) why(id string, dead bool) (reason, death string, ok bool) {
	if !dead {
		return "", "", false
	}
	t := v.tries[id]
	if a := v.dead[raycluster.ActorName(v.owner, id)]; a != nil && a.ID != t.death && a.Death != "" {
		return deathReason(a.Death), a.ID, true
	}
	if t.told != "" {
		return t.told, t.death, true
	}
	if j := v.lastJob(id); j != nil && j.Over() {
		return jobReason(j, v.logs[j.ID], raycluster.ActorName(v.owner, id)), t.death, true
	}
	return deathReason(""), t.death, true
}

// lastJob is the job that kept a replica last, nil for none.
func (v *view) lastJob(id string) *Job {
	var last *Job
	for i := range v.jobs {
		if j := &v.jobs[i]; j.Metadata[metaReplica] == id && (last == nil || j.Started.After(last.Started)) {
			last = j
		}
	}
	return last
}

// unread are the failed jobs of which it is not known what they have printed.
func (v *view) unread(jobs []Job, owner string) []string {
	var all []string
	for i := range jobs {
		j := &jobs[i]
		if _, read := v.logs[j.ID]; j.Status == "FAILED" && !read && j.Metadata[metaOwner] == owner && len(all) < logsAtOnce {
			all = append(all, j.ID)
		}
	}
	return all
}

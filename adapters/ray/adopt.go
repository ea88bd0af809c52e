package ray

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula/adapters"
)

// explained gives the deployments that jobs tell of, each by the job that began last.
func explained(jobs []Job) (deployments map[adapters.Key]*deploymentRecord, by map[adapters.Key]string) {
	jobs = slices.Clone(jobs)
	slices.SortFunc(jobs, func(a, b Job) int { return cmp.Or(a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID)) })
	deployments, by = map[adapters.Key]*deploymentRecord{}, map[adapters.Key]string{}
	for i := range jobs {
		if d := deploymentOf(&jobs[i]); d != nil {
			deployments[d.Key], by[d.Key] = d, jobs[i].ID
		}
	}
	return deployments, by
}

// deploymentOf gives the deployment that a job tells of, nil for none.
func deploymentOf(j *Job) *deploymentRecord {
	text := j.Metadata[metaDeployment]
	if text == "" {
		return nil
	}
	d := &deploymentRecord{}
	if json.Unmarshal([]byte(text), d) != nil || d.Key.Fleet == "" || d.Key.Model == "" || d.Key.Model != d.Model.Name {
		return nil
	}
	return &deploymentRecord{Key: d.Key, Model: d.Model, GPUs: d.GPUs}
}

// adopt takes up replicas that are on the cluster and in no record, if a job tells of their deployment and no record does:
// a control plane that has lost its memory finds what it had asked for. What it does not take up is nobody's.
func adopt(r *records, sights map[string]*sight, jobs []Job, now time.Time) (adopted []string) {
	deployments, _ := explained(jobs)
	for key := range r.deployments {
		delete(deployments, key) // what is known is known better
	}
	if len(deployments) == 0 {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(sights)) {
		if r.replicas[id] != nil || !sights[id].exists() {
			continue
		}
		d := explains(deployments, id, sights[id])
		if d == nil {
			continue
		}
		d.Replicas++
		r.saveDeployment(d)
		r.save(&replicaRecord{ID: id, Fleet: d.Key.Fleet, Model: d.Key.Model, Revision: d.Key.Revision, Made: now, Starts: 1})
		adopted = append(adopted, id)
	}
	return adopted
}

// explains finds the deployment of a replica: by what its actor says, else by its ID.
func explains(deployments map[adapters.Key]*deploymentRecord, id string, at *sight) *deploymentRecord {
	if p := at.actors[0].published(); p != nil {
		return deployments[adapters.Key{Fleet: p.Fleet, Model: p.Model, Revision: p.Revision}]
	}
	for _, key := range slices.SortedFunc(maps.Keys(deployments), adapters.Key.Compare) {
		like := adapters.ReplicaID(key.Model, key.Revision, strings.Repeat("x", idLetters))
		if len(id) == len(like) && id[:len(id)-idLetters] == like[:len(like)-idLetters] {
			return deployments[key]
		}
	}
	return nil
}

// dispensable are the jobs of ours that are over and tell nothing that is still needed, and the running ones of
// deployments that are removed. kept are those that were not settled yet. left are the deployments that jobs tell of; while
// there is a job that has to go it is all of them: who removes the last deployment wants nothing to be left.
func dispensable(r *records, jobs []Job, kept func(*Job) bool) (forget, end []string, left map[adapters.Key]bool) {
	_, newest := explained(jobs)
	left = map[adapters.Key]bool{}
	for i := range jobs {
		j := &jobs[i]
		d := deploymentOf(j)
		if d != nil {
			left[d.Key] = true
		}
		rec := (*deploymentRecord)(nil)
		if d != nil {
			rec = r.deployments[d.Key]
		}
		needed := rec != nil && !rec.Removed && newest[d.Key] == j.ID
		if j.Over() && !needed {
			for key := range r.deployments {
				left[key] = true
			}
		}
		switch {
		case kept(j):
		case !j.Over():
			if rec != nil && rec.Removed && j.Metadata[metaReplica] == "" {
				end = append(end, j.ID)
			}
		case needed:
		default:
			forget = append(forget, j.ID)
		}
	}
	return forget, end, left
}

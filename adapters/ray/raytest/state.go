package raytest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// row is one object as the state API lists it.
type row map[string]any

// filter is a condition on a column: equal, or not.
type filter struct {
	key, value string
	not        bool
}

func (f filter) keeps(r row) bool {
	value, ok := r[f.key].(string)
	return ok && strings.EqualFold(value, f.value) != f.not
}

func filters(r *http.Request) ([]filter, error) {
	q := r.URL.Query()
	var all []filter
	for i, key := range q["filter_keys"] {
		f := filter{key: key, value: q["filter_values"][i], not: q["filter_predicates"][i] == "!="}
		if !slices.Contains([]string{"actor_id", "state", "job_id", "name", "ray_namespace", "class_name", "node_id", "placement_group_id"}, key) {
			return nil, fmt.Errorf("the given filter column %s is not supported", key)
		}
		all = append(all, f)
	}
	return all, nil
}

// list answers as Ray does: of all objects no more than its limit are looked at, and only then filtered. The filters
// that source names are on what is looked at.
func (c *Cluster) list(w http.ResponseWriter, r *http.Request, rows []row, source ...string) {
	conditions, err := filters(r)
	limit := 100
	if text := r.URL.Query().Get("limit"); err == nil && text != "" {
		if limit, err = strconv.Atoi(text); err == nil && limit > 10_000 {
			err = fmt.Errorf("given limit %d exceeds the supported limit 10000", limit)
		}
	}
	if err != nil {
		reply(w, http.StatusBadRequest, map[string]any{"result": false, "msg": err.Error(), "data": map[string]any{"result": nil}})
		return
	}
	seen, elsewhere := []row{}, 0
	for _, one := range rows {
		if len(seen) == c.opts.SourceLimit {
			break
		}
		if slices.ContainsFunc(conditions, func(f filter) bool { return !f.not && slices.Contains(source, f.key) && !f.keeps(one) }) {
			elsewhere++
			continue
		}
		seen = append(seen, one)
	}
	after := len(seen) + elsewhere
	seen = slices.DeleteFunc(seen, func(one row) bool {
		return slices.ContainsFunc(conditions, func(f filter) bool { return !f.keeps(one) })
	})
	filtered := len(seen)
	reply(w, http.StatusOK, map[string]any{"result": true, "msg": "", "data": map[string]any{"result": map[string]any{
		"total": len(rows), "num_after_truncation": after, "num_filtered": filtered, "result": seen[:min(limit, filtered)],
		"partial_failure_warning": "", "warnings": nil,
	}}})
}

func (c *Cluster) listActors(w http.ResponseWriter, r *http.Request) {
	rows := make([]row, 0, len(c.actors))
	for _, a := range c.actors {
		rows = append(rows, a.row())
	}
	c.list(w, r, rows, "state", "job_id", "actor_id")
}

func (a *actor) row() row {
	var nodeID, death any
	if a.node != nil && a.state != actorPending { // Ray tells a node when the actor is made
		nodeID = a.node.id
	}
	if a.death != nil {
		death = a.death
	}
	group := ""
	if a.group != nil {
		group = a.group.id
	}
	return row{
		"actor_id": a.id, "class_name": a.class, "state": a.state, "job_id": a.job, "name": a.name, "node_id": nodeID, "pid": a.pid,
		"ray_namespace": a.namespace, "serialized_runtime_env": "{}", "required_resources": a.start.Bundle, "death_cause": death,
		"is_detached": a.detached, "placement_group_id": group, "repr_name": a.repr, "num_restarts": strconv.Itoa(a.restarts),
		"num_restarts_due_to_lineage_reconstruction": "0", "num_restarts_due_to_node_preemption": "0", "call_site": nil,
		"label_selector": map[string]any{}, "fallback_strategy": nil,
	}
}

func (c *Cluster) listGroups(w http.ResponseWriter, r *http.Request) {
	rows := make([]row, 0, len(c.groups))
	for _, g := range c.groups {
		rows = append(rows, g.row())
	}
	c.list(w, r, rows)
}

func (g *group) row() row {
	bundles := make([]any, len(g.nodes))
	for i, on := range g.nodes {
		id := ""
		if on != nil {
			id = on.id
		}
		bundles[i] = map[string]any{
			"bundle_id":      map[string]any{"placement_group_id": g.id, "bundle_index": i},
			"unit_resources": g.bundle, "node_id": id, "label_selector": g.labels,
		}
	}
	scheduling := g.scheduling
	if g.state == groupRemoved {
		scheduling = groupRemoved
	}
	return row{
		"placement_group_id": g.id, "name": g.name, "creator_job_id": g.job, "state": g.state, "bundles": bundles, "is_detached": g.detached,
		"stats": map[string]any{
			"creation_request_received_ns": "1795356860041406731", "scheduling_attempt": g.attempts, "scheduling_state": scheduling,
			"highest_retry_delay_ms": 0.0,
		},
		"topology_strategy": map[string]any{}, "topology_assignments": map[string]any{},
	}
}

func (c *Cluster) listNodes(w http.ResponseWriter, r *http.Request) {
	rows := make([]row, 0, len(c.nodes))
	for _, n := range c.nodes {
		state, message := "ALIVE", any(nil)
		if n.died != "" {
			state, message = "DEAD", n.died
		}
		rows = append(rows, row{
			"node_id": n.id, "node_ip": n.IP, "is_head_node": n.head, "state": state, "state_message": message, "node_name": n.IP,
			"resources_total": n.total(), "labels": n.labels(), "start_time_ms": n.start, "end_time_ms": n.end,
		})
	}
	c.list(w, r, rows, "state", "node_id", "node_name")
}

// shape is a job as the Jobs API gives it.
func (j *job) shape() map[string]any {
	var end, kind, id any
	if j.end > 0 {
		end = j.end
	}
	if j.errorType != "" {
		kind = j.errorType
	}
	if j.jobID != "" {
		id = j.jobID
	}
	return map[string]any{
		"type": "SUBMISSION", "job_id": id, "submission_id": j.ID, "driver_info": nil, "status": j.status, "entrypoint": j.entrypoint,
		"message": j.message, "error_type": kind, "start_time": j.start, "end_time": end, "metadata": j.metadata, "runtime_env": j.env,
		"driver_agent_http_address": nil, "driver_node_id": nil, "driver_exit_code": j.code,
	}
}

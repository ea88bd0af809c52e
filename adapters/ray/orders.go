package ray

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/raycluster"
)

// Metadata of our jobs. Ray takes strings only.
const (
	metaOwner   = "mobula/owner"
	metaControl = "mobula/control"
	// metaWhat says for people what the job does.
	metaWhat = "mobula/what"
	// metaDeployment is the deployment whose replicas a job starts, as JSON: a control plane that has lost its memory
	// takes it from there. No job starts those of two deployments, so that one that is removed is forgotten for sure.
	metaDeployment = "mobula/deployment"
	// metaReplica is the replica that the job keeps running (mode jobs).
	metaReplica = "mobula/replica"
)

// jobVariable names a launcher job in its own environment.
const jobVariable = "MOBULA_JOB"

const (
	modeJobs = "jobs"

	ordersAtOnce = 4
	orderSize    = 50 // replicas in one order
	idLetters    = 5  // of a replica's ID, to make it unique
	jobLetters   = 10 // of a job's, likewise
	whatReplicas = 3  // how many metaWhat names

	// A launcher only registers actors, but its job may wait for a node, and for its runtime environment.
	orderLimit = 5 * time.Minute

	startAttempts   = 3
	startBackoff    = 1.0  // seconds
	startMaxBackoff = 30.0 // seconds
	startStable     = 600.0
	defaultStart    = 30 * time.Minute
	defaultStop     = 45 * time.Second
	simCommand      = "mobula"
	jobStopMargin   = 15 // seconds that a job may take to stop, beside its engine's own
)

var errTooLong = errors.New("engine.args and engine.env of the model are too long for an order to Ray")

// order is a launcher job that was submitted, or is being.
type order struct {
	job         string
	start, stop []string // replicas
	single      string   // the replica whose own job it is (mode jobs)
	at          time.Time
	limit       time.Duration
	told        int    // the round in which its submission ended, 0 for not yet
	refused     string // why it was not submitted, as far as we know
	note        string // what its job last said of itself
	ended       bool   // StopJob was called, for it took too long
}

func (o *order) replicas() []string { return append(slices.Clone(o.start), o.stop...) }

// jobPrefix begins the IDs of the jobs of an owner, and of those whose name only begins like it.
func jobPrefix(owner string) string { return "mobula-" + owner + "-" }

// writer makes orders out of actions.
type writer struct {
	ray      *mobula.Ray
	owner    string
	control  string
	pkg      string
	records  *records
	cordoned []string // IDs of nodes
	now      time.Time
}

// draft is an order with its submission.
type draft struct {
	order      *order
	submission Submission
}

// write makes at most room jobs for replicas to start and to stop, and says of which ones none can be made, and why.
func (w *writer) write(start, stop []string, room int) (all []draft, impossible map[string]error) {
	impossible = map[string]error{}
	for _, ids := range batches(stop, func(string) string { return "" }, orderSize) {
		if len(all) < room {
			all = append(all, w.stops(ids))
		}
	}
	by := func(id string) string { return deploymentKey(w.records.replicas[id].key()) }
	size := orderSize
	if w.ray.Mode == modeJobs {
		size = 1
	}
	for _, ids := range batches(start, by, size) {
		if len(all) < room {
			all = append(all, w.starts(ids, impossible)...)
		}
	}
	return all[:min(len(all), room)], impossible
}

// batches cuts ids into pieces of one kind and at most size each.
func batches(ids []string, kind func(id string) string, size int) [][]string {
	by := map[string][]string{}
	for _, id := range ids {
		by[kind(id)] = append(by[kind(id)], id)
	}
	var all [][]string
	for _, k := range slices.Sorted(maps.Keys(by)) {
		all = append(all, slices.Collect(slices.Chunk(by[k], size))...)
	}
	return all
}

func (w *writer) stops(ids []string) draft {
	o := raycluster.Order{Version: raycluster.OrderVersion, Namespace: w.ray.Namespace, Detached: true}
	longest := time.Duration(0)
	for _, id := range ids {
		timeout := defaultStop
		if rec := w.records.replicas[id]; rec != nil {
			if d := w.records.deployments[rec.key()]; d != nil {
				timeout = cmp.Or(time.Duration(d.Model.Engine.StopTimeout), defaultStop)
			}
		}
		longest = max(longest, timeout)
		o.Stop = append(o.Stop, raycluster.Stop{Name: raycluster.ActorName(w.owner, id), Timeout: timeout.Seconds()})
	}
	text, _ := json.Marshal(o) // names and numbers only
	d := w.draft(text, map[string]string{metaWhat: what("stop", ids)}, "", map[string]string{})
	d.order.stop, d.order.limit = ids, orderLimit+longest
	return d
}

// starts makes orders for replicas of one deployment: one, unless it would be too long.
func (w *writer) starts(ids []string, impossible map[string]error) []draft {
	dep := w.records.deployments[w.records.replicas[ids[0]].key()]
	o := raycluster.Order{Version: raycluster.OrderVersion, Namespace: w.ray.Namespace, Detached: w.ray.Mode != modeJobs}
	for _, id := range ids {
		s, err := w.start(w.records.replicas[id], dep)
		if err != nil {
			impossible[id] = err
			return nil // it is the same for all of them
		}
		o.Start = append(o.Start, s)
	}
	text, err := json.Marshal(o)
	if err == nil && len(text) > raycluster.MaxOrderBytes {
		if half := len(ids) / 2; half > 0 {
			return append(w.starts(ids[:half], impossible), w.starts(ids[half:], impossible)...)
		}
		err = errTooLong
	}
	if err != nil {
		impossible[ids[0]] = err
		return nil
	}
	explains, err := json.Marshal(deploymentRecord{Key: dep.Key, Model: dep.Model, GPUs: dep.GPUs})
	if err != nil {
		impossible[ids[0]] = err
		return nil
	}
	meta := map[string]string{metaWhat: what("start", ids), metaDeployment: string(explains)}
	single := ""
	if !o.Detached {
		single = ids[0]
		meta[metaReplica] = single
	}
	vars := map[string]string{}
	if single != "" { // Ray kills a job 3 s after it was told to stop, and then its engine would end amid its requests
		vars["RAY_JOB_STOP_WAIT_TIME_S"] = strconv.Itoa(int(o.Start[0].StopTimeout) + jobStopMargin)
	}
	d := w.draft(text, meta, single, vars)
	d.order.start = ids
	return []draft{d}
}

// draft completes a job, with its metadata and its environment variables.
func (w *writer) draft(text []byte, meta map[string]string, single string, vars map[string]string) draft {
	id := jobPrefix(w.owner)
	if single != "" {
		id += "r-" + single + "-"
	}
	id += strings.ToLower(rand.Text()[:jobLetters])
	meta[metaOwner], meta[metaControl] = w.owner, w.control
	vars[raycluster.OrderVariable] = string(text)
	vars[jobVariable] = id // Ray remembers for ten minutes that an environment could not be made: no two jobs have the same
	return draft{
		order: &order{job: id, single: single, at: w.now, limit: orderLimit},
		submission: Submission{
			ID: id, Entrypoint: raycluster.Entrypoint(w.ray.Interpreter), Metadata: meta,
			RuntimeEnv: map[string]any{
				"py_modules": []string{"gcs://" + w.pkg},
				"env_vars":   vars,
			},
		},
	}
}

// what says for people what a job does: "start a, b, c and 4 more".
func what(verb string, ids []string) string {
	text := verb + " " + strings.Join(ids[:min(len(ids), whatReplicas)], ", ")
	if more := len(ids) - whatReplicas; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// start says how a replica is started.
func (w *writer) start(rec *replicaRecord, dep *deploymentRecord) (raycluster.Start, error) {
	m := &dep.Model
	n, err := needOf(m, dep.GPUs)
	if err != nil {
		return raycluster.Start{}, err
	}
	s := raycluster.Start{
		Name:  raycluster.ActorName(w.owner, rec.ID),
		Fleet: rec.Fleet, Model: rec.Model, Revision: rec.Revision, Replica: rec.ID,
		Bundle: n.bundle, Labels: maps.Clone(n.labels), PortMin: w.ray.Ports.Min, PortMax: w.ray.Ports.Max,
		StartTimeout: cmp.Or(time.Duration(m.Engine.StartTimeout), defaultStart).Seconds(),
		StopTimeout:  cmp.Or(time.Duration(m.Engine.StopTimeout), defaultStop).Seconds(),
		Attempts:     startAttempts, Backoff: startBackoff, MaxBackoff: startMaxBackoff, Stable: startStable,
	}
	if avoid := avoiding(w.cordoned); avoid != "" && s.Labels[nodeIDLabel] == "" { // one key has one condition only
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[nodeIDLabel] = avoid
	}
	s.Argv, s.Env = command(m, n.parts)
	if env := merged(w.ray.RuntimeEnv, m.Ray.RuntimeEnv); len(env) > 0 {
		if s.RuntimeEnv, err = json.Marshal(env); err != nil {
			return s, fmt.Errorf("runtimeEnv: %w", err)
		}
	}
	return s, nil
}

// command gives the argv of each part and the environment, with the launcher's placeholders.
func command(m *mobula.Model, parts int) (argv [][]string, env map[string]string) {
	at := engine.Place{Host: "{host}", Port: "{port}", Master: "{master}", MasterPort: "{masterPort}"}
	s := engine.ForModel(*m)
	s.Nodes = parts
	argv, env = s.Template(at)
	if m.Engine.Kind == "sim" {
		one := slices.Clone(m.Engine.Command)
		if len(one) == 0 {
			one = []string{simCommand}
		}
		one = append(append(one, "sim", "--model", m.Name, "--host", at.Host, "--port", at.Port), m.Engine.Args...)
		for rank := range argv {
			argv[rank] = one
		}
		env = m.Engine.Env
	}
	return argv, env
}

// merged gives a runtime environment with the fields of the second in place of those of the first.
func merged(platform, model map[string]any) map[string]any {
	all := maps.Clone(platform)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, model)
	return all
}

// newID makes an ID that no replica has, and none that was seen on the cluster.
func newID(r *records, sights map[string]*sight, key adapters.Key) string {
	for {
		id := adapters.ReplicaID(key.Model, key.Revision, strings.ToLower(rand.Text()[:idLetters]))
		if r.replicas[id] == nil && sights[id] == nil {
			return id
		}
	}
}

package raytest

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula/raycluster"
)

// job is a submitted job, in the words of the Jobs API.
type job struct {
	ID         string
	entrypoint string
	metadata   map[string]string
	env        map[string]any
	status     string
	message    string
	errorType  string
	jobID      string // Ray's own, once its driver runs
	start, end int64
	code       *int
	log        string
	stays      *raycluster.Start // what a job that is not detached runs
	over       string            // the status it will end with
	foreign    bool
}

const (
	jobPending   = "PENDING"
	jobRunning   = "RUNNING"
	jobSucceeded = "SUCCEEDED"
	jobFailed    = "FAILED"
	jobStopped   = "STOPPED"
)

const waitingMessage = "Job has not started yet. It may be waiting for resources (CPUs, GPUs, memory, custom resources) to become available."

func (j *job) terminal() bool {
	return j.status == jobSucceeded || j.status == jobFailed || j.status == jobStopped
}

// finish ends a job.
func (j *job) finish(status string) {
	j.status, j.end = status, now()
	switch status {
	case jobSucceeded:
		j.message, j.code = "Job finished successfully.", new(0)
	case jobStopped:
		j.message = "Job was intentionally stopped."
	}
}

// fail ends a job as one whose command failed.
func (j *job) fail(code int, line string) {
	if line != "" {
		j.log += line + "\n"
	}
	j.finish(jobFailed)
	j.errorType, j.code = "JOB_ENTRYPOINT_COMMAND_ERROR", new(code)
	j.message = fmt.Sprintf("Job entrypoint command failed with exit code %d, last available logs (truncated to 20,000 chars):\n%s", code, j.log)
}

// runJobs gets each job on by one: one that waits runs, and one that has run is over. It tells whether one did.
func (c *Cluster) runJobs() bool {
	some := false
	for _, j := range c.jobs {
		switch {
		case j.foreign:
		case j.status == jobPending && !c.hold:
			c.run(j)
			some = true
		case j.status == jobRunning && j.over == jobSucceeded:
			j.finish(jobSucceeded)
			some = true
		case j.status == jobRunning && j.over == jobFailed:
			j.fail(1, "")
			some = true
		}
	}
	return some
}

// run is the start of a job: its runtime environment, its command, and what the launcher does.
func (c *Cluster) run(j *job) {
	if missing := c.missing(j.env); missing != "" {
		j.finish(jobFailed)
		j.errorType = "RUNTIME_ENV_SETUP_FAILURE"
		j.message = "runtime_env setup failed: Failed to set up runtime environment.\n" +
			"Could not create the actor because its associated runtime env failed to be created.\n" +
			"OSError: Failed to download runtime_env file package " + missing + " from the GCS to the Ray worker node."
		return
	}
	j.status, j.message = jobRunning, "Job is currently running."
	j.log = "Running entrypoint for job " + j.ID + ": " + j.entrypoint + "\n"
	if python, ok := interpreter(j.entrypoint); !ok {
		j.fail(127, "/bin/sh: 1: exec: "+python+": not found")
		return
	}
	c.jobSeq++
	j.jobID = hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, uint32(c.jobSeq)))
	order, err := orderOf(j.env)
	if err != nil {
		j.fail(2, err.Error())
		return
	}
	c.launch(j, order)
}

// missing gives the first package of a runtime environment that was not uploaded.
func (c *Cluster) missing(env map[string]any) string {
	modules, _ := env["py_modules"].([]any)
	for _, uri := range append(slices.Clone(modules), env["working_dir"]) {
		text, _ := uri.(string)
		if name, ok := strings.CutPrefix(text, "gcs://"); ok {
			if _, there := c.packages[name]; !there {
				return text
			}
		}
	}
	return ""
}

// interpreter reads an entrypoint; false when it is not the launcher's, or when it names what is no Python.
func interpreter(entrypoint string) (string, bool) {
	if entrypoint == raycluster.Entrypoint("") {
		return "", true
	}
	_, rest, _ := strings.Cut(entrypoint, "exec '")
	python, _, _ := strings.Cut(rest, "'")
	known := strings.HasPrefix(path.Base(python), "python") && entrypoint == raycluster.Entrypoint(python)
	return python, known
}

func orderOf(env map[string]any) (raycluster.Order, error) {
	var o raycluster.Order
	vars, _ := env["env_vars"].(map[string]any)
	text, _ := vars[raycluster.OrderVariable].(string)
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return o, fmt.Errorf("%s is no JSON: %w", raycluster.OrderVariable, err)
	}
	if o.Version != raycluster.OrderVersion {
		return o, fmt.Errorf("%s has version %d: this launcher takes %d", raycluster.OrderVariable, o.Version, raycluster.OrderVersion)
	}
	if !o.Detached && (len(o.Start) != 1 || len(o.Stop) != 0) {
		return o, fmt.Errorf("%s: without detached there is exactly one start", raycluster.OrderVariable)
	}
	return o, nil
}

// launcher is one run of the launcher.
type launcher struct {
	c     *Cluster
	job   *job
	order *raycluster.Order
	fuse  int // steps left to live, if dies
	dies  bool
	bad   bool
}

// launch carries an order out.
func (c *Cluster) launch(j *job, o raycluster.Order) {
	l := &launcher{c: c, job: j, order: &o, fuse: c.fuse - 1, dies: c.fuse > 0}
	c.fuse = 0
	for i := range o.Start {
		l.start(&o.Start[i])
	}
	for _, stop := range o.Stop {
		l.stop(stop.Name)
	}
	switch {
	case l.dies:
		j.log += "Killed\n"
		j.over = jobFailed
		c.endOwned(j)
	case l.bad:
		j.over = jobFailed
	case o.Detached:
		j.over = jobSucceeded
	default:
		j.stays = &o.Start[0]
	}
}

// step tells whether the launcher still lives to do one more thing.
func (l *launcher) step() bool {
	if l.dies && l.fuse <= 0 {
		return false
	}
	l.fuse--
	return true
}

func (l *launcher) say(line string) { l.job.log += line + "\n" }

// start makes a replica's group and actors exist.
func (l *launcher) start(s *raycluster.Start) {
	g := l.c.group(s.Name)
	made := false
	for rank := range s.Argv {
		a := l.c.actor(l.order.Namespace, raycluster.PartName(s.Name, rank))
		if a != nil && a.class != raycluster.ActorClass {
			l.say("name taken: " + a.name + " is an actor of class " + a.class + " in namespace " + a.namespace)
			l.bad = true
			return
		}
	}
	if g == nil {
		if !l.step() {
			return
		}
		g, made = l.c.addGroup(s, l.job, l.order.Detached), true
	}
	for rank := range s.Argv {
		name := raycluster.PartName(s.Name, rank)
		if l.c.actor(l.order.Namespace, name) != nil {
			continue
		}
		if !l.step() {
			return
		}
		l.c.actors = append(l.c.actors, &actor{
			id: l.c.id("actor", 24) + l.job.jobID, name: name, class: raycluster.ActorClass, namespace: l.order.Namespace,
			state: actorPending, job: l.job.jobID, rank: rank, group: g, detached: l.order.Detached, start: *s,
			log: []string{":job_id:" + l.job.jobID, ":actor_name:" + raycluster.ActorClass},
		})
		made = true
	}
	if made {
		l.say("started " + s.Name)
	} else {
		l.say("there already " + s.Name)
	}
}

// stop ends all parts of a replica, and its group.
func (l *launcher) stop(name string) {
	c, some := l.c, false
	for _, a := range c.actors {
		part := a.name == name || strings.HasPrefix(a.name, name+".")
		if !part || a.namespace != l.order.Namespace || !a.exists() {
			continue
		}
		if a.foreign {
			c.touched = append(c.touched, "actor "+a.name)
		}
		if a.class != raycluster.ActorClass {
			l.say("name taken: " + a.name)
			l.bad = true
			return
		}
		if !l.step() {
			return
		}
		c.kill(a, killed("it was killed by `ray.kill`."))
		some = true
	}
	if g := c.group(name); g != nil {
		if g.foreign {
			c.touched = append(c.touched, "placement group "+name)
		}
		if !l.step() {
			return
		}
		c.remove(g)
		some = true
	}
	if some {
		l.say("stopped " + name)
	} else {
		l.say("gone already " + name)
	}
}

// actor finds one that is not dead.
func (c *Cluster) actor(namespace, name string) *actor {
	for _, a := range c.actors {
		if a.exists() && a.name == name && a.namespace == namespace {
			return a
		}
	}
	return nil
}

// group finds one that is not removed.
func (c *Cluster) group(name string) *group {
	for _, g := range c.groups {
		if g.name == name && g.state != groupRemoved {
			return g
		}
	}
	return nil
}

func (c *Cluster) addGroup(s *raycluster.Start, j *job, detached bool) *group {
	g := &group{
		id: c.id("group", 28) + j.jobID, name: s.Name, job: j.jobID, state: groupPending, scheduling: "QUEUED",
		bundle: s.Bundle, labels: s.Labels, nodes: make([]*node, len(s.Argv)), detached: detached,
	}
	c.groups = append(c.groups, g)
	return g
}

// endOwned is the end of a job's driver: what it made and is not detached ends.
func (c *Cluster) endOwned(j *job) {
	for _, a := range c.actors {
		if a.job == j.jobID && !a.detached && a.exists() && !a.foreign {
			c.kill(a, killed("all references to the actor were removed."))
		}
	}
	for _, g := range c.groups {
		if g.job == j.jobID && !g.detached && !g.foreign && g.state != groupRemoved {
			c.remove(g)
		}
	}
}

// endJobs ends those jobs that stay with their replica and have lost it.
func (c *Cluster) endJobs() {
	for _, j := range c.jobs {
		if j.stays == nil || j.status != jobRunning {
			continue
		}
		for _, a := range c.actors {
			if a.job == j.jobID && !a.exists() && j.status == jobRunning {
				j.fail(1, "failed "+j.stays.Name+": "+reasonOf(a.death))
				c.endOwned(j)
			}
		}
	}
}

// reasonOf is what the launcher of a job that stays says of a dead actor.
func reasonOf(death map[string]any) string {
	for _, context := range death {
		fields, _ := context.(map[string]any)
		if text, ok := fields["formatted_exception_string"].(string); ok {
			_, reason, _ := strings.Cut(text, raycluster.FailureMark)
			return reason
		}
	}
	return "the engine ended with exit code 1"
}

// stopJob ends a job by order.
func (c *Cluster) stopJob(j *job) bool {
	if j.foreign {
		c.touched = append(c.touched, "job "+j.ID)
	}
	if j.terminal() {
		return false
	}
	j.finish(jobStopped)
	c.endOwned(j)
	return true
}

package raytest

import (
	"slices"

	"github.com/mobula-serve/mobula/raycluster"
)

// Foreign adds what is somebody else's: actors in our and in another namespace, one of them another control plane's
// replica; placement groups, a running job, an application of Ray Serve. None of it takes resources.
func (c *Cluster) Foreign() {
	defer c.lock()()
	c.jobSeq++
	j := &job{
		ID: "their-job", entrypoint: "python train.py", status: jobRunning, message: "Job is currently running.",
		jobID: "ff000000", start: now(), foreign: true,
	}
	c.jobs = append(c.jobs, j)
	theirs := raycluster.ActorName("somebody", "llama-0000-aaaaa")
	for _, a := range []*actor{
		{name: "their-actor", class: "Trainer", namespace: c.opts.Namespace},
		{name: "their-actor", class: "Trainer", namespace: "theirs"},
		{name: theirs, class: raycluster.ActorClass, namespace: c.opts.Namespace},
		{name: theirs, class: raycluster.ActorClass, namespace: "theirs"},
	} {
		g := &group{
			id: c.id("group", 28) + j.jobID, name: a.name, job: j.jobID, state: groupCreated, scheduling: "FINISHED",
			nodes: []*node{c.nodes[0]}, detached: true, foreign: true,
		}
		c.groups = append(c.groups, g)
		c.addForeign(a, g)
	}
	c.serve.adopt(map[string]any{"name": "their-app", "route_prefix": "/theirs", "import_path": "theirs:app"}, true)
}

// AddActor adds one actor that is somebody else's, alive and without a placement group.
func (c *Cluster) AddActor(namespace, name, class string) {
	defer c.lock()()
	c.addForeign(&actor{name: name, class: class, namespace: namespace}, nil)
}

func (c *Cluster) addForeign(a *actor, g *group) {
	a.id, a.job, a.node, a.group = c.id("actor", 24)+"ff000000", "ff000000", c.nodes[0], g
	a.state, a.pid, a.foreign, a.detached = actorAlive, 10_000+c.next(), true, true
	c.actors = append(c.actors, a)
}

// Touched tells what of others was ordered to end or has ended; nil if nothing was.
func (c *Cluster) Touched() []string {
	defer c.lock()()
	touched := slices.Clone(c.touched)
	for _, a := range c.actors {
		if a.foreign && (!a.exists() || a.restarts > 0) {
			touched = append(touched, "actor "+a.name)
		}
	}
	for _, g := range c.groups {
		if g.foreign && g.state != groupCreated {
			touched = append(touched, "placement group "+g.name)
		}
	}
	slices.Sort(touched)
	return slices.Compact(touched)
}

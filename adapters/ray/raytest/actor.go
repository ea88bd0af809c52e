package raytest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula/raycluster"
)

// States of actors and groups, as Ray names them.
const (
	actorPending    = "PENDING_CREATION"
	actorAlive      = "ALIVE"
	actorRestarting = "RESTARTING"
	actorDead       = "DEAD"

	groupPending      = "PENDING"
	groupCreated      = "CREATED"
	groupRescheduling = "RESCHEDULING"
	groupRemoved      = "REMOVED"
)

type actor struct {
	id, name, class, namespace string
	state, job, repr           string
	node                       *node
	pid, restarts, rank        int
	generation                 int
	group                      *group
	detached, foreign          bool
	death                      map[string]any
	start                      raycluster.Start
	stop                       func() // of its engine, which runs
	log                        []string
}

func (a *actor) exists() bool  { return a.state != actorDead }
func (a *actor) waiting() bool { return a.state == actorPending || a.state == actorRestarting }

func (a *actor) replica() string {
	_, replica, _, _ := raycluster.ParseName(a.name)
	return replica
}

func (a *actor) stopEngine() {
	if a.stop != nil {
		a.stop()
		a.stop = nil
	}
}

// restart is what Ray does with a detached actor whose process ended. Until it is alive again Ray lists what it was.
func (a *actor) restart() {
	a.stopEngine()
	if a.state == actorPending {
		a.node = nil
		return
	}
	a.state = actorRestarting
	a.restarts++
	if a.node != nil && a.node.died != "" {
		a.node = nil
	}
}

// kill ends an actor for good.
func (c *Cluster) kill(a *actor, cause map[string]any) {
	a.stopEngine()
	a.state, a.death = actorDead, cause
}

// engine runs the engine of an actor that has a place.
func (c *Cluster) engine(a *actor) (url string) {
	if a.rank > 0 {
		a.stop = func() {}
		return ""
	}
	if c.opts.Engine != nil {
		url, a.stop = c.opts.Engine(a.start)
	} else {
		url, a.stop = fmt.Sprintf("http://127.0.0.1:%d", 20_000+c.next()%10_000), func() {}
	}
	if a.stop == nil {
		a.stop = func() {}
	}
	return url
}

// alive is the end of an actor's __init__: its engine serves, and it says so.
func (c *Cluster) alive(a *actor) {
	a.stopEngine()
	url := c.engine(a)
	if a.state == actorRestarting {
		a.generation++
	}
	a.state, a.pid = actorAlive, 10_000+c.next()
	said, err := json.Marshal(raycluster.Publication{
		Version: raycluster.OrderVersion, URL: url, Fleet: a.start.Fleet, Model: a.start.Model, Revision: a.start.Revision,
		Replica: a.start.Replica, Rank: a.rank, Generation: a.generation, PID: a.pid, Devices: devices(a.start.Bundle["GPU"]),
		ReadyAt: float64(time.Now().UnixMilli()) / 1000,
	})
	if err != nil {
		panic(err) // plain fields only
	}
	a.repr = "mobula " + string(said)
	a.print("engine of "+a.start.Model+" ready at "+url, ":actor_name:"+a.repr)
}

// maxLog bounds the lines that are kept of an actor.
const maxLog = 1000

func (a *actor) print(lines ...string) {
	a.log = append(a.log, lines...)
	if more := len(a.log) - maxLog; more > 0 {
		a.log = a.log[more:]
	}
}

func devices(gpus float64) string {
	names := make([]string, int(gpus))
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	return strings.Join(names, ",")
}

// died, gaveUp and killed are death causes as Ray lists them.
func died(why string) map[string]any {
	return map[string]any{"actor_died_error_context": map[string]any{
		"error_message": "The actor died unexpectedly before finishing this task. " + why, "never_started": false,
	}}
}

func gaveUp(a *actor, reason string) map[string]any {
	return map[string]any{"creation_task_failure_context": map[string]any{
		"language": "PYTHON",
		"formatted_exception_string": "\x1b[36mray::" + raycluster.ActorClass + ".__init__()\x1b[39m (pid=" + strconv.Itoa(a.pid) + ")\n" +
			"  File \"mobula_launcher.py\", line 1, in __init__\nRuntimeError: " + raycluster.FailureMark + reason,
	}}
}

func killed(how string) map[string]any {
	return map[string]any{"actor_died_error_context": map[string]any{
		"error_message": "The actor is dead because " + how, "never_started": false,
	}}
}

type group struct {
	id, name, job, state, scheduling string
	bundle                           map[string]float64
	labels                           map[string]string
	nodes                            []*node // of its bundles, nil for one without
	detached, foreign                bool
	attempts                         int
}

// lose takes a node from a group.
func (g *group) lose(n *node) {
	for i := range g.nodes {
		if g.nodes[i] == n && g.state != groupRemoved {
			g.nodes[i], g.state = nil, groupRescheduling
		}
	}
}

// remove ends a group, and with it what runs in it.
func (c *Cluster) remove(g *group) {
	g.state = groupRemoved
	for _, a := range c.actors {
		if a.group == g && a.exists() {
			c.kill(a, killed("its placement group was removed."))
		}
	}
}

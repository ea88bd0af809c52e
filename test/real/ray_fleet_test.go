//go:build real

package real

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/raycluster"
	"github.com/mobula-serve/mobula/test/fleet"
)

// rayOwner is whose actors those of the tests are.
const rayOwner = "lab"

// rayFleet is a fleet on a rayLab: control plane and router run in the control namespace.
type rayFleet struct {
	*fleet.Fleet
	t      *testing.T
	c      *rayLab
	binary string
}

// fleet starts one with a fleet file, which ends with t. Whatever t left on the cluster goes then.
func (c *rayLab) fleet(t *testing.T, binary, file string) *rayFleet {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.describe())
			c.clear()
		}
	})
	f := fleet.New(t, fleet.Options{Binary: binary, Head: c.machine("control"), File: file, Patience: rayPatience})
	return &rayFleet{Fleet: f, t: t, c: c, binary: binary}
}

// file is a fleet file for the cluster: more settings of the platform ("mode: jobs, "), and its models.
func (c *rayLab) file(settings string, models ...string) string {
	if c.token != "" {
		settings += "tokenFile: " + c.token + ", "
	}
	return fmt.Sprintf("apiVersion: mobula/v1\nkind: Fleet\nplatform:\n  ray: {%sowner: %s, address: %q}\nmodels:\n%s",
		settings, rayOwner, c.address(), strings.Join(models, ""))
}

// simModel is a model of a fleet file with simulated engines, of which each takes a GPU; more is further settings of
// the engine (", env: {…}").
func simModel(binary, replicas, more string) string {
	return fmt.Sprintf(`  - name: %s
    aliases: [chat]
    replicas: %s
    resources: {gpus: 1}
    engine: {kind: sim, command: [%s], args: [--itl, 5ms]%s}
`, fleet.Model, replicas, binary, more)
}

// clear ends all named actors, all placement groups and all jobs.
func (c *rayLab) clear() {
	c.await("no job is left", func() bool {
		for _, job := range c.jobs() { // one can be deleted when it has ended
			_, _, _ = c.ask(http.MethodPost, "/api/jobs/"+job.Job+"/stop", "")
			_, _, _ = c.ask(http.MethodDelete, "/api/jobs/"+job.Job, "")
		}
		return len(c.jobs()) == 0
	})
	out, err := c.head.run("RAY_ADDRESS="+c.head.host.IP+":6379", "python", "-c", `
import ray
from ray.util import list_named_actors, placement_group_table, remove_placement_group, get_placement_group
ray.init(namespace="mobula", log_to_driver=False)
for a in list_named_actors(all_namespaces=True):
    ray.kill(ray.get_actor(a["name"], namespace=a["namespace"]), no_restart=True)
for g in placement_group_table().values():
    if g["state"] != "REMOVED" and g["name"]:
        remove_placement_group(get_placement_group(g["name"]))
`)
	if err != nil {
		c.t.Logf("what a failed test left could not be ended: %v: %s", err, out)
	}
}

// engines are the processes of the fleet's simulated engines on the cluster.
func (c *rayLab) engines() []rayProcess {
	var all []rayProcess
	for _, n := range c.nodes {
		all = append(all, n.processes(isSim)...)
	}
	return all
}

func isSim(p *rayProcess) bool { return len(p.argv) > 1 && p.argv[1] == "sim" }

// pids of the engines, sorted.
func (c *rayLab) pids() []int {
	var all []int
	for _, p := range c.engines() {
		all = append(all, p.pid)
	}
	slices.Sort(all)
	return all
}

// node gives the node that a replica serves on.
func (f *rayFleet) node(r control.ReplicaStatus) *rayNode {
	f.t.Helper()
	host, _, err := net.SplitHostPort(strings.TrimPrefix(r.URL, "http://"))
	require.NoError(f.t, err)
	i := slices.IndexFunc(f.c.nodes, func(n *rayNode) bool { return n.host.IP == host })
	require.GreaterOrEqual(f.t, i, 0, "%s is on no node", r.URL)
	return f.c.nodes[i]
}

// engine gives the process that a replica's engine is.
func (f *rayFleet) engine(r control.ReplicaStatus) rayProcess {
	f.t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(r.URL, "http://"))
	require.NoError(f.t, err)
	found := f.node(r).processes(func(p *rayProcess) bool {
		return isSim(p) && strings.Contains(strings.Join(p.argv, " "), "--port "+port)
	})
	require.Len(f.t, found, 1, "engines of %s", r.ID)
	return found[0]
}

// actor gives the actor of a replica, as Ray lists it.
func (f *rayFleet) actor(r control.ReplicaStatus) rayThing {
	f.t.Helper()
	name := raycluster.ActorName(rayOwner, r.ID)
	all := f.c.must("actors")
	i := slices.IndexFunc(all, func(a rayThing) bool { return a.Name == name })
	require.GreaterOrEqual(f.t, i, 0, "no actor %s in %+v", name, all)
	return all[i]
}

// killed ends an engine's process at once.
func (f *rayFleet) killed(pid int) {
	f.t.Helper()
	require.NoError(f.t, syscall.Kill(pid, syscall.SIGKILL))
	f.Await("the process is gone", func() bool { return !slices.Contains(f.c.pids(), pid) })
}

// named gives a replica as it is now; false when there is none of that ID.
func (f *rayFleet) named(id string) (control.ReplicaStatus, bool) {
	f.t.Helper()
	all := f.Replicas()
	i := slices.IndexFunc(all, func(r control.ReplicaStatus) bool { return r.ID == id })
	if i < 0 {
		return control.ReplicaStatus{}, false
	}
	return all[i], true
}

// AwaitRestarted waits until a replica serves again that was as r before its engine died.
func (f *rayFleet) AwaitRestarted(r control.ReplicaStatus) {
	f.t.Helper()
	f.Await(r.ID+" is back", func() bool {
		now, _ := f.named(r.ID)
		return now.State == mobula.StateReady && now.Restarts > r.Restarts
	})
}

// Deleted deletes all, and waits until nothing is left on the cluster.
func (f *rayFleet) Deleted() {
	f.t.Helper()
	f.Run("delete", "--all", "--yes")
	f.Await("rid of all actors, placement groups, jobs and processes", func() bool { return len(f.c.left()) == 0 })
}

// nothingLeft waits until there is nothing of ours on the cluster.
func (c *rayLab) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, rayPatience, "no actor, placement group, job or process is left", func() bool { return len(c.left()) == 0 })
}

// left is what there is of ours: actors, placement groups, jobs, and on the nodes engines, actors, launchers and what
// guards engines.
func (c *rayLab) left() []string {
	c.t.Helper()
	var all []string
	for _, kind := range []string{"actors", "placement_groups"} {
		for _, a := range c.must(kind) {
			if owner, _, _, ok := raycluster.ParseName(a.Name); ok && owner == rayOwner {
				all = append(all, kind+" "+a.Name+" "+a.State)
			}
		}
	}
	for _, job := range c.jobs() {
		if strings.HasPrefix(job.Job, "mobula-"+rayOwner+"-") {
			all = append(all, "job "+job.Job+" "+job.Status+": "+job.Message)
		}
	}
	for _, n := range c.nodes {
		for _, p := range n.processes(func(p *rayProcess) bool {
			text := strings.Join(p.argv, " ")
			return isSim(p) || strings.Contains(text, "mobula_") || strings.Contains(text, raycluster.ActorClass)
		}) {
			all = append(all, fmt.Sprintf("%s: process %d %q", n.name, p.pid, p.argv))
		}
	}
	return all
}

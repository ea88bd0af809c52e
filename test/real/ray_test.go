//go:build real

package real

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/test/fleet"
)

// raySuite is what the parts of TestRay run against.
type raySuite struct {
	c      *rayLab
	binary string // mobula, built for this run with the race detector
}

// TestRay: what happens to fleets on a Ray cluster happens to one real cluster with token authentication, one thing
// after the other. The last one loses the cluster itself.
func TestRay(t *testing.T) {
	s := &raySuite{c: startRay(t, rayOptions{Workers: 1, Token: true, Durable: true}), binary: build(t)}
	t.Run("life", s.testLife)
	t.Run("deaths", s.testDeaths)
	t.Run("memory lost", s.testMemoryLost)
	t.Run("two nodes", s.testTwoNodes)
	t.Run("real vLLM", s.testVLLM)
	t.Run("bad input", s.testBadInput)
	t.Run("jobs", s.testJobs)
	t.Run("two control planes", s.testTwoControlPlanes)
	t.Run("cluster lost", s.testClusterLost)
}

// testLife does to a fleet what its users do. No request fails, streams neither.
func (s *raySuite) testLife(t *testing.T) {
	c, binary := s.c, s.binary
	f := c.fleet(t, binary, c.file("", simModel(binary, "3", "")))
	f.AwaitReady(fleet.Model, 3)
	load := f.Traffic("chat", 4, true)
	load.More(50)

	step := func(name string, do func()) {
		if !t.Run(name, func(*testing.T) { do() }) {
			t.FailNow()
		}
		load.More(20)
	}
	step("nodes and actors are shown", func() {
		table := f.Run("get", "replicas", "-o", "wide")
		for _, r := range f.Ready(fleet.Model) {
			require.Equal(t, []string{f.node(r).host.IP}, r.Hosts)
			require.Contains(t, table, r.Hosts[0])
			require.Contains(t, table, f.actor(r).ID[:8])
			require.NotEmpty(t, f.Run("logs", r.ID), "the engine's log")
			require.Contains(t, f.Run("describe", "replica", r.ID), f.actor(r).ID[:8])
		}
		hosts := f.Run("get", "hosts")
		for _, n := range c.nodes {
			require.Contains(t, hosts, n.host.IP)
		}
	})
	step("the control plane is killed and finds everything as it was", func() {
		before := c.pids()
		f.Kill("control")
		load.More(50)
		f.StartControl()
		f.AwaitReady(fleet.Model, 3)
		require.Equal(t, before, c.pids(), "no engine was started again, none runs twice")
	})
	step("scale up and down", func() {
		f.Run("scale", fleet.Model, "4")
		f.AwaitReady(fleet.Model, 4)
		f.Run("scale", fleet.Model, "2")
		f.AwaitReady(fleet.Model, 2)
		f.Run("scale", fleet.Model, "auto")
		f.AwaitReady(fleet.Model, 3)
	})
	step("a replica is drained", func() {
		gone := f.Ready(fleet.Model)[0].ID
		f.Run("drain", gone)
		f.Await("another replica in its place", func() bool {
			_, there := f.named(gone)
			return !there && len(f.Ready(fleet.Model)) == 3
		})
	})
	step("all engines are replaced", func() {
		before := f.Ready(fleet.Model)[0].Revision
		f.Apply(c.file("", simModel(binary, "3", ", env: {A: b}")))
		f.Await("another revision", func() bool {
			ready := f.Ready(fleet.Model)
			return len(ready) == 3 && len(f.Replicas()) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Revision == before })
		})
		for _, r := range f.Ready(fleet.Model) {
			require.Contains(t, f.engine(r).env, "A=b")
		}
	})
	step("a revision that fails is taken back, with the engine's own reason", func() {
		good := f.Ready(fleet.Model)[0].Revision
		f.Apply(c.file("", strings.Replace(simModel(binary, "3", ""), "--itl, 5ms", "--no-such-flag", 1)))
		f.Await("the roll is taken back", func() bool {
			ready := f.Ready(fleet.Model)
			return len(ready) == 3 && len(f.Replicas()) == 3 && f.Status(fleet.Model).Rollout == control.RolloutRolledBack
		})
		require.Equal(t, good, f.Ready(fleet.Model)[0].Revision)
		require.Contains(t, f.Run("events"), "no-such-flag")
	})
	load.End()
	f.Deleted()
}

// testDeaths kills what can die. Streams that have begun break with their engine; plain requests move to another one.
func (s *raySuite) testDeaths(t *testing.T) {
	c, binary := s.c, s.binary
	f := c.fleet(t, binary, c.file("", simModel(binary, "3", "")))
	f.AwaitReady(fleet.Model, 3)
	load := f.Traffic("chat", 4, false)
	load.More(50)
	step := func(name string, do func()) {
		if !t.Run(name, func(*testing.T) { do() }) {
			t.FailNow()
		}
		f.AwaitReady(fleet.Model, 3)
		require.Len(t, c.pids(), 3, "nothing runs twice")
		load.More(20)
	}
	step("engine", func() {
		victim := f.Ready(fleet.Model)[1]
		f.killed(f.engine(victim).pid)
		f.AwaitRestarted(victim)
	})
	step("actor", func() {
		victim := f.Ready(fleet.Model)[0]
		engine := f.engine(victim).pid
		require.NoError(t, syscall.Kill(f.actor(victim).PID, syscall.SIGKILL))
		f.AwaitRestarted(victim)
		require.NotContains(t, c.pids(), engine, "it has no actor")
	})
	step("dashboard", func() {
		before := c.pids()
		dashboard := c.head.kill("dashboard.py")
		load.More(100)
		f.Await("it is told", func() bool {
			events, err := f.TryRun("events")
			return err == nil && strings.Contains(events, c.address())
		})
		c.head.again(dashboard)
		f.Run("scale", fleet.Model, "4")
		f.AwaitReady(fleet.Model, 4)
		require.Subset(t, c.pids(), before, "no engine was started again")
		f.Run("scale", fleet.Model, "auto")
		f.AwaitReady(fleet.Model, 3)
	})
	step("GCS that comes back", func() {
		before := c.pids()
		gcs := c.head.kill("gcs_server")
		load.More(100)
		require.Equal(t, before, c.pids())
		c.head.again(gcs)
		f.AwaitReady(fleet.Model, 3)
		c.await("Ray knows its nodes", func() bool { return c.head.alive() && c.nodes[1].alive() })
		require.Equal(t, before, c.pids(), "no engine was started again")
		f.Run("drain", f.Ready(fleet.Model)[0].ID)
		f.Await("another replica in its place", func() bool { return !slices.Equal(before, c.pids()) })
	})
	step("worker node", func() {
		worker := c.nodes[1]
		onWorker := func(r control.ReplicaStatus) bool { return r.State == mobula.StateReady && f.node(r) == worker }
		require.True(t, slices.ContainsFunc(f.Replicas(), onWorker))
		worker.kill("raylet")
		// Two have room on the head: one that was on the worker may serve there before anybody has seen it away.
		f.Await("two serve on the head, and the third waits, with a reason", func() bool {
			all := f.Replicas()
			return len(f.Ready(fleet.Model)) == 2 && !slices.ContainsFunc(all, onWorker) &&
				slices.ContainsFunc(all, func(r control.ReplicaStatus) bool {
					return r.State == mobula.StatePending && strings.Contains(r.Reason, "waits for")
				})
		})
		load.More(50)
		worker.wipe()
		worker.start()
	})
	load.End()
	f.Deleted()
}

// testMemoryLost: a control plane that has lost its data folder finds its engines by its owner's name.
func (s *raySuite) testMemoryLost(t *testing.T) {
	c, binary := s.c, s.binary
	file := c.file("", simModel(binary, "3", ""))
	f := c.fleet(t, binary, file)
	f.AwaitReady(fleet.Model, 3)
	before, engines := ids(f.Ready(fleet.Model)), c.pids()
	f.Kill("control")
	f.Stop("router") // it knows the former control plane's certificate
	require.NoError(t, os.RemoveAll(f.Data("control")))
	f.StartControl()
	f.Apply(file)
	f.StartRouter()
	f.AwaitReady(fleet.Model, 3)
	require.ElementsMatch(t, before, ids(f.Ready(fleet.Model)))
	require.Equal(t, engines, c.pids(), "no engine was started again, none runs twice")
	f.AwaitServes("chat", before[0])
	f.Deleted()
}

// testJobs: where detached actors are not allowed, a replica is a job.
func (s *raySuite) testJobs(t *testing.T) {
	c, binary := s.c, s.binary
	f := c.fleet(t, binary, c.file("mode: jobs, ", simModel(binary, "2", "")))
	f.AwaitReady(fleet.Model, 2)
	load := f.Traffic("chat", 4, false)
	load.More(50)
	victim := f.Ready(fleet.Model)[0]
	engine := f.engine(victim).pid
	f.killed(engine)
	f.Await("it is back", func() bool {
		now, _ := f.named(victim.ID)
		return now.State == mobula.StateReady && len(c.pids()) == 2
	})
	load.More(20)
	f.Run("scale", fleet.Model, "3")
	f.AwaitReady(fleet.Model, 3)
	f.Run("scale", fleet.Model, "1")
	f.AwaitReady(fleet.Model, 1)
	f.Await("two engines have ended", func() bool { return len(c.pids()) == 1 })
	load.More(20)
	load.End()
	f.Deleted()
}

// testClusterLost: engines serve on without the cluster's GCS, as long as Ray's own processes let them; on the
// cluster that is started in its place everything is started again.
func (s *raySuite) testClusterLost(t *testing.T) {
	c, binary := s.c, s.binary
	f := c.fleet(t, binary, c.file("", simModel(binary, "3", "")))
	f.AwaitReady(fleet.Model, 3)
	before := c.pids()
	load := f.Traffic("chat", 4, true)
	load.More(50)
	c.head.kill("gcs_server")
	load.More(200)
	require.Equal(t, before, c.pids())
	load.End()

	for _, n := range c.nodes {
		n.wipe()
	}
	require.NoError(t, os.RemoveAll(c.gcs))
	for _, n := range c.nodes {
		n.start()
	}
	f.AwaitReady(fleet.Model, 3)
	f.AwaitServes("chat", f.Ready(fleet.Model)[0].ID)
	require.Len(t, c.pids(), 3)
	f.Deleted()
}

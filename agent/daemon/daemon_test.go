//go:build unix

package daemon

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
)

func TestTasksComeAndGoAsWished(t *testing.T) {
	h := run(t, options(newFolder(t)))
	s := h.tell(t, simTask("a"), simTask("b", "--family"))
	require.Len(t, s.Tasks, 2)
	require.Equal(t, int64(1), s.Epoch)
	a, b := h.ready(t, "a"), h.ready(t, "b")
	require.NotEqual(t, a.URL, b.URL)
	require.Equal(t, "m", a.Model)
	require.Positive(t, a.PID)
	require.Zero(t, a.Restarts)
	require.Eventually(t, func() bool { // the shim passes on what the engine prints
		return strings.Contains(logOf(t, h, "a"), "env marked "+filepath.Join(h.folder, "models"))
	}, deadline, tick)
	get(t, a.URL+"/health")

	h.tell(t, simTask("a"))
	h.wait(t, "b gone", func(s agent.State) bool { return len(s.Tasks) == 1 })
	require.Len(t, tasksIn(t, h.folder), 2, "a shim and an engine")
	again := h.ready(t, "a")
	require.Equal(t, a, again, "what is wished is left alone")
	h.clear(t)
}

func TestOnlyWhatNeedsAnotherEngineGetsOne(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	before := h.ready(t, "a")
	draining := simTask("a")
	draining.Draining, draining.Model.LoRAs = true, []mobula.LoRA{{Name: "l", Source: "s"}}
	h.tell(t, draining)
	other := simTask("a")
	other.Revision = "r2"
	h.tell(t, draining, simTask("b"))
	h.ready(t, "b")
	require.Equal(t, before, h.ready(t, "a"))
	h.tell(t, other)
	s := h.wait(t, "the new revision ready", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.Revision == "r2" && a.State == agent.TaskReady
	})
	after, _ := find(s, "a")
	require.NotEqual(t, before.PID, after.PID)
	next := other
	next.Round = 1
	h.tell(t, next)
	h.wait(t, "the next round ready", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.Round == 1 && a.State == agent.TaskReady && a.PID != after.PID
	})
	h.clear(t)
}

func TestTheNextDaemonAdoptsWhatRuns(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"), simTask("b"), simTask("slow", "--ready-after", "1h"))
	before := []agent.TaskStatus{h.ready(t, "a"), h.ready(t, "b")}
	h.wait(t, "slow running", func(s agent.State) bool { slow, _ := find(s, "slow"); return slow.PID > 0 })
	instance := h.instance
	h.leave(t)
	require.Len(t, tasksIn(t, h.folder), 6)

	h = run(t, options(h.folder))
	require.NotEqual(t, instance, h.instance)
	s, err := h.State(t.Context(), 0, 0)
	require.NoError(t, err)
	require.Equal(t, int64(1), s.Epoch)
	for i, id := range []string{"a", "b"} {
		now, _ := find(s, id)
		require.Equal(t, agent.TaskReady, now.State, "ready at once: nothing of it has changed")
		require.Equal(t, before[i].PID, now.PID)
		require.Equal(t, before[i].URL, now.URL)
	}
	slow, _ := find(s, "slow")
	require.Equal(t, agent.TaskStarting, slow.State)
	h.clear(t)
}

func TestAKilledDaemonLosesNothing(t *testing.T) {
	folder := newFolder(t)
	d := runOutside(t, folder)
	_, err := d.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 7, Tasks: []agent.Task{simTask("a", "--family")}})
	require.NoError(t, err)
	first, _ := find(waitFor(t, d, "ready", is("a", agent.TaskReady)), "a")
	for range 3 {
		d.kill()
		get(t, first.URL+"/health")
		d = runOutside(t, folder)
		again, _ := find(waitFor(t, d, "ready", is("a", agent.TaskReady)), "a")
		require.Equal(t, first.PID, again.PID)
	}
	// One that is killed right after a wish has kept it.
	_, err = d.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 8, Tasks: []agent.Task{simTask("b")}})
	require.NoError(t, err)
	d.kill()
	d = runOutside(t, folder)
	waitFor(t, d, "b alone", func(s agent.State) bool {
		return len(s.Tasks) == 1 && s.Tasks[0].ID == "b" && s.Tasks[0].State == agent.TaskReady && s.Epoch == 8
	})
	_, err = d.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 9})
	require.NoError(t, err)
	waitFor(t, d, "nothing", func(s agent.State) bool { return len(s.Tasks) == 0 })
}

func TestNothingRunsTwiceHoweverTheDaemonDies(t *testing.T) {
	folder := newFolder(t)
	var want []agent.Task
	for i := range 12 {
		d := runOutside(t, folder)
		revision := "r" + strconv.Itoa(i/3)
		want = nil
		for _, id := range []string{"a", "b", "c"}[:1+i%3] {
			task := simTask(id, "--family")
			task.Revision, task.Draining = revision, true
			want = append(want, task)
		}
		_, err := d.Tell(t.Context(), agent.Wish{Control: "c", Epoch: int64(i + 1), Tasks: want})
		require.NoError(t, err)
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		d.kill()
	}
	d := runOutside(t, folder)
	waitFor(t, d, "all ready", func(s agent.State) bool {
		ready := 0
		for _, task := range s.Tasks {
			if task.State == agent.TaskReady && task.Revision == "r3" {
				ready++
			}
		}
		return ready == len(want) && len(s.Tasks) == len(want)
	})
	require.Len(t, tasksIn(t, folder), 3*len(want), "a shim, an engine and its child each")
	_, err := d.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 100})
	require.NoError(t, err)
	waitFor(t, d, "nothing", func(s agent.State) bool { return len(s.Tasks) == 0 })
	require.Empty(t, tasksIn(t, folder))
}

func TestAWishThatMustNotBeTakenIsRefused(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	for name, tc := range map[string]struct {
		wish agent.Wish
		want error
	}{
		"older":        {agent.Wish{Control: "c", Epoch: 1}, agent.ErrOldWish},
		"another's":    {agent.Wish{Control: "d", Epoch: 2}, agent.ErrOtherControl},
		"outside":      {agent.Wish{Control: "c", Epoch: 2, Tasks: []agent.Task{simTask("../a")}}, agent.ErrInvalid},
		"twice":        {agent.Wish{Control: "c", Epoch: 2, Tasks: []agent.Task{simTask("a"), simTask("a")}}, agent.ErrInvalid},
		"no epoch":     {agent.Wish{Control: "c"}, agent.ErrInvalid},
		"a third rank": {agent.Wish{Control: "c", Epoch: 2, Tasks: []agent.Task{{ID: "x", Model: mobula.Model{Name: "m"}, Rank: 2, Parts: 2}}}, agent.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Tell(t.Context(), tc.wish)
			require.ErrorIs(t, err, tc.want)
			s, err := h.State(t.Context(), 0, 0)
			require.NoError(t, err)
			require.Equal(t, int64(1), s.Epoch)
			require.Len(t, s.Tasks, 1)
		})
	}
	h.clear(t)
}

func TestAnotherControlPlanesTasksAreStopped(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	h.ready(t, "a")
	h.leave(t)
	o := options(h.folder)
	o.Control = "d"
	h = run(t, o)
	h.wait(t, "nothing", func(s agent.State) bool { return len(s.Tasks) == 0 && s.Epoch == 0 })
	_, err := h.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 10})
	require.ErrorIs(t, err, agent.ErrOtherControl)
	_, err = h.Tell(t.Context(), agent.Wish{Control: "d", Epoch: 1})
	require.NoError(t, err)
}

func TestOneDaemonAFolder(t *testing.T) {
	h := run(t, options(newFolder(t)))
	_, err := New(options(h.folder))
	require.ErrorIs(t, err, ErrTaken)
}

func TestADeadEngineIsStartedAgain(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a", "--family"))
	before := h.ready(t, "a")
	require.NoError(t, syscall.Kill(before.PID, syscall.SIGKILL))
	s := h.wait(t, "ready again", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.State == agent.TaskReady && a.PID != before.PID
	})
	after, _ := find(s, "a")
	require.Equal(t, 1, after.Restarts)
	require.Equal(t, before.URL, after.URL)
	require.Len(t, tasksIn(t, h.folder), 3, "shim, engine and its child: the first one's child is gone")
	h.clear(t)
}

func TestAKilledShimIsReplaced(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a", "--family"))
	before := h.ready(t, "a")
	st, err := shim.Dir(filepath.Join(h.folder, "tasks", "a")).Status()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(st.Shim, syscall.SIGKILL))
	s := h.wait(t, "ready again", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.State == agent.TaskReady && a.PID != before.PID
	})
	after, _ := find(s, "a")
	require.Equal(t, 1, after.Restarts)
	require.Len(t, tasksIn(t, h.folder), 3)
	h.clear(t)
}

func TestACrashLoopFailsWithTheReason(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a", "--oom"))
	h.wait(t, "waiting", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.State == agent.TaskWaiting && strings.Contains(a.Reason, "out of memory")
	})
	s := h.wait(t, "failed", is("a", agent.TaskFailed))
	a, _ := find(s, "a")
	require.Equal(t, "exit status 1: torch.OutOfMemoryError: CUDA out of memory.", a.Reason)
	require.Equal(t, 3, a.Restarts)
	runs := strings.Count(logOf(t, h, "a"), "OutOfMemory")
	h.leave(t)

	h = run(t, options(h.folder))
	s = h.wait(t, "failed, as before", is("a", agent.TaskFailed))
	again, _ := find(s, "a")
	require.Equal(t, a.Reason, again.Reason)
	require.Equal(t, a.Restarts, again.Restarts)
	h.tell(t, simTask("a", "--oom"), simTask("b"))
	h.ready(t, "b")
	require.Equal(t, runs, strings.Count(logOf(t, h, "a"), "OutOfMemory"), "not started again")
	other := simTask("a")
	other.Revision = "r2"
	h.tell(t, other)
	require.Zero(t, h.ready(t, "a").Restarts)
	h.clear(t)
}

func TestAnEngineThatHasNeverBeenReadyFailsSoon(t *testing.T) {
	h := run(t, options(newFolder(t)), func(p *pace) { p.restarts = 10_000 })
	h.tell(t, simTask("a", "--oom"), simTask("b"))
	before := h.ready(t, "b")
	h.wait(t, "failed", is("a", agent.TaskFailed))
	for i := range 2 * h.pace.newRestarts { // one that was ready gets all of its restarts
		require.NoError(t, syscall.Kill(before.PID, syscall.SIGKILL))
		h.wait(t, "ready again", func(s agent.State) bool {
			b, _ := find(s, "b")
			if b.State != agent.TaskReady || b.PID == before.PID {
				return false
			}
			before = b
			return b.Restarts == i+1
		})
	}
	h.clear(t)
}

func TestAnEngineThatIsNotReadyInTimeFails(t *testing.T) {
	h := run(t, options(newFolder(t)))
	a := simTask("a", "--ready-after", "1h", "--family")
	a.Model.Engine.StartTimeout = mobula.Duration(time.Millisecond)
	h.tell(t, a)
	s := h.wait(t, "failed", is("a", agent.TaskFailed))
	status, _ := find(s, "a")
	require.Contains(t, status.Reason, "not ready after 1ms")
	require.Empty(t, tasksIn(t, h.folder))
	h.leave(t)
	h = run(t, options(h.folder))
	s = h.wait(t, "failed, as before", is("a", agent.TaskFailed))
	status, _ = find(s, "a")
	require.Contains(t, status.Reason, "not ready after 1ms")
	h.clear(t)
}

func TestAnEngineWithADeadCoreIsStartedAgain(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	before := h.ready(t, "a")
	get(t, before.URL+"/sick")
	h.wait(t, "ready again", func(s agent.State) bool {
		a, _ := find(s, "a")
		return a.State == agent.TaskReady && a.PID != before.PID && a.Restarts == 1
	})
	h.clear(t)
}

func TestATakenPortIsReplaced(t *testing.T) {
	o := options(newFolder(t))
	h := run(t, o)
	// The port is free when the agent looks, and taken when the engine binds.
	first := o.Ports[0]
	for !h.free(t.Context(), first) {
		first++
	}
	h.tell(t, simTask("a", "--taken", strconv.Itoa(first)))
	a := h.ready(t, "a")
	require.NotContains(t, a.URL, ":"+strconv.Itoa(first))
	require.Equal(t, 1, a.Restarts)
	h.leave(t)
	h = run(t, o)
	require.Equal(t, a.URL, h.ready(t, "a").URL)
	h.clear(t)
}

func TestPortsInUseArePassedOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	o := options(newFolder(t))
	port := l.Addr().(*net.TCPAddr).Port
	o.Ports = [2]int{port, port}
	h := run(t, o)
	h.tell(t, simTask("a"))
	s := h.wait(t, "waiting", is("a", agent.TaskWaiting))
	a, _ := find(s, "a")
	require.Contains(t, a.Reason, "no free port from "+strconv.Itoa(port))
	require.Empty(t, a.URL)
	require.NoError(t, l.Close())
	h.ready(t, "a")
	h.clear(t)
}

func TestAnEngineThatWasNotDrainedMayFinish(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a", "--busy"), simTask("b", "--busy"))
	a := h.ready(t, "a")
	h.ready(t, "b")
	log := follow(t, h, "a")
	drained := simTask("b", "--busy")
	drained.Draining = true
	h.tell(t, simTask("a", "--busy"), drained)
	h.tell(t, drained)
	h.wait(t, "a stopping", is("a", agent.TaskStopping))
	require.Eventually(t, func() bool { return strings.Contains(log(), "asked for metrics") }, deadline, tick)
	h.tell(t)
	h.wait(t, "b gone", func(s agent.State) bool { return len(s.Tasks) == 1 })
	require.NotContains(t, log(), "closed", "a still serves")
	get(t, a.URL+"/finish")
	h.wait(t, "a gone", func(s agent.State) bool { return len(s.Tasks) == 0 })
	require.Eventually(t, func() bool { return strings.Contains(log(), "had finished") }, deadline, tick)
}

func TestPartsThatDoNotServeAreReadyWhenTheyRun(t *testing.T) {
	h := run(t, options(newFolder(t)))
	part := simTask("a.1", "--headless")
	part.Replica, part.Rank, part.Parts, part.Master, part.MasterPort = "a", 1, 2, "127.0.0.1", 29500
	h.tell(t, part)
	a := h.ready(t, "a.1")
	require.Empty(t, a.URL)
	require.Equal(t, "a", a.Replica)
	h.clear(t)
}

func TestALifelineEndsAllTasks(t *testing.T) {
	o := options(newFolder(t))
	o.Lifeline = true
	h := run(t, o)
	h.tell(t, simTask("a", "--family"), simTask("b"))
	h.ready(t, "a")
	h.ready(t, "b")
	h.leave(t)
	require.Empty(t, tasksIn(t, h.folder))
}

func TestStraysOfAnEarlierDaemonAreKilled(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	h.ready(t, "a")
	h.leave(t)
	dir := shim.Dir(filepath.Join(h.folder, "tasks", "a"))
	st, err := dir.Status()
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(string(dir)))
	require.NoError(t, os.Remove(filepath.Join(h.folder, "wish.json")))
	h = run(t, options(h.folder))
	require.Eventually(t, func() bool { return len(tasksIn(t, h.folder)) == 0 }, deadline, tick)
	_, _ = syscall.Wait4(st.Shim, nil, 0, nil)
	h.leave(t)
	if st.Cgroup != "" {
		require.NoDirExists(t, st.Cgroup)
	}
}

func TestAFolderThatCannotBeReadIsReplaced(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a", "--family"))
	before := h.ready(t, "a")
	h.leave(t)
	dir := filepath.Join(h.folder, "tasks", "a")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "task.json"), []byte("{"), 0o600))
	h = run(t, options(h.folder))
	require.NotEqual(t, before.PID, h.ready(t, "a").PID)
	require.Len(t, tasksIn(t, h.folder), 3)
	h.clear(t)
}

func TestAWishThatCannotBeReadStopsNothing(t *testing.T) {
	h := run(t, options(newFolder(t)))
	h.tell(t, simTask("a"))
	h.ready(t, "a")
	h.leave(t)
	path := filepath.Join(h.folder, "wish.json")
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err = New(options(h.folder))
	require.ErrorContains(t, err, "wish.json")
	require.Len(t, tasksIn(t, h.folder), 2)
	require.NoError(t, os.WriteFile(path, kept, 0o600))
	h = run(t, options(h.folder))
	h.clear(t)
}

func TestDevicesWakeOnlyWhenTheirHealthChanges(t *testing.T) {
	o := options(newFolder(t))
	d, err := New(o)
	require.NoError(t, err)
	device := mobula.Device{ID: "0", Name: "NVIDIA H200"}
	d.setDevices([]mobula.Device{device})
	seq := d.seq
	device.Used, device.Utilization = 5, 0.5
	d.setDevices([]mobula.Device{device})
	require.Equal(t, seq, d.seq)
	require.Equal(t, mobula.Size(5), d.devices[0].Used)
	device.Unhealthy = "XID 79"
	d.setDevices([]mobula.Device{device})
	require.Greater(t, d.seq, seq)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, d.Run(ctx))
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no name":   {DataDir: t.TempDir()},
		"no folder": {Name: "h"},
		"ports":     {Name: "h", DataDir: t.TempDir(), Ports: [2]int{2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(o)
			require.Error(t, err)
		})
	}
}

package ray

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
	"github.com/mobula-serve/mobula/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestKilledBetweenAnyTwoSteps has the n-th write fail, for each n there is: as one that did not come true, and as one
// that did although nobody was told. Then the control plane starts again, or tries again.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("restart %t, kept %t", restart, kept), func(t *testing.T) {
				for n := 1; ; n++ {
					if failed := runWithFailure(t, n, kept, restart); !failed {
						require.Greater(t, n, 6, "the story has more steps than this")
						return
					}
				}
			})
		}
	}
}

// runWithFailure tells a roll from one revision to another, and whether a write of it failed.
func runWithFailure(t *testing.T, n int, kept, restart bool) (failed bool) {
	t.Helper()
	l := newLab(t, newFakeRay())
	defer l.end()
	l.store.broken(func(write int) (bool, bool) {
		failed = failed || write == n
		return write == n, kept
	})
	ctx := context.Background()
	do := func(step func() error) {
		if err := step(); err != nil {
			require.ErrorIs(t, err, adapters.ErrUnavailable)
			if restart {
				l.run()
			}
			l.retry(step)
		}
	}
	ready := func(revision string, n int) (ids []string) {
		l.await(func() bool {
			ids = nil
			for _, r := range l.status() {
				if r.Revision == revision && r.State == mobula.StateReady {
					ids = append(ids, r.ID)
				}
			}
			return len(ids) == n
		})
		return ids
	}
	m := sim("m")
	do(func() error { return l.Apply(ctx, deployment(m, "r1", 2)) })
	before := ready("r1", 2)
	do(func() error { return l.Apply(ctx, deployment(m, "r2", 1)) })
	do(func() error { return l.Apply(ctx, deployment(m, "r1", 1, before[0])) })
	require.Equal(t, before[1:], ready("r1", 1), "the other one stays")
	do(func() error { return l.Cordon(ctx, "10.77.0.1", true) })
	do(func() error { return l.Cordon(ctx, "10.77.0.1", false) })
	do(func() error { return l.Apply(ctx, deployment(m, "r2", 2)) })
	do(func() error { return l.Remove(ctx, deployment(m, "r1", 0).Key) })
	after := ready("r2", 2)
	l.await(func() bool {
		running := l.ray.running()
		slices.Sort(running)
		return slices.Equal(after, running) && len(l.status()) == 2
	})
	return failed
}

func TestStoreThatCannotBeReadEither(t *testing.T) {
	l := newLab(t, newFakeRay())
	l.apply(deployment(sim("m"), "r", 1))
	l.all(1, mobula.StateReady)
	l.store.broken(func(int) (bool, bool) { return true, false })
	require.ErrorIs(t, l.Apply(t.Context(), deployment(sim("m"), "r", 2)), adapters.ErrUnavailable)
	l.store.broken(nil)
	l.apply(deployment(sim("m"), "r", 2))
	l.all(2, mobula.StateReady)
}

func TestLostMemoryIsFoundOnTheCluster(t *testing.T) {
	for _, mode := range []string{"actors", "jobs"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, newFakeRay(), func(r *mobula.Ray) { r.Owner, r.Mode = "me", mode })
			m := sim("org/m")
			l.apply(deployment(m, "r", 2))
			l.apply(deployment(sim("gone"), "r", 1))
			l.all(3, mobula.StateReady)
			l.retry(func() error { return l.Remove(t.Context(), deployment(sim("gone"), "r", 0).Key) })
			before := l.all(2, mobula.StateReady)
			l.await(func() bool {
				return !slices.ContainsFunc(l.ray.left(), func(s string) bool { return strings.Contains(s, "gone") })
			})
			l.end()
			submissions := l.ray.submitted()

			l.store.Store = state.NewInMemory()
			l.opts.Control = "another"
			l.ray.set(func() { l.ray.stuck = true }) // nothing new can start
			l.run()
			r := settings()
			r.Owner, r.Mode = "me", mode
			require.NoError(t, l.Configure(t.Context(), "f", mobula.Platform{Ray: &r}, false))
			after := l.all(2, mobula.StateReady)
			require.Equal(t, ids(before), ids(after))
			require.Equal(t, before[0].URL, after[0].URL)
			all, err := l.Deployments(t.Context(), "f")
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Empty(t, cmp.Diff(deployment(m, "r", 2), all[0]))
			l.apply(deployment(m, "r", 2))
			require.Equal(t, ids(before), ids(l.all(2, mobula.StateReady)))
			require.Equal(t, submissions, l.ray.submitted(), "nothing was told to Ray")
		})
	}
}

func TestWhatNobodyExplainsIsStopped(t *testing.T) {
	f := newFakeRay()
	f.actors = []*fakeActor{
		{Actor: Actor{ID: "a1", Name: "mobula/abcdefghij/m-r-abcde", Class: raycluster.ActorClass, State: "ALIVE"}},
		{Actor: Actor{ID: "a2", Name: "mobula/other/m-r-abcde", Class: raycluster.ActorClass, State: "ALIVE"}, stranger: true},
	}
	f.groups = []*fakeGroup{{Group: Group{Name: "mobula/abcdefghij/m-r-fghij", State: "CREATED"}}}
	l := newLab(t, f)
	l.await(func() bool {
		return !slices.ContainsFunc(f.left(), func(s string) bool { return strings.HasPrefix(s, "actor") || strings.HasPrefix(s, "group") })
	})
	require.Len(t, f.actors, 1, "the other's is left alone")
	require.Empty(t, l.status())
}

func TestTwoControlPlanesOfOneOwner(t *testing.T) {
	l := newLab(t, newFakeRay())
	l.apply(deployment(sim("m"), "r", 1))
	l.all(1, mobula.StateReady)
	l.ray.set(func() {
		l.ray.jobs = append(l.ray.jobs, &fakeJob{Job: Job{ID: "mobula-abcdefghij-xxx", Status: "SUCCEEDED", Metadata: map[string]string{metaOwner: "abcdefghij", metaControl: "rival"}}})
		// Its name begins like ours, and it is none of ours.
		l.ray.jobs = append(l.ray.jobs, &fakeJob{Job: Job{ID: "mobula-abcdefghij-2-xxx", Status: "SUCCEEDED", Metadata: map[string]string{metaOwner: "abcdefghij-2", metaControl: "neighbour"}}})
	})
	l.later(jobsEvery) // it is time to list them
	l.await(func() bool { _, err := l.Status(t.Context(), "f"); return err != nil })
	_, err := l.Status(t.Context(), "f")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "control plane rival uses owner abcdefghij on this cluster too")
	require.ErrorIs(t, l.Apply(t.Context(), deployment(sim("m"), "r", 2)), adapters.ErrUnavailable)
	l.later(rivalQuiet)
	l.apply(deployment(sim("m"), "r", 2))
	l.all(2, mobula.StateReady)
}

func TestClusterThatWasStartedAnew(t *testing.T) {
	for _, mode := range []string{"actors", "jobs"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, newFakeRay(), func(r *mobula.Ray) { r.Mode = mode })
			l.apply(deployment(sim("m"), "r", 2))
			before := l.all(2, mobula.StateReady)
			l.ray.down(true)
			l.await(func() bool { _, err := l.Status(t.Context(), "f"); return err != nil })
			l.ray.restart()
			l.ray.down(false)
			l.await(func() bool { return len(l.ray.running()) == 2 })
			require.Equal(t, ids(before), ids(l.all(2, mobula.StateReady)))
		})
	}
}

func TestFailuresAreTold(t *testing.T) {
	for name, tc := range map[string]struct {
		broken, failure, want string
	}{
		"no Ray in the interpreter": {
			broken: "Traceback (most recent call last):\n  File \"<string>\", line 1\nModuleNotFoundError: No module named 'ray'\n",
			want:   "the launcher job ran with a Python that has no Ray: set platform.ray.interpreter to one that has (ModuleNotFoundError: No module named 'ray')",
		},
		"no Python": {
			broken: "/bin/sh: 1: exec: python3: not found\n",
			want:   "the launcher job found no Python: set platform.ray.interpreter to one that has Ray (/bin/sh: 1: exec: python3: not found)",
		},
		"an engine that can't start": {
			failure: "exited with code 1\nINFO loading\nValueError: bad model\n",
			want:    "exited with code 1: ValueError: bad model",
		},
		"no engine": {failure: "no command vllm on node 10.0.0.2", want: "no command vllm on node 10.0.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRay()
			f.broken = tc.broken
			l := newLab(t, f)
			f.set(func() { f.stuck = tc.failure != "" })
			l.apply(deployment(sim("m"), "r", 1))
			id := l.status()[0].ID
			f.set(func() {
				f.stuck = false
				if tc.failure != "" {
					f.failure[id] = tc.failure
				}
			})
			require.Equal(t, tc.want, l.all(1, mobula.StateFailed)[0].Reason)
			f.set(func() { f.broken, f.failure = "", map[string]string{} })
			l.later(firstRetry)
			l.all(1, mobula.StateReady)
			require.Empty(t, l.status()[0].Reason)
		})
	}
}

func TestNameTakenBySomebodyElse(t *testing.T) {
	f := newFakeRay()
	l := newLab(t, f)
	f.set(func() { f.hold = true })
	l.apply(deployment(sim("m"), "r", 1))
	id := l.status()[0].ID
	f.set(func() {
		f.actors = append(f.actors, &fakeActor{Actor: Actor{ID: "x", Name: raycluster.ActorName("abcdefghij", id), Class: "Theirs", State: "ALIVE"}, stranger: true})
		f.hold = false
	})
	r := l.all(1, mobula.StateFailed)[0]
	require.Contains(t, r.Reason, "an actor named mobula/abcdefghij/"+id+" is in the Ray namespace mobula already and is not Mobula's (class Theirs)")
	l.apply(deployment(sim("m"), "r", 0))
	l.await(func() bool { return len(l.status()) == 0 })
	f.set(func() { require.Len(t, f.actors, 1) })
}

func TestNodeIsLostAndComesBack(t *testing.T) {
	f := newFakeRay(node("10.77.0.1", 4, 1), node("10.77.0.2", 4, 1))
	l := newLab(t, f)
	m := sim("m")
	m.Resources.GPUs = new(1)
	l.apply(deployment(m, "r", 2))
	l.all(2, mobula.StateReady)
	f.loseNode("10.77.0.2")
	var lost mobula.Replica
	l.await(func() bool {
		i := slices.IndexFunc(l.status(), func(r mobula.Replica) bool { return r.State == mobula.StatePending })
		if i < 0 {
			return false
		}
		lost = l.status()[i]
		return true
	})
	require.True(t, lost.NoRoom)
	require.Empty(t, lost.Hosts)
	require.Equal(t, "its node was lost; waits for 1 GPU, 1 CPU on one node: 10.77.0.1 has that in total, but not free (Ray: placement group RESCHEDULING, NO_RESOURCES)", lost.Reason)
	hosts, err := l.Hosts(t.Context())
	require.NoError(t, err)
	require.Equal(t, "Ray says that it is dead: missing too many heartbeats", hosts[1].Silent)
	f.set(func() { f.nodes[1].Alive = true })
	l.all(2, mobula.StateReady)
}

func TestCordonTakesWaitingReplicasElsewhere(t *testing.T) {
	f := newFakeRay(node("10.77.0.1", 4, 1), node("10.77.0.2", 4, 1))
	l := newLab(t, f)
	m := sim("m")
	m.Resources.GPUs = new(1)
	l.retry(func() error { return l.Cordon(t.Context(), "10.77.0.2", true) })
	l.apply(deployment(m, "r", 2))
	l.await(func() bool {
		return slices.ContainsFunc(l.status(), func(r mobula.Replica) bool {
			return r.State == mobula.StatePending && strings.Contains(r.Reason, "10.77.0.2 is cordoned")
		})
	})
	l.run() // it is durable
	l.retry(func() error { return l.Cordon(t.Context(), "10.77.0.2", false) })
	all := l.all(2, mobula.StateReady)
	require.NotEqual(t, all[0].Hosts, all[1].Hosts)
	require.ErrorContains(t, l.Forget(t.Context(), "10.77.0.1"), "Ray decides which nodes the cluster has")
}

func TestLogsGoOnAfterARestart(t *testing.T) {
	l := newLab(t, newFakeRay())
	l.apply(deployment(sim("m"), "r", 1))
	id := l.all(1, mobula.StateReady)[0].ID
	log, err := l.Logs(t.Context(), id, 10, true)
	require.NoError(t, err)
	line := make([]byte, 64)
	n, err := log.Read(line)
	require.NoError(t, err)
	l.ray.crash(id)
	again, err := log.Read(line[n:])
	require.NoError(t, err)
	require.Equal(t, string(line[:n]), string(line[n:n+again]), "the same actor, with another process")
	l.retry(func() error { return l.Remove(t.Context(), deployment(sim("m"), "r", 0).Key) })
	_, err = io.Copy(io.Discard, log) // it ends with the replica
	require.NoError(t, err)
	require.NoError(t, log.Close())
}

func TestConfigure(t *testing.T) {
	f := newFakeRay()
	l := newLab(t, f)
	ctx := t.Context()
	with := func(change func(*mobula.Ray)) mobula.Platform {
		r := settings()
		change(&r)
		return mobula.Platform{Ray: &r}
	}
	none := mobula.Platform{Static: &mobula.Static{}}
	l.apply(deployment(sim("m"), "r", 1))
	l.all(1, mobula.StateReady)

	for name, tc := range map[string]struct {
		p    mobula.Platform
		want string
	}{
		"namespace": {with(func(r *mobula.Ray) { r.Namespace = "n" }), "platform.ray.namespace is mobula and can't become n while there are deployments"},
		"owner":     {with(func(r *mobula.Ray) { r.Owner = "o" }), "platform.ray.owner is abcdefghij and can't become o while there are deployments"},
		"platform":  {none, "fleet f has deployments on the Ray cluster http://ray:8265: delete the models first"},
	} {
		for _, dry := range []bool{true, false} {
			require.ErrorContains(t, l.Configure(ctx, "f", tc.p, dry), tc.want, name)
		}
	}
	require.NoError(t, l.Configure(ctx, "another", none, false), "it is none of its business")
	other := newFakeRay()
	other.session = "another"
	dial := l.dial
	l.dial = func(r mobula.Ray) (API, error) {
		if r.Address == "http://other:8265" {
			return other, nil
		}
		return dial(r)
	}
	elsewhere := with(func(r *mobula.Ray) { r.Address = "http://other:8265" })
	require.ErrorContains(t, l.Configure(ctx, "f", elsewhere, false), "http://other:8265 is not known to be the cluster at http://ray:8265")
	require.NoError(t, l.Configure(ctx, "f", with(func(r *mobula.Ray) { r.Poll, r.TokenEnv, r.Address = 3e6, "T", "http://ray2:8265" }), false), "the same cluster by another name")
	l.all(1, mobula.StateReady)
	require.Equal(t, 1, f.submitted())

	f.set(func() { f.fail = func(string) error { return ErrDenied } })
	require.ErrorIs(t, l.Configure(ctx, "f", with(func(r *mobula.Ray) { r.TokenEnv = "U" }), false), ErrDenied)
	f.down(true)
	l.await(func() bool { _, err := l.Status(ctx, "f"); return err != nil })
	require.ErrorIs(t, l.Configure(ctx, "f", with(func(r *mobula.Ray) { r.Address = "http://ray2:8265" }), false), adapters.ErrUnavailable)
	require.NoError(t, l.Configure(ctx, "f", elsewhere, true))
	f.down(false)
	l.all(1, mobula.StateReady)
	l.retry(func() error { return l.Remove(ctx, deployment(sim("m"), "r", 0).Key) })
	l.await(func() bool { return l.Configure(ctx, "f", none, false) == nil })
	require.False(t, l.Configured())
	require.Empty(t, f.left())
	require.ErrorIs(t, l.Apply(ctx, deployment(sim("m"), "r", 1)), adapters.ErrUnavailable)
	all, err := l.Status(ctx, "f")
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestSettingsOutliveARestart(t *testing.T) {
	l := newLab(t, newFakeRay())
	l.apply(deployment(sim("m"), "r", 1))
	before := l.all(1, mobula.StateReady)
	l.ray.down(true)
	l.run()
	_, err := l.Status(t.Context(), "f")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	up := make(chan []mobula.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Discoverer().Run(ctx, up) }()
	all := <-up
	require.Len(t, all, 1, "the last known ones")
	require.Equal(t, before[0].URL, all[0].URL)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	l.ray.down(false)
	require.Equal(t, ids(before), ids(l.all(1, mobula.StateReady)))
}

func TestJobsTellWhatTheyDo(t *testing.T) {
	f := newFakeRay()
	for _, n := range f.nodes {
		n.Labels["zone"] = "b"
		maps.Copy(n.Resources, map[string]float64{"accelerator_type:H100": 1, "slot": 4})
	}
	l := newLab(t, f, func(r *mobula.Ray) {
		r.Interpreter, r.Ports = "/venv/python", mobula.PortRange{Min: 30000, Max: 30100}
		r.RuntimeEnv = map[string]any{"pip": []any{"vllm"}, "env_vars": map[string]any{"A": "1"}}
	})
	f.set(func() { f.hold = true })
	m := mobula.NewModel("org/m")
	m.Resources.Hosts, m.Resources.HostLabels = 2, map[string]string{"zone": "b"}
	m.Engine.Args = []string{"-tp", "4", "-pp", "2"}
	m.Ray.AcceleratorType, m.Ray.Resources = "H100", map[string]float64{"slot": 2}
	m.Ray.RuntimeEnv = map[string]any{"env_vars": map[string]any{"B": "2"}}
	l.await(func() bool { return l.Check(t.Context(), deployment(m, "r", 2)) == nil })
	l.apply(deployment(m, "r", 2))
	l.await(func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.jobs) == 1 })
	var job fakeJob
	f.set(func() { job = *f.jobs[0] })
	all := ids(l.status())
	require.Equal(t, "start "+strings.Join(all, ", "), job.Metadata[metaWhat])
	require.Equal(t, "abcdefghij", job.Metadata[metaControl])
	s := job.order.Start[0]
	require.JSONEq(t, `{"env_vars":{"B":"2"},"pip":["vllm"]}`, string(s.RuntimeEnv))
	s.RuntimeEnv = nil
	common := []string{"vllm", "serve", "org/m", "--host", "{host}", "--port", "{port}", "--served-model-name", "org/m", "--enable-prompt-tokens-details", "--nnodes", "2", "--node-rank"}
	master := []string{"--master-addr", "{master}", "--master-port", "{masterPort}"}
	want := raycluster.Start{
		Name: "mobula/abcdefghij/" + all[0], Fleet: "f", Model: "org/m", Revision: "r", Replica: all[0],
		Argv: [][]string{
			slices.Concat(common, []string{"0"}, master, m.Engine.Args),
			slices.Concat(common, []string{"1"}, master, []string{"--headless"}, m.Engine.Args),
		},
		Env:    map[string]string{"PYTHONUNBUFFERED": "1", "VLLM_HOST_IP": "{host}"},
		Bundle: map[string]float64{"CPU": 1, "GPU": 4, "accelerator_type:H100": 0.001, "slot": 2},
		Labels: map[string]string{"zone": "b"}, PortMin: 30000, PortMax: 30100,
		StartTimeout: 1800, StopTimeout: 45, Attempts: 3, Backoff: 1, MaxBackoff: 30, Stable: 600,
	}
	require.Empty(t, cmp.Diff(want, s))
	require.Equal(t, "the launcher job "+job.ID+" starts it", l.status()[0].Reason)
	f.set(func() { f.jobs[0].Message = "Job has not started yet. It may be waiting for resources." })
	l.await(func() bool { return strings.Contains(l.status()[0].Reason, "waiting for resources") })
	f.set(func() { f.hold = false })
	require.Equal(t, []string{"10.77.0.1", "10.77.0.2"}, l.all(2, mobula.StateReady)[0].Hosts)
}

func TestOrdersAreCutIntoJobs(t *testing.T) {
	l := newLab(t, newFakeRay(node("10.77.0.1", 1000, 0)))
	m := sim("m")
	m.Engine.Env = map[string]string{"LONG": strings.Repeat("x", raycluster.MaxOrderBytes/4)}
	l.apply(deployment(m, "r", 6))
	l.all(6, mobula.StateReady)
	require.GreaterOrEqual(t, l.ray.submitted(), 2)
	m.Engine.Env["LONG"] = strings.Repeat("x", raycluster.MaxOrderBytes)
	l.apply(deployment(m, "r2", 1))
	l.await(func() bool {
		return slices.ContainsFunc(l.status(), func(r mobula.Replica) bool {
			return r.State == mobula.StateFailed && r.Reason == errTooLong.Error()
		})
	})
	l.apply(deployment(sim("many"), "r", 120))
	l.await(func() bool { return len(l.ray.running()) == 126 })
}

func TestSubmissionThatFailsIsTriedAgain(t *testing.T) {
	f := newFakeRay()
	l := newLab(t, f)
	f.set(func() {
		f.fail = func(method string) error {
			if method == "Submit" {
				return errors.New("HTTP 500: no space left")
			}
			return nil
		}
	})
	l.apply(deployment(sim("m"), "r", 1))
	r := l.all(1, mobula.StateFailed)[0]
	require.Equal(t, "Ray did not take the launcher job: HTTP 500: no space left", r.Reason)
	f.down(false)
	l.later(firstRetry)
	require.Equal(t, 0, l.all(1, mobula.StateReady)[0].Restarts)
}

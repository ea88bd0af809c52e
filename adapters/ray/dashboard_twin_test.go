package ray

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/ray/raytest"
	"github.com/mobula-serve/mobula/raycluster"
)

// twin is a twin of a cluster, and a client of it that has uploaded the launcher.
type twin struct {
	*raytest.Cluster
	*Dashboard
	t   *testing.T
	pkg string
}

func newTwin(t *testing.T, o raytest.Options) *twin {
	t.Helper()
	w := &twin{Cluster: raytest.New(t, o), t: t}
	d, err := NewDashboard(DashboardOptions{Address: w.URL()})
	require.NoError(t, err)
	t.Cleanup(d.Close)
	w.Dashboard = d
	pkg, content, err := raycluster.Package()
	require.NoError(t, err)
	require.NoError(t, w.Upload(t.Context(), pkg, content))
	w.pkg = pkg
	return w
}

func (w *twin) order(id string, o raycluster.Order) {
	w.t.Helper()
	o.Version, o.Namespace = raycluster.OrderVersion, "mobula"
	text, err := json.Marshal(o)
	require.NoError(w.t, err)
	require.NoError(w.t, w.Submit(w.t.Context(), Submission{
		ID: id, Entrypoint: raycluster.Entrypoint(""), Metadata: map[string]string{"mobula/what": "test"},
		RuntimeEnv: map[string]any{"py_modules": []string{"gcs://" + w.pkg}, "env_vars": map[string]string{raycluster.OrderVariable: string(text)}},
	}))
	w.Settle()
}

func (w *twin) state() *State {
	w.t.Helper()
	s, err := w.State(w.t.Context(), "mobula")
	require.NoError(w.t, err)
	return s
}

func (w *twin) job(id string) Job {
	w.t.Helper()
	jobs, err := w.Dashboard.Jobs(w.t.Context(), id)
	require.NoError(w.t, err)
	require.Len(w.t, jobs, 1)
	return jobs[0]
}

func startOf(replica string, parts int, bundle map[string]float64) raycluster.Start {
	return raycluster.Start{
		Name: raycluster.ActorName("own", replica), Fleet: "f", Model: "m", Revision: "r", Replica: replica,
		Argv: make([][]string, parts), Bundle: bundle, StartTimeout: 60, StopTimeout: 5, Attempts: 3,
	}
}

func TestTwinStartsAndStopsReplicas(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	gpu := map[string]float64{"CPU": 1, "GPU": 8}
	w.order("j1", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, gpu), startOf("b", 1, gpu), startOf("c", 1, gpu)}})
	require.Equal(t, "SUCCEEDED", w.job("j1").Status)
	require.Equal(t, []string{"a", "b"}, w.Running())

	s := w.state()
	require.Empty(t, s.Partial)
	require.Len(t, s.Actors, 3)
	byName := map[string]Actor{}
	for _, a := range s.Actors {
		byName[a.Name] = a
	}
	a := byName["mobula/own/a"]
	p, ok := raycluster.ParsePublication(a.Repr)
	require.True(t, ok)
	require.Equal(t, raycluster.Publication{
		Version: 1, URL: p.URL, Fleet: "f", Model: "m", Revision: "r", Replica: "a", PID: a.PID, Devices: "0,1,2,3,4,5,6,7", ReadyAt: p.ReadyAt,
	}, p)
	require.True(t, strings.HasPrefix(p.URL, "http://127.0.0.1:"))
	require.Equal(t, w.job("j1").JobID, a.JobID)
	require.Equal(t, raycluster.ActorClass, a.Class)
	c := byName["mobula/own/c"]
	require.Equal(t, Actor{
		ID: c.ID, Class: raycluster.ActorClass, Name: "mobula/own/c", State: "PENDING_CREATION", JobID: a.JobID, GroupID: c.GroupID,
	}, c)
	for _, g := range s.Groups {
		if g.Name == c.Name {
			require.Equal(t, Group{ID: c.GroupID, Name: c.Name, State: "PENDING", Scheduling: "NO_RESOURCES", Nodes: []string{""}, Bundle: gpu}, g)
		}
	}

	again := w.Actors()
	w.order("j2", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, gpu)}})
	require.Equal(t, again, w.Actors(), "what is there is left alone")
	w.order("j3", raycluster.Order{Detached: true, Stop: []raycluster.Stop{{Name: "mobula/own/a", Timeout: 1}, {Name: "mobula/own/none", Timeout: 1}}})
	require.Equal(t, []string{"b", "c"}, w.Running(), "c has the place of a")
	log, err := w.JobLogs(t.Context(), "j3")
	require.NoError(t, err)
	require.Contains(t, log, "stopped mobula/own/a\ngone already mobula/own/none\n")
	dead, err := w.Dead(t.Context(), "mobula")
	require.NoError(t, err)
	require.Len(t, dead, 1)
	require.Equal(t, "The actor is dead because it was killed by `ray.kill`.", dead[0].Death)
}

func TestTwinCrashesAndLosesNodes(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	w.order("j1", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, map[string]float64{"GPU": 8}), startOf("g", 1, map[string]float64{"GPU": 8})}})
	before := w.state().Actors
	w.Crash("a")
	require.Equal(t, []string{"g"}, w.Running())
	w.Settle()
	after := w.state().Actors
	require.Equal(t, before[0].ID, after[0].ID)
	crashed := 0
	for i := range after {
		p, _ := raycluster.ParsePublication(after[i].Repr)
		if p.Replica == "a" {
			crashed++
			require.Equal(t, 1, p.Generation)
			require.Equal(t, 1, after[i].Restarts)
			require.Equal(t, after[i].PID, p.PID)
			require.NotEqual(t, before[i].PID, p.PID)
		}
	}
	require.Equal(t, 1, crashed)

	w.LoseNode("10.77.0.2")
	w.Settle()
	require.Len(t, w.Running(), 1)
	s := w.state()
	states := map[string]int{}
	for _, a := range s.Actors {
		states[a.State]++
	}
	for _, g := range s.Groups {
		states[g.State]++
	}
	require.Equal(t, map[string]int{"ALIVE": 1, "RESTARTING": 1, "CREATED": 1, "RESCHEDULING": 1}, states)
	require.False(t, s.Nodes[1].Alive)
	w.AddNode(raytest.Node{IP: "10.77.0.3", CPUs: 4, GPUs: 8})
	w.Settle()
	require.Equal(t, []string{"a", "g"}, w.Running())
}

func TestTwinOfAGang(t *testing.T) {
	w := newTwin(t, raytest.Options{Manual: true})
	w.order("j1", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 2, map[string]float64{"GPU": 4}), startOf("b", 3, map[string]float64{"GPU": 1})}})
	s := w.state()
	require.Len(t, s.Actors, 5)
	for _, g := range s.Groups {
		if g.Name == "mobula/own/a" {
			require.Equal(t, "CREATED", g.State)
			require.NotEqual(t, g.Nodes[0], g.Nodes[1], "STRICT_SPREAD")
		} else {
			require.Equal(t, "INFEASIBLE", g.Scheduling, "three nodes are needed")
		}
	}
	require.False(t, w.Ready("b"))
	require.True(t, w.Ready("a"))
	require.False(t, w.Ready("a"))
	ranks := map[int]bool{}
	for _, a := range w.state().Actors {
		if p, ok := raycluster.ParsePublication(a.Repr); ok {
			ranks[p.Rank] = p.URL != ""
		}
	}
	require.Equal(t, map[int]bool{0: true, 1: false}, ranks)
	w.Fail("a", "no command vllm on node 10.77.0.1")
	dead, err := w.Dead(t.Context(), "mobula")
	require.NoError(t, err)
	require.Len(t, dead, 2)
	require.Equal(t, "no command vllm on node 10.77.0.1", dead[0].Death)
}

func TestTwinPlacesByLabels(t *testing.T) {
	w := newTwin(t, raytest.Options{Nodes: []raytest.Node{
		{IP: "10.0.0.1", CPUs: 8}, {IP: "10.0.0.2", CPUs: 8, Labels: map[string]string{"zone": "b"}},
	}})
	for replica, selector := range map[string]map[string]string{
		"equal": {"zone": "b"}, "among": {"zone": "in(a, b)"}, "none": {"zone": "nowhere"}, "not": {"zone": "!b"}, "nota": {"zone": "!in(a,b)"},
	} {
		s := startOf(replica, 1, map[string]float64{"CPU": 1})
		s.Labels = selector
		w.order("j-"+replica, raycluster.Order{Detached: true, Start: []raycluster.Start{s}})
	}
	s := w.state()
	where := map[string]string{}
	for _, g := range s.Groups {
		for _, n := range s.Nodes {
			if n.ID == g.Nodes[0] {
				where[g.Name] = n.IP
			}
		}
	}
	require.Equal(t, map[string]string{
		"mobula/own/equal": "10.0.0.2", "mobula/own/among": "10.0.0.2", "mobula/own/not": "10.0.0.1", "mobula/own/nota": "10.0.0.1",
	}, where)
}

func TestTwinInJobsMode(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	one := func(id string) {
		w.order(id, raycluster.Order{Start: []raycluster.Start{startOf("a", 1, map[string]float64{"GPU": 1})}})
	}
	one("j1")
	require.Equal(t, "RUNNING", w.job("j1").Status)
	require.Equal(t, []string{"a"}, w.Running())
	require.Error(t, w.DeleteJob(t.Context(), "j1"))
	w.Crash("a")
	require.Equal(t, "FAILED", w.job("j1").Status)
	require.Empty(t, w.Running())
	require.Empty(t, w.Groups())
	one("j2")
	require.NoError(t, w.StopJob(t.Context(), "j2"))
	require.Equal(t, "STOPPED", w.job("j2").Status)
	require.Empty(t, w.Actors())
	require.Empty(t, w.Groups())
	require.NoError(t, w.DeleteJob(t.Context(), "j1"))
	require.NoError(t, w.DeleteJob(t.Context(), "j2"))
	require.Empty(t, w.Cluster.Jobs())
}

func TestTwinRefusesWhatRayRefuses(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	start := raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, nil)}}
	w.AddActor("mobula", "mobula/own/a", "Trainer")
	w.order("taken", start)
	require.Equal(t, "FAILED", w.job("taken").Status)
	require.Contains(t, w.job("taken").Message, "name taken: mobula/own/a is an actor of class Trainer")

	for id, s := range map[string]Submission{
		"nopkg":   {Entrypoint: raycluster.Entrypoint(""), RuntimeEnv: map[string]any{"py_modules": []string{"gcs://_ray_pkg_0000.zip"}}},
		"nopy":    {Entrypoint: raycluster.Entrypoint("/no/snake")},
		"noorder": {Entrypoint: raycluster.Entrypoint("/usr/bin/python3.12")},
		"other":   {Entrypoint: "python train.py"},
	} {
		s.ID = id
		require.NoError(t, w.Submit(t.Context(), s))
		require.NoError(t, w.Submit(t.Context(), s), "twice is once")
		w.Settle()
		require.Equal(t, "FAILED", w.job(id).Status, id)
		require.NotEmpty(t, w.job(id).Message)
	}
	require.Contains(t, w.job("nopy").Message, "/bin/sh: 1: exec: /no/snake: not found")
	require.Contains(t, w.job("nopkg").Message, "gcs://_ray_pkg_0000.zip")

	w.HoldJobs(true)
	w.order("held", start)
	require.Equal(t, "PENDING", w.job("held").Status)
	w.HoldJobs(false)
	w.Settle()
	require.Equal(t, "FAILED", w.job("held").Status)
}

func TestTwinLauncherThatDies(t *testing.T) {
	for steps, want := range [][2]int{{0, 0}, {1, 0}, {1, 1}, {1, 2}, {2, 2}, {2, 3}} { // groups, actors
		w := newTwin(t, raytest.Options{})
		w.Interrupt(steps)
		o := raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 2, nil), startOf("b", 1, nil)}}
		w.order("j1", o)
		require.Equal(t, "FAILED", w.job("j1").Status)
		require.Equal(t, want, [2]int{len(w.Groups()), len(w.Actors())}, "after %d steps", steps)
		w.order("j2", o)
		require.Equal(t, "SUCCEEDED", w.job("j2").Status)
		require.Equal(t, []string{"a", "b"}, w.Running(), "the next one completes it")
		require.Len(t, w.Actors(), 3)
	}
}

func TestTwinIsAway(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	for name, away := range map[string]func(bool){"GCS": w.Down, "dashboard": w.Cut} {
		away(true)
		_, err := w.State(t.Context(), "mobula")
		require.ErrorIs(t, err, adapters.ErrUnavailable, name)
		_, err = w.Version(t.Context())
		require.ErrorIs(t, err, adapters.ErrUnavailable, name)
		_, err = w.Dashboard.Jobs(t.Context(), "")
		require.ErrorIs(t, err, adapters.ErrUnavailable, name)
		require.ErrorIs(t, w.Submit(t.Context(), Submission{ID: "x", Entrypoint: "true"}), adapters.ErrUnavailable, name)
		require.ErrorIs(t, w.Upload(t.Context(), "_ray_pkg_11.zip", nil), adapters.ErrUnavailable, name)
		away(false)
		w.state()
	}
	before, err := w.Version(t.Context())
	require.NoError(t, err)
	w.Restart()
	after, err := w.Version(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, before.Session, after.Session)
}

func TestTwinTellsWhatOfOthersWasTouched(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	w.Foreign()
	s := w.state()
	require.Len(t, s.Actors, 2)
	require.Len(t, s.Groups, 2, "Ray does not tell a group's namespace")
	require.Empty(t, w.Touched())
	require.Empty(t, w.Actors())
	require.Empty(t, w.Groups())
	require.Empty(t, w.Cluster.Jobs())
	require.NoError(t, w.StopJob(t.Context(), "their-job"))
	w.order("j", raycluster.Order{Detached: true, Stop: []raycluster.Stop{{Name: raycluster.ActorName("somebody", "llama-0000-aaaaa")}}})
	require.NoError(t, w.DeployServe(t.Context(), json.RawMessage(`{"applications":[]}`)))
	require.Equal(t, []string{
		"Serve application their-app", "actor mobula/somebody/llama-0000-aaaaa", "job their-job", "placement group mobula/somebody/llama-0000-aaaaa",
	}, w.Touched())
}

func TestTwinServe(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	s, err := w.Serve(t.Context())
	require.NoError(t, err)
	require.Equal(t, &ServeState{}, s)
	config := json.RawMessage(`{"proxy_location":"EveryNode","http_options":{"host":"0.0.0.0","port":8001},"applications":[{"name":"a","route_prefix":"/a","import_path":"x:y"}]}`)
	require.NoError(t, w.DeployServe(t.Context(), config))
	w.Settle()
	s, err = w.Serve(t.Context())
	require.NoError(t, err)
	require.Len(t, s.Proxies, 2)
	require.Equal(t, 8001, s.Port)
	require.Equal(t, "RUNNING", s.Apps[0].Status)
	require.JSONEq(t, `{"name":"a","route_prefix":"/a","import_path":"x:y"}`, string(s.Apps[0].Config))
	require.ErrorContains(t, w.DeployServe(t.Context(), json.RawMessage(`{"applications":[{"name":"b"}]}`)), "Field required")
}

// TestDashboardReadsCutLists: of more objects than Ray's limit the dead ones hide the living, unless they are asked for by state.
func TestDashboardReadsCutLists(t *testing.T) {
	w := newTwin(t, raytest.Options{SourceLimit: 4})
	for _, id := range []string{"a", "b", "c"} {
		w.order("start-"+id, raycluster.Order{Detached: true, Start: []raycluster.Start{startOf(id, 1, nil)}})
	}
	require.Empty(t, w.state().Partial)
	w.order("stop", raycluster.Order{Detached: true, Stop: []raycluster.Stop{{Name: "mobula/own/a"}, {Name: "mobula/own/b"}, {Name: "mobula/own/c"}}})
	for _, id := range []string{"d", "e", "f"} {
		w.order("start-"+id, raycluster.Order{Detached: true, Start: []raycluster.Start{startOf(id, 1, nil)}})
	}
	for range dashboardPieces + 2 {
		s := w.state()
		require.Len(t, s.Actors, 3)
		require.Equal(t, "Ray looked at 4 of 6 placement groups: start its head with a higher RAY_MAX_LIMIT_FROM_DATA_SOURCE", s.Partial)
	}
	for _, id := range []string{"g", "h"} {
		w.order("start-"+id, raycluster.Order{Detached: true, Start: []raycluster.Start{startOf(id, 1, nil)}})
	}
	s := w.state()
	require.Len(t, s.Actors, 4)
	require.Contains(t, s.Partial, "actors in state ALIVE")
}

func TestDashboardGivesFreshStates(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	w.order("j", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, nil), startOf("b", 1, nil)}})
	one, two := w.state(), w.state()
	require.Empty(t, cmp.Diff(one.Actors, two.Actors))
	one.Actors[0], one.Groups[0], one.Nodes[0] = Actor{}, Group{}, Node{}
	three := w.state()
	require.Empty(t, cmp.Diff(two.Actors, three.Actors), "a State is the caller's own")
	require.Empty(t, cmp.Diff(two.Groups, three.Groups))
	require.Empty(t, cmp.Diff(two.Nodes, three.Nodes))
	w.Crash("a")
	require.NotEmpty(t, cmp.Diff(three.Actors, w.state().Actors))
}

func TestDashboardFollowsLogs(t *testing.T) {
	w := newTwin(t, raytest.Options{})
	w.order("j", raycluster.Order{Detached: true, Start: []raycluster.Start{startOf("a", 1, nil)}})
	id := w.state().Actors[0].ID
	ctx, cancel := context.WithCancel(t.Context())
	log, err := w.Logs(ctx, id, 2, true)
	require.NoError(t, err)
	lines := bufio.NewReader(log)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "ready at http://")
	w.Print("a", ":task_name:x", "hello")
	line, err = lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
	cancel()
	_, err = io.Copy(io.Discard, lines)
	require.NoError(t, err, "it ends as a log does")
	require.NoError(t, log.Close())

	_, err = w.Logs(t.Context(), "none", 2, true)
	require.ErrorContains(t, err, "not found")
	require.NotErrorIs(t, err, adapters.ErrUnavailable)
}

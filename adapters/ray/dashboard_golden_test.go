package ray

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/adapters"
)

// golden is an answer that a real dashboard (Ray 2.60.0) gave.
type golden struct {
	method, path string
	code         int
	body         string
}

func readGolden(tb testing.TB, name string) golden {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "dashboard", name))
	require.NoError(tb, err)
	g := golden{code: http.StatusOK}
	rest := string(text)
	for strings.HasPrefix(rest, "# ") {
		line, more, _ := strings.Cut(rest, "\n")
		rest = more
		if code, ok := strings.CutPrefix(line, "# -> HTTP "); ok {
			g.code, err = strconv.Atoi(code)
			require.NoError(tb, err)
			break
		}
		if f := strings.Fields(line); len(f) == 3 && g.path == "" {
			path, _, _ := strings.Cut(f[2], "?")
			g.method, g.path = f[1], path
		}
	}
	g.body = rest
	return g
}

// replay serves golden answers by method and path, and counts the requests of each.
func replay(tb testing.TB, names ...string) (*Dashboard, map[string]int) {
	tb.Helper()
	answers, asked := map[string]golden{}, map[string]int{}
	for _, name := range names {
		g := readGolden(tb, name)
		answers[g.method+" "+g.path] = g
	}
	return dashboardTo(tb, func(w http.ResponseWriter, r *http.Request) {
		key := r.Method + " " + r.URL.Path
		asked[key]++
		g, ok := answers[key]
		if !ok {
			http.Error(w, "404: Not Found", http.StatusNotFound)
			return
		}
		w.WriteHeader(g.code)
		_, _ = w.Write([]byte(g.body))
	}), asked
}

// dashboardTo is a client of a server that answers so.
func dashboardTo(tb testing.TB, answer http.HandlerFunc) *Dashboard {
	tb.Helper()
	server := httptest.NewServer(answer)
	tb.Cleanup(server.Close)
	d, err := NewDashboard(DashboardOptions{Address: server.URL})
	require.NoError(tb, err)
	tb.Cleanup(d.Close)
	return d
}

const (
	goldenHead   = "259806bc89736e10b507ce5c43f1927da96c54ede350aefe7c9cadd9"
	goldenWorker = "3778a568caef7a5a2b5235982f8c31f5cbc0a3b10c059af92f0795fe"
)

func TestDashboardReadsRealState(t *testing.T) {
	d, _ := replay(t, "state_actors.json", "state_pgs.json", "state_nodes.json")
	s, err := d.State(t.Context(), "vserve")
	require.NoError(t, err)
	require.Empty(t, s.Partial)
	require.WithinDuration(t, time.Now(), s.At, time.Minute)
	require.Len(t, s.Actors, 3)
	require.Empty(t, cmp.Diff(Actor{
		ID: "1f1f884f0a60552314f8fb0802000000", Class: "Engine", Name: "demo-0", State: "ALIVE", JobID: "02000000", NodeID: goldenWorker, PID: 19995,
		Repr: "engine@10.77.0.2:46127", GroupID: "e77b30e13b04bf84987016752de602000000",
	}, s.Actors[0]))
	require.Empty(t, s.Groups, "those are not named as ours are")
	require.Empty(t, cmp.Diff([]Node{
		{
			ID: goldenHead, IP: "10.77.0.1", Name: "10.77.0.1", Head: true, Alive: true, Labels: map[string]string{"ray.io/node-id": goldenHead},
			Resources: map[string]float64{
				"memory": 16941063936, "CPU": 4, "vllm_node": 1, "object_store_memory": 1e8, "GPU": 2, "node:__internal_head__": 1, "node:10.77.0.1": 1,
			},
		},
		{
			ID: goldenWorker, IP: "10.77.0.2", Name: "10.77.0.2", Alive: true, Labels: map[string]string{"zone": "b", "ray.io/node-id": goldenWorker},
			Resources: map[string]float64{"memory": 16462171904, "object_store_memory": 1e8, "GPU": 2, "node:10.77.0.2": 1, "CPU": 4},
		},
	}, s.Nodes))

	other, err := d.State(t.Context(), "VSERVE") // Ray takes upper and lower case for the same
	require.NoError(t, err)
	require.Empty(t, other.Actors)
}

func TestDashboardReadsStateAfterTheLossOfANode(t *testing.T) {
	d, _ := replay(t, "state_actors_after_node_loss.json", "state_pgs_after_node_loss.json", "state_nodes_after_loss.json")
	s, err := d.State(t.Context(), "vserve")
	require.NoError(t, err)
	require.Equal(t, "RESTARTING", s.Actors[0].State)
	require.Equal(t, 2, s.Actors[0].Restarts)
	require.False(t, s.Nodes[1].Alive)
	require.Equal(t, "Unexpected termination: health check failed due to missing too many heartbeats", s.Nodes[1].Died)
}

func TestDashboardReadsGroups(t *testing.T) {
	d, _ := replay(t, "state_actors_cut.json", "state_pgs_cut.json", "state_nodes.json")
	s, err := d.State(t.Context(), "mobula")
	require.NoError(t, err)
	got := map[string]Group{}
	for _, g := range s.Groups {
		got[g.Name] = g
	}
	node := "ea8e28e682a886834fbeeb19dc8155619a9c2c6dc2634ae177ccf83d"
	require.Equal(t, "FINISHED", got["mobula/o/full1"].Scheduling)
	require.Equal(t, []string{node}, got["mobula/o/full1"].Nodes)
	require.Equal(t, map[string]float64{"GPU": 2, "CPU": 0.1}, got["mobula/o/full1"].Bundle)
	require.Equal(t, Group{
		ID: got["mobula/o/full2"].ID, Name: "mobula/o/full2", State: "PENDING", Scheduling: "NO_RESOURCES", Nodes: []string{""},
		Bundle: map[string]float64{"GPU": 2, "CPU": 0.1},
	}, got["mobula/o/full2"])
	require.NotContains(t, got, "mobula/o/pgrm", "it is removed")
	require.Contains(t, s.Partial, "Ray looked at 6 of 11 placement groups: start its head with a higher RAY_MAX_LIMIT_FROM_DATA_SOURCE")
}

func TestDashboardSaysWhyActorsDied(t *testing.T) {
	d, _ := replay(t, "state_actors_dead.json")
	dead, err := d.Dead(t.Context(), "mobula")
	require.NoError(t, err)
	got := map[string]string{}
	for _, a := range dead {
		got[a.Name] = a.Death
	}
	require.Equal(t, "no command vllm on node 10.79.0.1: x\nlast line 1\nlast line 2", got["mobula/o/fail"])
	require.Equal(t, "The actor is dead because it was killed by `ray.kill`.", got["mobula/o/gone"])
	require.Contains(t, got["mobula/o/exit"], "exit_actor() is called.")
	head, rest, _ := strings.Cut(got["mobula/o/env"], "\n")
	require.Equal(t, "Could not create the actor because its associated runtime env failed to be created.", head)
	require.Contains(t, rest, "OSError: Failed to download runtime_env file package gcs://_ray_pkg_00000000000000000000.zip")
}

func TestDashboardReadsJobs(t *testing.T) {
	d, _ := replay(t, "jobs_list.json", "jobs_logs_A.json", "version.json", "gcs_healthz.txt", "jobs_stop_B.json", "jobs_delete.json")
	jobs, err := d.Jobs(t.Context(), "vs-demo-")
	require.NoError(t, err)
	require.Len(t, jobs, 3)
	require.Empty(t, cmp.Diff(Job{
		ID: "vs-demo-a2", Status: "SUCCEEDED", Message: "Job finished successfully.", JobID: "02000000",
		Metadata: map[string]string{"vserve/model": "demo", "vserve/rev": "1"},
		Started:  time.UnixMilli(1795356848016), Ended: time.UnixMilli(1795356880035),
	}, jobs[0]))
	require.True(t, jobs[1].Ended.IsZero())
	none, err := d.Jobs(t.Context(), "mobula-")
	require.NoError(t, err)
	require.Empty(t, none)

	log, err := d.JobLogs(t.Context(), "vs-demo-a2")
	require.NoError(t, err)
	require.Contains(t, log, "Running entrypoint for job vs-demo-a2")
	log, err = d.JobLogs(t.Context(), "nope")
	require.NoError(t, err)
	require.Empty(t, log)

	v, err := d.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, Version{Ray: "2.60.0", Session: "session_2026-11-22_14-07-16_751819_8581"}, v)
	require.NoError(t, d.StopJob(t.Context(), "vs-demo-b0"))
	require.NoError(t, d.StopJob(t.Context(), "nope"))
	require.NoError(t, d.DeleteJob(t.Context(), "vs-demo-a"))
	require.NoError(t, d.DeleteJob(t.Context(), "nope"))
}

func TestDashboardReadsServe(t *testing.T) {
	d, _ := replay(t, "serve_get_running.json")
	s, err := d.Serve(t.Context())
	require.NoError(t, err)
	require.True(t, s.Running)
	require.Equal(t, "10.77.0.1", s.Host)
	require.Equal(t, 18000, s.Port)
	require.False(t, s.TLS)
	require.Equal(t, []ServeProxy{{NodeID: goldenHead, NodeIP: "10.77.0.1", Status: "HEALTHY"}}, s.Proxies)
	require.Len(t, s.Apps, 1)
	require.Equal(t, "RUNNING", s.Apps[0].Status)
	require.Equal(t, "/demo", s.Apps[0].RoutePrefix)
	require.Contains(t, string(s.Apps[0].Config), `"import_path": "vapp:build"`)
	require.Contains(t, string(s.Config), `"proxy_location":"HeadOnly"`)
	require.Contains(t, string(s.Config), `"port":18000`)
	require.Contains(t, string(s.Config), `"import_path":"vapp:build"`)

	d, _ = replay(t, "serve_get_empty.json", "serve_put.json")
	s, err = d.Serve(t.Context())
	require.NoError(t, err)
	require.Equal(t, &ServeState{}, s)
	require.NoError(t, d.DeployServe(t.Context(), []byte(`{}`)))
}

func TestDashboardErrorsOfARealCluster(t *testing.T) {
	submit := func(t *testing.T, d *Dashboard) error {
		t.Helper()
		return d.Submit(t.Context(), Submission{ID: "vs-demo-a2", Entrypoint: "true"})
	}
	state := func(t *testing.T, d *Dashboard) error {
		t.Helper()
		_, err := d.State(t.Context(), "mobula")
		return err
	}
	for name, tc := range map[string]struct {
		files []string
		call  func(*testing.T, *Dashboard) error
		is    error
		says  string
		tries int
	}{
		"a job that is known already is submitted": {files: []string{"jobs_post_duplicate.json"}, call: submit, tries: 1},
		"a job that Ray refuses": {
			files: []string{"jobs_post_bad.json"}, call: submit, tries: 1,
			says: "Ray cluster at ADDR: submit job vs-demo-a2: refused: TypeError: entrypoint must be a string, got <class 'int'> (HTTP 400)",
		},
		"a job that runs is not deleted": {
			files: []string{"jobs_delete_running.json"}, tries: 1,
			call: func(t *testing.T, d *Dashboard) error { t.Helper(); return d.DeleteJob(t.Context(), "sleep") },
			says: "RuntimeError: Attempted to delete job 'sleep', but it is in a non-terminal state RUNNING. (HTTP 500)",
		},
		"GCS is away": {
			files: []string{"gcs_away_actors.json"}, call: state, is: adapters.ErrUnavailable, tries: 1,
			says: "Ray cluster at ADDR: list the actors: platform unavailable: Failed to query data from GCS.",
		},
		"GCS is away, and the dashboard does not know how to say it": {
			files: []string{"state_actors.json", "state_pgs.json", "gcs_away_nodes.txt"}, call: state, is: adapters.ErrUnavailable, tries: 3,
			says: "Server got itself in trouble (HTTP 500)",
		},
		"GCS is away, and the version is still told": {
			files: []string{"version.json", "gcs_away_healthz.txt"}, is: adapters.ErrUnavailable, tries: 2 + dashboardRetries,
			call: func(t *testing.T, d *Dashboard) error { t.Helper(); _, err := d.Version(t.Context()); return err },
			says: "Timed out while waiting for GCS to become available. (HTTP 503)",
		},
		"a limit that the cluster does not allow": {
			files: []string{"state_limit_400.json"}, call: state, tries: 1, says: "Given limit 20000 exceeds the supported limit 10000.",
		},
		"the log of an actor that is unknown": {
			files: []string{"logs_actor_unknown.txt"}, tries: 1,
			call: func(t *testing.T, d *Dashboard) error {
				t.Helper()
				log, err := d.Logs(t.Context(), "ffffffffffffffffffffffff01000000", 2, false)
				if err == nil {
					_ = log.Close()
				}
				return err
			},
			says: "not found.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, asked := replay(t, tc.files...)
			err := tc.call(t, d)
			if tc.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, strings.ReplaceAll(tc.says, "ADDR", d.base))
				require.Equal(t, tc.is != nil, isUnavailable(err), "%v", err)
				require.NotContains(t, err.Error(), "Traceback")
			}
			tries := 0
			for _, n := range asked {
				tries += n
			}
			require.Equal(t, tc.tries, tries, "%v", asked)
		})
	}
}

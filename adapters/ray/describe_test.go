package ray

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
)

func repr(change func(*raycluster.Publication)) string {
	p := raycluster.Publication{Version: 1, URL: "http://10.0.0.1:8000", Fleet: "f", Model: "m", Revision: "r", Replica: "id", PID: 7, Generation: 2, Devices: "0,1"}
	if change != nil {
		change(&p)
	}
	text, _ := json.Marshal(p)
	return "mobula " + string(text)
}

func parts(a *Actor) map[int]*part { return map[int]*part{0: {a, (*sight)(nil).said(0, a.Repr)}} }

func TestStatus(t *testing.T) {
	alive := func() *Actor {
		return &Actor{ID: "aaaabbbbcccc", Class: raycluster.ActorClass, Name: "mobula/o/id", State: "ALIVE", NodeID: "n1", PID: 7, JobID: "01000000", Repr: repr(nil), Restarts: 1}
	}
	created := &Group{State: "CREATED", Nodes: []string{"n1"}}
	with := func(change func(*Actor)) *sight {
		a := alive()
		change(a)
		return &sight{group: created, actors: parts(a)}
	}
	starting := func(want string) mobula.Replica { return mobula.Replica{State: mobula.StateStarting, Reason: want} }
	for name, tc := range map[string]struct {
		at      *sight
		try     *try
		leaving bool
		parts   int
		pending string
		want    mobula.Replica // State, Reason, NoRoom and URL
	}{
		"ready":                         {at: with(func(*Actor) {}), want: mobula.Replica{State: mobula.StateReady, URL: "http://10.0.0.1:8000"}},
		"published by a process before": {at: with(func(a *Actor) { a.PID = 8 }), want: starting("its actor does not say yet where it serves")},
		"published by another model":    {at: with(func(a *Actor) { a.Repr = repr(func(p *raycluster.Publication) { p.Model = "n" }) }), want: starting("its actor does not say yet where it serves")},
		"published nothing":             {at: with(func(a *Actor) { a.Repr = "MobulaEngine()" }), want: starting("its actor does not say yet where it serves")},
		"published no URL":              {at: with(func(a *Actor) { a.Repr = repr(func(p *raycluster.Publication) { p.URL = "" }) }), want: starting("its actor does not say yet where it serves")},
		"starts":                        {at: with(func(a *Actor) { a.State, a.PID = "PENDING_CREATION", 0 }), want: starting("")},
		"starts after a failure":        {at: with(func(a *Actor) { a.State = "PENDING_CREATION" }), try: &try{orders: 2, reason: "no command vllm"}, want: starting("again after: no command vllm")},
		"starts again":                  {at: with(func(a *Actor) { a.State, a.Death = "RESTARTING", "exit code 1" }), want: starting("exit code 1")},
		"starts again for no reason":    {at: with(func(a *Actor) { a.State = "RESTARTING" }), want: starting("Ray starts its actor again and does not say why it ended")},
		"node is dead": {
			at:   with(func(a *Actor) { a.NodeID = "n2" }),
			want: mobula.Replica{State: mobula.StateSuspect, Reason: "Ray says that its node 10.0.0.2 is dead: no heartbeats", URL: "http://10.0.0.1:8000"},
		},
		"name taken": {
			at:   &sight{taken: &Actor{Name: "mobula/o/id", Class: "Theirs"}},
			want: mobula.Replica{State: mobula.StateFailed, Reason: "an actor named mobula/o/id is in the Ray namespace ns already and is not Mobula's (class Theirs): it is left alone; end it, or give the fleet another platform.ray.namespace"},
		},
		"not told yet":  {want: mobula.Replica{State: mobula.StatePending, Reason: "Ray is told to start it"}},
		"under way":     {pending: "the launcher job j starts it", want: mobula.Replica{State: mobula.StatePending, Reason: "the launcher job j starts it"}},
		"failed":        {try: &try{orders: 1, failed: time.Now(), reason: "boom"}, want: mobula.Replica{State: mobula.StateFailed, Reason: "boom"}},
		"failed before": {try: &try{orders: 2, reason: "boom"}, pending: "job j starts it", want: mobula.Replica{State: mobula.StatePending, Reason: "job j starts it, again after: boom"}},
		"failed, its group is left": {
			at: &sight{group: created}, try: &try{orders: 1, failed: time.Now(), reason: "boom"},
			want: mobula.Replica{State: mobula.StateFailed, Reason: "boom"},
		},
		"group without actor": {at: &sight{group: created}, want: starting("")},
		"no room": {
			at: &sight{group: &Group{State: "PENDING", Scheduling: "INFEASIBLE", Nodes: []string{""}}, actors: parts(&Actor{State: "PENDING_CREATION"})},
			want: mobula.Replica{
				State: mobula.StatePending, NoRoom: true,
				Reason: "waits for 2 GPUs, 1 CPU on one node with the label zone=b: 10.0.0.1 has 1 GPU, 10.0.0.3 lacks the label zone=b (Ray: placement group PENDING, INFEASIBLE)",
			},
		},
		"its node was lost": {
			at: &sight{group: &Group{State: "RESCHEDULING", Nodes: []string{""}}, actors: parts(&Actor{State: "RESTARTING", NodeID: "n1"})},
			want: mobula.Replica{
				State: mobula.StatePending, NoRoom: true,
				Reason: "its node was lost; waits for 2 GPUs, 1 CPU on one node with the label zone=b: 10.0.0.1 has 1 GPU, 10.0.0.3 lacks the label zone=b (Ray: placement group RESCHEDULING)",
			},
		},
		"one part of two is missing": {at: with(func(*Actor) {}), parts: 2, want: starting("")},
		"leaving":                    {at: with(func(*Actor) {}), leaving: true, want: mobula.Replica{State: mobula.StateDraining, Reason: "is being stopped"}},
		"leaving, it was tried":      {at: with(func(*Actor) {}), leaving: true, try: &try{reason: "killed"}, want: mobula.Replica{State: mobula.StateDraining, Reason: "is being stopped, again after: killed"}},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := []Node{
				{ID: "n1", Name: "10.0.0.1", Alive: true, Resources: map[string]float64{"GPU": 1, "CPU": 8}, Labels: map[string]string{"zone": "b"}},
				{ID: "n2", Name: "10.0.0.2", Died: "no heartbeats", Resources: map[string]float64{"GPU": 8, "CPU": 8}, Labels: map[string]string{"zone": "b"}},
				{ID: "n3", Name: "10.0.0.3", Alive: true, Resources: map[string]float64{"GPU": 8, "CPU": 8}},
			}
			a := account{
				rec:  &replicaRecord{ID: "id", Fleet: "f", Model: "m", Revision: "r", Starts: 1, Leaving: tc.leaving},
				need: need{parts: max(1, tc.parts), bundle: map[string]float64{"GPU": 2, "CPU": 1}, labels: map[string]string{"zone": "b"}},
				at:   tc.at, try: tc.try, pending: tc.pending, namespace: "ns", nodes: nodes,
				byID: map[string]*Node{"n1": &nodes[0], "n2": &nodes[1], "n3": &nodes[2]}, cordoned: func(*Node) bool { return false },
			}
			got := a.status()
			require.Equal(t, tc.want, mobula.Replica{State: got.State, Reason: got.Reason, NoRoom: got.NoRoom, URL: got.URL})
			if got.State == mobula.StateReady {
				require.Equal(t, []string{"10.0.0.1"}, got.Hosts)
				require.Equal(t, []string{"0,1"}, got.Devices)
				require.Equal(t, "actor aaaabbbb of job 01000000, pid 7", got.Detail)
				require.Equal(t, 2, got.Restarts)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	job := func(message string) *Job { return &Job{ID: "j", Status: "FAILED", Message: message} }
	for name, tc := range map[string]struct{ got, want string }{
		"what the launcher said of it": {
			jobReason(job("exit code 1"), "started mobula/o/a\nfailed mobula/o/b: the node has no label selectors\n", "mobula/o/b"),
			"the node has no label selectors",
		},
		"the engine's last lines": {
			jobReason(job("exit code 1"), "failed mobula/o/b: exited with code 1\nINFO x\nValueError: bad\nstarted mobula/o/c\n", "mobula/o/b"),
			"exited with code 1: ValueError: bad",
		},
		"name taken": {
			jobReason(job("exit code 1"), "name taken: mobula/o/b\n", "mobula/o/b"), "name taken: mobula/o/b",
		},
		"runtime environment of the launcher": {
			jobReason(job("Traceback\nruntime_env setup failed: Failed to download gcs://_ray_pkg_1.zip"), "", "x"),
			"the launcher job's runtime environment could not be made: runtime_env setup failed: Failed to download gcs://_ray_pkg_1.zip",
		},
		"what Ray quotes of its start": {
			jobReason(job("Job entrypoint command failed with exit code 1, last available logs:\nRuntime env is setting up."),
				"2026-11-23 00:00:00,123\tINFO job_manager.py:568 -- Runtime env is setting up.\nboom\n2026-11-23 00:00:01,456\tINFO job_manager.py:588 -- Running entrypoint for job j: exec\n", "x"),
			"the launcher job j ended as FAILED: boom",
		},
		"killed": {jobReason(job("Job supervisor actor died"), "", "x"), "the launcher job j ended as FAILED: Job supervisor actor died"},
		"runtime environment of the engine": {
			deathReason("runtime_env setup failed: pip install vllm==9: no such version"),
			"its runtime environment could not be made (platform.ray.runtimeEnv, ray.runtimeEnv of the model): runtime_env setup failed: pip install vllm==9: no such version",
		},
		"nothing": {deathReason(""), "its actor is gone from the cluster, and Ray does not say why"},
	} {
		require.Equal(t, tc.want, tc.got, name)
	}
}

func TestWhatFitsNowhere(t *testing.T) {
	nodes := []Node{
		{ID: "n1", Name: "a", Alive: true, Resources: map[string]float64{"GPU": 2, "CPU": 8, "accelerator_type:H100": 1, "node:10.0.0.1": 1}, Labels: map[string]string{"zone": "a"}},
		{ID: "n2", Name: "b", Alive: true, Resources: map[string]float64{"CPU": 8, "node:10.0.0.2": 1}},
		{ID: "n3", Name: "c", Resources: map[string]float64{"GPU": 99, "CPU": 99}},
	}
	for name, tc := range map[string]struct {
		change func(*mobula.Model)
		want   string // empty: it fits
	}{
		"fits":                 {func(*mobula.Model) {}, ""},
		"an engine's own size": {func(m *mobula.Model) { m.Engine.Args = []string{"-tp", "4"} }, "model m: does not fit on any host: needs 4 GPUs, 1 CPU on one node: a has 2 GPUs, b has no GPU"},
		"fraction":             {func(m *mobula.Model) { m.Ray.GPUFraction = 0.5 }, ""},
		"CPUs":                 {func(m *mobula.Model) { m.Ray.CPUs = 9 }, "needs 1 GPU, 9 CPUs on one node: a has 8 CPUs, b has 8 CPUs"},
		"type":                 {func(m *mobula.Model) { m.Ray.AcceleratorType = "A100" }, "needs 1 GPU, A100, 1 CPU on one node: a has no A100, b has no GPU"},
		"node":                 {func(m *mobula.Model) { m.Ray.Node = "10.0.0.9" }, "needs 1 GPU, 1 CPU on node 10.0.0.9: b has no GPU, a is not node 10.0.0.9"},
		"custom":               {func(m *mobula.Model) { m.Ray.Resources = map[string]float64{"slot": 2} }, "needs 1 GPU, 1 CPU, 2 slot on one node: a has no slot, b has no GPU"},
		"label":                {func(m *mobula.Model) { m.Resources.HostLabels = map[string]string{"zone": "b"} }, "on one node with the label zone=b: a lacks the label zone=b, b lacks the label zone=b"},
		"any label but":        {func(m *mobula.Model) { m.Resources.HostLabels = map[string]string{"zone": "!in(b, c)"} }, ""},
		"too many nodes":       {func(m *mobula.Model) { m.Resources.Hosts = 2 }, "needs 1 GPU, 1 CPU on each of 2 nodes: a could hold one, b has no GPU"},
		"odd shares":           {func(m *mobula.Model) { m.Resources.GPUs, m.Resources.Hosts = new(3), 2 }, "3 GPUs can't be shared equally by 2 nodes"},
		"vLLM spreads itself": {func(m *mobula.Model) {
			m.Resources.Hosts, m.Engine.Args = 2, []string{"--distributed-executor-backend=ray", "-tp", "8"}
		}, ""},
		"simulated": {func(m *mobula.Model) { m.Engine.Kind, m.Resources.Hosts = "sim", 2 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := mobula.NewModel("m")
			tc.change(&m)
			err := possible(&m, gpusOf(&m, nodes, false), nodes, false)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, adapters.ErrImpossible)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestSelectors(t *testing.T) {
	for _, tc := range []struct {
		selector, value string
		has, want       bool
	}{
		{"a", "a", true, true},
		{"a", "b", true, false},
		{"a", "", false, false},
		{"!a", "a", true, false},
		{"!a", "b", true, true},
		{"!a", "", false, true},
		{"in(a, b)", "b", true, true},
		{"in(a,b)", "c", true, false},
		{"!in(a,b)", "b", true, false},
		{"!in(a,b)", "c", true, true},
	} {
		require.Equal(t, tc.want, selects(tc.selector, tc.value, tc.has), fmt.Sprint(tc))
	}
}

func TestBackOff(t *testing.T) {
	now := time.Now()
	require.True(t, (*try)(nil).due(now))
	require.False(t, (&try{orders: 1}).due(now), "the order is under way")
	for n, want := range map[int]time.Duration{1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second, 7: 5 * time.Minute, 1 << 10: 5 * time.Minute} {
		f := &try{orders: n, failed: now}
		require.False(t, f.due(now.Add(want-1)))
		require.True(t, f.due(now.Add(want)))
	}
}

func FuzzRecords(f *testing.F) {
	m := mobula.NewModel("m")
	m.Ray.RuntimeEnv = map[string]any{"pip": []any{"vllm", 1.5, nil}}
	for _, v := range []any{
		settingsRecord{Fleet: "f", Ray: &mobula.Ray{Address: "http://a", Poll: 5, Serve: []mobula.RayServe{{Name: "a"}}}, Cordoned: []string{"h"}},
		deploymentRecord{Key: adapters.Key{Fleet: "f", Model: "m", Revision: "r"}, Model: m, Replicas: 2, Drain: []string{"a"}, GPUs: 1},
		replicaRecord{ID: "a", Fleet: "f", Model: "m", Revision: "r", Born: 3, Made: time.Unix(1, 0).UTC(), Starts: 2, URL: "http://a:1"},
	} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		roundTrip[settingsRecord](t, text)
		roundTrip[replicaRecord](t, text)
		roundTrip[deploymentRecord](t, text)
		if d := deploymentOf(&Job{Metadata: map[string]string{metaDeployment: string(text)}}); d != nil {
			require.Equal(t, d.Key.Model, d.Model.Name)
			_, _ = needOf(&d.Model, d.GPUs)
		}
	})
}

// roundTrip checks that what was read is read again as it was written.
func roundTrip[T any](t *testing.T, text []byte) {
	t.Helper()
	v, err := decodeRecord[T](text)
	if err != nil {
		return
	}
	again, err := json.Marshal(v)
	require.NoError(t, err)
	w, err := decodeRecord[T](again)
	require.NoError(t, err)
	require.True(t, same(v, w))
}

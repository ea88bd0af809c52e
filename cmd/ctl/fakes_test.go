package ctl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// deadline is generous: nothing is asserted about time.
const deadline = 60 * time.Second

// testdata is the folder as an absolute path, for tests that change theirs.
var testdata, _ = filepath.Abs("testdata")

var update = flag.Bool("update", false, "write the golden files again")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares text with a file under testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join(testdata, name+".txt")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(string(want), got), "%s: if that is meant, go test ./cmd/ctl -update", file)
}

// noon is the fixed clock of the tests.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

func ago(d time.Duration) time.Time { return noon().Add(-d) }

// richView has something of everything.
func richView() *control.View {
	gpus := func(n int, name string, used mobula.Size, util float64) []mobula.Device {
		var all []mobula.Device
		for i := range n {
			all = append(all, mobula.Device{ID: strconv.Itoa(i), UUID: fmt.Sprintf("GPU-%d", i), Name: name, Memory: 80 << 30, Used: used, Utilization: util, Group: "a"})
		}
		return all
	}
	broken := gpus(4, "NVIDIA A100", 1<<30, 0)
	broken[3].Unhealthy = "XID 79: fallen off the bus"
	return &control.View{
		Control: "c-1", Version: 42, Fleet: "prod", Generation: 7,
		Models: []control.ModelStatus{
			{
				Name: "llama", Aliases: []string{"gpt-4o-mini"}, Source: "meta-llama/Llama-3.1-8B-Instruct", Revision: "3fa9c1d2e4", Previous: "1b2c3d4e5f",
				Replicas: mobula.Range{Min: 1, Max: 4}, Wanted: 3, ScaleReason: "TTFT p90 3.1s over 2s: 2 → 3", Ready: 2, Updated: 1, Starting: 1, Draining: 1,
				Rollout: control.RolloutProgressing, Reason: "1 of 3 replicas run the new revision", Since: ago(40 * time.Second),
				LoRAs: []control.LoRAStatus{
					{Name: "sql", Source: "/data/loras/sql", Wanted: 2, Loaded: []string{"llama-3fa9c1-aaaaa", "llama-1b2c3d-bbbbb"}},
					{Name: "legal", Source: "s3://loras/legal.tar.gz", Wanted: 2, Loaded: []string{}, Error: "download s3://loras/legal.tar.gz: 403 Forbidden"},
				},
				Load: mobula.ModelReport{Model: "llama", Held: 0, Requests: 42, Answered: 40, Failed: 1, TTFT50: 0.35, TTFT90: 3.1, ITL50: 0.021, ITL90: 0.048, LastRequest: ago(time.Second)},
			},
			{
				Name: "Qwen/Qwen2.5-0.5B", Source: "Qwen/Qwen2.5-0.5B", Revision: "9e8d7c6b5a", Replicas: mobula.Range{Min: 0, Max: 2}, Wanted: 0,
				ScaleReason: "no request for 10m: 1 → 0", Rollout: control.RolloutComplete, Since: ago(3 * time.Hour),
				Load: mobula.ModelReport{Model: "Qwen/Qwen2.5-0.5B", Held: 3, OldestHeld: 2.5},
			},
			{
				Name: "mixtral", Source: "/data/models/mixtral", Revision: "0011223344", Replicas: mobula.Range{Min: 1, Max: 1}, Wanted: 1, Failed: 1, Scaled: true,
				Rollout: control.RolloutFailed, Reason: "replica mixtral-001122-ccccc: torch.OutOfMemoryError: CUDA out of memory", Since: ago(26 * time.Hour),
			},
		},
		Replicas: []control.ReplicaStatus{
			{
				Replica: mobula.Replica{ID: "llama-3fa9c1-aaaaa", Model: "llama", Revision: "3fa9c1d2e4", State: mobula.StateReady, Since: ago(3 * time.Minute), URL: "http://10.0.0.1:8701", Hosts: []string{"gpu-1"}, Devices: []string{"0,1"}, Restarts: 1, Detail: "pid 4242"},
				LoRAs:   []string{"sql"}, Load: &mobula.EndpointReport{ID: "llama-3fa9c1-aaaaa", State: "up", InFlight: 12, WaitingTokens: 300, Running: 10, Waiting: 2, KVUsage: 0.42, PrefillRate: 9500},
			},
			{
				Replica: mobula.Replica{ID: "llama-1b2c3d-bbbbb", Model: "llama", Revision: "1b2c3d4e5f", State: mobula.StateDraining, Since: ago(20 * time.Second), Reason: "replaced by revision 3fa9c1d2e4", URL: "http://10.0.0.2:8701", Hosts: []string{"gpu-2"}, Devices: []string{"0"}},
				LoRAs:   []string{"sql"}, Cordoned: true, Load: &mobula.EndpointReport{State: "up", Draining: true, InFlight: 1, Running: -1, Waiting: -1, KVUsage: 0.95},
			},
			{Replica: mobula.Replica{ID: "llama-3fa9c1-xk2p4", Model: "llama", Revision: "3fa9c1d2e4", State: mobula.StateStarting, Since: ago(40 * time.Second), Reason: "loading weights", Hosts: []string{"gpu-1", "gpu-2"}, Devices: []string{"2", "1"}}},
			{Replica: mobula.Replica{ID: "mixtral-001122-ccccc", Model: "mixtral", Revision: "0011223344", State: mobula.StateFailed, Since: ago(26 * time.Hour), Reason: "torch.OutOfMemoryError: CUDA out of memory", Hosts: []string{"gpu-2"}, Devices: []string{"2"}, Restarts: 5}},
			{Replica: mobula.Replica{ID: "llama-3fa9c1-zzzzz", Model: "llama", Revision: "3fa9c1d2e4", State: mobula.StatePending, Since: ago(9 * time.Second), NoRoom: true, Reason: "needs 2 GPUs on one host; gpu-2 has 1 free, gpu-3 is silent"}},
		},
		Hosts: []mobula.Host{
			{Name: "gpu-1", Address: "10.0.0.1:8200", Labels: map[string]string{"rack": "a", "zone": "1"}, Devices: gpus(8, "NVIDIA H100", 40<<30, 0.5), Slots: 4, Heard: ago(time.Second), Version: "1.0.0"},
			{Name: "gpu-2", Address: "10.0.0.2:8200", Devices: broken, Slots: 4, Cordoned: true, Heard: ago(2 * time.Second), Version: "1.0.0"},
			{Name: "gpu-3", Address: "10.0.0.3:8200", Slots: 2, Silent: "connection refused since 11:58", Heard: ago(2 * time.Minute)},
		},
		Routers: []control.RouterStatus{{Name: "router-1", Heard: ago(time.Second)}},
	}
}

// rayView is a fleet on a Ray cluster: nodes of which only Ray knows something, and replicas that are actors.
func rayView() *control.View {
	node := func(name string, gpus int) mobula.Host {
		h := mobula.Host{Name: name, Labels: map[string]string{"ray.io/node-id": "8f3a"}, Slots: 16, Heard: ago(time.Second)}
		for i := range gpus {
			h.Devices = append(h.Devices, mobula.Device{ID: strconv.Itoa(i), Name: "H100"})
		}
		return h
	}
	replica := func(id string, s mobula.State, reason string) control.ReplicaStatus {
		return control.ReplicaStatus{Replica: mobula.Replica{ID: id, Model: "llama", Revision: "3fa9c1d2e4", State: s, Reason: reason, Since: ago(40 * time.Second)}}
	}
	ready, lost := replica("llama-3fa9c1-aaaaa", mobula.StateReady, ""), replica("llama-3fa9c1-ccccc", mobula.StateFailed, "its runtime environment failed: No matching distribution found for vllm==0.99")
	ready.Hosts, ready.Devices, ready.URL, ready.Detail = []string{"10.77.0.2"}, []string{"0,1"}, "http://10.77.0.2:46127", "actor 41d2a7c0 of job 02000000, pid 4242"
	lost.Hosts, lost.Detail = []string{"10.77.0.1"}, "actor 9be01f33 of job 03000000"
	waits := replica("llama-3fa9c1-bbbbb", mobula.StatePending, "waits for 8 GPUs on one node: the largest has 2")
	waits.NoRoom = true
	gone := node("10.77.0.3", 2)
	gone.Silent = "Ray says it is dead: missing too many heartbeats"
	return &control.View{
		Control: "c-1", Version: 42, Fleet: "ray", Generation: 1,
		Models:   []control.ModelStatus{{Name: "llama", Source: "llama", Revision: "3fa9c1d2e4", Replicas: mobula.Range{Min: 3, Max: 3}, Wanted: 3, Ready: 1, Starting: 1, Failed: 1, Rollout: control.RolloutProgressing, Since: ago(time.Minute)}},
		Replicas: []control.ReplicaStatus{ready, waits, lost},
		Hosts:    []mobula.Host{node("10.77.0.1", 0), node("10.77.0.2", 2), gone},
	}
}

func richEvents() []control.Event {
	return []control.Event{
		{At: ago(26 * time.Hour), Object: "fleet", Reason: "Applied", Message: "generation 6 from fleet.yaml", Count: 1, Seq: 1},
		{At: ago(26 * time.Hour), Warning: true, Object: "replica/mixtral-001122-ccccc", Reason: "ReplicaFailed", Message: "torch.OutOfMemoryError: CUDA out of memory", Count: 5, Seq: 6},
		{At: ago(2 * time.Minute), Warning: true, Object: "host/gpu-3", Reason: "HostSilent", Message: "connection refused", Count: 1, Seq: 7},
		{At: ago(40 * time.Second), Object: "model/llama", Reason: "RolloutStarted", Message: "revision 1b2c3d4e5f → 3fa9c1d2e4", Count: 1, Seq: 8},
		{At: ago(3 * time.Minute), Object: "replica/llama-3fa9c1-aaaaa", Reason: "ReplicaReady", Message: "on gpu-1", Count: 1, Seq: 9},
	}
}

// fakeAPI is a control plane in memory: it notes what it is asked to do.
type fakeAPI struct {
	mu     sync.Mutex
	view   *control.View
	moved  chan struct{} // closed at the next view
	events []control.Event
	fleet  []byte
	change *control.Change
	logs   map[string]string
	calls  []string
	err    error // of every call, when set
	// then is called after a change, with the lock held.
	then func(call string)
}

func newFake() *fakeAPI {
	return &fakeAPI{view: richView(), events: richEvents(), moved: make(chan struct{}), logs: map[string]string{}}
}

// show makes v the view; its Version grows.
func (f *fakeAPI) show(change func(v *control.View)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.showLocked(change)
}

func (f *fakeAPI) showLocked(change func(v *control.View)) {
	v := *f.view
	v.Models = append([]control.ModelStatus{}, v.Models...)
	v.Replicas = append([]control.ReplicaStatus{}, v.Replicas...)
	v.Hosts = append([]mobula.Host{}, v.Hosts...)
	v.Version++
	change(&v)
	f.view = &v
	close(f.moved)
	f.moved = make(chan struct{})
}

// fail has every call fail, until nil.
func (f *fakeAPI) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *fakeAPI) noted(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	f.calls = append(f.calls, call)
	if f.err == nil && f.then != nil {
		f.then(call)
	}
	return f.err
}

func (f *fakeAPI) did() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.calls...)
}

func (f *fakeAPI) Apply(_ context.Context, file []byte, source string, dry, force bool) (*control.Change, error) {
	if source == "" {
		return nil, errors.New("no source")
	}
	if err := f.noted("apply dry=%t force=%t", dry, force); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !dry {
		f.fleet = file
	}
	return f.change, nil
}

func (f *fakeAPI) Fleet(context.Context) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fleet == nil {
		return nil, &client.Error{Status: 404, Code: "notfound", Message: "no fleet has been applied"}
	}
	return f.fleet, f.err
}

// Settings are for routers.
func (f *fakeAPI) Settings(context.Context, int64) (*control.Settings, error) {
	return nil, errors.New("no command asks for them")
}

func (f *fakeAPI) View(ctx context.Context, after int64) (*control.View, error) {
	for {
		f.mu.Lock()
		view, err, moved := f.view, f.err, f.moved
		f.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if view.Version > after {
			return view, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fakeAPI) Events(ctx context.Context, after int64, wait bool) ([]control.Event, error) {
	for {
		f.mu.Lock()
		var more []control.Event
		for _, e := range f.events {
			if e.Seq > after {
				more = append(more, e)
			}
		}
		err, moved := f.err, f.moved
		f.mu.Unlock()
		if err != nil || len(more) > 0 || !wait {
			return more, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fakeAPI) Scale(_ context.Context, model string, replicas int) error {
	return f.noted("scale %s %d", model, replicas)
}

func (f *fakeAPI) Drain(_ context.Context, replica string, on bool) error {
	return f.noted("drain %s %t", replica, on)
}

func (f *fakeAPI) Cordon(_ context.Context, host string, on, drain bool) error {
	return f.noted("cordon %s %t drain=%t", host, on, drain)
}

func (f *fakeAPI) Forget(_ context.Context, host string) error { return f.noted("forget %s", host) }

func (f *fakeAPI) Restart(_ context.Context, model string) error {
	return f.noted("restart %q", model)
}

func (f *fakeAPI) Rollback(_ context.Context, model string) error {
	return f.noted("rollback %s", model)
}

func (f *fakeAPI) Delete(_ context.Context, model string) error { return f.noted("delete %q", model) }

func (f *fakeAPI) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	if err := f.noted("logs %s tail=%d follow=%t", replica, tail, follow); err != nil {
		return nil, err
	}
	if !follow {
		return io.NopCloser(strings.NewReader(f.logs[replica])), nil
	}
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, f.logs[replica])
		<-ctx.Done()
		_ = w.CloseWithError(ctx.Err())
	}()
	return r, nil
}

func (f *fakeAPI) Token(context.Context) (string, error) {
	return "mobula.abc.secret", f.noted("token")
}

func (f *fakeAPI) Report(context.Context, mobula.Report) error { return f.noted("report") }

var _ client.API = (*fakeAPI)(nil)

// output is a buffer that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// run is one command that was run.
type run struct {
	out, err output
	stdin    io.Reader
	terminal bool
	width    int
	api      *fakeAPI
}

func newRun() *run { return &run{api: newFake(), stdin: strings.NewReader(""), width: 100} }

func (r *run) root() *cobra.Command {
	root := &cobra.Command{Use: "mobula", SilenceErrors: true, SilenceUsage: true}
	root.SetOut(&r.out)
	root.SetErr(&r.err)
	root.AddCommand(Commands(Options{
		Client: func() (client.API, error) { return r.api, nil },
		Stdin:  r.stdin, Stdout: &r.out, Stderr: &r.err,
		JoinCommand: func(token string) string { return "mobula agent --join https://10.0.0.9:8100 --token " + token },
		IsTerminal:  func(any) bool { return r.terminal },
		Size:        func() (int, int) { return r.width, 24 },
		Now:         noon,
	})...)
	return root
}

func (r *run) do(ctx context.Context, args ...string) error {
	root := r.root()
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// must runs a command that has to work.
func (r *run) must(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	require.NoError(t, r.do(ctx, args...))
	return r.out.String()
}

// all gives both streams, and the error with its hint and exit code.
func (r *run) all(err error) string {
	s := r.out.String()
	if e := r.err.String(); e != "" {
		s += "--- stderr\n" + e
	}
	if code, quiet := ExitCode(err); code != 0 {
		s += fmt.Sprintf("--- exit code %d\n", code)
		if !quiet {
			s += "error: " + err.Error() + "\n"
		}
		if h := Hint(err); h != "" {
			s += "hint: " + h + "\n"
		}
	}
	return s
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for !is() {
		if time.Now().After(end) {
			require.Fail(t, "it did not come: "+what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// fleetText is a valid fleet with two placed models and one that is not.
const fleetText = `apiVersion: mobula/v1
kind: Fleet
name: prod
platform:
  static:
    endpoints:
      - url: http://127.0.0.1:8701
models:
  - name: llama
    source: meta-llama/Llama-3.1-8B-Instruct
    replicas: 1-4
  - name: tiny
    replicas: 1
    engine: {kind: sim}
  - name: elsewhere
`

func writeFleet(t *testing.T, text string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("fleet.yaml", []byte(text), 0o644))
	return "fleet.yaml"
}

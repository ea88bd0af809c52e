package raycluster

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const patience = 60 * time.Second

// Commands that stand for Ray and vLLM: they write what happens into $LOG.
const (
	fakeRay = `#!/bin/sh
trap 'echo "ray stops" >>"$LOG"; exit 0' TERM
echo "ray $*" >>"$LOG"
[ -n "$RAY_FAILS" ] && exit 7
while [ ! -e "$LOG.end-ray" ]; do sleep 0.1; done
exit 5
`
	fakeEngine = `#!/bin/sh
trap 'echo "vllm ends its requests" >>"$LOG"; sleep 0.5; echo "vllm stops" >>"$LOG"; exit 0' TERM
echo "vllm $*" >>"$LOG"
while [ ! -e "$LOG.end-vllm" ]; do sleep 0.1; done
exit 3
`
)

// node is a supervisor in a container of a RayCluster, as far as it can tell.
type node struct {
	t       *testing.T
	log     string
	cmd     *exec.Cmd
	said    lockedBuffer
	nodes   atomic.Pointer[[]map[string]any] // what the dashboard lists
	asked   atomic.Int32
	auth    atomic.Value
	ended   chan struct{}
	command []string // what is run in place of both, if not nil
	env     []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, log: filepath.Join(t.TempDir(), "log"), ended: make(chan struct{})}
	n.env = []string{"KUBERAY_GEN_RAY_START_CMD=ray start --head  --block ", "RAY_CLUSTER_NAME=llama-1", "RAY_CLUSTER_NAMESPACE=models", "RAY_AUTH_TOKEN=s3cret"}
	return n
}

// run starts the supervisor with fakes on its PATH.
func (n *node) run(args ...string) {
	n.t.Helper()
	interpreter, err := exec.LookPath("python3")
	require.NoError(n.t, err, "the supervisor's tests need a python3")
	dashboard := httptest.NewServer(http.HandlerFunc(n.serve))
	n.t.Cleanup(dashboard.Close)
	u, err := url.Parse(dashboard.URL)
	require.NoError(n.t, err)
	dir := n.t.TempDir()
	for name, script := range map[string]string{"ray": fakeRay, "vllm": fakeEngine} {
		if n.command == nil || strings.Contains(strings.Join(n.command, " "), name) {
			require.NoError(n.t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700)) //nolint:gosec // it is run
		}
	}
	n.cmd = exec.CommandContext(n.t.Context(), interpreter, append([]string{"-u", "-c", supervisor, "--dashboard-port", u.Port()}, args...)...) //nolint:gosec // the tests' own
	n.cmd.Env = append([]string{"PATH=" + dir + ":/usr/bin:/bin", "LOG=" + n.log, "RAY_ADDRESS=127.0.0.1:6379"}, n.env...)
	n.cmd.Stderr = &n.said
	n.cmd.Cancel = func() error { return n.cmd.Process.Signal(syscall.SIGTERM) } // it ends its children
	n.cmd.WaitDelay = patience
	require.NoError(n.t, n.cmd.Start())
	go func() {
		defer close(n.ended)
		_ = n.cmd.Wait()
	}()
	n.t.Cleanup(func() {
		for _, what := range []string{"ray", "vllm"} {
			n.end(what)
		}
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		<-n.ended
	})
}

func (n *node) serve(w http.ResponseWriter, r *http.Request) {
	n.auth.Store(r.Header.Get("Authorization"))
	n.asked.Add(1)
	nodes := n.nodes.Load()
	if nodes == nil || r.URL.Path != "/api/v0/nodes" {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"result": true, "data": map[string]any{"result": map[string]any{"total": len(*nodes), "result": *nodes}}})
}

// join has the dashboard list nodes, one for each number of GPUs; a negative one is dead.
func (n *node) join(gpus ...int) {
	nodes := []map[string]any{}
	for _, g := range gpus {
		state := "ALIVE"
		if g < 0 {
			state, g = "DEAD", -g
		}
		nodes = append(nodes, map[string]any{"state": state, "resources_total": map[string]any{"GPU": float64(g), "CPU": 4.0}})
	}
	n.nodes.Store(&nodes)
}

// end has a fake command end by itself.
func (n *node) end(what string) { require.NoError(n.t, os.WriteFile(n.log+".end-"+what, nil, 0o600)) }

func (n *node) terminate() { require.NoError(n.t, n.cmd.Process.Signal(syscall.SIGTERM)) }

func (n *node) events() string {
	text, _ := os.ReadFile(n.log)
	return string(text)
}

func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	require.Eventually(n.t, ok, patience, 20*time.Millisecond, "never %s; it said:\n%s\nhappened:\n%s", what, &n.said, n.events())
}

func (n *node) untilLogged(line string) {
	n.t.Helper()
	n.until(line, func() bool { return strings.Contains(n.events(), line) })
}

func (n *node) untilSaid(line string) {
	n.t.Helper()
	n.until(line, func() bool { return strings.Contains(n.said.String(), line) })
}

// code waits for the end.
func (n *node) code() int {
	n.t.Helper()
	n.until("ended", func() bool {
		select {
		case <-n.ended:
			return true
		default:
			return false
		}
	})
	return n.cmd.ProcessState.ExitCode()
}

func TestSupervisorStartsTheEngineWhenAllNodesAreThere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run("--nodes", "2", "--gpus", "16", "--", "vllm", "serve", "a model", "--port", "8000")
	n.untilLogged("ray start --head --block")
	n.untilSaid("Ray's dashboard does not answer")
	n.join(8)
	n.untilSaid("waiting: 1 of 2 Ray nodes and 8 of 16 GPUs are there; the pods of the others: kubectl -n models get pods -l ray.io/cluster=llama-1")
	n.join(8, -8, 4)
	n.untilSaid("waiting: 2 of 2 Ray nodes and 12 of 16 GPUs are there")
	require.NotContains(t, n.events(), "vllm")
	n.join(8, -8, 8, 0) // one more than needed is no harm
	n.untilLogged("vllm serve a model --port 8000")
	require.Equal(t, "Bearer s3cret", n.auth.Load())
}

func TestSupervisorEndsWithTheEngine(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.join(8)
	n.run("--gpus", "8", "--", "vllm")
	n.untilLogged("vllm")
	n.end("vllm")
	require.Equal(t, 3, n.code())
	require.Contains(t, n.said.String(), "mobula: the engine ended with status 3")
	require.Contains(t, n.events(), "ray stops")
}

func TestSupervisorEndsWithRay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.join(8)
	n.run("--gpus", "8", "--", "vllm")
	n.untilLogged("vllm")
	n.end("ray")
	require.Equal(t, 5, n.code())
	require.Contains(t, n.said.String(), "Ray ended with status 5: the engine can't go on without it")
	require.Contains(t, n.events(), "vllm ends its requests")
}

func TestSupervisorLetsRequestsEndBeforeRay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.join(8)
	n.run("--gpus", "8", "--", "vllm")
	n.untilLogged("vllm")
	n.terminate()
	require.Equal(t, 0, n.code())
	events := n.events()
	require.Less(t, strings.Index(events, "vllm stops"), strings.Index(events, "ray stops"), events)
}

func TestSupervisorTellsWhyItGaveUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*node)
		args    []string
		code    int
		want    string
	}{
		{"nodes that never come", func(n *node) { n.join(8) }, []string{"--nodes", "2", "--gpus", "16", "--timeout", "0.1"}, 1, "gave up after 0s: 1 of 2 Ray nodes and 8 of 16 GPUs are there"},
		{"no dashboard", func(*node) {}, []string{"--timeout", "0.1"}, 1, "Ray's dashboard does not answer yet (HTTP Error 503"},
		{"Ray that fails", func(n *node) { n.env = append(n.env, "RAY_FAILS=1") }, nil, 1, "Ray ended with status 7 before all nodes were there"},
		{"no ray command", func(n *node) { n.command = []string{"vllm"} }, nil, 1, "no ray command in this image"},
		{"no engine", func(n *node) { n.command = []string{"ray"}; n.join(0) }, nil, 1, "no command vllm in this image: set engine.command or kubernetes.image"},
		{"no KubeRay", func(n *node) { n.env = nil }, nil, 1, "KUBERAY_GEN_RAY_START_CMD is not set"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			c.prepare(n)
			n.run(append(c.args, "--", "vllm")...)
			require.Equal(t, c.code, n.code(), n.said.String())
			require.Contains(t, n.said.String(), c.want)
		})
	}
}

func TestSupervisorIsStoppedWhileItWaits(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.join(8)
	n.run("--nodes", "2", "--gpus", "16", "--", "vllm")
	n.untilSaid("waiting: 1 of 2")
	n.terminate()
	require.Equal(t, 128+int(syscall.SIGTERM), n.code())
	require.Contains(t, n.said.String(), "told to stop while waiting: 1 of 2 Ray nodes")
	require.Contains(t, n.events(), "ray stops")
	require.NotContains(t, n.events(), "vllm")
}

func TestWorkerStaysForAsLongAsTheHead(t *testing.T) {
	t.Parallel()
	head, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = head.Close() })
	var looked atomic.Int32
	go func() {
		for {
			c, err := head.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			looked.Add(1)
		}
	}()
	n := newNode(t)
	n.env = append(n.env, "RAY_ADDRESS="+head.Addr().String())
	n.run()
	n.untilLogged("ray start")
	n.terminate()
	n.untilSaid("told to stop: this node stays")
	n.until("looked for the head", func() bool { return looked.Load() > 1 })
	require.NotContains(t, n.events(), "ray stops")
	require.NoError(t, head.Close())
	require.Equal(t, 0, n.code())
	require.Contains(t, n.events(), "ray stops")
}

func TestWorkerEndsWithItsRay(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.run()
	n.untilLogged("ray start")
	n.end("ray")
	require.Equal(t, 5, n.code())
	require.Contains(t, n.said.String(), "mobula: Ray ended with status 5")
}

func TestHeadWithoutEngineStaysForAsLongAsItsNodes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.join(0, 8, 8)
	n.run("--head", "--nodes", strconv.Itoa(3))
	n.untilLogged("ray start")
	n.terminate()
	n.untilSaid("told to stop: this node stays")
	before := n.asked.Load()
	n.until("looked at the nodes", func() bool { return n.asked.Load() > before+1 })
	require.NotContains(t, n.events(), "ray stops")
	n.join(0, -8, 8)
	require.Equal(t, 0, n.code())
	require.Contains(t, n.events(), "ray stops")
}

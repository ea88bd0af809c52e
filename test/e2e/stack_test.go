package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

// patience bounds every wait of these tests. It is generous: the machine is shared.
const patience = 60 * time.Second

// engineUnderTest is a simulated engine in the test's own process.
type engineUnderTest struct {
	*sim.Engine
	url  string
	stop func() // ends it and waits
}

// startEngine runs a simulated engine until the test ends.
func startEngine(t *testing.T, o sim.Options) *engineUnderTest {
	t.Helper()
	return startEngineAt(t, o, "127.0.0.1:0")
}

func startEngineAt(t *testing.T, o sim.Options, addr string) *engineUnderTest {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	e, err := sim.New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.Run(ctx, l)
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return &engineUnderTest{e, "http://" + l.Addr().String(), stop}
}

// routerUnderTest is the real binary.
type routerUnderTest struct {
	t     *testing.T
	url   string
	fleet string // path of its fleet file
	cmd   *exec.Cmd
	log   *logBuffer
	exit  chan error
	asked sync.Once
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fleetOf is a fleet file for engines with more YAML behind it.
func fleetOf(more string, engines ...string) string {
	var b strings.Builder
	b.WriteString("apiVersion: mobula/v1\nkind: Fleet\nplatform:\n  static:\n    endpoints:\n")
	for _, e := range engines {
		b.WriteString("      - url: " + e + "\n")
	}
	b.WriteString(more)
	return b.String()
}

// startRouter runs `mobula router` on a fleet file and waits until it is ready. When the
// test ends it must stop by SIGTERM with exit code 0.
func startRouter(t *testing.T, fleet string) *routerUnderTest {
	t.Helper()
	r := launchRouter(t, fleet)
	r.eventually("ready", func() bool { return r.status("/ready") == http.StatusOK })
	return r
}

func launchRouter(t *testing.T, fleet string) *routerUnderTest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(path, []byte(fleet), 0o600))
	r := &routerUnderTest{t: t, fleet: path, log: &logBuffer{}, exit: make(chan error, 1)}
	r.cmd = exec.Command(binary(t), "router", "-f", path, "--listen", "127.0.0.1:0")
	r.cmd.Stderr = r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, r.cmd.Start())
	t.Cleanup(r.stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, r.log)
	r.url = strings.TrimSpace(strings.TrimPrefix(line, "listening on "))
	go func() {
		_, _ = io.Copy(io.Discard, out)
		r.exit <- r.cmd.Wait()
	}()
	return r
}

// terminate asks the router to stop, once: a second signal would cut it short.
func (r *routerUnderTest) terminate() {
	r.asked.Do(func() { _ = r.cmd.Process.Signal(syscall.SIGTERM) })
}

func (r *routerUnderTest) stop() {
	r.terminate()
	select {
	case err := <-r.exit:
		if err != nil {
			r.t.Errorf("the router ended with %v\n%s", err, r.log)
		}
		r.exit <- err
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		r.t.Errorf("the router did not stop\n%s", r.log)
	}
	if strings.Contains(r.log.String(), "DATA RACE") || strings.Contains(r.log.String(), "panic") {
		r.t.Errorf("the router's log shows a race or a panic\n%s", r.log)
	}
}

// eventually waits for a condition.
func (r *routerUnderTest) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("never %s\n%s", what, r.log)
		}
	}
}

// status is that of a GET, 0 when it fails.
func (r *routerUnderTest) status(path string) int {
	resp, err := http.Get(r.url + path)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// answer is a whole answer.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) endpoint() string { return a.header.Get("X-Mobula-Endpoint") }

// post sends a JSON body; header are pairs of name and value.
func post(url, body string, header ...string) answer {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err}
}

// client has as many connections as a test has requests.
var client = &http.Client{Timeout: 2 * patience, Transport: &http.Transport{MaxIdleConnsPerHost: 1024}}

func (r *routerUnderTest) chat(prompt string, more ...string) answer {
	body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%q}],"max_tokens":8%s}`, prompt, strings.Join(more, ""))
	return post(r.url+"/v1/chat/completions", body)
}

// metric sums the samples of a family whose labels include the given pairs.
func (r *routerUnderTest) metric(name string, labels ...string) float64 {
	r.t.Helper()
	sum := 0.0
	for _, m := range r.families()[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		match := true
		for i := 0; i+1 < len(labels); i += 2 {
			match = match && have[labels[i]] == labels[i+1]
		}
		if match {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func (r *routerUnderTest) families() map[string]*dto.MetricFamily {
	r.t.Helper()
	resp, err := client.Get(r.url + "/metrics")
	require.NoError(r.t, err)
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	f, err := parser.TextToMetricFamilies(resp.Body)
	require.NoError(r.t, err)
	return f
}

// idle waits until every count of requests in flight is zero again.
func (r *routerUnderTest) idle() {
	r.t.Helper()
	r.eventually("idle: in-flight counts stay above zero", func() bool {
		return r.metric("mobula_router_inflight_requests") == 0 && r.metric("mobula_router_waiting_requests") == 0
	})
}

func jsonOf(t *testing.T, s string) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal([]byte(s), &v), s)
	return v
}

// requireOpenAIError checks the shape of an error body.
func requireOpenAIError(t *testing.T, a answer, status int) map[string]any {
	t.Helper()
	require.NoError(t, a.err)
	require.Equal(t, status, a.status, a.body)
	e, ok := jsonOf(t, a.body)["error"].(map[string]any)
	require.True(t, ok, a.body)
	require.NotEmpty(t, e["message"])
	require.NotEmpty(t, e["type"])
	require.EqualValues(t, status, e["code"])
	require.Contains(t, e, "param")
	return e
}

//go:build real

package real

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Names that the engines serve, and the alias that the fleet adds.
const (
	model = "tiny"
	lora  = "ad1"
	embed = "tinyemb"
	alias = "gpt-4o-mini"
)

// stack is what the suite runs against: two causal engines, a pooling one, and a router.
type stack struct {
	root    *testing.T // the test that owns all processes; a subtest may start some
	dir     string     // what setup.sh installed
	logs    string
	binary  string // mobula, built for this run with the race detector
	guard   *guard
	client  *http.Client
	engines []*engine // A, B: causal; E: pooling
	router  *process
	url     string // the router's
}

// engine is one real vLLM server. process is nil when it was not started here.
type engine struct {
	name, url string
	flags     []string
	process   *process
}

// start brings all up; the engines together, for each takes a minute or more.
func start(t *testing.T) *stack {
	t.Helper()
	s := &stack{
		root:   t,
		dir:    os.Getenv("MOBULA_REAL_DIR"),
		logs:   t.ArtifactDir(),
		guard:  newGuard(t),
		client: &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}},
	}
	require.NotEmpty(t, s.dir, "MOBULA_REAL_DIR is not set; make test-real sets it")
	t.Cleanup(s.client.CloseIdleConnections)
	causal := []string{
		"--served-model-name", model, "--enable-lora", "--max-lora-rank", "8", "--enable-prompt-tokens-details",
		"--enable-auto-tool-choice", "--tool-call-parser", "hermes",
	}
	pooling := []string{"--served-model-name", embed, "--runner", "pooling", "--convert", "embed"}
	s.engines = []*engine{{name: "A", flags: causal}, {name: "B", flags: causal}, {name: "E", flags: pooling}}
	ports := freePorts(t, len(s.engines)+1)
	begun := time.Now()
	if given := strings.Fields(os.Getenv("MOBULA_REAL_ENGINES")); len(given) == len(s.engines) {
		for i, e := range s.engines {
			e.url = given[i]
		}
	} else {
		for i, e := range s.engines {
			e.url = fmt.Sprintf("http://127.0.0.1:%d", ports[i])
			s.startEngine(t, e)
		}
	}
	s.build(t) // while the engines start
	s.ready(t, s.engines...)
	t.Logf("three engines were up and warm after %s", time.Since(begun).Round(time.Second))
	s.startRouter(t, ports[len(ports)-1])
	return s
}

// owned tells whether the engines may be killed.
func (s *stack) owned() bool { return s.engines[0].process != nil }

// startEngine starts e at its URL and does not wait.
func (s *stack) startEngine(t *testing.T, e *engine) {
	t.Helper()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(e.url, "http://"))
	require.NoError(t, err)
	argv := []string{
		filepath.Join(s.dir, "venv/bin/vllm"), "serve", filepath.Join(s.dir, "models/tiny"),
		"--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--max-model-len", "2048",
		"--max-num-seqs", "16", "--block-size", "32", "--enforce-eager", "--disable-uvicorn-access-log",
	}
	e.process = s.guard.start(s.root, s.logs, "engine-"+e.name, engineEnv(), append(argv, e.flags...)...)
}

// engineEnv is what vLLM needs to run offline on a CPU.
func engineEnv() []string {
	return []string{
		"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1",
		"VLLM_TARGET_DEVICE=cpu", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=1",
		"VLLM_CPU_CI_ENV=1", "VLLM_HOST_IP=127.0.0.1", "PYTHONHASHSEED=0",
		"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "VLLM_ENABLE_RESPONSES_API_STORE=1",
	}
}

// ready waits until engines serve, have their LoRA and are over what only their first
// requests need (a minute of compiling, for n and logprobs).
func (s *stack) ready(t *testing.T, engines ...*engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	errs := make([]error, len(engines))
	var all sync.WaitGroup
	for i, e := range engines {
		all.Go(func() { errs[i] = s.prepare(ctx, e) })
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
}

func (s *stack) prepare(ctx context.Context, e *engine) error {
	if e.process != nil {
		if err := e.process.healthy(ctx, s.client, e.url); err != nil {
			return err
		}
	}
	warm := map[string]string{"/v1/embeddings": `{"model":"tinyemb","input":"a"}`}
	if e.name != "E" {
		warm = map[string]string{
			"/v1/chat/completions": `{"model":"tiny","messages":[{"role":"user","content":"a"}],"max_tokens":2,"n":2,"logprobs":true,"temperature":1}`,
			"/v1/completions":      `{"model":"tiny","prompt":"a","max_tokens":2,"echo":true,"logprobs":1}`,
		}
		if e.process != nil {
			warm["/v1/load_lora_adapter"] = fmt.Sprintf(`{"lora_name":%q,"lora_path":%q}`, lora, filepath.Join(s.dir, "models/tiny-lora"))
		}
	}
	for path, body := range warm {
		a, err := s.ask(ctx, e.url, call{path: path, body: body})
		if err != nil {
			return fmt.Errorf("engine %s: %s: %w", e.name, path, err)
		}
		if a.status != http.StatusOK {
			return fmt.Errorf("engine %s: %s: status %d: %s", e.name, path, a.status, a.body)
		}
	}
	return nil
}

// build makes the binary that users get, but with the race detector: a race in the
// router makes its exit code 66.
func (s *stack) build(t *testing.T) {
	t.Helper()
	s.binary = filepath.Join(t.TempDir(), "mobula")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", s.binary, "github.com/mobula-serve/mobula/cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func (s *stack) startRouter(t *testing.T, port int) {
	t.Helper()
	s.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	var fleet strings.Builder
	fleet.WriteString("apiVersion: mobula/v1\nkind: Fleet\nname: real\nplatform:\n  static:\n    endpoints:\n")
	for _, e := range s.engines {
		fleet.WriteString("      - url: " + e.url + "\n")
	}
	fmt.Fprintf(&fleet, "models:\n  - name: %s\n    aliases: [%s]\n", model, alias)
	fmt.Fprintf(&fleet, "router:\n  listen: 127.0.0.1:%d\n  timeouts: {idle: 20s}\n", port)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(fleet.String()), 0o600))
	s.router = s.guard.start(s.root, s.logs, "router", nil, s.binary, "router", "-f", file)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, s.router.healthy(ctx, s.client, s.url))
	eventually(t, time.Minute, "the router serves all models", func() bool {
		a, err := s.ask(ctx, s.url, call{method: http.MethodGet, path: "/v1/models"})
		return err == nil && bytes.Contains(a.body, []byte(lora)) && bytes.Contains(a.body, []byte(embed))
	})
	for _, e := range s.engines[:2] {
		s.untilServes(t, e)
	}
}

// untilServes waits until requests for the model are answered by e.
func (s *stack) untilServes(t *testing.T, e *engine) {
	t.Helper()
	eventually(t, time.Minute, "the router sends to engine "+e.name, func() bool {
		// Several at once, so that no policy has a reason to give them all to the other engine.
		var all sync.WaitGroup
		var found [8]bool
		for i := range found {
			all.Go(func() {
				c := call{path: "/v1/completions", body: fmt.Sprintf(`{"model":"tiny","prompt":"number %d","max_tokens":30,"ignore_eos":true}`, i)}
				a, err := s.ask(t.Context(), s.url, c)
				found[i] = err == nil && a.status == http.StatusOK && s.servedBy(a) == e
			})
		}
		all.Wait()
		return strings.Contains(fmt.Sprint(found), "true")
	})
}

// servedBy is the engine that an answer of the router came from, nil if it doesn't say.
func (s *stack) servedBy(a *answer) *engine {
	for _, e := range s.engines {
		if id := a.header.Get("X-Mobula-Endpoint"); id == e.url {
			return e
		}
	}
	return nil
}

// call is one HTTP request. method is POST, contentType application/json unless set.
type call struct {
	method, path, contentType, body string
	header                          http.Header
}

// answer is all of what came back. header has Content-Length and Transfer-Encoding as sent.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (s *stack) send(ctx context.Context, base string, c call) (*http.Response, error) {
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.contentType == "" {
		c.contentType = "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, c.method, base+c.path, strings.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	if c.header != nil {
		req.Header = c.header.Clone()
	}
	if c.method != http.MethodGet {
		req.Header.Set("Content-Type", c.contentType)
	}
	return s.client.Do(req)
}

func (s *stack) ask(ctx context.Context, base string, c call) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	res, err := s.send(ctx, base, c)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	a := &answer{status: res.StatusCode, header: res.Header.Clone(), body: body}
	if len(res.TransferEncoding) > 0 {
		a.header["Transfer-Encoding"] = res.TransferEncoding
	}
	return a, nil
}

// freePorts finds ports on loopback, all different.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close() // at the end, so that no port comes twice
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

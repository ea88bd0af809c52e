package app

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine"
)

// base finds the router's URL in a banner.
func (c *command) base(t *testing.T) string {
	t.Helper()
	c.stdout.await(t, "Ctrl-C stops everything.\n")
	m := regexp.MustCompile(`OpenAI API  (http://127\.0\.0\.1:\d+)/v1\n`).FindStringSubmatch(c.stdout.String())
	require.NotNil(t, m, c.stdout.String())
	return m[1]
}

// fleet gives the endpoints and the file that the router was started with.
func (c *command) fleet(t *testing.T) (urls []string, path string) {
	t.Helper()
	var got struct {
		Static struct{ Endpoints []struct{ URL string } }
		Path   string
	}
	require.NoError(t, json.Unmarshal([]byte(get(t, c.base(t)+"/fleet")), &got))
	for _, e := range got.Static.Endpoints {
		urls = append(urls, e.URL)
	}
	return urls, got.Path
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

func refused(url string) bool {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err != nil
}

func TestUpServesUntilItIsStopped(t *testing.T) {
	up := background(t, nil, "up", "--port", "0")
	base := up.base(t)
	urls, path := up.fleet(t)
	require.Len(t, urls, 2)
	require.Empty(t, path)
	for _, url := range urls {
		require.Contains(t, get(t, url+"/v1/models"), "mobula-sim")
		require.True(t, strings.HasPrefix(url, "http://127.0.0.1:"), url)
	}
	require.NotContains(t, up.stdout.String(), "\x1b", "no colours where there is no terminal")
	require.Contains(t, up.stdout.String(), "mobula chat --url "+base)
	require.Contains(t, up.stdout.String(), "models      base, lora-1\n")

	up.cancel()
	require.Zero(t, up.wait(t))
	require.Equal(t, "stopping: running requests may finish; Ctrl-C again stops at once\nstopping 2 simulated engines\nstopped\n", up.stderr.String())
	for _, url := range append(urls, base) {
		require.True(t, refused(url), "%s still listens", url)
	}
}

func TestTwoUpsAtOnce(t *testing.T) {
	one := background(t, nil, "up", "--port", "0", "--engines", "1")
	two := background(t, nil, "up", "--port", "0", "--engines", "3")
	ones, _ := one.fleet(t)
	twos, _ := two.fleet(t)
	require.Len(t, ones, 1)
	require.Len(t, twos, 3)
	require.NotContains(t, twos, ones[0])
	one.cancel()
	require.Zero(t, one.wait(t))
	require.Contains(t, get(t, twos[0]+"/v1/models"), "mobula-sim", "the other one is not touched")
	two.cancel()
	require.Zero(t, two.wait(t))
}

func TestUpWithAFleetFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(goodFleet), 0o600))
	t.Run("has the file's engines, and follows it", func(t *testing.T) {
		up := background(t, nil, "up", "-f", file, "--port", "0")
		urls, path := up.fleet(t)
		require.Equal(t, []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}, urls)
		require.Equal(t, file, path)
	})
	t.Run("adds engines when asked", func(t *testing.T) {
		up := background(t, nil, "up", "-f", file, "--port", "0", "--engines", "1")
		urls, path := up.fleet(t)
		require.Len(t, urls, 3)
		require.Empty(t, path)
	})
	t.Run("binds the loopback on the file's port", func(t *testing.T) {
		_, addr, err := upFleet(upOptions{file: file, port: -1})
		require.NoError(t, err)
		require.Equal(t, "127.0.0.1:9123", addr)
	})
}

func TestUpSaysWhoHasThePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	port := strconv.Itoa(portOf(l))
	got := execute(t, "", "up", "--port", port)
	require.Equal(t, exitFailed, got.code)
	require.Regexp(t, `^error: 127\.0\.0\.1:`+port+` is in use.*\nhint: stop what uses it, or choose another with --port\n$`, got.stderr)
	if _, err := os.Stat("/proc/net/tcp"); err == nil {
		require.Contains(t, got.stderr, "in use by process "+strconv.Itoa(os.Getpid())+" (")
	}
}

func TestUpFailsWithTheRouter(t *testing.T) {
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, route: brokenRouter}
	require.Equal(t, exitFailed, a.main(t.Context(), []string{"up", "--port", "0"}))
	require.Contains(t, stderr.String(), "error: broken\n")
	require.Empty(t, stdout.String())
}

// withVLLM puts the fake vllm on PATH, and no GPU into the machine.
func withVLLM(t *testing.T, how string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Symlink(self, filepath.Join(dir, "vllm")))
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	t.Setenv("XDG_CACHE_HOME", dir)
	t.Setenv("HOME", dir)
	t.Setenv("FAKE_VLLM", how)
}

// cores are the engine cores that the fake engines of c have started, by their logs.
func (c *command) cores(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, m := range regexp.MustCompile(`log (\S+\.log)\n`).FindAllStringSubmatch(c.stderr.String(), -1) {
		var pid int
		require.Eventually(t, func() bool {
			raw, _ := os.ReadFile(m[1])
			line := regexp.MustCompile(`core (\d+)\n`).FindSubmatch(raw)
			if line == nil {
				return false
			}
			pid, _ = strconv.Atoi(string(line[1]))
			return true
		}, deadline, 5*time.Millisecond, "no core in %s", m[1])
		pids = append(pids, pid)
	}
	return pids
}

func requireDead(t *testing.T, pids []int) {
	t.Helper()
	require.NotEmpty(t, pids)
	for _, pid := range pids {
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			return syscall.Kill(pid, 0) != nil || err == nil && bytes.Contains(stat, []byte(") Z ")) // a zombie that init has not met yet
		}, deadline, 5*time.Millisecond, "process %d lives", pid)
	}
}

func TestUpRunsVLLM(t *testing.T) {
	withVLLM(t, "")
	up := background(t, nil, "up", "--port", "0", "--model", "org/some-model", "--engines", "2", "--", "--dtype", "float32")
	urls, _ := up.fleet(t)
	require.Len(t, urls, 2)
	require.Contains(t, up.stderr.String(), "no GPU found: 2 engines on the CPU\n")
	require.Contains(t, get(t, urls[1]+"/v1/models"), "org/some-model")
	cores := up.cores(t)
	require.Len(t, cores, 2)
	up.cancel()
	require.Zero(t, up.wait(t))
	require.Contains(t, up.stderr.String(), "stopping 2 vLLM engines\nstopped\n")
	requireDead(t, cores)
}

func TestUpGivesAModelEachItsEngine(t *testing.T) {
	withVLLM(t, "")
	up := background(t, nil, "up", "--port", "0", "--model", "a", "--model", "b")
	urls, _ := up.fleet(t)
	require.Len(t, urls, 2)
	require.Contains(t, get(t, urls[0]+"/v1/models"), `"id":"a"`)
	require.Contains(t, get(t, urls[1]+"/v1/models"), `"id":"b"`)
}

func TestUpStoppedWhileEnginesStart(t *testing.T) {
	withVLLM(t, "slow")
	up := background(t, nil, "up", "--port", "0", "--model", "m")
	up.stderr.await(t, "vllm serve m on CPU")
	cores := up.cores(t)
	up.cancel()
	require.Zero(t, up.wait(t))
	require.Contains(t, up.stderr.String(), "stopping 1 vLLM engine\n")
	require.Empty(t, up.stdout.String())
	requireDead(t, cores)
}

func TestUpForcedKillsEngines(t *testing.T) {
	withVLLM(t, "ignore")
	up := background(t, nil, "up", "--port", "0", "--model", "m")
	up.base(t)
	cores := up.cores(t)
	up.cancel()
	up.stderr.await(t, "stopping 1 vLLM engine\n")
	up.force()
	up.wait(t)
	requireDead(t, cores)
}

func TestUpShowsWhyAnEngineDied(t *testing.T) {
	withVLLM(t, "die")
	got := execute(t, "", "up", "--port", "0", "--model", "m")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "  | ValueError: the fake was told to die\n")
	require.Regexp(t, `error: the engine at http://127\.0\.0\.1:\d+ ended before it was ready: exit status 3\n`, got.stderr)
	require.Empty(t, got.stdout)
}

func TestUpGivesUpWaiting(t *testing.T) {
	withVLLM(t, "slow")
	got := execute(t, "", "up", "--port", "0", "--model", "m", "--start-timeout", "1ms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "error: 1 engine not ready after 1ms\nhint: see ")
}

func TestUpWithoutVLLMSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	got := execute(t, "", "up", "--port", "0", "--model", "m")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "error: --model needs vLLM, and there is no vllm command on PATH\nhint: install it with `pip install vllm`")
	require.Contains(t, got.stderr, "`mobula up` without --model runs simulated engines\n")
}

func TestPlanOfEngines(t *testing.T) {
	four := []string{"0", "1", "2", "3"}
	serve := func(model string, devices ...string) engine.Serve {
		return engine.Serve{Model: model, Devices: devices}
	}
	for name, tc := range map[string]struct {
		models, gpus []string
		each, n      int
		want         []engine.Serve
		err          string
	}{
		"one on the CPU":            {models: []string{"a"}, each: 1, want: []engine.Serve{serve("a")}},
		"three on the CPU":          {models: []string{"a", "b"}, each: 1, n: 3, want: []engine.Serve{serve("a"), serve("b"), serve("a")}},
		"one a GPU":                 {models: []string{"a"}, gpus: four[:2], each: 1, want: []engine.Serve{serve("a", "0"), serve("a", "1")}},
		"two models take turns":     {models: []string{"a", "b"}, gpus: four[:3], each: 1, want: []engine.Serve{serve("a", "0"), serve("b", "1"), serve("a", "2")}},
		"two GPUs an engine":        {models: []string{"a"}, gpus: four, each: 2, want: []engine.Serve{serve("a", "0", "1"), serve("a", "2", "3")}},
		"a GPU left over":           {models: []string{"a"}, gpus: four[:3], each: 2, want: []engine.Serve{serve("a", "0", "1")}},
		"fewer than fit":            {models: []string{"a"}, gpus: four, each: 1, n: 1, want: []engine.Serve{serve("a", "0")}},
		"more than fit":             {models: []string{"a"}, gpus: four, each: 1, n: 5, err: "5 engines for 4 GPUs"},
		"engine too large":          {models: []string{"a"}, gpus: four[:1], each: 2, err: "an engine with these arguments takes 2 GPUs, this machine has 1"},
		"more models than fit":      {models: []string{"a", "b"}, gpus: four[:1], each: 1, err: "2 models need as many engines, there is room for 1"},
		"fewer engines than models": {models: []string{"a", "b"}, each: 1, n: 1, err: "2 models need as many engines, there is room for 1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := plan(tc.models, tc.gpus, tc.each, tc.n)
			if tc.err != "" {
				require.EqualError(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(tc.want, got))
		})
	}
}

func TestGPUs(t *testing.T) {
	dev := t.TempDir()
	for _, name := range []string{"nvidia3", "nvidia0", "nvidiactl", "nvidia-uvm"} {
		require.NoError(t, os.WriteFile(filepath.Join(dev, name), nil, 0o600))
	}
	t.Setenv("PATH", t.TempDir()) // no nvidia-smi
	for name, tc := range map[string]struct {
		environ []string
		dev     string
		want    []string
	}{
		"device files":            {dev: dev, want: []string{"0", "1"}},
		"none":                    {dev: t.TempDir()},
		"those that are allowed":  {environ: []string{"CUDA_VISIBLE_DEVICES=3, GPU-1f"}, dev: dev, want: []string{"3", "GPU-1f"}},
		"none is allowed":         {environ: []string{"CUDA_VISIBLE_DEVICES="}, dev: dev},
		"all after -1 are hidden": {environ: []string{"CUDA_VISIBLE_DEVICES=1,-1,2"}, dev: dev, want: []string{"1"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Empty(t, cmp.Diff(tc.want, gpuList(t.Context(), tc.dev, tc.environ)))
		})
	}
	require.Equal(t, []string{"0", "1"}, parseGPUs([]byte("GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)\n  MIG 1g.5gb\n")))
}

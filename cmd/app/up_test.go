package app

import (
	"bytes"
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

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// base finds the router's URL in a banner.
func (c *command) base(t *testing.T) string {
	t.Helper()
	require.Eventually(t, func() bool {
		return len(c.done) > 0 || strings.Contains(c.stdout.String(), "Ctrl-C stops everything.\n")
	}, deadline, 5*time.Millisecond)
	require.Contains(t, c.stdout.String(), "Ctrl-C stops everything.\n", c.stderr)
	m := regexp.MustCompile(`OpenAI API  (http://127\.0\.0\.1:\d+)/v1\n`).FindStringSubmatch(c.stdout.String())
	require.NotNil(t, m, c.stdout.String())
	return m[1]
}

// engines are where the engines listen, as the banner says.
func (c *command) engines(t *testing.T) []string {
	t.Helper()
	c.base(t)
	m := regexp.MustCompile(`engines     (.*)\n`).FindStringSubmatch(c.stdout.String())
	require.NotNil(t, m, c.stdout.String())
	return strings.Fields(m[1])
}

// ownHome keeps what `mobula up` writes from the user's folders.
func ownHome(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("HOME", dir)
	return dir
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
	dir := ownHome(t)
	up := background(t, nil, "up", "--port", "0")
	base, urls := up.base(t), up.engines(t)
	require.Len(t, urls, 2)
	for _, url := range urls {
		require.Contains(t, get(t, url+"/v1/models"), "mobula-sim")
		require.True(t, strings.HasPrefix(url, "http://127.0.0.1:"), url)
	}
	require.NotContains(t, up.stdout.String(), "\x1b", "no colours where there is no terminal")
	require.Contains(t, up.stdout.String(), "mobula chat --url "+base)
	require.Contains(t, up.stdout.String(), "models      mobula-sim\n")
	got := execute(t, "", "get", "replicas", "-o", "name")
	require.Zero(t, got.code, got.stderr)
	require.Len(t, strings.Fields(got.stdout), 2, "the commands find the control plane")

	up.cancel()
	require.Zero(t, up.wait(t))
	require.Equal(t, "stopping: running requests may finish; Ctrl-C again stops at once\nstopping 2 engines\nstopped\n", up.stderr.String())
	for _, url := range append(urls, base) {
		require.True(t, refused(url), "%s still listens", url)
	}
	left, err := filepath.Glob(filepath.Join(dir, "mobula", "up*"))
	require.NoError(t, err)
	require.Empty(t, left, "nothing is left on the disk")
	got = execute(t, "", "get")
	require.Equal(t, result{exitFailed, "", "error: no control plane is known here\nhint: start `mobula up` or `mobula control`, or say with --config or --control where one is\n"}, got)
}

func TestUpRemovesWhatAKilledOneLeft(t *testing.T) {
	dir := ownHome(t)
	left, fresh := filepath.Join(dir, "mobula", "up-1"), filepath.Join(dir, "mobula", "up-2")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, os.MkdirAll(fresh, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(left, "lock"), nil, 0o600))
	up := background(t, nil, "up", "--port", "0", "--engines", "1")
	up.base(t)
	require.NoDirExists(t, left)
	require.DirExists(t, fresh, "it may be about to be locked")
	all, err := filepath.Glob(filepath.Join(dir, "mobula", "up-*"))
	require.NoError(t, err)
	require.Len(t, all, 2)
	second := background(t, nil, "up", "--port", "0", "--engines", "1")
	second.base(t)
	for _, folder := range all {
		require.DirExists(t, folder, "of one that runs")
	}
}

func TestTwoUpsAtOnce(t *testing.T) {
	ownHome(t)
	one := background(t, nil, "up", "--port", "0", "--engines", "1")
	two := background(t, nil, "up", "--port", "0", "--engines", "3")
	ones, twos := one.engines(t), two.engines(t)
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
	ownHome(t)
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(goodFleet), 0o600))
	t.Run("has the file's engines", func(t *testing.T) {
		up := background(t, nil, "up", "-f", file, "--port", "0")
		require.Equal(t, []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}, up.engines(t))
	})
	t.Run("adds engines when asked", func(t *testing.T) {
		up := background(t, nil, "up", "-f", file, "--port", "0", "--engines", "1")
		base := up.base(t)
		require.Eventually(t, func() bool { return strings.Contains(get(t, base+"/v1/models"), "mobula-sim") }, deadline, 20*time.Millisecond)
	})
	t.Run("runs the models that have replicas, and follows the file", func(t *testing.T) {
		placed := filepath.Join(t.TempDir(), "fleet.yaml")
		write := func(model string) {
			require.NoError(t, os.WriteFile(placed, []byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {static: {hosts: [elsewhere]}}\nmodels:\n  - {name: "+model+", replicas: 1, engine: {kind: sim}}\n"), 0o600))
		}
		write("a")
		up := background(t, nil, "up", "-f", placed, "--port", "0")
		base := up.base(t)
		serves := func(model string) func() bool {
			return func() bool { return strings.Contains(get(t, base+"/v1/models"), `"id":"`+model+`"`) }
		}
		require.Eventually(t, serves("a"), deadline, 20*time.Millisecond)
		write("b")
		require.Eventually(t, func() bool { return serves("b")() && !serves("a")() }, deadline, 20*time.Millisecond)
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
	ownHome(t)
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
	ownHome(t)
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
	urls := up.engines(t)
	require.Len(t, urls, 2)
	require.Contains(t, up.stderr.String(), "no GPU found: engines run on the CPU\n")
	require.Contains(t, get(t, urls[1]+"/v1/models"), "org/some-model")
	cores := up.cores(t)
	require.Len(t, cores, 2)
	up.cancel()
	require.Zero(t, up.wait(t))
	require.Contains(t, up.stderr.String(), "stopping 2 engines\nstopped\n")
	requireDead(t, cores)
}

func TestUpGivesAModelEachItsEngine(t *testing.T) {
	withVLLM(t, "")
	up := background(t, nil, "up", "--port", "0", "--model", "a", "--model", "b")
	models := get(t, up.base(t)+"/v1/models")
	require.Len(t, up.engines(t), 2)
	require.Contains(t, models, `"id":"a"`)
	require.Contains(t, models, `"id":"b"`)
}

func TestUpSendsTheEnginesKey(t *testing.T) {
	withVLLM(t, "")
	t.Setenv("VLLM_API_KEY", "secret")
	up := background(t, nil, "up", "--port", "0", "--model", "m")
	base := up.base(t)
	got := execute(t, "", "chat", "--url", base, "hi")
	require.Zero(t, got.code, got.stderr)
	require.NotEmpty(t, got.stdout)
	client := &http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(up.engines(t)[0] + "/v1/models")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "the engine asks for it")
}

func TestUpStoppedWhileEnginesStart(t *testing.T) {
	withVLLM(t, "slow")
	up := background(t, nil, "up", "--port", "0", "--model", "m")
	up.stderr.await(t, ": m, log ")
	cores := up.cores(t)
	up.cancel()
	require.Zero(t, up.wait(t))
	require.Contains(t, up.stderr.String(), "stopping 1 engine\n")
	require.Empty(t, up.stdout.String())
	requireDead(t, cores)
}

func TestUpForcedKillsEngines(t *testing.T) {
	withVLLM(t, "ignore")
	up := background(t, nil, "up", "--port", "0", "--model", "m")
	up.base(t)
	cores := up.cores(t)
	up.cancel()
	up.stderr.await(t, "stopping 1 engine\n")
	up.force()
	up.wait(t)
	requireDead(t, cores)
}

func TestUpShowsWhyAnEngineDied(t *testing.T) {
	withVLLM(t, "die")
	got := execute(t, "", "up", "--port", "0", "--model", "m")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "  | ValueError: the fake was told to die\n")
	require.Regexp(t, `error: the engine \S+ ended before it was ready: .*ValueError: the fake was told to die`, got.stderr)
	require.Empty(t, got.stdout)
}

func TestUpGivesUpWaiting(t *testing.T) {
	withVLLM(t, "slow")
	got := execute(t, "", "up", "--port", "0", "--model", "m", "--start-timeout", "1ms")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "error: engines not ready after 1ms\nhint: see ")
}

func TestUpWithoutVLLMSaysWhatToDo(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	got := execute(t, "", "up", "--port", "0", "--model", "m")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "error: --model needs vLLM, and there is no vllm command on PATH\nhint: install it with `pip install vllm`")
	require.Contains(t, got.stderr, "`mobula up` without --model runs simulated engines\n")
}

func TestWhatUpWaitsForInVain(t *testing.T) {
	for name, tc := range map[string]struct {
		replica mobula.Replica
		waited  time.Duration
		want    bool
	}{
		"starts":                       {mobula.Replica{State: mobula.StateStarting}, time.Minute, false},
		"has died":                     {mobula.Replica{State: mobula.StateStarting, Reason: "exit status 1: ValueError: x"}, 0, true},
		"has failed":                   {mobula.Replica{State: mobula.StateFailed}, 0, true},
		"found its port taken":         {mobula.Replica{State: mobula.StateStarting, Reason: "exit status 1: OSError: [Errno 98] Address already in use"}, 0, false},
		"starts again on another port": {mobula.Replica{State: mobula.StateStarting, Restarts: 1}, 0, false},
		"room is not known at once":    {mobula.Replica{State: mobula.StatePending, NoRoom: true, Reason: "no host has answered yet"}, time.Second, false},
		"there is no room":             {mobula.Replica{State: mobula.StatePending, NoRoom: true, Reason: "needs 2 GPUs"}, time.Minute, true},
		"is ready":                     {mobula.Replica{State: mobula.StateReady}, time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, hopeless(&tc.replica, tc.waited)) })
	}
}

func TestSharingTheMachine(t *testing.T) {
	for name, tc := range map[string]struct {
		models, gpus, each, n int
		want                  []int
		err                   string
	}{
		"one on the CPU":            {models: 1, each: 1, want: []int{1}},
		"three on the CPU":          {models: 2, each: 1, n: 3, want: []int{2, 1}},
		"one a GPU":                 {models: 1, gpus: 2, each: 1, want: []int{2}},
		"two models take turns":     {models: 2, gpus: 3, each: 1, want: []int{2, 1}},
		"two GPUs an engine":        {models: 1, gpus: 4, each: 2, want: []int{2}},
		"a GPU left over":           {models: 1, gpus: 3, each: 2, want: []int{1}},
		"fewer than fit":            {models: 1, gpus: 4, each: 1, n: 1, want: []int{1}},
		"more than fit":             {models: 1, gpus: 4, each: 1, n: 5, err: "5 engines for 4 GPUs"},
		"engine too large":          {models: 1, gpus: 1, each: 2, err: "an engine with these arguments takes 2 GPUs, this machine has 1"},
		"more models than fit":      {models: 2, gpus: 1, each: 1, err: "2 models need as many engines, there is room for 1"},
		"fewer engines than models": {models: 2, each: 1, n: 1, err: "2 models need as many engines, there is room for 1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := share(tc.models, tc.gpus, tc.each, tc.n)
			if tc.err != "" {
				require.EqualError(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestServedName(t *testing.T) {
	for name, tc := range map[string]struct {
		args, rest []string
		want       string
	}{
		"none":       {args: []string{"--dtype", "half"}, rest: []string{"--dtype", "half"}},
		"apart":      {args: []string{"--served-model-name", "m", "--x"}, rest: []string{"--x"}, want: "m"},
		"joined":     {args: []string{"-a", "--served_model_name=m"}, rest: []string{"-a"}, want: "m"},
		"without it": {args: []string{"--served-model-name"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, rest := servedName(tc.args)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.rest, rest)
		})
	}
}

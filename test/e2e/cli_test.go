package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cli is the mobula binary, running.
type cli struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *screen
	ended          chan struct{}
}

// screen keeps what a process writes.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(s.String(), text) }, patience, 10*time.Millisecond, "%q does not come", text)
}

// runCLI starts the binary with pipes; prepare may change how.
func runCLI(t *testing.T, prepare func(*exec.Cmd), args ...string) *cli {
	t.Helper()
	c := &cli{t: t, cmd: exec.Command(binary(t), args...), stdout: &screen{}, stderr: &screen{}, ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	c.cmd.WaitDelay = patience
	if prepare != nil {
		prepare(c.cmd)
	}
	require.NoError(t, c.cmd.Start())
	go func() {
		defer close(c.ended)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		if t.Failed() {
			t.Logf("%v\nstdout: %s\nstderr: %s", args, c.stdout, c.stderr)
		}
	})
	return c
}

// up starts `mobula up` on a free port and gives the router's URL.
func up(t *testing.T, prepare func(*exec.Cmd), args ...string) (*cli, string) {
	t.Helper()
	c := runCLI(t, prepare, append([]string{"up", "--port", "0"}, args...)...)
	c.stdout.await(t, "Ctrl-C stops everything.")
	m := regexp.MustCompile(`(http://127\.0\.0\.1:\d+)/v1`).FindStringSubmatch(c.stdout.String())
	require.NotNil(t, m)
	return c, m[1]
}

func (c *cli) signal(s syscall.Signal) { require.NoError(c.t, c.cmd.Process.Signal(s)) }

// exit waits for the exit code.
func (c *cli) exit() int {
	c.t.Helper()
	select {
	case <-c.ended:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		c.t.Fatal("mobula does not end")
		return 0
	}
}

// engines are the URLs of the engines in the banner.
func (c *cli) engines() []string {
	plain := regexp.MustCompile(`\x1b\[\d*m`).ReplaceAllString(c.stdout.String(), "")
	line := regexp.MustCompile(`engines +(http\S+(?: http\S+)*)`).FindStringSubmatch(plain)
	require.NotNil(c.t, line)
	return strings.Fields(line[1])
}

func requireClosed(t *testing.T, urls ...string) {
	t.Helper()
	for _, url := range urls {
		// Engines end a moment after a mobula that was stopped by force.
		require.Eventually(t, func() bool {
			conn, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		}, patience, 10*time.Millisecond, "%s still listens", url)
	}
}

func TestUpAnswersAndStopsGracefully(t *testing.T) {
	for name, s := range map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			c, url := up(t, nil)
			got := post(url+"/v1/chat/completions", `{"model":"mobula-sim","messages":[{"role":"user","content":"Hello!"}],"max_tokens":5}`)
			require.Equal(t, http.StatusOK, got.status)
			require.Contains(t, got.endpoint(), "mobula-sim-", "a replica")
			engines := c.engines()
			require.Len(t, engines, 2)

			c.signal(s)
			require.Zero(t, c.exit())
			require.Contains(t, c.stderr.String(), "stopping: running requests may finish; Ctrl-C again stops at once\nstopping 2 engines\nstopped\n")
			requireClosed(t, append(engines, url)...)
		})
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	c, url := up(t, nil)
	engines := c.engines()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const long = `{"model":"mobula-sim","prompt":"go on","max_tokens":60000,"ignore_eos":true,"stream":true}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", strings.NewReader(long))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	_, err = io.ReadFull(resp.Body, make([]byte, 64))
	require.NoError(t, err)

	c.signal(syscall.SIGINT)
	c.stderr.await(t, "stopping: running requests may finish")
	_, err = io.ReadFull(resp.Body, make([]byte, 64))
	require.NoError(t, err, "the stream goes on after the first signal")
	c.signal(syscall.SIGINT)
	require.Equal(t, 130, c.exit())
	requireClosed(t, append(engines, url)...)
}

// fakeVLLM makes a `vllm` that is a simulated engine with a child that no SIGTERM ends, as
// the engine core of the real one, and puts it on the command's PATH.
func fakeVLLM(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
trap '' TERM
sleep 1000 &
echo $! >> ` + dir + `/pids
trap - TERM
while [ "$1" != "--port" ]; do shift; done
echo $$ >> ` + dir + `/pids
exec ` + binary(t) + ` sim --model fake --port "$2"
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vllm"), []byte(script), 0o700))
	return func(cmd *exec.Cmd) {
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+dir, "HOME="+dir, "CUDA_VISIBLE_DEVICES=")
	}
}

// fakePids are the processes of the fake engines: the child, then the engine, for each.
func fakePids(t *testing.T, c *cli) []int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.cmd.Dir, "pids"))
	require.NoError(t, err)
	var pids []int
	for f := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(f)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

func requireGone(t *testing.T, pids ...int) {
	t.Helper()
	require.NotEmpty(t, pids)
	for _, pid := range pids {
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			zombie := err == nil && bytes.Contains(stat, []byte(") Z "))
			return zombie || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
		}, patience, 10*time.Millisecond, "process %d lives", pid)
	}
}

func TestUpLeavesNoEngineProcess(t *testing.T) {
	// Under nohup SIGHUP is ignored, and so it would be in what we start.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for name, stop := range map[string]func(*cli){
		"graceful": func(c *cli) {
			c.signal(syscall.SIGINT)
			require.Zero(c.t, c.exit())
		},
		"forced": func(c *cli) {
			c.signal(syscall.SIGINT)
			c.signal(syscall.SIGTERM)
			c.exit() // 0 when the first one was enough
		},
		"terminal closed": func(c *cli) {
			c.signal(syscall.SIGHUP)
			require.Zero(c.t, c.exit())
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, url := up(t, fakeVLLM(t), "--model", "some/model", "--engines", "2")
			got := post(url+"/v1/completions", `{"model":"fake","prompt":"Hi","max_tokens":3}`)
			require.Equal(t, http.StatusOK, got.status, got.body)
			pids := fakePids(t, c)
			require.Len(t, pids, 4)
			stop(c)
			requireGone(t, pids...)
		})
	}
}

// In `mobula up | tee log` a Ctrl-C ends tee too, before the last lines are written.
func TestUpStopsItsEnginesWhenNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	fake := fakeVLLM(t)
	c, _ := up(t, func(cmd *exec.Cmd) {
		fake(cmd)
		cmd.Stderr = w
	}, "--model", "some/model")
	require.NoError(t, w.Close())
	require.NoError(t, r.Close())
	pids := fakePids(t, c)
	c.signal(syscall.SIGINT)
	require.Zero(t, c.exit())
	requireGone(t, pids...)
}

func TestKilledUpTakesItsEnginesAlong(t *testing.T) {
	c, _ := up(t, fakeVLLM(t), "--model", "some/model")
	pids := fakePids(t, c)
	c.signal(syscall.SIGKILL)
	c.exit()
	requireGone(t, pids...)
	noProcessOf(t, c)
}

// noProcessOf waits until nothing runs that the command has started, its engines' shims included.
func noProcessOf(t *testing.T, c *cli) {
	t.Helper()
	require.Eventually(t, func() bool {
		files, err := filepath.Glob("/proc/[0-9]*/environ")
		require.NoError(t, err)
		for _, file := range files {
			if env, err := os.ReadFile(file); err == nil && bytes.Contains(env, []byte("XDG_CACHE_HOME="+c.cmd.Dir+"\x00")) {
				return false
			}
		}
		return true
	}, patience, 10*time.Millisecond, "processes are left")
}

func TestUpIsStoppedWhileItsEnginesStart(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vllm"), []byte("#!/bin/sh\necho loading weights\nexec sleep 1000\n"), 0o700))
	for name, s := range map[string]syscall.Signal{"Ctrl-C": syscall.SIGINT, "kill -9": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			c := runCLI(t, func(cmd *exec.Cmd) {
				cmd.Dir = home
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+home, "HOME="+home, "CUDA_VISIBLE_DEVICES=")
			}, "up", "--port", "0", "--model", "some/model")
			c.stderr.await(t, "some/model, log ")
			c.signal(s)
			code := c.exit()
			if s == syscall.SIGINT {
				require.Zero(t, code)
				require.Contains(t, c.stderr.String(), "stopping 1 engine\nstopped\n")
				left, err := filepath.Glob(filepath.Join(home, "mobula", "up*"))
				require.NoError(t, err)
				require.Empty(t, left)
			}
			noProcessOf(t, c)
		})
	}
}

func TestUpStartsADeadEngineAgain(t *testing.T) {
	c, url := up(t, fakeVLLM(t), "--model", "some/model")
	first := fakePids(t, c)
	require.NoError(t, syscall.Kill(first[1], syscall.SIGKILL))
	c.stderr.await(t, "its process died and starts again: ")
	c.stderr.await(t, ": it serves at http://")
	requireGone(t, first...)
	require.Eventually(t, func() bool {
		return post(url+"/v1/completions", `{"model":"fake","prompt":"Hi","max_tokens":3}`).status == http.StatusOK
	}, patience, 50*time.Millisecond)
	c.signal(syscall.SIGINT)
	require.Zero(t, c.exit())
	requireGone(t, fakePids(t, c)...)
}

func TestChatFromAScript(t *testing.T) {
	_, url := up(t, nil)
	c := runCLI(t, func(cmd *exec.Cmd) { cmd.Stdin = strings.NewReader("Hello!\n") }, "chat", "--url", url)
	require.Zero(t, c.exit())
	require.NotEmpty(t, strings.TrimSpace(c.stdout.String()))
	require.Empty(t, c.stderr.String())
}

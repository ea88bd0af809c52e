//go:build unix

package shim

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
)

// deadline is far more than anything here takes: the machine may be busy.
const deadline = 60 * time.Second

// TestMain has the test binary be the shim and the engines too.
func TestMain(m *testing.M) {
	must(os.Setenv("GORACE", "atexit_sleep_ms=0")) // else each process of ours takes a second to end
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "shim":
			if err := Run(testContext{}, os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "engine":
			os.Exit(fakeEngine(os.Args[2]))
		case "agent":
			os.Exit(fakeAgent(os.Args[2]))
		}
	}
	goleak.VerifyTestMain(m)
}

// fakeEngine behaves as its mode says; it prints its ids for the tests.
func fakeEngine(mode string) int {
	fmt.Println("engine", os.Getpid())
	switch mode {
	case "oom":
		fmt.Println("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.")
		fmt.Println("RuntimeError: Engine core initialization failed. See root cause above.")
		return 1
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("deaf")
	case "family": // a child in the group, a grandchild in a session of its own, and an orphan of that one
		child := exec.Command(os.Args[0], "engine", "stubborn")
		child.Stdout = os.Stdout
		must(child.Start())
		daemon := exec.Command(os.Args[0], "engine", "parent")
		daemon.Stdout, daemon.SysProcAttr = os.Stdout, &syscall.SysProcAttr{Setsid: true}
		must(daemon.Start())
	case "parent":
		orphan := exec.Command(os.Args[0], "engine", "stubborn")
		orphan.Stdout, orphan.SysProcAttr = os.Stdout, &syscall.SysProcAttr{Setsid: true}
		must(orphan.Start())
		fmt.Println("left", orphan.Process.Pid)
		return 0
	case "talk":
		for i := range 2000 {
			fmt.Println("line", i, strings.Repeat("x", 80))
		}
	}
	fmt.Println("up")
	time.Sleep(10 * time.Minute)
	return 0
}

// fakeAgent starts a shim with a lifeline and waits to be killed.
func fakeAgent(dir string) int {
	r, w, err := os.Pipe()
	must(err)
	t, err := Dir(dir).Task()
	must(err)
	must(Dir(dir).Start(testContext{}, t, StartOptions{Exe: os.Args[0], Environ: os.Environ(), Lifeline: r}))
	fmt.Println("started")
	time.Sleep(10 * time.Minute)
	_ = w.Close()
	return 0
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// testContext is the one of a process that nobody cancels.
type testContext struct{}

func (testContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (testContext) Done() <-chan struct{}       { return nil }
func (testContext) Err() error                  { return nil }
func (testContext) Value(any) any               { return nil }

// newDir gives a task's folder, and has the test fail if anything of the task runs at its end.
func newDir(t *testing.T) Dir {
	t.Helper()
	d := Dir(filepath.Join(t.TempDir(), "task-1"))
	t.Cleanup(func() {
		if d.Alive() {
			_ = d.Kill(t.Context())
			_ = d.Kill(testContext{})
		}
		requireNothingLeft(t, d)
	})
	return d
}

// requireNothingLeft looks for processes and cgroups of the task.
func requireNothingLeft(t *testing.T, d Dir) {
	t.Helper()
	mark := d.mark()
	require.Eventually(t, func() bool {
		d.Reap()
		return len(marked(func(m string) bool { return m == mark })) == 0
	}, deadline, pause, "processes are left")
	if s, err := d.Status(); err == nil && s.Cgroup != "" && s.State != Running && s.State != Waiting {
		require.NoDirExists(t, s.Cgroup)
	}
}

func task(mode string) Task {
	return Task{
		ID: "task-1", Argv: []string{os.Args[0], "engine", mode}, Env: os.Environ(), StopTimeout: mobula.Duration(deadline),
		Restarts: 3, Backoff: mobula.Duration(time.Millisecond), MaxBackoff: mobula.Duration(time.Millisecond),
	}
}

func start(t *testing.T, d Dir, task Task) {
	t.Helper()
	require.NoError(t, d.Start(t.Context(), task, StartOptions{Exe: os.Args[0], Environ: os.Environ()}))
}

// wait waits until the status is as wanted.
func wait(t *testing.T, d Dir, what string, ok func(Status) bool) Status {
	t.Helper()
	var s Status
	require.Eventually(t, func() bool {
		var err error
		s, err = d.Status()
		return err == nil && ok(s)
	}, deadline, pause, what)
	return s
}

func waitEnd(t *testing.T, d Dir) Status {
	t.Helper()
	require.Eventually(t, func() bool { return !d.Alive() }, deadline, pause, "the shim does not end")
	d.Reap()
	s, err := d.Status()
	require.NoError(t, err)
	return s
}

// printed waits for lines that begin so in the engine's log and gives the number after them.
func printed(t *testing.T, d Dir, prefix string, count int) []int {
	t.Helper()
	var all []int
	require.Eventually(t, func() bool {
		all = nil
		f, err := os.Open(d.LogPath())
		if err != nil {
			return false
		}
		defer func() { _ = f.Close() }()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(rest))
				all = append(all, n)
			}
		}
		return len(all) >= count
	}, deadline, pause, "no %d lines %q", count, prefix)
	return all
}

func up(t *testing.T, d Dir) Status {
	t.Helper()
	printed(t, d, "up", 1)
	return wait(t, d, "running", func(s Status) bool { return s.State == Running && s.PID > 0 })
}

func TestAnEngineRunsUntilItsShimIsStopped(t *testing.T) {
	d := newDir(t)
	require.False(t, d.Alive())
	require.ErrorIs(t, d.Stop(), os.ErrNotExist)
	start(t, d, task("plain"))
	s := up(t, d)
	require.True(t, d.Alive())
	require.NotEqual(t, os.Getpid(), s.Shim)
	require.ErrorIs(t, d.Start(t.Context(), task("plain"), StartOptions{Exe: os.Args[0]}), ErrRunning)
	require.ErrorIs(t, d.Remove(t.Context()), ErrRunning)
	require.ErrorIs(t, d.Fail("x"), ErrRunning)
	after, err := d.Status()
	require.NoError(t, err)
	require.Equal(t, s, after, "a second start changes nothing")
	require.NoError(t, d.Stop())
	require.Equal(t, Ended, waitEnd(t, d).State)
	require.ErrorIs(t, d.Stop(), ErrNotRunning)
	require.NoError(t, d.Remove(t.Context()))
	require.NoDirExists(t, string(d))
	require.NoError(t, d.Remove(t.Context()))
}

func TestStopTakesAllDescendantsAlong(t *testing.T) {
	d := newDir(t)
	start(t, d, task("family"))
	up(t, d)
	printed(t, d, "deaf", 2)
	require.NoError(t, d.Stop())
	require.Equal(t, Ended, waitEnd(t, d).State)
	requireNothingLeft(t, d)
}

func TestACrashTakesAllDescendantsAlongAndStartsAgain(t *testing.T) {
	d := newDir(t)
	start(t, d, task("family"))
	first := up(t, d)
	left := printed(t, d, "left ", 1)[0]
	killed, err := d.KillEngine()
	require.NoError(t, err)
	require.True(t, killed)
	wait(t, d, "another engine", func(s Status) bool { return s.PID > 0 && s.PID != first.PID && s.Restarts == 1 })
	require.NotContains(t, marked(func(m string) bool { return m == d.mark() }), left)
	require.NoError(t, d.Stop())
	waitEnd(t, d)
}

func TestStopKillsAnEngineThatIgnoresIt(t *testing.T) {
	for name, tc := range map[string]struct {
		timeout time.Duration
		stops   int
	}{
		"after the timeout": {50 * time.Millisecond, 1},
		"at a second stop":  {time.Hour, 2},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			o := task("stubborn")
			o.StopTimeout = mobula.Duration(tc.timeout)
			start(t, d, o)
			up(t, d)
			require.NoError(t, d.Stop())
			if tc.stops == 2 {
				wait(t, d, "stopping", func(s Status) bool { return s.State == Stopping })
				require.NoError(t, d.Stop())
			}
			require.Equal(t, Ended, waitEnd(t, d).State)
		})
	}
}

func TestACrashLoopEndsWithTheReason(t *testing.T) {
	d := newDir(t)
	start(t, d, task("oom"))
	s := waitEnd(t, d)
	require.Equal(t, Failed, s.State)
	require.Equal(t, 3, s.Restarts)
	require.Equal(t, "exit status 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB.", s.Reason)
	require.Len(t, printed(t, d, "engine ", 4), 4)
}

func TestACommandThatIsNotThereFails(t *testing.T) {
	d := newDir(t)
	o := task("plain")
	o.Argv = []string{"/nonexistent/vllm"}
	start(t, d, o)
	s := waitEnd(t, d)
	require.Equal(t, Failed, s.State)
	require.Contains(t, s.Reason, "/nonexistent/vllm")
	require.Contains(t, s.Reason, "no such file")
}

func TestAKilledShimLeavesWhatTheNextOneKills(t *testing.T) {
	d := newDir(t)
	start(t, d, task("family"))
	s := up(t, d)
	printed(t, d, "deaf", 2)
	require.NoError(t, syscall.Kill(s.Shim, syscall.SIGKILL))
	require.Eventually(t, func() bool { return !d.Alive() }, deadline, pause)
	d.Reap()
	require.NotEmpty(t, marked(func(m string) bool { return m == d.mark() }), "the deaf ones are left")
	start(t, d, task("plain"))
	now := up(t, d)
	require.ElementsMatch(t, []int{now.Shim, now.PID}, marked(func(m string) bool { return m == d.mark() }))
	require.NoError(t, d.Kill(t.Context()))
	require.False(t, d.Alive())
	requireNothingLeft(t, d)
}

func TestKillNeedsNoStatus(t *testing.T) {
	d := newDir(t)
	start(t, d, task("family"))
	s := up(t, d)
	require.NoError(t, os.WriteFile(d.path(statusFile), []byte("{"), 0o600))
	require.NoError(t, d.Kill(t.Context()))
	require.False(t, d.Alive())
	if s.Cgroup != "" {
		require.NoDirExists(t, s.Cgroup)
	}
}

func TestStraysAreKilledButForThoseThatAreKept(t *testing.T) {
	kept := newDir(t)
	parent := filepath.Dir(string(kept))
	stray := Dir(filepath.Join(parent, "task-2"))
	start(t, kept, task("plain"))
	up(t, kept)
	start(t, stray, task("plain"))
	s := up(t, stray)
	require.NoError(t, os.RemoveAll(string(stray)))
	require.NoError(t, SweepStrays(t.Context(), parent, func(task string) bool { return task == "task-1" }))
	require.True(t, kept.Alive())
	require.Empty(t, marked(func(m string) bool { return m == stray.mark() }))
	_, _ = syscall.Wait4(s.Shim, nil, 0, nil)
	if s.Cgroup != "" {
		require.NoDirExists(t, s.Cgroup)
	}
	require.NoError(t, kept.Stop())
	waitEnd(t, kept)
}

func TestTheTaskIsReadAgainBeforeEachStart(t *testing.T) {
	d := newDir(t)
	start(t, d, task("plain"))
	up(t, d)
	require.NoError(t, d.SetTask(task("oom")))
	_, err := d.KillEngine()
	require.NoError(t, err)
	require.Contains(t, waitEnd(t, d).Reason, "CUDA out of memory")
}

func TestTheLogIsRotated(t *testing.T) {
	d := newDir(t)
	o := task("talk")
	o.LogSize = 20_000
	start(t, d, o)
	up(t, d)
	for _, path := range []string{d.LogPath(), d.LogPath() + ".1"} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(20_000))
	}
	require.NoError(t, d.Stop())
	waitEnd(t, d)
}

func TestALifelineEndsTheShimWithItsAgent(t *testing.T) {
	d := newDir(t)
	require.NoError(t, os.MkdirAll(string(d), 0o700))
	o := task("family")
	o.Lifeline = true
	require.NoError(t, d.SetTask(o))
	agent := exec.Command(os.Args[0], "agent", string(d))
	out, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "started\n", line)
	up(t, d)
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait()
	require.Equal(t, Ended, waitEnd(t, d).State)
}

func TestAFailureIsLeftForTheNextAgent(t *testing.T) {
	d := newDir(t)
	start(t, d, task("plain"))
	up(t, d)
	require.NoError(t, d.Stop())
	waitEnd(t, d)
	require.NoError(t, d.Fail("not ready in time"))
	s, err := d.Status()
	require.NoError(t, err)
	require.Equal(t, Failed, s.State)
	require.Equal(t, "not ready in time", s.Reason)
}

func TestACommandIsFoundByTheEnginesPath(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "vllm"), nil, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "data"), nil, 0o644))
	path := "PATH=/nonexistent:" + folder
	for name, tc := range map[string]struct {
		env        []string
		name, want string
	}{
		"found":           {[]string{path}, "vllm", folder + "/vllm"},
		"the last wins":   {[]string{"PATH=/bin", path}, "vllm", folder + "/vllm"},
		"not executable":  {[]string{path}, "data", "data"},
		"not there":       {[]string{path}, "vllm2", "vllm2"},
		"a path":          {[]string{path}, "./vllm", "./vllm"},
		"no PATH":         {nil, "vllm", "vllm"},
		"an empty folder": {[]string{"PATH=:"}, "vllm", "vllm"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, lookPath(tc.name, tc.env)) })
	}
}

func TestOwnCgroupIsFound(t *testing.T) {
	const file = "9:name=systemd:/a\n8:pids:/b:c\n0::/d\n"
	for name, tc := range map[string]struct {
		controller, want string
		ok               bool
	}{
		"version 2":       {"", "/d", true},
		"version 1":       {"pids", "/b:c", true},
		"not there":       {"freezer", "", false},
		"a name's prefix": {"systemd", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := ownCgroup(file, tc.controller)
			require.Equal(t, tc.ok, ok)
			require.Equal(t, tc.want, got)
		})
	}
	for _, path := range []string{"", "/", "/etc/mobula-x", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/../../etc"} {
		require.Empty(t, openCgroup(path), path)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte(`{"id":"a","argv":["vllm"],"env":["A=1"],"stopTimeout":"45s","restarts":5,"logSize":"32MiB","owner":{"port":8701}}`))
	f.Add([]byte(`{"state":"running","since":"2026-11-22T19:40:43Z","shim":1,"pid":2,"restarts":0,"cgroup":"/sys/fs/cgroup/mobula-x"}`))
	f.Add([]byte(`{"argv":[]}`))
	f.Add([]byte(``))
	d := Dir(f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte) {
		require.NoError(t, os.WriteFile(d.path(taskFile), b, 0o600))
		require.NoError(t, os.WriteFile(d.path(statusFile), b, 0o600))
		if task, err := d.Task(); err == nil && len(task.Argv) == 0 {
			t.Fatal("a task without a command")
		}
		_, _ = d.Status()
		require.False(t, d.Alive())
	})
}

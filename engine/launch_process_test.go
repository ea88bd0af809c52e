//go:build unix

package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deadline of conditions: generous, since the machine may be busy.
const deadline = 20 * time.Second

// fake is a vllm of a few lines: it leaves a child behind as the API server does its engine core.
const fake = `sleep 1000 & echo child $!; `

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// running is a Process whose Run goes on in the background.
type running struct {
	*Process
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, o ProcessOptions) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{NewProcess(o), cancel, make(chan error, 1)}
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-r.done:
		case <-time.After(deadline):
			t.Error("process still runs at the end of the test")
		}
	})
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		r.done <- nil // for the cleanup
		return err
	case <-time.After(deadline):
		t.Fatal("Run does not return; last lines: ", r.Tail())
		return nil
	}
}

// line waits for a line that begins with prefix and gives the rest of it.
func (r *running) line(t *testing.T, prefix string) string {
	t.Helper()
	var rest string
	require.Eventually(t, func() bool {
		for _, l := range r.Tail() {
			if after, ok := strings.CutPrefix(l, prefix+" "); ok {
				rest = after
				return true
			}
		}
		return false
	}, deadline, 5*time.Millisecond, "no line %q", prefix)
	return rest
}

func (r *running) pid(t *testing.T, prefix string) int {
	t.Helper()
	pid, err := strconv.Atoi(r.line(t, prefix))
	require.NoError(t, err)
	require.Positive(t, pid)
	return pid
}

func requireDead(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { return !alive(pid) }, deadline, 5*time.Millisecond, "process %d lives", pid)
}

// alive tells whether pid runs; a zombie that nobody has waited for does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || !procMounted()
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(state, []byte("Z"))
}

func procMounted() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	for name, script := range map[string]string{
		"leader obeys, child ignores": `(trap '' TERM; echo child $(sh -c 'echo $PPID'); while :; do sleep 1; done) & echo leader $$; wait`,
		"leader leaves its child":     `trap 'exit 0' TERM; ` + fake + ` echo leader $$; while :; do sleep 1; done`,
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, ProcessOptions{Name: "e", Argv: sh(script), Env: os.Environ()})
			leader, child := p.pid(t, "leader"), p.pid(t, "child")
			require.True(t, alive(leader))
			require.True(t, alive(child))
			p.stop()
			require.NoError(t, p.wait(t))
			requireDead(t, leader)
			requireDead(t, child)
		})
	}
}

func TestStopKillsWhatIgnoresSIGTERM(t *testing.T) {
	const script = `trap '' TERM; ` + fake + ` echo leader $$; while :; do sleep 1; done`
	t.Run("after the timeout", func(t *testing.T) {
		p := start(t, ProcessOptions{Argv: sh(script), Env: os.Environ(), StopTimeout: 50 * time.Millisecond})
		leader, child := p.pid(t, "leader"), p.pid(t, "child")
		p.stop()
		require.NoError(t, p.wait(t))
		requireDead(t, leader)
		requireDead(t, child)
	})
	t.Run("at once when told", func(t *testing.T) {
		kill := make(chan struct{})
		p := start(t, ProcessOptions{Argv: sh(script), Env: os.Environ(), StopTimeout: time.Hour, Kill: kill})
		leader := p.pid(t, "leader")
		p.stop()
		close(kill)
		require.NoError(t, p.wait(t))
		requireDead(t, leader)
	})
}

func TestCrashTakesTheRestOfTheGroupAlong(t *testing.T) {
	p := start(t, ProcessOptions{Argv: sh(fake + "echo boom >&2; exit 3"), Env: os.Environ()})
	err := p.wait(t)
	require.ErrorIs(t, err, ErrGaveUp)
	require.ErrorContains(t, err, "exit status 3")
	require.Contains(t, p.Tail(), "boom")
	requireDead(t, p.pid(t, "child"))
}

func TestRestartsAreBoundedAndBackOff(t *testing.T) {
	var mu sync.Mutex
	var exits []Exit
	p := start(t, ProcessOptions{
		Name: "e", Argv: sh("echo once; exit 1"), Env: os.Environ(),
		Restarts: 4, Backoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond,
		Exited: func(e Exit) { mu.Lock(); exits = append(exits, e); mu.Unlock() },
	})
	require.ErrorIs(t, p.wait(t), ErrGaveUp)
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, exits, 5)
	var pauses []time.Duration
	for i, e := range exits {
		require.Equal(t, i < 4, e.Restart)
		require.Equal(t, []string{"once"}, e.Tail, "the tail is the last run's")
		pauses = append(pauses, e.Backoff)
	}
	const ms = time.Millisecond
	require.Equal(t, []time.Duration{ms, 2 * ms, 4 * ms, 4 * ms, 0}, pauses)
}

func TestALongRunStartsTheCountAgain(t *testing.T) {
	var starts int
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := NewProcess(ProcessOptions{
		Argv: sh("exit 1"), Env: os.Environ(), Restarts: 1, Backoff: time.Nanosecond, Stable: time.Nanosecond,
		Exited: func(Exit) {
			if starts++; starts == 5 {
				cancel()
			}
		},
	})
	require.NoError(t, p.Run(ctx))
	require.Equal(t, 5, starts)
}

func TestACommandThatIsNotThereFails(t *testing.T) {
	p := start(t, ProcessOptions{Name: "e", Argv: []string{"/nonexistent/vllm"}})
	err := p.wait(t)
	require.ErrorIs(t, err, ErrGaveUp)
	require.ErrorIs(t, err, os.ErrNotExist)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestOutputThatFailsDoesNotBlockTheProcess(t *testing.T) {
	p := start(t, ProcessOptions{
		Argv: sh("i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; echo end; exit 1"),
		Env:  os.Environ(), Output: full{},
	})
	require.ErrorIs(t, p.wait(t), ErrGaveUp)
	require.Contains(t, p.Tail(), "end")
}

func TestOutputGetsEverything(t *testing.T) {
	var out bytes.Buffer
	p := start(t, ProcessOptions{Argv: sh("echo a; echo b >&2; echo $MARK; exit 1"), Env: []string{"MARK=c"}, Output: &out})
	require.ErrorIs(t, p.wait(t), ErrGaveUp)
	require.Equal(t, "a\nb\nc\n", out.String())
}

func TestEachStartAsksForItsCommand(t *testing.T) {
	var starts, swept int
	var pids []int
	p := start(t, ProcessOptions{
		Restarts: 2, Backoff: time.Nanosecond,
		Command: func() ([]string, []string, error) {
			if starts++; starts == 2 {
				return nil, nil, errors.New("nothing to run")
			}
			return sh("exit $MARK"), []string{"MARK=" + strconv.Itoa(starts)}, nil
		},
		Started: func(pid int) { pids = append(pids, pid) },
		Sweep:   func() { swept++ },
	})
	require.ErrorContains(t, p.wait(t), "exit status 3")
	require.Equal(t, 3, starts)
	require.Len(t, pids, 2, "the second one was not started")
	require.Equal(t, 2, swept)
}

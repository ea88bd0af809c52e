//go:build real

package real

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// guard kills process groups when the test ends, and also when it can't clean up after
// itself: go test's timeout, Ctrl-C, SIGKILL. vLLM's workers outlive their parent, so the
// parent's death alone, and Pdeathsig with it, would leave them.
type guard struct {
	groups io.WriteCloser
	wait   func() error
}

// end has the groups killed, as the test process's own end would.
func (g *guard) end() {
	_ = g.groups.Close()
	_ = g.wait() // groups that are gone already make it fail
}

// TestGuardKillsGroups checks the guard itself: what it loses would run on after CI.
func TestGuardKillsGroups(t *testing.T) {
	g := newGuard(t)
	dir := t.TempDir()
	gone := g.start(t, dir, "gone", nil, "true")
	<-gone.done
	parent := g.start(t, dir, "parent", nil, "/bin/sh", "-c", "sleep 1000 & echo $!; wait")
	var child int
	eventually(t, time.Minute, "the child's id", func() bool {
		n, err := fmt.Sscan(string(parent.tail(t, 100)), &child)
		return n == 1 && err == nil
	})
	g.end()
	eventually(t, time.Minute, "the parent is gone", parent.ended)
	eventually(t, time.Minute, "the child is gone", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		return err != nil || strings.Contains(string(stat), ") Z ") // nobody may be there to reap it
	})
}

func newGuard(t *testing.T) *guard {
	t.Helper()
	const script = `groups=; while read -r g; do groups="$groups $g"; done; for g in $groups; do kill -KILL "-$g"; done`
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	g := &guard{groups: in, wait: cmd.Wait}
	t.Cleanup(g.end)
	return g
}

// process is a started program. It leads a process group, so that what it starts ends with it.
type process struct {
	name string
	log  string // file of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start runs a program with env added to the environment. Its output goes to a file, the
// end of which is shown when the test fails.
func (g *guard) start(t *testing.T, dir, name string, env []string, argv ...string) *process {
	t.Helper()
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, p.cmd.Start())
	_, err = io.WriteString(g.groups, strconv.Itoa(p.cmd.Process.Pid)+"\n")
	require.NoError(t, err)
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.killGroup()
		<-p.done
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", name, p.tail(t, 1500))
		}
	})
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s), "signal %s", p.name)
}

// killGroup kills the process and all that it has started; none left is fine.
func (p *process) killGroup() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail is the last n bytes of the log.
func (p *process) tail(t *testing.T, n int) []byte {
	t.Helper()
	b, err := os.ReadFile(p.log)
	require.NoError(t, err)
	b = b[max(0, len(b)-n):]
	return bytes.ToValidUTF8(b, []byte("?"))
}

// healthy waits until url/health answers 200 or the process has ended.
func (p *process) healthy(ctx context.Context, client *http.Client, url string) error {
	for {
		if status, err := get(ctx, client, url+"/health"); err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New(p.name + " did not become healthy in time")
		case <-p.done:
			return errors.New(p.name + " ended while it started: " + p.cmd.ProcessState.String())
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// eventually waits for a condition; the deadline is generous, for it is no measurement.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(50 * time.Millisecond) {
		require.False(t, time.Now().After(end), "not within %s: %s", within, what)
	}
}

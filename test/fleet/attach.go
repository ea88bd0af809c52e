//go:build linux

package fleet

import (
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Attach gives a Fleet without processes, for one of another platform than hosts: the test starts its control planes and routers by
// Start, sets URL, and has Config be how the control plane is reached. All that was started ends with the test.
func Attach(tb testing.TB, binary string) *Fleet {
	tb.Helper()
	f := &Fleet{t: tb, binary: binary, dir: tb.TempDir(), patience: patience, procs: map[string]*proc{}}
	f.client = &http.Client{Timeout: 2 * f.patience, Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	f.config = filepath.Join(f.dir, "client.json")
	f.guard(tb)
	tb.Cleanup(f.end)
	return f
}

// Config is the file from which commands know how the control plane is reached.
func (f *Fleet) Config() string { return f.config }

// Command makes a command of the binary that belongs to the fleet: it is killed at the end, if not before.
func (f *Fleet) Command(args ...string) *exec.Cmd { return f.command(args...) }

// Start starts a process of the fleet, with more of an environment, and gives the first line that it prints. Kill and Stop know it by its name.
func (f *Fleet) Start(name string, env []string, args ...string) string {
	f.t.Helper()
	cmd := f.command(args...)
	cmd.Env = append(cmd.Env, env...)
	return f.launch(Machine{}, name, cmd)
}

// Log is what a running process has written to its log.
func (f *Fleet) Log(name string) string {
	if p := f.procs[name]; p != nil {
		return p.log.String()
	}
	return ""
}

// Ended gives what a process has written that has ended by itself, once it has.
func (f *Fleet) Ended(name string) (log string, code int) {
	f.t.Helper()
	p := f.procs[name]
	require.NotNil(f.t, p, name)
	select {
	case <-p.done:
	case <-time.After(f.patience):
		f.t.Fatalf("%s does not end\n%s", name, p.log)
	}
	delete(f.procs, name)
	return p.log.String(), p.cmd.ProcessState.ExitCode()
}

//go:build linux

package fleet

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGuardKillsWhatIsLeft(t *testing.T) {
	f := &Fleet{t: t, dir: t.TempDir()}
	end := f.guard(t)
	start := func(env ...string) *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		cmd.Env = append(os.Environ(), env...)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	ours, other := start(f.mark()), start(f.mark()+"-of-another")
	end()
	require.Equal(t, syscall.SIGKILL, endedBy(t, ours))
	require.NoError(t, other.Process.Signal(syscall.SIGTERM))
	require.Equal(t, syscall.SIGTERM, endedBy(t, other), "it was ours to end")
}

func endedBy(t *testing.T, cmd *exec.Cmd) syscall.Signal {
	t.Helper()
	exit := new(exec.ExitError)
	require.ErrorAs(t, cmd.Wait(), &exit)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	return status.Signal()
}

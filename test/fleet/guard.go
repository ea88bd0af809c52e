//go:build linux

package fleet

import (
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// guard kills what is left of the fleet when the test's process ends without cleaning up: go test's timeout, Ctrl-C,
// SIGKILL. Agents and shims are made to outlive whoever started them, and may start an engine again meanwhile.
func (f *Fleet) guard(tb testing.TB) (end func()) {
	tb.Helper()
	const script = `read -r _; again=1; while [ $again = 1 ]; do again=0
for p in /proc/[0-9]*; do if tr '\0' '\n' <"$p/environ" | grep -qxF "$1"; then kill -KILL "${p#/proc/}" && again=1; fi; done
done 2>/dev/null`
	cmd := exec.Command("/bin/sh", "-c", script, "guard", f.mark())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	in, err := cmd.StdinPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	end = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	tb.Cleanup(end)
	return end
}

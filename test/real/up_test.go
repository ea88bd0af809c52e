//go:build real

package real

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestUpRunsRealVLLM: `mobula up --model` starts vllm from PATH, answers through it, and
// leaves none of its processes when it stops.
func TestUpRunsRealVLLM(t *testing.T) {
	dir := os.Getenv("MOBULA_REAL_DIR")
	require.NotEmpty(t, dir, "MOBULA_REAL_DIR is not set; make test-real sets it")
	s := &stack{root: t, dir: dir, logs: t.ArtifactDir(), guard: newGuard(t), client: &http.Client{}}
	t.Cleanup(s.client.CloseIdleConnections)
	s.build(t)
	port := freePorts(t, 1)[0]
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	// A home of its own: logs go to the user's cache folder, and vLLM takes an empty
	// XDG_CACHE_HOME for the working directory.
	home := t.TempDir()
	env := append(engineEnv(), "PATH="+filepath.Join(dir, "venv/bin")+":"+os.Getenv("PATH"), "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, ".cache"))
	tiny := filepath.Join(dir, "models/tiny")
	up := s.guard.start(t, s.logs, "up", env, s.binary, "up", "--port", strconv.Itoa(port), "--model", tiny, "--",
		"--served-model-name", model, "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16", "--enforce-eager")
	body := `{"model":"` + model + `","messages":[{"role":"user","content":"hi"}],"max_tokens":5}`
	eventually(t, 10*time.Minute, "an answer through real vLLM", func() bool {
		require.False(t, up.ended(), "mobula up ended early")
		resp, err := s.client.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	group := engineGroup(t, tiny)
	up.signal(t, syscall.SIGTERM)
	eventually(t, 2*time.Minute, "mobula up stops", up.ended)
	require.Equal(t, 0, up.cmd.ProcessState.ExitCode())
	require.Contains(t, string(up.tail(t, 1<<30)), url)
	eventually(t, time.Minute, "no process of the engine is left", func() bool { return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) })
}

// engineGroup gives the process group that serves a model.
func engineGroup(t *testing.T, model string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, f := range files {
		argv, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(argv), "serve\x00"+model) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		require.NoError(t, err)
		if group, err := syscall.Getpgid(pid); err == nil {
			return group
		}
	}
	t.Fatal("no process serves " + model)
	return 0
}

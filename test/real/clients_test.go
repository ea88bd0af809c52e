//go:build real

package real

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testClients runs each client script against the router; each of its cases is a subtest.
func (s *stack) testClients(t *testing.T) {
	python := filepath.Join(s.dir, "venv/bin/python")
	t.Run("openai python", func(t *testing.T) {
		runScript(t, python, "-B", "clients/openai_client.py", s.url)
	})
	t.Run("anthropic python", func(t *testing.T) {
		runScript(t, python, "-B", "clients/anthropic_client.py", s.url)
	})
	t.Run("openai node", func(t *testing.T) {
		node, err := exec.LookPath("node")
		modules := filepath.Join(s.dir, "node")
		if err == nil {
			_, err = os.Stat(filepath.Join(modules, "node_modules/openai"))
		}
		if err != nil {
			require.Empty(t, os.Getenv("CI"), "the Node client must run in CI: %v", err)
			t.Skipf("not run: all cases of the official Node client: %v", err)
		}
		runScript(t, node, "clients/openai_client.mjs", s.url, modules)
	})
}

// line is what a script prints: a case, or at the end how many there were.
type line struct {
	Case   string `json:"case"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Done   int    `json:"done"`
}

func runScript(t *testing.T, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	cases, done := 0, 0
	for raw := range bytes.Lines(out) {
		var l line
		require.NoError(t, json.Unmarshal(raw, &l), "%s", raw)
		if l.Case == "" {
			done = l.Done
			continue
		}
		cases++
		t.Run(l.Case, func(t *testing.T) { require.True(t, l.OK, "%s", l.Detail) })
	}
	require.NoError(t, err, "%s", stderr.Bytes())
	require.Positive(t, done, "the script did not say that it was through")
	require.Equal(t, done, cases, "cases")
}

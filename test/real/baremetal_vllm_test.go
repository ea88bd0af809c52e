//go:build real

package real

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/test/fleet"
)

// TestAgentRunsRealVLLM: a host's agent keeps real vLLM running, with its LoRA, tells vLLM's own reason when it does
// not start, and leaves nothing of it.
func TestAgentRunsRealVLLM(t *testing.T) {
	dir := os.Getenv("MOBULA_REAL_DIR")
	require.NotEmpty(t, dir, "MOBULA_REAL_DIR is not set; make test-real sets it")
	machines := fleet.Loopback("head", "h1")
	good := vllmModel(dir, model, filepath.Join(dir, "models/tiny")) +
		fmt.Sprintf("    loras: [{name: %s, source: %s}]\n", lora, filepath.Join(dir, "models/tiny-lora"))
	f := fleet.New(t, fleet.Options{Binary: build(t), Head: machines[0], Hosts: machines[1:], File: vllmFleet(good), Patience: 10 * time.Minute})

	f.AwaitReady(model, 1)
	engine := f.Ready(model)[0]
	f.AwaitServes(model, engine.ID)
	f.AwaitServes(lora, engine.ID)

	t.Run("killed", func(t *testing.T) {
		before := f.Engines()
		require.GreaterOrEqual(t, len(before), 2, "the API process and the engine core")
		require.NoError(t, syscall.Kill(f.Engine(engine), syscall.SIGKILL))
		f.Await("started again", func() bool {
			ready := f.Ready(model)
			return len(ready) == 1 && ready[0].Restarts == 1
		})
		for _, pid := range f.Engines() {
			require.NotContains(t, before, pid, "left of the engine that was killed")
		}
		require.Equal(t, engine.ID, f.Ready(model)[0].ID)
		f.AwaitServes(model, engine.ID)
		f.AwaitServes(lora, engine.ID)
	})
	t.Run("no such folder", func(t *testing.T) {
		missing := filepath.Join(t.TempDir(), "none")
		f.Apply(vllmFleet(good, vllmModel(dir, "missing", missing)))
		f.Await("vLLM's reason", func() bool {
			out, err := f.TryRun("describe", "model", "missing")
			return err == nil && strings.Contains(out, "Repo id must be in the form") && strings.Contains(out, missing)
		})
		require.True(t, slices.Equal([]string{engine.ID}, ids(f.Ready(model))), "the other model goes on")
		t.Log(f.Run("describe", "model", "missing"))
	})
	t.Run("deleted", func(*testing.T) {
		f.Run("delete", "--all", "--yes")
		f.Await("no process is left", func() bool { return len(f.Engines())+len(f.Processes("shim")) == 0 })
	})
}

// vllmFleet is a fleet file with these models.
func vllmFleet(models ...string) string {
	return "apiVersion: mobula/v1\nkind: Fleet\nplatform: {static: {}}\nmodels:\n" + strings.Join(models, "")
}

// vllmModel is a model of a fleet file, served by one vLLM on the CPU.
func vllmModel(dir, name, source string) string {
	var env strings.Builder
	for _, kv := range engineEnv() {
		key, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, "VLLM_HOST_IP") && key != "VLLM_ALLOW_RUNTIME_LORA_UPDATING" { // the agent's to set
			fmt.Fprintf(&env, "        %s: %q\n", key, value)
		}
	}
	return fmt.Sprintf(`  - name: %s
    source: %s
    replicas: 1
    resources: {gpus: 0}
    engine:
      command: [%s]
      args: [--dtype, float32, --max-model-len, "2048", --max-num-seqs, "16", --enforce-eager, --max-lora-rank, "8"]
      env:
%s`, name, source, filepath.Join(dir, "venv/bin/vllm"), env.String())
}

func ids(replicas []control.ReplicaStatus) []string {
	all := make([]string, len(replicas))
	for i, r := range replicas {
		all[i] = r.ID
	}
	return all
}

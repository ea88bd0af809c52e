//go:build real

package real

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/test/fleet"
)

// testTwoNodes: an engine over two nodes is one process on each, started as vLLM wants it, and they live and die
// together. Without GPUs the processes are simulated.
func (s *raySuite) testTwoNodes(t *testing.T) {
	c, binary := s.c, s.binary
	dir := t.TempDir()
	vllm := filepath.Join(dir, "vllm") // takes what vllm serve takes, and writes it down
	require.NoError(t, os.WriteFile(vllm, []byte(`#!/bin/sh
echo "$@" >>`+dir+`/arguments
while [ $# -gt 0 ]; do case $1 in
--host) host=$2 ;; --port) port=$2 ;; --served-model-name) name=$2 ;; --headless) headless=1 ;;
esac; shift; done
[ -z "$headless" ] || exec `+binary+` sim --port 0 --model headless
exec `+binary+` sim --host "$host" --port "$port" --model "$name" --itl 5ms
`), 0o700))
	f := c.fleet(t, binary, c.file("", fmt.Sprintf(`  - name: %s
    aliases: [chat]
    replicas: 1
    resources: {hosts: 2}
    engine: {command: [%s], args: [--tensor-parallel-size, "2", --pipeline-parallel-size, "2"]}
`, fleet.Model, vllm)))
	f.AwaitReady(fleet.Model, 1)
	before := f.Ready(fleet.Model)[0]
	require.ElementsMatch(t, []string{c.nodes[0].host.IP, c.nodes[1].host.IP}, before.Hosts)
	require.Equal(t, []string{"0,1", "0,1"}, before.Devices)
	f.AwaitServes("chat", before.ID)
	written, err := os.ReadFile(filepath.Join(dir, "arguments"))
	require.NoError(t, err)
	for rank := range 2 {
		require.Contains(t, string(written), fmt.Sprintf("--nnodes 2 --node-rank %d", rank))
	}
	require.Equal(t, 2, strings.Count(string(written), "--master-addr "+before.Hosts[0]), "they meet where it serves: %s", written)

	old := c.pids()
	require.Len(t, old, 2)
	f.killed(f.partElsewhere(before.Hosts[0]).pid)
	f.Await("both parts are new", func() bool {
		now, _ := f.named(before.ID)
		return now.State == mobula.StateReady && len(c.pids()) == 2 && !slices.ContainsFunc(c.pids(), func(pid int) bool { return slices.Contains(old, pid) })
	})
	f.AwaitServes("chat", before.ID)
	f.Deleted()
}

// partElsewhere is the one engine process that is not on the node with that address.
func (f *rayFleet) partElsewhere(ip string) rayProcess {
	f.t.Helper()
	var found []rayProcess
	for _, n := range f.c.nodes {
		if n.host.IP != ip {
			found = append(found, n.processes(isSim)...)
		}
	}
	require.Len(f.t, found, 1)
	return found[0]
}

// testVLLM: real vLLM on the CPU is an engine like any other.
func (s *raySuite) testVLLM(t *testing.T) {
	c, binary := s.c, s.binary
	dir := os.Getenv("MOBULA_REAL_DIR")
	require.NotEmpty(t, dir, "MOBULA_REAL_DIR is not set; make test-real sets it")
	f := c.fleet(t, binary, c.file("", vllmModel(dir, model, filepath.Join(dir, "models/tiny"))))
	f.AwaitReady(model, 1)
	f.AwaitServes(model, f.Ready(model)[0].ID)
	require.Contains(t, f.Run("logs", f.Ready(model)[0].ID), "Application startup complete")
	f.Deleted()
	for _, n := range c.nodes {
		require.Empty(t, n.processes(func(p *rayProcess) bool {
			text := strings.Join(p.argv, " ")
			return strings.Contains(text, "vllm") || strings.Contains(text, "VLLM")
		}), "vLLM's processes")
	}
}

// TestRayOlder: what matters most works on the minor version before, too.
func TestRayOlder(t *testing.T) {
	c, binary := startRay(t, rayOptions{Version: "2.59.0"}), build(t)
	f := c.fleet(t, binary, c.file("", simModel(binary, "2", "")))
	f.AwaitReady(fleet.Model, 2)
	load := f.Traffic("chat", 4, false)
	load.More(50)
	victim := f.Ready(fleet.Model)[0]
	f.killed(f.engine(victim).pid)
	f.AwaitRestarted(victim)
	load.More(20)
	load.End()
	f.Deleted()
}

//go:build real

package real

import (
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/test/fleet"
	"github.com/mobula-serve/mobula/test/netns"
)

// TestBareMetalFleetInNetworkNamespaces: what happens to fleets happens to three hosts with networks of their own.
func TestBareMetalFleetInNetworkNamespaces(t *testing.T) {
	machines, _ := namespaces(t, "head", "h1", "h2", "h3")
	fleet.Life(t, fleet.Options{Binary: build(t), Head: machines[0], Hosts: machines[1:]})
}

// TestControlPlaneCutOff: without their control plane routers and engines go on; it gives nobody up when
// no host answers.
func TestControlPlaneCutOff(t *testing.T) {
	m, _ := namespaces(t, "control", "router", "h1", "h2", "h3")
	f := fleet.New(t, fleet.Options{Binary: build(t), Head: m[0], Router: m[1], Hosts: m[2:], File: fleet.Plain("3")})
	f.AwaitReady(fleet.Model, 3)
	before := f.Ready(fleet.Model)
	load := f.Traffic("chat", 4, false)
	load.More(50)

	require.NoError(t, m[0].Partition(true))
	var silent time.Time
	f.Await("all hosts are silent for three times the bound", func() bool {
		if slices.ContainsFunc(f.Hosts(), func(h mobula.Host) bool { return h.Silent == "" }) {
			silent = time.Time{}
			return false
		}
		if silent.IsZero() {
			silent = time.Now()
		}
		return time.Since(silent) > 3*fleet.HostTimeout
	})
	require.ElementsMatch(t, ids(before), ids(f.Replicas()), "nothing is given up")
	load.More(50)
	killed := f.Engine(before[0])
	require.NoError(t, syscall.Kill(killed, syscall.SIGKILL))
	f.Await("the agent has started its engine again", func() bool {
		all := f.Processes("sim")
		return len(all) == 3 && !slices.Contains(all, killed)
	})
	load.More(50)
	f.AwaitServes("chat", before[0].ID)

	require.NoError(t, m[0].Partition(false))
	f.AwaitReady(fleet.Model, 3)
	require.ElementsMatch(t, ids(before), ids(f.Ready(fleet.Model)))
	require.Len(t, f.Processes("sim"), 3)
	load.More(50)
	load.End()
}

// TestRouterCutOffFromHost: a router's own probes decide where it sends requests, whatever the control plane
// hears of the host.
func TestRouterCutOffFromHost(t *testing.T) {
	m, lab := namespaces(t, "control", "router", "h1", "h2", "h3")
	f := fleet.New(t, fleet.Options{Binary: build(t), Head: m[0], Router: m[1], Hosts: m[2:], File: fleet.Plain("3")})
	f.AwaitReady(fleet.Model, 3)
	before := f.Ready(fleet.Model)
	victim := before[0]
	load := f.Traffic("chat", 4, false)
	f.AwaitServes("chat", victim.ID)

	require.NoError(t, lab.Cut("router", victim.Hosts[0], true))
	state := func() mobula.State {
		all := f.Replicas()
		return all[slices.IndexFunc(all, func(r control.ReplicaStatus) bool { return r.ID == victim.ID })].State
	}
	f.Await("it is Suspect", func() bool { return state() == mobula.StateSuspect })
	require.ElementsMatch(t, ids(before), ids(f.Replicas()), "its host answers: no other is started")
	require.False(t, slices.ContainsFunc(f.Hosts(), func(h mobula.Host) bool { return h.Silent != "" }))
	load.More(50)

	require.NoError(t, lab.Cut("router", victim.Hosts[0], false))
	f.AwaitServes("chat", victim.ID)
	f.AwaitReady(fleet.Model, 3)
	require.ElementsMatch(t, ids(before), ids(f.Ready(fleet.Model)))
	require.False(t, slices.ContainsFunc(f.Ready(fleet.Model), func(r control.ReplicaStatus) bool { return r.Restarts > 0 }))
	load.End()
}

// TestHostCutOffFromControlPlane: a host that only its control plane can't reach is given up, and whoever is being
// answered there gets all of the answer.
func TestHostCutOffFromControlPlane(t *testing.T) {
	m, lab := namespaces(t, "control", "router", "h1", "h2", "h3")
	f := fleet.New(t, fleet.Options{Binary: build(t), Head: m[0], Router: m[1], Hosts: m[2:], File: fleet.Plain("3")})
	f.AwaitReady(fleet.Model, 3)
	host := f.Ready(fleet.Model)[0].Hosts[0]
	load := f.Traffic("chat", 4, true)
	load.More(50)

	require.NoError(t, lab.Cut("control", host, true))
	f.Await("replicas elsewhere", func() bool {
		ready := f.Ready(fleet.Model)
		return len(ready) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Hosts[0] == host })
	})
	load.More(50)

	require.NoError(t, lab.Cut("control", host, false))
	f.Await("nothing runs twice", func() bool { return len(f.Processes("sim")) == 3 })
	f.AwaitReady(fleet.Model, 3)
	load.More(50)
	load.End()
}

// namespaces gives machines in network namespaces.
func namespaces(t *testing.T, names ...string) ([]fleet.Machine, *netns.Lab) {
	t.Helper()
	lab := netns.New(t, names...)
	machines := make([]fleet.Machine, len(names))
	for i, name := range names {
		h := lab.Host(name)
		machines[i] = fleet.Machine{Name: name, IP: h.IP, Start: h.Start, Dial: h.Dial, Partition: h.Partition}
	}
	return machines, lab
}

// build makes the binary that users get, but with the race detector: a race makes its exit code 66.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "mobula")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", binary, "github.com/mobula-serve/mobula/cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

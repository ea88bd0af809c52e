//go:build real

package real

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/fleet"
	"github.com/mobula-serve/mobula/test/netns"
)

// TestBareMetalFleetInNetworkNamespaces: what happens to fleets happens to three hosts with networks of their own.
func TestBareMetalFleetInNetworkNamespaces(t *testing.T) {
	machines := namespaces(t, "head", "h1", "h2", "h3")
	fleet.Life(t, fleet.Options{Binary: build(t), Head: machines[0], Hosts: machines[1:]})
}

// namespaces gives machines in network namespaces.
func namespaces(t *testing.T, names ...string) []fleet.Machine {
	t.Helper()
	lab := netns.New(t, names...)
	machines := make([]fleet.Machine, len(names))
	for i, name := range names {
		h := lab.Host(name)
		machines[i] = fleet.Machine{Name: name, IP: h.IP, Start: h.Start, Dial: h.Dial, Partition: h.Partition}
	}
	return machines
}

// build makes the binary that users get, but with the race detector: a race makes its exit code 66.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "mobula")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", binary, "github.com/mobula-serve/mobula/cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

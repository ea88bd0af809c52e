//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// ImportMobula builds Mobula's image of this tree and gives it to the node. Its binary is there until the test ends.
func (c *Cluster) ImportMobula(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	binary, archive := filepath.Join(dir, "mobula"), filepath.Join(dir, "mobula.tar")
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./cmd/mobula"},
		{"run", "./test/image", "-name", c.image, "-out", archive, binary},
	} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "go %s: %s", strings.Join(args, " "), out)
	}
	c.Import(t, archive)
	c.binary = binary
}

// FakeToleration is what a pod needs to be placed on nodes of FakeNodes, with the node selector type: kwok.
const FakeToleration = `{key: kwok.x-k8s.io/node, operator: Exists, effect: NoSchedule}`

// FakeNodes adds nodes with 64 CPUs, 512 GiB and that many GPUs each, called fake-0 and so on, until the test ends. No
// kubelet is there: kwok says that their pods run, and no process does. They have a taint: FakeToleration.
func (c *Cluster) FakeNodes(t *testing.T, nodes, gpus int) {
	t.Helper()
	var all strings.Builder
	for i := range nodes {
		fmt.Fprintf(&all, `---
apiVersion: v1
kind: Node
metadata:
  name: fake-%[1]d
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {type: kwok, kubernetes.io/hostname: fake-%[1]d, kubernetes.io/os: linux, kubernetes.io/arch: amd64, nvidia.com/gpu.product: NVIDIA-H200, nvidia.com/gpu.memory: "143771"}
spec: {taints: [{key: kwok.x-k8s.io/node, value: fake, effect: NoSchedule}]}
status:
  capacity: &have {cpu: "64", memory: 512Gi, pods: "110", nvidia.com/gpu: "%[2]d"}
  allocatable: *have
`, i, gpus)
	}
	_, err := c.run(t.Context(), all.String(), "kubectl", "create", "--filename", "-")
	require.NoError(t, err)
	c.StartPart(t, "kwok")
	c.Kubectl(t, "wait", "--for=condition=Ready", "node", "--selector", "type=kwok", "--timeout", deadline.String())
	t.Cleanup(func() {
		_, err := c.TryKubectl(context.WithoutCancel(t.Context()), "delete", "node", "--selector", "type=kwok")
		require.NoError(t, err)
		c.KillPart(t, "kwok")
	})
}

// KubeRay brings KubeRay's resources and its operator into the cluster, for all tests to come.
func (c *Cluster) KubeRay(t *testing.T) {
	t.Helper()
	if c.operated {
		return
	}
	c.Kubectl(t, "apply", "--server-side", "--filename", filepath.Join(c.dir, "crds", "kuberay"))
	c.Kubectl(t, "wait", "--for=condition=Established", "crd/rayclusters.ray.io", "--timeout", deadline.String())
	c.StartPart(t, "operator")
	c.operated = true
}

//go:build linux && kube

package kube

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
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

// ImportPrograms gives the node an image of programs of this machine, with the libraries that they need. It runs the first.
func (c *Cluster) ImportPrograms(t *testing.T, name string, programs ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", programs...).Output()
	require.NoError(t, err)
	files := map[string]bool{}
	for _, path := range append(regexp.MustCompile(`/\S+`).FindAllString(string(out), -1), programs...) {
		files[strings.TrimSuffix(path, ":")] = true
	}
	layer := tarOf(t, func(add func(name string, content []byte)) {
		for _, path := range slices.Sorted(maps.Keys(files)) {
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			add(path[1:], content)
		}
	})
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": programs[:1]},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	require.NoError(t, err)
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	require.NoError(t, err)
	archive := filepath.Join(t.TempDir(), "image.tar")
	require.NoError(t, os.WriteFile(archive, tarOf(t, func(add func(name string, content []byte)) {
		add("layer.tar", layer)
		add("config.json", config)
		add("manifest.json", manifest)
	}), 0o600))
	c.Import(t, archive)
}

func tarOf(t *testing.T, fill func(add func(name string, content []byte))) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	fill(func(name string, content []byte) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}))
		_, err := w.Write(content)
		require.NoError(t, err)
	})
	require.NoError(t, w.Close())
	return out.Bytes()
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
	c.beat(t, nodes)
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

// client speaks to the API server as an administrator, as fast as it can.
func (c *Cluster) client(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	require.NoError(t, err)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return client
}

// beat renews the Leases of fake nodes until the test ends, for kwok does it not, and after a minute they would count as lost.
func (c *Cluster) beat(t *testing.T, nodes int) {
	t.Helper()
	const namespace = "kube-node-lease"
	leases := c.client(t).CoordinationV1().Leases(namespace)
	ctx, stop := context.WithCancel(t.Context())
	renew := func() error {
		for i := range nodes {
			name := fmt.Sprintf("fake-%d", i)
			lease := coordinationv1.Lease(name, namespace).WithSpec(coordinationv1.LeaseSpec().
				WithHolderIdentity(name).WithLeaseDurationSeconds(40).WithRenewTime(metav1.NowMicro()))
			if _, err := leases.Apply(ctx, lease, metav1.ApplyOptions{FieldManager: "kubelet", Force: true}); err != nil {
				return err
			}
		}
		return nil
	}
	require.NoError(t, renew())
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Second):
				_ = renew() // the next one may do better
			}
		}
	})
	t.Cleanup(func() {
		stop()
		done.Wait()
	})
}

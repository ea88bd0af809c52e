//go:build linux && kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestKubernetes runs all parts on one cluster, for it takes a while to come up.
func TestKubernetes(t *testing.T) {
	c := Start(t)
	c.ImportMobula(t)
	c.KubeRay(t)
	t.Run("the cluster is whole", c.testWhole)
	t.Run("an engine gets ready and answers", c.testEngine)
	t.Run("side by side", func(t *testing.T) { // most of it is waiting
		t.Run("serving", func(t *testing.T) {
			t.Parallel()
			t.Run("helm installs and removes", c.testHelm)
			t.Run("the chart serves", c.testServing)
		})
		t.Run("wrong", func(t *testing.T) {
			t.Parallel()
			t.Run("what is wrong is told", c.testWrong)
			t.Run("KubeRay suspends engines", c.testKubeRaySleeps)
		})
		t.Run("fake nodes", func(t *testing.T) { // one has them at a time
			t.Parallel()
			t.Run("fake nodes have GPUs", c.testFakeNodes)
			t.Run("a RayCluster gets ready", c.testRayCluster)
			t.Run("KubeRay holds engines", c.testKubeRay)
			t.Run("values of a production-stack are installed", c.testConverted)
			t.Run("a node is lost", c.testNodeLost)
		})
		t.Run("real vLLM", func(t *testing.T) {
			t.Parallel()
			if s := c.real(t); s != nil {
				t.Run("in pods", s.testVLLM)
				t.Run("over LMCache", s.testLMCache)
				t.Run("LMCache's server of its own", s.testCacheServer)
			}
		})
		t.Run("real Ray", func(t *testing.T) {
			t.Parallel()
			if s := c.real(t); s != nil {
				t.Run("in pods", s.testRay)
				t.Run("a RayCluster of others", s.testSharedRay)
				t.Run("a RayService of others", s.testSharedService)
			}
		})
	})
	t.Run("README", c.testReadme)
	t.Run("times", c.testTimes)
	t.Run("a node is drained", c.testDrain)
	t.Run("thousands of pods of others", c.testOthersPods)
	t.Run("the API server is slow, silent, killed and back", c.testAPIServer)
}

// TestNothingIsLeft is of a cluster whose keeper is killed, and of one that ends as it should.
func TestNothingIsLeft(t *testing.T) {
	c := Start(t)
	require.NotEmpty(t, processes(t), "the test sees the cluster's processes")
	require.NoError(t, c.keeper.Process.Kill())
	c.Await(t, "all processes have gone with the keeper", func(context.Context) error {
		if left := processes(t); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	c.Stop(t)
	c.start(t) // clears away what the other one has left: folders
	c.Stop(t)

	require.Empty(t, processes(t))
	require.NoDirExists(t, state)
	links, err := net.Interfaces()
	require.NoError(t, err)
	for _, link := range links {
		require.NotEqual(t, "mobula-kube", link.Name)
	}
	for _, file := range []string{"/proc/mounts", "/proc/net/route"} {
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(content), "mobula-kube", file)
	}
	require.NoError(t, filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another process's came to its end
		}
		if err == nil && d.Name() == "mobula-kube" {
			err = errors.New("is left: " + path)
		}
		return err
	}))
}

// processes are those that the cluster's scripts have started, and all that those have, by their names.
func processes(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	require.NoError(t, err)
	var out []string
	for _, file := range files {
		mounts, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(mounts), "mobula-kube") { // as the file systems of the node and its pods are called
			continue
		}
		name, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		out = append(out, strings.TrimSpace(string(name)))
	}
	return out
}

func (c *Cluster) testWhole(t *testing.T) {
	require.Contains(t, c.Kubectl(t, "version"), "Server Version: v1.34.")
	require.Equal(t, "node0", c.Kubectl(t, "get", "nodes", "--output", "jsonpath={.items[*].metadata.name}"))
	require.Contains(t, c.Enter(t, "ctr", "--address", filepath.Join(state, "containerd.sock"), "--namespace", "k8s.io", "images", "list"), c.image)
}

// engines are two replicas of a simulated engine and their Service.
func (c *Cluster) engines() string {
	return strings.ReplaceAll(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: sim}
spec:
  replicas: 2
  selector: {matchLabels: {app: sim}}
  template:
    metadata: {labels: {app: sim}}
    spec:
      containers:
      - name: engine
        image: IMAGE
        args: [sim, --host, 0.0.0.0, --port, "8000", --itl, 1ms, --max-answer, "70"]
        ports: [{containerPort: 8000}]
        startupProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 1, failureThreshold: 120}
        readinessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 5}
        resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 256Mi}}
        securityContext:
          runAsNonRoot: true
          readOnlyRootFilesystem: true
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Service
metadata: {name: sim}
spec: {selector: {app: sim}, ports: [{port: 80, targetPort: 8000}]}
`, "IMAGE", c.image)
}

func (c *Cluster) startEngines(t *testing.T) (namespace string) {
	t.Helper()
	namespace = c.Namespace(t)
	c.Apply(t, namespace, c.engines())
	c.Kubectl(t, "--namespace", namespace, "rollout", "status", "deployment/sim", "--timeout", deadline.String())
	return namespace
}

func (c *Cluster) testEngine(t *testing.T) {
	namespace := c.startEngines(t)
	c.answers(t, "http://"+c.Address(t, namespace, "sim"))
	ips := c.PodIPs(t, namespace, "app=sim")
	require.Len(t, ips, 2)
	for _, ip := range ips {
		c.answers(t, "http://"+ip+":8000")
	}
	c.answers(t, "http://"+c.PortForward(t, namespace, "service/sim", 80))

	for _, name := range []string{"sim", "sim." + namespace + ".svc.cluster.local"} {
		said := c.Kubectl(t, "--namespace", namespace, "exec", "deployment/sim", "--", "mobula", "chat", "--url", "http://"+name, "hello")
		require.NotEmpty(t, strings.TrimSpace(said), "a pod finds the Service by the name %s", name)
	}
	require.Contains(t, c.Kubectl(t, "--namespace", namespace, "logs", "deployment/sim"), "8000")
}

// answers waits until an engine answers there: kube-proxy is a moment later than the pods.
func (c *Cluster) answers(t *testing.T, url string) {
	t.Helper()
	c.Await(t, "an answer of "+url, func(ctx context.Context) error {
		body, err := Get(ctx, url+"/v1/models")
		if err == nil && !strings.Contains(body, "mobula-sim") {
			err = errors.New(body)
		}
		return err
	})
}

func (c *Cluster) testFakeNodes(t *testing.T) {
	c.FakeNodes(t, 2, 8)
	namespace := c.Namespace(t)
	c.Apply(t, namespace, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: gpus}
spec:
  replicas: 5
  selector: {matchLabels: {app: gpus}}
  template:
    metadata: {labels: {app: gpus}}
    spec:
      nodeSelector: {type: kwok}
      tolerations: [`+FakeToleration+`]
      containers: [{name: engine, image: none, resources: {limits: {nvidia.com/gpu: 4}}}]
`)
	c.Await(t, "four pods of four GPUs are ready on two nodes of eight, and one finds no place", func(ctx context.Context) error {
		ready, err := c.TryKubectl(ctx, "--namespace", namespace, "get", "deployment/gpus", "--output", "jsonpath={.status.readyReplicas}")
		if err != nil {
			return err
		}
		waiting, err := c.TryKubectl(ctx, "--namespace", namespace, "get", "pods", "--output",
			`jsonpath={.items[?(@.status.phase=="Pending")].status.conditions[?(@.reason=="Unschedulable")].message}`)
		if err == nil && (ready != "4" || !strings.Contains(waiting, "Insufficient nvidia.com/gpu")) {
			err = fmt.Errorf("%s are ready; waiting: %q", ready, waiting)
		}
		return err
	})
}

func (c *Cluster) testRayCluster(t *testing.T) {
	c.FakeNodes(t, 2, 8)
	c.KubeRay(t)
	namespace := c.Namespace(t)
	const pod = `
      spec:
        nodeSelector: {type: kwok}
        tolerations: [` + FakeToleration + `]
        containers: [{name: ray, image: none, resources: {limits: {cpu: 4, memory: 8Gi%s}}}]`
	c.Apply(t, namespace, `
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: ray}
spec:
  rayVersion: 2.60.0
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template:`+fmt.Sprintf(pod, "")+`
  workerGroupSpecs:
  - groupName: gpus
    replicas: 2
    minReplicas: 2
    maxReplicas: 2
    rayStartParams: {}
    template:`+fmt.Sprintf(pod, ", nvidia.com/gpu: 8")+`
`)
	c.Kubectl(t, "--namespace", namespace, "wait", "--for=jsonpath={.status.state}=ready", "raycluster/ray", "--timeout", deadline.String())
	require.Equal(t, "16", c.Kubectl(t, "--namespace", namespace, "get", "raycluster/ray", "--output", "jsonpath={.status.desiredGPU}"))
	require.Len(t, c.PodIPs(t, namespace, "ray.io/cluster=ray"), 3)
}

func (c *Cluster) testHelm(t *testing.T) {
	namespace := c.Namespace(t)
	chart := t.TempDir()
	for name, content := range map[string]string{
		"Chart.yaml":           "apiVersion: v2\nname: sim\nversion: 0.1.0\n",
		"templates/sim.yaml":   c.engines(),
		"templates/NOTES.txt":  "{{ .Release.Name }} is there\n",
		"templates/_note.tpl":  "",
		"values.schema.json":   `{"type": "object"}`,
		"templates/debug.yaml": "{{- if .Values.none }}x{{ end }}\n",
	} {
		file := filepath.Join(chart, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o750))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	require.Contains(t, c.Helm(t, "install", "first", chart, "--namespace", namespace, "--wait", "--timeout", deadline.String()), "first is there")
	c.answers(t, "http://"+c.Address(t, namespace, "sim"))
	c.Helm(t, "uninstall", "first", "--namespace", namespace, "--wait", "--timeout", deadline.String())
	require.Empty(t, c.Kubectl(t, "--namespace", namespace, "get", "deployments", "--output", "name"))
}

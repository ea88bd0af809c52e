package raycluster

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

var update = flag.Bool("update", false, "write the golden files and samples anew")

// bigModel is a model of two hosts with eight GPUs each.
func bigModel() kube.Engine {
	return kube.Engine{
		Fleet: "main", Revision: "0123456789",
		Model: mobula.Model{
			Name: "llama", Source: "meta-llama/Llama-3.1-405B-Instruct",
			Engine: mobula.Engine{
				Args:         []string{"--tensor-parallel-size", "8", "--pipeline-parallel-size", "2", "--max-model-len", "32768"},
				StartTimeout: mobula.Duration(time.Hour), StopTimeout: mobula.Duration(45 * time.Second),
			},
			Resources: mobula.Resources{Hosts: 2, GPUMemory: 80 << 30, HostLabels: map[string]string{"pool": "h100"}},
			Rollout:   mobula.Rollout{Drain: mobula.Duration(5 * time.Minute)},
			Kubernetes: mobula.KubernetesPods{
				Image: "registry.example/vllm-ray:v0.32.0", RuntimeClass: "nvidia",
				HuggingFaceToken: mobula.SecretKey{Name: "hub"}, Data: mobula.KubernetesData{Claim: "models"},
			},
		},
		KubeRay: &mobula.KubeRay{RayVersion: "2.60.0", Auth: "token"},
	}
}

func simulated(hosts int) kube.Engine {
	e := bigModel()
	e.OwnImage = "mobula:test"
	e.Model = mobula.Model{Name: "sim", Engine: mobula.Engine{Kind: "sim"}, Resources: mobula.Resources{Hosts: hosts}, Kubernetes: mobula.KubernetesPods{Workload: "RayCluster"}}
	return e
}

func TestCluster(t *testing.T) {
	for _, c := range []struct {
		name   string
		engine func() kube.Engine
	}{
		{"two-hosts", bigModel},
		{"head-without-gpus", func() kube.Engine {
			e := bigModel()
			e.KubeRay.HeadWithoutGPUs = true
			return e
		}},
		{"one-host", func() kube.Engine {
			e := bigModel()
			e.Model.Resources = mobula.Resources{}
			e.Model.Kubernetes.Workload = "RayCluster"
			e.Model.Engine.Args = []string{"--tensor-parallel-size", "2"}
			return e
		}},
		{"redis-and-mig", func() kube.Engine {
			e := bigModel()
			e.KubeRay.RedisAddress, e.KubeRay.RedisPassword = "redis:6379", mobula.SecretKey{Name: "redis"}
			e.KubeRay.Auth = "disabled"
			e.Model.Resources.GPUMemory = 0
			e.Model.Kubernetes.GPUResource = "nvidia.com/mig-3g.40gb"
			return e
		}},
		{"simulated", func() kube.Engine { return simulated(2) }},
		{"simulated-head-without-gpus", func() kube.Engine {
			e := simulated(2)
			e.KubeRay.HeadWithoutGPUs = true
			return e
		}},
		{"one-host-head-without-gpus", func() kube.Engine {
			e := bigModel()
			e.Model.Resources.Hosts, e.KubeRay.HeadWithoutGPUs = 1, true
			e.Model.Kubernetes.CPU, e.Model.Kubernetes.Memory, e.Model.Kubernetes.Data = "96", "900Gi", mobula.KubernetesData{Claim: "weights"}
			return e
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rc, err := Cluster(c.engine(), "llama-0123456789-abcde")
			require.NoError(t, err)
			golden(t, "cluster-"+c.name+".yaml", rc)
			pods := 1
			requirePortsOnce(t, &rc.Spec.HeadGroupSpec.Template)
			for _, g := range rc.Spec.WorkerGroupSpecs {
				pods += int(*g.Replicas)
				requirePortsOnce(t, &g.Template)
			}
			e := c.engine()
			e.Model.Kubernetes.Workload = kube.KindRayCluster
			require.Equal(t, pods, e.Size(), "as many as a plan waits for")
			again, err := Cluster(c.engine(), "llama-0123456789-abcde")
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(rc, again))
		})
	}
}

// requirePortsOnce fails when a pod has a port twice, which the definition of RayClusters refuses.
func requirePortsOnce(t *testing.T, pod *corev1.PodTemplateSpec) {
	t.Helper()
	seen := map[int32]bool{}
	for _, p := range engineOf(pod).Ports {
		require.False(t, seen[p.ContainerPort], "%d", p.ContainerPort)
		seen[p.ContainerPort] = true
	}
}

func TestClusterLeavesTheEngineAsItIs(t *testing.T) {
	e := bigModel()
	_, err := Cluster(e, "r")
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(bigModel(), e))
}

func TestOneServingPodInEachCluster(t *testing.T) {
	for name, headless := range map[string]bool{"head with GPUs": false, "head without GPUs": true} {
		t.Run(name, func(t *testing.T) {
			e := bigModel()
			e.KubeRay.HeadWithoutGPUs = headless
			rc, err := Cluster(e, "llama-1")
			require.NoError(t, err)
			pods := map[string]int{} // labels of pods that serve, by group
			add := func(group string, n int32, labels map[string]string) {
				require.Equal(t, "llama-1", labels[kube.LabelReplica], group)
				if labels[kube.LabelServes] == "true" {
					pods[group] += int(n)
				}
			}
			add("head", 1, rc.Spec.HeadGroupSpec.Template.Labels)
			for _, g := range rc.Spec.WorkerGroupSpecs {
				require.Equal(t, []int32{*g.Replicas, *g.Replicas}, []int32{*g.MinReplicas, *g.MaxReplicas})
				add(g.GroupName, *g.Replicas, g.Template.Labels)
			}
			if headless {
				require.Equal(t, map[string]int{groupEngine: 1}, pods)
			} else {
				require.Equal(t, map[string]int{"head": 1}, pods)
			}
		})
	}
}

func TestClusterIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*kube.Engine)
	}{
		{"no KubeRay", "models[llama].kubernetes.workload: a RayCluster needs platform.kuberay", func(e *kube.Engine) { e.KubeRay = nil }},
		{"a version of Ray that is none", `platform.kuberay.rayVersion: want a version such as 2.60.0, got "nightly"`, func(e *kube.Engine) { e.KubeRay.RayVersion = "nightly" }},
		{"tokens with an old Ray", "platform.kuberay.auth: Ray has tokens from 2.52.0 on, rayVersion is 2.51.1: use a newer image, or auth: disabled", func(e *kube.Engine) { e.KubeRay.RayVersion = "2.51.1" }},
		{
			"a backend of one host", "models[llama].engine.args: --distributed-executor-backend mp can't span 2 hosts of a RayCluster: leave it out, or use kubernetes.workload StatefulSet",
			func(e *kube.Engine) { e.Model.Engine.Args = []string{"--distributed_executor_backend=mp"} },
		},
		{"GPUs that can't be shared", "2 hosts", func(e *kube.Engine) { e.Model.Resources.GPUs = new(3) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := bigModel()
			e.Model.Kubernetes.Workload = "RayCluster"
			c.change(&e)
			_, err := Cluster(e, "llama-1")
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestClusterName(t *testing.T) {
	require.Equal(t, "llama-0123456789-abcde", ClusterName("llama-0123456789-abcde"))
	require.Equal(t, "r-7b-1", ClusterName("7b-1"))
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,70}[a-z0-9])?`), 2, 2, rapid.ID[string]).Draw(t, "ids")
		for _, id := range ids {
			name := ClusterName(id)
			require.Empty(t, validation.IsDNS1035Label(name), name)
			require.LessOrEqual(t, len(name), maxName)
		}
	})
}

// The kubelet fills in $(NAME) in commands and turns $$ into $.
func TestSupervisorHasNothingThatKubernetesFillsIn(t *testing.T) {
	require.NotContains(t, supervisor, "$(")
	require.NotContains(t, supervisor, "$$")
}

// golden compares an object with its file, as kubectl would read it: unknown and double fields are errors.
func golden(t *testing.T, file string, o runtime.Object) {
	t.Helper()
	object, err := Object(o)
	require.NoError(t, err)
	shorten(object.Object)
	compare(t, filepath.Join("testdata", file), encode(t, object))
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, got, 0o600))
	}
	want, err := os.ReadFile(filepath.Clean(path))
	require.NoError(t, err, "write it with: go test ./raycluster -update")
	require.Empty(t, cmp.Diff(string(want), string(got)))
	for part := range bytes.SplitSeq(want, []byte("\n---\n")) {
		strict(t, part)
	}
}

func serializer() *json.Serializer {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(rayv1.GroupVersion, &rayv1.RayCluster{}, &rayv1.RayService{}, &rayv1.RayJob{})
	metav1.AddToGroupVersion(scheme, rayv1.GroupVersion)
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.PersistentVolumeClaim{})
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}

func strict(t *testing.T, text []byte) {
	t.Helper()
	_, _, err := serializer().Decode(text, nil, nil)
	require.NoError(t, err)
}

func encode(t *testing.T, o runtime.Object) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, serializer().Encode(o, &b))
	return b.Bytes()
}

// shorten has the supervisor's name in place of its source.
func shorten(value any) {
	switch v := value.(type) {
	case map[string]any:
		for _, item := range v {
			shorten(item)
		}
	case []any:
		for i, item := range v {
			if item == supervisor {
				v[i] = "supervisor/supervisor.py"
			}
			shorten(item)
		}
	}
}

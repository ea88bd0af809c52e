package raycluster

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

func TestService(t *testing.T) {
	for name, replicas := range map[string]mobula.Range{"fixed": {Min: 2, Max: 2}, "scaled": {Min: 0, Max: 4}} {
		t.Run(name, func(t *testing.T) {
			rs, err := Service(bigModel(), replicas)
			require.NoError(t, err)
			golden(t, "service-"+name+".yaml", rs)
		})
	}
}

func TestWarmUp(t *testing.T) {
	job, err := WarmUp(bigModel())
	require.NoError(t, err)
	golden(t, "warmup.yaml", job)
}

// A control plane deletes what is labelled as managed by Mobula and has no record. KubeRay copies labels of a RayService and a RayJob to
// the RayCluster that it makes, and those of a template to its pods.
func TestAControlPlaneLeavesWhatPeopleApplyAlone(t *testing.T) {
	service, err := Service(bigModel(), mobula.Range{Min: 1, Max: 2})
	require.NoError(t, err)
	job, err := WarmUp(bigModel())
	require.NoError(t, err)
	labels := []map[string]string{service.Labels, job.Labels}
	for _, spec := range []*rayv1.RayClusterSpec{&service.Spec.RayClusterSpec, job.Spec.RayClusterSpec} {
		labels = append(labels, spec.HeadGroupSpec.Template.Labels)
		for _, g := range spec.WorkerGroupSpecs {
			labels = append(labels, g.Template.Labels)
		}
	}
	require.Len(t, labels, 5)
	for _, l := range labels {
		require.Equal(t, "llama", l[kube.LabelModel])
		require.NotContains(t, l, kube.LabelManagedBy)
	}
}

func TestWarmUpHasNothingToDo(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*kube.Engine)
	}{
		{"a folder", "models[llama].source: nothing to download for the model: /data/llama is a folder", func(e *kube.Engine) { e.Model.Source = "/data/llama" }},
		{"no volume", "models[llama].kubernetes.data: nothing to download for the model: want a claim, size or hostPath that keeps it", func(e *kube.Engine) { e.Model.Kubernetes.Data = mobula.KubernetesData{} }},
		{"a simulated engine", "it is simulated", func(e *kube.Engine) { e.Model.Engine.Kind = "sim" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := bigModel()
			c.change(&e)
			_, err := WarmUp(e)
			require.ErrorIs(t, err, ErrNothingToFetch)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestKwargs(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want map[string]any
		err  string
	}{
		{"none", nil, map[string]any{}, ""},
		{"values", []string{"--max-model-len", "32768", "-tp=2", "--gpu_memory_utilization", "0.9", "--dtype", "auto"}, map[string]any{"max_model_len": int64(32768), "tensor_parallel_size": int64(2), "gpu_memory_utilization": 0.9, "dtype": "auto"}, ""},
		{"switches", []string{"--enable-prefix-caching", "--no-enable-chunked-prefill", "--seed", "-1"}, map[string]any{"enable_prefix_caching": true, "enable_chunked_prefill": false, "seed": int64(-1)}, ""},
		{"JSON", []string{"--kv-transfer-config", `{"kv_connector":"LMCacheConnectorV1"}`}, map[string]any{"kv_transfer_config": map[string]any{"kv_connector": "LMCacheConnectorV1"}}, ""},
		{"dots", []string{"--compilation-config.level", "3", "--compilation-config.x=y"}, map[string]any{"compilation_config": map[string]any{"level": int64(3), "x": "y"}}, ""},
		{"lists", []string{"--allowed-origins", "a", "b"}, map[string]any{"allowed_origins": []any{"a", "b"}}, ""},
		{"no flag", []string{"model"}, nil, `want flags of vllm serve, got "model"`},
		{"dots and a value", []string{"--a", "1", "--a.b", "2"}, nil, "can't give --a.b to ray.serve.llm: want one JSON object for --a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := kwargs(c.args)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, got))
		})
	}
}

func FuzzKwargs(f *testing.F) {
	f.Add("--a", "1", "--b.c={}")
	f.Add("-tp", "-1", "--no-x")
	f.Add("--a.b", "--a", "[1,null]")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		got, err := kwargs([]string{a, b, c})
		if err != nil {
			return
		}
		_, err = json.Marshal(got)
		require.NoError(t, err)
	})
}

// sample is a model as the manifests in samples have it.
func sample() kube.Engine {
	e := bigModel()
	e.Model.Name, e.Model.Source = "qwen", "Qwen/Qwen2.5-72B-Instruct"
	e.Model.Resources = mobula.Resources{Hosts: 2}
	e.Model.Engine.Args = []string{"--tensor-parallel-size", "4", "--pipeline-parallel-size", "2"}
	e.Model.Kubernetes = mobula.KubernetesPods{Image: "rayproject/ray-llm:2.60.0-py311-cu128"}
	return e
}

// kept is the sample with a claim that is made for it; its image runs as user 1000.
func kept() (kube.Engine, *corev1.PersistentVolumeClaim) {
	e := sample()
	e.Model.Kubernetes.Data.Claim = "qwen-data"
	e.Model.Kubernetes.Pod = map[string]any{"spec": map[string]any{"securityContext": map[string]any{"fsGroup": 1000}}}
	return e, &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: "qwen-data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("300Gi")}},
		},
	}
}

func TestSamples(t *testing.T) {
	cluster, err := Cluster(sample(), "qwen")
	require.NoError(t, err)
	service, err := Service(sample(), mobula.Range{Min: 1, Max: 1})
	require.NoError(t, err)
	e, claim := kept()
	job, err := WarmUp(e)
	require.NoError(t, err)
	for file, objects := range map[string][]runtime.Object{"raycluster.yaml": {cluster}, "rayservice.yaml": {service}, "rayjob.yaml": {claim, job}} {
		t.Run(file, func(t *testing.T) {
			var parts [][]byte
			for _, o := range objects {
				object, err := Object(o)
				require.NoError(t, err)
				parts = append(parts, encode(t, object))
			}
			compare(t, "samples/"+file, bytes.Join(parts, []byte("---\n")))
		})
	}
}

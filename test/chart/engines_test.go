package chart_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// enginePods gives the pods that the control plane makes of a rendering's Models, by the Model's name.
func enginePods(t *testing.T, out rendering) map[string]corev1.PodTemplateSpec {
	t.Helper()
	file := map[string]any{"apiVersion": mobula.APIVersion, "kind": mobula.Kind}
	var models []any
	for _, key := range slices.Sorted(maps.Keys(out.Objects)) {
		spec, _ := at(out.Objects[key], "spec").(map[string]any)
		switch kind, _, _ := strings.Cut(key, "/"); kind {
		case "Fleet":
			maps.Copy(file, spec)
		case "Model":
			model := maps.Clone(spec)
			for _, field := range []string{"fleet", "range", "replicas"} { // these are of the object, and make no pod another
				delete(model, field)
			}
			model["replicas"] = 1
			models = append(models, model)
		}
	}
	file["models"] = models
	raw, err := yaml.Marshal(file)
	require.NoError(t, err)
	fleet, err := mobula.Load(raw, "objects")
	require.NoError(t, err)
	pods := map[string]corev1.PodTemplateSpec{}
	for _, m := range fleet.Models {
		e := kube.Engine{Fleet: "default", Revision: "r1", Model: fleet.Engine(m), KubeRay: fleet.Platform.KubeRay, OwnImage: "mobula:v1"}
		member := kube.Member{Rank: 0, Master: "first"}
		pod, err := e.Pod()
		if e.Workload() != kube.KindDeployment {
			pod, err = e.Member(member)
		}
		require.NoError(t, err)
		pods[m.Name] = pod
	}
	return pods
}

// mount gives the volume that a container has at a path.
func mount(t *testing.T, pod corev1.PodTemplateSpec, c corev1.Container, path string) corev1.Volume {
	t.Helper()
	var names []string
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			names = append(names, m.Name)
		}
	}
	require.Len(t, names, 1, "what %s has at %s", c.Name, path)
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == names[0] })
	require.GreaterOrEqual(t, i, 0, names[0])
	return pod.Spec.Volumes[i]
}

// What the chart lays over engines' pods for LMCache is in them as meant, also where an engine of several GPUs has a /dev/shm of its own.
func TestEnginesShareMemoryWithLMCache(t *testing.T) {
	for _, gpus := range []string{"1", "2"} {
		t.Run(gpus+" GPUs", func(t *testing.T) {
			out, err := render(t, `
lmcache: {enabled: true, image: {repository: lm, tag: v1}, hostIPC: true}
models: [{name: a, replicas: 1, resources: {gpus: `+gpus+`}, engine: {args: [--kv-transfer-config, '{"kv_connector":"LMCacheMPConnector","kv_role":"kv_both"}']}}]`)
			require.NoError(t, err)
			pod := enginePods(t, out)["a"]
			engine := pod.Spec.Containers[0]
			volume := mount(t, pod, engine, "/dev/shm")
			require.NotNil(t, volume.HostPath, volume.Name)
			require.Equal(t, "/dev/shm", volume.HostPath.Path)
			require.True(t, pod.Spec.HostIPC)
			require.Contains(t, engine.Args, `{"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.heartbeat_interval":2,"lmcache.mp.host":"tcp://mobula-lmcache.llm.svc","lmcache.mp.mq_timeout":5,"lmcache.mp.port":5555},"kv_role":"kv_both"}`)
		})
	}
}

func TestTheSidecarSharesThePodsMemory(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(examplesPath, "values-05-lmcache-sidecar.yaml"))
	require.NoError(t, err)
	out, err := render(t, string(raw))
	require.NoError(t, err)
	pod := enginePods(t, out)["llama"]
	require.Len(t, pod.Spec.InitContainers, 1)
	sidecar := pod.Spec.InitContainers[0]
	require.Equal(t, corev1.ContainerRestartPolicyAlways, *sidecar.RestartPolicy)
	require.Equal(t, pod.Spec.Containers[0].Image, sidecar.Image)
	require.Equal(t, mount(t, pod, pod.Spec.Containers[0], "/dev/shm"), mount(t, pod, sidecar, "/dev/shm"))
	require.NotNil(t, mount(t, pod, sidecar, "/dev/shm").EmptyDir)
}

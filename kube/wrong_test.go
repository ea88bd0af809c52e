package kube_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

func TestWrongFieldIsNamed(t *testing.T) {
	pods := func(p mobula.KubernetesPods) func(*mobula.Model) {
		return func(m *mobula.Model) { m.Kubernetes = p }
	}
	data := func(d mobula.KubernetesData) func(*mobula.Model) { return pods(mobula.KubernetesPods{Data: d}) }
	for _, tc := range []struct {
		name   string
		change func(*mobula.Model)
		want   string
	}{
		{"no quantity", pods(mobula.KubernetesPods{CPU: "two"}), `models[chat].kubernetes.cpu: want a quantity above 0 such as 500m or 16Gi, got "two"`},
		{"fleet sizes are none", pods(mobula.KubernetesPods{Memory: "16GiB"}), `models[chat].kubernetes.memory: want a quantity above 0 such as 500m or 16Gi, got "16GiB"`},
		{"negative", pods(mobula.KubernetesPods{MemoryLimit: "-1Gi"}), `models[chat].kubernetes.memoryLimit: want a quantity above 0 such as 500m or 16Gi, got "-1Gi"`},
		{"limit below", pods(mobula.KubernetesPods{CPU: "4", CPULimit: "2"}), `models[chat].kubernetes.cpuLimit: want at least what cpu asks for, 4, got 2`},
		{"gpus", func(m *mobula.Model) { m.Resources.Hosts, m.Resources.GPUs = 2, new(3) }, "models[chat].resources.gpus: 3 GPUs can't be shared equally by 2 hosts: want a multiple of resources.hosts"},
		{"name of GPUs", pods(mobula.KubernetesPods{GPUResource: "gpu"}), `models[chat].kubernetes.gpuResource: want the name of a resource such as nvidia.com/gpu or nvidia.com/mig-3g.40gb, got "gpu"`},
		{"memory of other GPUs", func(m *mobula.Model) {
			m.Resources.GPUMemory, m.Kubernetes.GPUResource = 1<<30, "amd.com/gpu"
		}, "models[chat].resources.gpuMemory: known of nvidia.com GPUs only, not of amd.com/gpu: use resources.hostLabels"},
		{"host label", func(m *mobula.Model) { m.Resources.HostLabels = map[string]string{"zone": "in(a, b)"} }, "models[chat].resources.hostLabels: zone=in(a, b) can't be a node's label"},
		{"workload", pods(mobula.KubernetesPods{Workload: "DaemonSet"}), `models[chat].kubernetes.workload: want one of Deployment, StatefulSet or RayCluster, got "DaemonSet"`},
		{"no KubeRay", pods(mobula.KubernetesPods{Workload: "RayCluster"}), "models[chat].kubernetes.workload: RayCluster needs platform.kuberay in place of platform.kubernetes"},
		{"too many hosts", func(m *mobula.Model) { m.Kubernetes.Workload, m.Resources.Hosts = "Deployment", 2 }, "models[chat].kubernetes.workload: a Deployment holds engines of one host, this one has 2 (resources.hosts): want StatefulSet or RayCluster"},
		{"Ray without Ray", func(m *mobula.Model) {
			m.Resources.Hosts, m.Engine.Args = 2, []string{"--distributed-executor-backend", "ray"}
		}, "models[chat].engine.args: --distributed-executor-backend ray over 2 hosts needs a RayCluster (platform.kuberay): leave it out, and vLLM spreads without Ray"},
		{"runtime class", pods(mobula.KubernetesPods{RuntimeClass: "NVIDIA"}), `models[chat].kubernetes.runtimeClass: want a name of Kubernetes' (lower-case letters, digits, dashes and dots), got "NVIDIA"`},
		{"pull secret", pods(mobula.KubernetesPods{PullSecrets: []string{"a", ""}}), `models[chat].kubernetes.pullSecrets[1]: want the name of a Secret, got ""`},
		{"key without Secret", pods(mobula.KubernetesPods{HuggingFaceToken: mobula.SecretKey{Key: "hf"}}), `models[chat].kubernetes.huggingFaceToken.name: want the name of the Secret that has the key "hf"`},
		{"two volumes", data(mobula.KubernetesData{Claim: "a", HostPath: "/b"}), "models[chat].kubernetes.data: want one of claim, size and hostPath"},
		{"relative folder", data(mobula.KubernetesData{HostPath: "models"}), `models[chat].kubernetes.data.hostPath: want a path from / on, got "models"`},
		{"class of no claim", data(mobula.KubernetesData{StorageClass: "fast"}), "models[chat].kubernetes.data.size: want the size of the claim that storageClass and accessMode are for"},
		{"part of the model", pods(mobula.KubernetesPods{MaxUnavailable: "half"}), `models[chat].kubernetes.maxUnavailable: want a number such as 1 or a percentage such as 25%, got "half"`},
		{"less than none", pods(mobula.KubernetesPods{MaxUnavailable: "-1"}), `models[chat].kubernetes.maxUnavailable: want a number such as 1 or a percentage such as 25%, got "-1"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := engineOf("chat", tc.change).Pod()
			require.EqualError(t, err, tc.want)
			require.ErrorIs(t, err, kube.ErrInvalid)
		})
	}
}

func TestSimulatedEngineNeedsAnImage(t *testing.T) {
	e := engineOf("chat", simulated)
	e.OwnImage = ""
	_, err := e.Pod()
	require.ErrorContains(t, err, "models[chat].kubernetes.image: ")
	e.Model.Kubernetes.Image = "mobula:v1"
	_, err = e.Pod()
	require.NoError(t, err)
}

func TestSmallLimitLowersTheDefaultRequest(t *testing.T) {
	pod, err := engineOf("chat", func(m *mobula.Model) { m.Kubernetes.MemoryLimit = "4Gi" }).Pod()
	require.NoError(t, err)
	require.Equal(t, "4Gi", pod.Spec.Containers[0].Resources.Requests.Memory().String())
}

func TestWrongOverlayIsNamed(t *testing.T) {
	for _, tc := range []struct{ name, overlay, want string }{
		{"unknown field", "spec: {tolerationz: []}", "models[chat].kubernetes.pod.spec.tolerationz: no such field; did you mean tolerations?"},
		{"unknown field of a container", "spec: {containers: [{name: engine, imagePullpolicy: Always}]}", "models[chat].kubernetes.pod.spec.containers[0].imagePullpolicy: no such field; did you mean imagePullPolicy?"},
		{"far from all", "nodes: 3", "models[chat].kubernetes.pod.nodes: no such field"},
		{"text for a number", `spec: {priority: "high"}`, `models[chat].kubernetes.pod.spec.priority: want a whole number, got "high"`},
		{"fraction", "spec: {priority: 1.5}", "models[chat].kubernetes.pod.spec.priority: want a whole number, got 1.5"},
		{"too large", "spec: {priority: 3000000000}", "models[chat].kubernetes.pod.spec.priority: want a whole number, got 3000000000"},
		{"number for text", "spec: {nodeSelector: {gpu: 1}}", "models[chat].kubernetes.pod.spec.nodeSelector.gpu: want text (in quotes if need be), got 1"},
		{"text for a switch", `spec: {hostNetwork: "yes"}`, `models[chat].kubernetes.pod.spec.hostNetwork: want true or false, got "yes"`},
		{"map for a list", "spec: {tolerations: {key: a}}", "models[chat].kubernetes.pod.spec.tolerations: want a list, got a map"},
		{"list for a map", "spec: [1]", "models[chat].kubernetes.pod.spec: want a map, got a list"},
		{"quantity", "spec: {containers: [{name: engine, resources: {limits: {memory: lots}}}]}", `models[chat].kubernetes.pod.spec.containers[0].resources.limits.memory: want a quantity such as 500m or 16Gi, got "lots"`},
		{"directive", "spec: {containers: [{name: engine, $patch: remove}]}", `models[chat].kubernetes.pod.spec.containers[0].$patch: want replace, merge or delete, got "remove"`},
		{"no key to merge by", "spec: {containers: [{image: a}]}", "models[chat].kubernetes.pod: can't be merged into the engine's pod: "},
		{"our label", "metadata: {labels: {mobula.dev/model: other}}", "models[chat].kubernetes.pod.metadata.labels: mobula.dev/model is Mobula's own: leave it out"},
		{"our label away", "metadata: {labels: {mobula.dev/serves: null}}", "models[chat].kubernetes.pod.metadata.labels: mobula.dev/serves is Mobula's own: leave it out"},
		{"label like ours", "metadata: {labels: {mobula.dev/replica: x}}", "models[chat].kubernetes.pod.metadata.labels: mobula.dev/replica is Mobula's own: leave it out"},
		{"our mark", "metadata: {annotations: {mobula.dev/drain: x}}", "models[chat].kubernetes.pod.metadata.annotations: mobula.dev/drain is Mobula's own: leave it out"},
		{"name", "metadata: {name: x}", "models[chat].kubernetes.pod.metadata.name: not for a pod template: want labels or annotations"},
		{"engine away", "spec: {containers: [{name: engine, $patch: delete}]}", "models[chat].kubernetes.pod.spec.containers: the container engine is gone: it is the engine"},
		{"all away", "spec: {$patch: delete}", "models[chat].kubernetes.pod.spec.containers: the container engine is gone: it is the engine"},
		{"runs once", "spec: {restartPolicy: Never}", "models[chat].kubernetes.pod.spec.restartPolicy: want Always: an engine that ends is started again, got Never"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := engineOf("chat", overlaid(t, tc.overlay)).Pod()
			require.ErrorContains(t, err, tc.want)
			require.ErrorIs(t, err, kube.ErrInvalid)
		})
	}
}

func TestEngineStaysTheFirstContainer(t *testing.T) {
	pod, err := engineOf("chat", overlaid(t, "spec: {containers: [{name: a, image: a}, {name: b, image: b}, {name: engine, env: [{name: AT, value: $(POD_IP)}]}]}")).Pod()
	require.NoError(t, err)
	names := make([]string, 0, 3)
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	require.Equal(t, []string{"engine", "a", "b"}, names)
	require.Equal(t, "POD_IP", pod.Spec.Containers[0].Env[0].Name, "others refer to it")
}

func FuzzOverlay(f *testing.F) {
	for _, seed := range []string{
		overlay, "spec: {containers: [{name: engine, $patch: replace, image: a}]}", "spec: {$retainKeys: [containers]}",
		"spec: {$setElementOrder/containers: [{name: engine}], containers: [{name: engine, env: []}]}", "metadata: null", "spec: {volumes: [null]}",
		"spec: {$deleteFromPrimitiveList/x: [a]}", "spec: {containers: [{name: engine, command: {a: b}}]}", "metadata: {labels: null}", "a: .nan",
		"spec: {overhead: {cpu: 1e400}}", "spec: {containers: [{name: 3}]}", "metadata: {creationTimestamp: now}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var pod map[string]any
		if yaml.Unmarshal([]byte(text), &pod) != nil {
			return
		}
		e := engineOf("chat", func(m *mobula.Model) { m.Kubernetes.Pod = pod })
		merged, err := e.Pod()
		if err != nil {
			require.ErrorIs(t, err, kube.ErrInvalid, "nothing but the overlay can be wrong")
			return
		}
		for name, value := range e.Labels() {
			require.Equal(t, value, merged.Labels[name])
		}
		require.Equal(t, kube.Container, merged.Spec.Containers[0].Name)
		require.NotEmpty(t, merged.Spec.Containers[0].Image)
	})
}

func TestPodsThatWaitForAPerson(t *testing.T) {
	waits := func(reason string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: kube.Container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}
	}
	pod := func(engine, init string) *corev1.Pod {
		p := &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{waits(engine)}}}
		if init != "" {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{waits(init)}
		}
		return p
	}
	ended := pod("ErrImagePull", "")
	ended.Status.Phase = corev1.PodFailed
	leaving := pod("ErrImagePull", "")
	leaving.DeletionTimestamp = &metav1.Time{}
	sidecar := pod("ContainerCreating", "")
	sidecar.Status.ContainerStatuses[0].Name, sidecar.Status.ContainerStatuses[0].State.Waiting.Reason = "proxy", "ErrImagePull"
	for name, tc := range map[string]struct {
		pods []*corev1.Pod
		want bool
	}{
		"none":                          {nil, false},
		"being made":                    {[]*corev1.Pod{pod("ContainerCreating", "")}, false},
		"crashing, which is counted":    {[]*corev1.Pod{pod("CrashLoopBackOff", "")}, false},
		"no image":                      {[]*corev1.Pod{pod("ErrImagePull", "")}, true},
		"no image again":                {[]*corev1.Pod{pod("ImagePullBackOff", "")}, true},
		"no name of an image":           {[]*corev1.Pod{pod("InvalidImageName", "")}, true},
		"no Secret":                     {[]*corev1.Pod{pod("CreateContainerConfigError", "")}, true},
		"no image of an init container": {[]*corev1.Pod{pod("PodInitializing", "ImagePullBackOff")}, true},
		"one of two":                    {[]*corev1.Pod{pod("", ""), pod("ImagePullBackOff", "")}, true},
		"has ended":                     {[]*corev1.Pod{ended}, false},
		"is being deleted":              {[]*corev1.Pod{leaving}, false},
		"another container":             {[]*corev1.Pod{sidecar}, false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, kube.Stuck(tc.pods)) })
	}
}

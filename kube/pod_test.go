package kube_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

var update = flag.Bool("update", false, "write the golden files anew")

// engineOf gives an engine of the fleet "prod", with every default of a model and change applied.
func engineOf(name string, change func(*mobula.Model)) kube.Engine {
	m := mobula.NewModel(name)
	if change != nil {
		change(&m)
	}
	return kube.Engine{Fleet: "prod", Revision: "0123456789", Model: m, OwnImage: "registry.example/mobula:v1"}
}

func simulated(m *mobula.Model) { m.Engine.Kind = "sim" }

// everything sets each field that a pod is made from, but for those that exclude each other.
func everything(m *mobula.Model) {
	m.Source = "org/chat-8b"
	m.LoRAs = make([]mobula.LoRA, 1)
	m.Scaling.Sleep = true
	m.Rollout.Drain = mobula.Duration(90 * time.Second)
	m.Engine = mobula.Engine{
		Kind: "vllm", Command: []string{"python3", "-m", "my.$(vllm)"}, Args: []string{"--max-model-len=8192", "--chat-template", "$(cat x) $$ $HOME"},
		Env:          map[string]string{"VLLM_LOGGING_LEVEL": "DEBUG", "PRICE": "$(PRICE)", "HF_HOME": "/models"},
		StartTimeout: mobula.Duration(time.Hour), StopTimeout: mobula.Duration(20 * time.Second),
	}
	m.Resources = mobula.Resources{GPUs: new(2), GPUMemory: 80e9, Hosts: 1, HostLabels: map[string]string{"zone": "b", "gpu": "h100"}}
	m.Kubernetes = mobula.KubernetesPods{
		Image: "registry.example/vllm:mine", PullPolicy: "Always", PullSecrets: []string{"pull-a", "pull-b"},
		CPU: "4", CPULimit: "8", Memory: "32Gi", MemoryLimit: "64Gi", RuntimeClass: "nvidia", PriorityClass: "serving",
		ServiceAccount: "engines", SharedMemory: 16 << 30, HuggingFaceToken: mobula.SecretKey{Name: "hub", Key: "hf"},
		Data: mobula.KubernetesData{Size: 200 << 30, StorageClass: "fast", AccessMode: "ReadWriteMany"}, MaxUnavailable: "25%",
	}
}

// overlay is what users of a chart have asked for.
const overlay = `
metadata:
  labels: {team: search}
  annotations: {sidecar.istio.io/inject: "false"}
spec:
  schedulerName: volcano
  terminationGracePeriodSeconds: 60
  tolerations:
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {team: search}}}
  topologySpreadConstraints:
  - {maxSkew: 2, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}
  securityContext: {fsGroup: 1000, runAsNonRoot: true, runAsUser: 1000}
  imagePullSecrets: [{name: mine}]
  initContainers:
  - {name: download, image: busybox, command: [sh, -c, "cp -r /weights /data"], volumeMounts: [{name: data, mountPath: /data}]}
  containers:
  - name: engine
    env:
    - {name: LMCACHE_CONFIG_FILE, value: /etc/lmcache/config.yaml}
    - {name: HF_HOME, value: /models}
    envFrom: [{secretRef: {name: more}}]
    resources: {limits: {rdma/ib: 1, memory: 64Gi}}
    livenessProbe: null
    securityContext: {capabilities: {add: [IPC_LOCK]}}
    volumeMounts:
    - {name: lmcache, mountPath: /etc/lmcache, readOnly: true}
  - {name: proxy, image: envoy, resources: {requests: {cpu: 0.5}}}
  volumes:
  - {name: lmcache, configMap: {name: lmcache}}
`

func overlaid(t *testing.T, text string) func(*mobula.Model) {
	t.Helper()
	var pod map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(text), &pod))
	return func(m *mobula.Model) { m.Kubernetes.Pod = pod }
}

func TestPodGolden(t *testing.T) {
	gang := func(m *mobula.Model) {
		m.Resources.Hosts = 2
		m.Engine.Args = []string{"-tp", "8", "-pp=2"}
	}
	alone := func(e kube.Engine) (corev1.PodTemplateSpec, error) { return e.Pod() }
	member := func(m kube.Member) func(kube.Engine) (corev1.PodTemplateSpec, error) {
		m.Replica = "llama-012345-x1"
		return func(e kube.Engine) (corev1.PodTemplateSpec, error) { return e.Member(m) }
	}
	onRay := func(e kube.Engine) kube.Engine {
		e.KubeRay = &mobula.KubeRay{RayVersion: "2.60.0"}
		return e
	}
	master := "llama-012345-x1-0.llama-012345-x1"
	for _, tc := range []struct {
		name   string
		engine kube.Engine
		pod    func(kube.Engine) (corev1.PodTemplateSpec, error)
	}{
		{"minimal", engineOf("facebook/opt-125m", nil), alone},
		{"tp8", engineOf("llama", func(m *mobula.Model) { m.Engine.Args = []string{"--tensor-parallel-size", "8"} }), alone},
		{"mig", engineOf("chat", func(m *mobula.Model) { m.Kubernetes.GPUResource = "nvidia.com/mig-3g.40gb" }), alone},
		{"cpu", engineOf("chat", func(m *mobula.Model) { m.Resources.GPUs = new(0) }), alone},
		{"sim", engineOf("chat", simulated), alone},
		{"everything", engineOf("chat", everything), alone},
		{"hostpath", engineOf("chat", func(m *mobula.Model) { m.Kubernetes.Data.HostPath = "/mnt/models" }), alone},
		{"overlay", engineOf("chat", overlaid(t, overlay)), alone},
		{"gang-first", engineOf("llama", gang), member(kube.Member{Master: master})},
		{"gang-others", engineOf("llama", gang), member(kube.Member{Rank: 1, RankVar: "$(MOBULA_RANK)", Master: master})},
		{"ray-head", onRay(engineOf("llama", gang)), member(kube.Member{})},
		{"ray-worker", onRay(engineOf("llama", gang)), member(kube.Member{Rank: 1})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod, err := tc.pod(tc.engine)
			require.NoError(t, err)
			got, err := yaml.Marshal(pod)
			require.NoError(t, err)
			again, err := tc.pod(tc.engine)
			require.NoError(t, err)
			require.Equal(t, kube.Hash(pod), kube.Hash(again), "the same engine gives the same pod")

			file := filepath.Join("testdata", "pod", tc.name+".yaml")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, got, 0o600))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run go test ./kube -update")
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			var read corev1.PodTemplateSpec
			require.NoError(t, yaml.UnmarshalStrict(want, &read), "a pod template as Kubernetes knows it")
			require.Equal(t, kube.Hash(pod), kube.Hash(read))
		})
	}
}

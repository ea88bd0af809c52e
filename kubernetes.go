package mobula

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
)

// Kubernetes has engines run as pods of a Kubernetes cluster, and takes in pods that others run.
type Kubernetes struct {
	// Namespace of the engines' pods and of all else that is made for them. Default: the control plane's own; outside of the cluster that of the kubeconfig's context.
	Namespace string `yaml:"namespace"`
	// Path of a kubeconfig file, for a control plane or router outside of the cluster. Default: the pod's service account, else what kubectl would take.
	Kubeconfig string `yaml:"kubeconfig"`
	// Context of the kubeconfig file. Default: its current one.
	Context string `yaml:"context"`
	// How engines' pods are made; the kubernetes section of a model overrules it field by field.
	Pods KubernetesPods `yaml:"pods"`
	// Engines that others run in the cluster, such as those of a vLLM Production Stack.
	Discover []KubernetesDiscover `yaml:"discover"`
}

// KubeRay is Kubernetes with the KubeRay operator: engines that need Ray, or ask for it, run as one RayCluster each.
type KubeRay struct {
	// The cluster, as platform.kubernetes has it.
	Kubernetes Kubernetes `yaml:"kubernetes"`
	// Version of Ray in the engines' image. Default 2.60.0.
	RayVersion string `yaml:"rayVersion"`
	// Who may speak to a RayCluster. One of token or disabled. Default token.
	Auth string `yaml:"auth"`
	// Has head pods without GPUs, beside workers that have all of them; else the head is the first of an engine's hosts. Such a head takes 2 CPUs and 8Gi and has an empty /data; kubernetes.pod is for it, too. Default false.
	HeadWithoutGPUs bool `yaml:"headWithoutGPUs"`
	// Redis that keeps a head's state (GCS fault tolerance), host:port. An engine whose head is lost is lost with or without it; it is for RayClusters that others share. Default: none.
	RedisAddress string `yaml:"redisAddress"`
	// Secret with the password of Redis.
	RedisPassword SecretKey `yaml:"redisPassword"`
	// A RayService or RayCluster of others in which engines are placed, as on a Ray cluster without Kubernetes, in place of RayClusters of their own.
	Shared KubeRayShared `yaml:"shared"`
}

// KubeRayShared names a RayCluster that engines share. At most one of cluster and service is set.
type KubeRayShared struct {
	// Name of a RayCluster.
	Cluster string `yaml:"cluster"`
	// Name of a RayService.
	Service string `yaml:"service"`
	// Tells that nodes come when they are asked for (enableInTreeAutoscaling): what fits on no node then waits, in place of being refused. Default false.
	Autoscaling bool `yaml:"autoscaling"`
}

// Shares tells whether engines run in a RayCluster or RayService of others. A nil KubeRay does not.
func (k *KubeRay) Shares() bool {
	return k != nil && (k.Shared.Cluster != "" || k.Shared.Service != "")
}

// SecretKey is one value of a Kubernetes Secret in the namespace of the pods.
type SecretKey struct {
	// Name of the Secret.
	Name string `yaml:"name" json:",omitzero"`
	// Key in it. Default: the usual one for what it is.
	Key string `yaml:"key" json:",omitzero"`
}

// KubernetesPods says how an engine's pods are made. Quantities are as Kubernetes writes them: 500m, 16Gi.
type KubernetesPods struct {
	// What holds an engine: a Deployment is one for all replicas of a revision; a StatefulSet is for one replica, with a pod for each of its hosts; a RayCluster is for one replica, on platform kuberay only. One of Deployment, StatefulSet or RayCluster. Default: Deployment; StatefulSet, or on KubeRay RayCluster, for engines of several hosts; RayCluster for those with --distributed-executor-backend ray.
	Workload string `yaml:"workload" json:",omitzero"`
	// Image with the engine. Default: vllm/vllm-openai of the version that this Mobula is tested with; for simulated engines the control plane's own.
	Image string `yaml:"image" json:",omitzero"`
	// When the image is pulled. One of Always, IfNotPresent or Never. Default: IfNotPresent.
	PullPolicy string `yaml:"pullPolicy" json:",omitzero"`
	// Secrets to pull images with.
	PullSecrets []string `yaml:"pullSecrets" json:",omitzero"`
	// CPUs that each pod asks for. Default: 100m for simulated engines, else 2.
	CPU string `yaml:"cpu" json:",omitzero" takes:"numbers"`
	// CPUs that each pod may use at most. Default: no bound.
	CPULimit string `yaml:"cpuLimit" json:",omitzero" takes:"numbers"`
	// Memory that each pod asks for. Default: 64Mi for simulated engines, else 8Gi.
	Memory string `yaml:"memory" json:",omitzero" takes:"numbers"`
	// Memory that each pod may use at most. Default: no bound.
	MemoryLimit string `yaml:"memoryLimit" json:",omitzero" takes:"numbers"`
	// What a GPU is called: nvidia.com/gpu, amd.com/gpu, nvidia.com/mig-3g.40gb. Default: nvidia.com/gpu.
	GPUResource string `yaml:"gpuResource" json:",omitzero"`
	// RuntimeClass of the pods, such as nvidia. Default: the cluster's.
	RuntimeClass string `yaml:"runtimeClass" json:",omitzero"`
	// PriorityClass of the pods. Default: the cluster's.
	PriorityClass string `yaml:"priorityClass" json:",omitzero"`
	// ServiceAccount of the pods; they get no token of it unless pod says so. Default: the namespace's.
	ServiceAccount string `yaml:"serviceAccount" json:",omitzero"`
	// Memory for /dev/shm, which processes of one engine talk through. What is not used takes none. Default: 8GiB; for simulated engines the runtime's.
	SharedMemory Size `yaml:"sharedMemory" json:",omitzero"`
	// Secret with the token of the Hugging Face hub. Its key is token unless given.
	HuggingFaceToken SecretKey `yaml:"huggingFaceToken" json:",omitzero"`
	// Where weights and caches are kept: /data in the engine.
	Data KubernetesData `yaml:"data" json:",omitzero"`
	// Pods of a model that a voluntary disruption (node drain) may take at once: a number or a percentage. Default: 1.
	MaxUnavailable string `yaml:"maxUnavailable" json:",omitzero" takes:"numbers"`
	// Part of a pod template (metadata and spec, as Kubernetes has it) that is merged into the engines' pods as kubectl patch would: the engine's container is called engine. For affinity, tolerations, topologySpreadConstraints, securityContext, initContainers, sidecars, volumes, envFrom and all else.
	Pod map[string]any `yaml:"pod" json:",omitzero"`
}

// KubernetesData is the volume of an engine at /data. At most one of claim, size and hostPath is set; with none it is an emptyDir.
type KubernetesData struct {
	// A PersistentVolumeClaim that is there.
	Claim string `yaml:"claim" json:",omitzero"`
	// Size of a PersistentVolumeClaim that is made for the model, shared by its engines and never deleted. An emptyDir has no bound.
	Size Size `yaml:"size" json:",omitzero"`
	// StorageClass of that claim. Default: the cluster's.
	StorageClass string `yaml:"storageClass" json:",omitzero"`
	// How that claim is mounted. One of ReadWriteOnce, ReadWriteMany, ReadOnlyMany or ReadWriteOncePod. Default: ReadWriteMany for a model of several pods (replicas above 1, or a range up to more), else ReadWriteOnce. With ReadWriteOnce a new revision may wait for the old one's node: set rollout.surge to 0 and rollout.unavailable to 1, or give the mode.
	AccessMode string `yaml:"accessMode" json:",omitzero"`
	// A folder of the nodes, made if it is not there.
	HostPath string `yaml:"hostPath" json:",omitzero"`
}

// KubernetesDiscover finds engines that others run, by labels.
type KubernetesDiscover struct {
	// Label selector: app=vllm,tier in (prod). Required.
	Selector string `yaml:"selector"`
	// Namespaces to look in; * is all. Default: that of the platform.
	Namespaces []string `yaml:"namespaces"`
	// What is selected: pods, each one an endpoint at its IP; services, each one an endpoint at its DNS name, for meshes that forbid pod IPs. One of pods or services. Default pods.
	By string `yaml:"by"`
	// Port, a number or the name of a container's or Service's port. Default: the only one; 8000 among several.
	Port string `yaml:"port" takes:"numbers"`
	// Model ids to route there. Default: all that the engine lists at /v1/models.
	Models []string `yaml:"models"`
	// What these engines do when prefill and decode run apart. One of prefill, decode or both. Default: both.
	Role Role `yaml:"role"`
	// Environment variable that holds the engines' API key. Exclusive with apiKeyFile.
	APIKeyEnv string `yaml:"apiKeyEnv"`
	// File that holds the engines' API key, read again on reload.
	APIKeyFile string `yaml:"apiKeyFile"`
}

// OnKubernetes gives the Kubernetes cluster of the platform, nil when it is none.
func (p *Platform) OnKubernetes() *Kubernetes {
	switch {
	case p.Kubernetes != nil:
		return p.Kubernetes
	case p.KubeRay != nil:
		return &p.KubeRay.Kubernetes
	}
	return nil
}

// Over gives p with what it leaves out taken from base. Pods are merged as `kubectl patch` would.
func (p KubernetesPods) Over(base KubernetesPods) KubernetesPods {
	or := cmp.Or[string]
	out := KubernetesPods{
		Workload: or(p.Workload, base.Workload), Image: or(p.Image, base.Image), PullPolicy: or(p.PullPolicy, base.PullPolicy),
		PullSecrets: p.PullSecrets, CPU: or(p.CPU, base.CPU), CPULimit: or(p.CPULimit, base.CPULimit), Memory: or(p.Memory, base.Memory),
		MemoryLimit: or(p.MemoryLimit, base.MemoryLimit), GPUResource: or(p.GPUResource, base.GPUResource),
		RuntimeClass: or(p.RuntimeClass, base.RuntimeClass), PriorityClass: or(p.PriorityClass, base.PriorityClass),
		ServiceAccount: or(p.ServiceAccount, base.ServiceAccount), SharedMemory: cmp.Or(p.SharedMemory, base.SharedMemory),
		HuggingFaceToken: cmp.Or(p.HuggingFaceToken, base.HuggingFaceToken), Data: cmp.Or(p.Data, base.Data),
		MaxUnavailable: or(p.MaxUnavailable, base.MaxUnavailable), Pod: overlay(base.Pod, p.Pod),
	}
	if len(out.PullSecrets) == 0 {
		out.PullSecrets = base.PullSecrets
	}
	return out
}

// overlay gives base with what top has in its place, map by map, and lists as a pod template merges them. Neither is changed.
func overlay(base, top map[string]any) map[string]any {
	if len(base) == 0 {
		return top
	}
	out := maps.Clone(base)
	for key, value := range top {
		switch above := value.(type) {
		case map[string]any:
			if below, both := out[key].(map[string]any); both {
				value = overlay(below, above)
			}
		case []any:
			if below, both := out[key].([]any); both {
				value = overlayList(key, below, above)
			}
		}
		out[key] = value
	}
	return out
}

// overlayList gives the members of both lists, where Kubernetes finds them by a key (patchMergeKey of its API types); else top. Of two with one key
// containers are merged, the others would be of two kinds at once: a variable with a value and a source.
func overlayList(field string, base, top []any) []any {
	key := ""
	switch field {
	case "containers", "initContainers", "volumes", "env", "imagePullSecrets", "resourceClaims":
		key = "name"
	case "volumeMounts":
		key = "mountPath"
	case "volumeDevices":
		key = "devicePath"
	case "ports":
		key = "containerPort"
	case "hostAliases":
		key = "ip"
	case "topologySpreadConstraints":
		key = "topologyKey"
	default:
		return top
	}
	out := slices.Clone(base)
	for _, member := range top {
		above, _ := member.(map[string]any)
		i := slices.IndexFunc(out, func(other any) bool {
			below, is := other.(map[string]any)
			return is && above[key] != nil && reflect.DeepEqual(below[key], above[key])
		})
		switch {
		case i < 0:
			out = append(out, member)
		case field == "containers" || field == "initContainers":
			out[i] = overlay(out[i].(map[string]any), above)
		default:
			out[i] = member
		}
	}
	return out
}

// Engine gives a model of the fleet with all that its engines are made from, what the platform says for all of them included. Those in
// a RayCluster of others have no pods.
func (f *Fleet) Engine(m Model) Model {
	if k := f.Platform.OnKubernetes(); k != nil && !f.Platform.KubeRay.Shares() {
		m.Kubernetes = m.Kubernetes.Over(k.Pods)
	}
	return m
}

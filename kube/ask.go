package kube

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
)

const (
	nvidiaGPU = "nvidia.com/gpu"
	// gpuMemoryLabel is the memory in MiB of a node's GPUs, as NVIDIA's GPU feature discovery says it.
	gpuMemoryLabel = "nvidia.com/gpu.memory"
	mebibyte       = 1 << 20
)

// ask is what one pod takes of a node.
type ask struct {
	requests, limits corev1.ResourceList
	gpus             int // of this pod
	gpusOfEngine     int
}

// ErrInvalid is wrapped by what is wrong with a model, whatever the cluster is like.
var ErrInvalid = errors.New("invalid model")

// problem is an ErrInvalid that names the field of the model.
type problem struct{ text string }

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return ErrInvalid }

// wrong says that a field of the model, such as "kubernetes.cpu", is wrong.
func (e Engine) wrong(field, format string, args ...any) error {
	return &problem{"models[" + e.Model.Name + "]." + field + ": " + fmt.Sprintf(format, args...)}
}

// ask decides what a pod takes and checks all that Kubernetes would refuse later, at a distance from who wrote it.
func (e Engine) ask(member *Member) (ask, error) {
	if err := e.checkWorkload(member); err != nil {
		return ask{}, err
	}
	if err := e.checkNames(); err != nil {
		return ask{}, err
	}
	a := ask{requests: corev1.ResourceList{}, limits: corev1.ResourceList{}}
	p := &e.Model.Kubernetes
	cpu, memory := "2", "8Gi"
	if e.simulated() {
		cpu, memory = "100m", "64Mi"
	}
	for _, q := range []struct {
		field, text string
		name        corev1.ResourceName
		list        corev1.ResourceList
	}{
		{"cpu", cmp.Or(p.CPU, cpu), corev1.ResourceCPU, a.requests},
		{"memory", cmp.Or(p.Memory, memory), corev1.ResourceMemory, a.requests},
		{"cpuLimit", p.CPULimit, corev1.ResourceCPU, a.limits},
		{"memoryLimit", p.MemoryLimit, corev1.ResourceMemory, a.limits},
	} {
		if q.text == "" {
			continue
		}
		amount, err := resource.ParseQuantity(q.text)
		if err != nil || amount.Sign() <= 0 {
			return ask{}, e.wrong("kubernetes."+q.field, `want a quantity above 0 such as 500m or 16Gi, got %q`, q.text)
		}
		q.list[q.name] = amount
	}
	for name, limit := range a.limits {
		wanted := a.requests[name]
		if wanted.Cmp(limit) <= 0 {
			continue
		}
		if asked := p.CPU; name == corev1.ResourceCPU && asked != "" || name == corev1.ResourceMemory && p.Memory != "" {
			return ask{}, e.wrong("kubernetes."+string(name)+"Limit", "want at least what %s asks for, %s, got %s", string(name), wanted.String(), limit.String())
		}
		a.requests[name] = limit // the default must not forbid a small limit
	}
	return a, e.gpus(&a)
}

// gpus adds the GPUs of one pod to what it takes.
func (e Engine) gpus(a *ask) error {
	m := &e.Model
	switch {
	case m.Resources.GPUs != nil:
		a.gpusOfEngine = *m.Resources.GPUs
	case !e.simulated():
		a.gpusOfEngine = max(engine.Devices(m.Engine.Args), e.hosts())
	}
	if a.gpusOfEngine%e.hosts() != 0 {
		return e.wrong("resources.gpus", "%d GPUs can't be shared equally by %d hosts: want a multiple of resources.hosts", a.gpusOfEngine, e.hosts())
	}
	a.gpus = a.gpusOfEngine / e.hosts()
	name := cmp.Or(m.Kubernetes.GPUResource, nvidiaGPU)
	if problems := validation.IsQualifiedName(name); len(problems) > 0 || !strings.Contains(name, "/") {
		return e.wrong("kubernetes.gpuResource", "want the name of a resource such as nvidia.com/gpu or nvidia.com/mig-3g.40gb, got %q", name)
	}
	if a.gpus == 0 {
		return nil
	}
	if m.Resources.GPUMemory > 0 && !strings.HasPrefix(name, "nvidia.com/") {
		return e.wrong("resources.gpuMemory", "known of nvidia.com GPUs only, not of %s: use resources.hostLabels", name)
	}
	// An extended resource is asked for by its limit; the request is the same.
	a.limits[corev1.ResourceName(name)] = *resource.NewQuantity(int64(a.gpus), resource.DecimalSI)
	return nil
}

// affinity has the pod go where GPUs have enough memory, nil if that doesn't matter.
func (a *ask) affinity(m *mobula.Model) *corev1.Affinity {
	if a.gpus == 0 || m.Resources.GPUMemory <= 0 {
		return nil
	}
	atLeast := (int64(m.Resources.GPUMemory) + mebibyte - 1) / mebibyte
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{
				Key: gpuMemoryLabel, Operator: corev1.NodeSelectorOpGt, Values: []string{strconv.FormatInt(atLeast-1, 10)},
			}},
		}}},
	}}
}

// checkWorkload refuses workloads that can't hold the engine.
func (e Engine) checkWorkload(member *Member) error {
	kind := e.Workload()
	switch kind {
	case KindDeployment, KindStatefulSet, KindRayCluster:
	default:
		return e.wrong("kubernetes.workload", "want one of Deployment, StatefulSet or RayCluster, got %q", kind)
	}
	switch {
	case kind == KindRayCluster && e.KubeRay == nil:
		return e.wrong("kubernetes.workload", "RayCluster needs platform.kuberay in place of platform.kubernetes")
	case kind == KindDeployment && e.hosts() > 1:
		return e.wrong("kubernetes.workload", "a Deployment holds engines of one host, this one has %d (resources.hosts): want StatefulSet or RayCluster", e.hosts())
	case kind == KindStatefulSet && e.hosts() > 1 && !e.simulated() && engine.Spreads(e.Model.Engine.Args):
		return e.wrong("engine.args", "--distributed-executor-backend ray over %d hosts needs a RayCluster (platform.kuberay): leave it out, and vLLM spreads without Ray", e.hosts())
	case member != nil && (member.Rank < 0 || member.Rank >= e.hosts()) && kind != KindRayCluster:
		return e.wrong("resources.hosts", "no host of rank %d: there are %d", member.Rank, e.hosts())
	case e.simulated() && e.Model.Kubernetes.Image == "" && e.OwnImage == "":
		return e.wrong("kubernetes.image", "a simulated engine runs in Mobula's own image, and a control plane outside of the cluster doesn't know which: name it")
	}
	return nil
}

// checkNames looks at what has to be a name or a value of Kubernetes'.
func (e Engine) checkNames() error {
	p := &e.Model.Kubernetes
	for _, n := range []struct{ field, name string }{
		{"runtimeClass", p.RuntimeClass},
		{"priorityClass", p.PriorityClass},
		{"serviceAccount", p.ServiceAccount},
		{"huggingFaceToken.name", p.HuggingFaceToken.Name},
		{"data.claim", p.Data.Claim},
		{"data.storageClass", p.Data.StorageClass},
	} {
		if problems := validation.IsDNS1123Subdomain(n.name); n.name != "" && len(problems) > 0 {
			return e.wrong("kubernetes."+n.field, "want a name of Kubernetes' (lower-case letters, digits, dashes and dots), got %q", n.name)
		}
	}
	for i, name := range p.PullSecrets {
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			return e.wrong(fmt.Sprintf("kubernetes.pullSecrets[%d]", i), "want the name of a Secret, got %q", name)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(e.Model.Resources.HostLabels)) {
		value := e.Model.Resources.HostLabels[key]
		if len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
			return e.wrong("resources.hostLabels", "%s=%s can't be a node's label", key, value)
		}
	}
	if p.HuggingFaceToken.Name == "" && p.HuggingFaceToken.Key != "" {
		return e.wrong("kubernetes.huggingFaceToken.name", "want the name of the Secret that has the key %q", p.HuggingFaceToken.Key)
	}
	if _, err := intstr.GetScaledValueFromIntOrPercent(new(intstr.Parse(cmp.Or(p.MaxUnavailable, "1"))), 100, true); err != nil || strings.HasPrefix(p.MaxUnavailable, "-") {
		return e.wrong("kubernetes.maxUnavailable", "want a number such as 1 or a percentage such as 25%%, got %q", p.MaxUnavailable)
	}
	return e.checkData()
}

// checkData refuses two kinds of volume at /data.
func (e Engine) checkData() error {
	d := &e.Model.Kubernetes.Data
	kinds := 0
	for _, set := range []bool{d.Claim != "", d.Size > 0, d.HostPath != ""} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return e.wrong("kubernetes.data", "want one of claim, size and hostPath")
	case d.HostPath != "" && !strings.HasPrefix(d.HostPath, "/"):
		return e.wrong("kubernetes.data.hostPath", "want a path from / on, got %q", d.HostPath)
	case d.Size <= 0 && (d.StorageClass != "" || d.AccessMode != ""):
		return e.wrong("kubernetes.data.size", "want the size of the claim that storageClass and accessMode are for")
	}
	return nil
}

package kube

import (
	"cmp"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mobula-serve/mobula"
)

const (
	dataVolume   = "data"
	sharedVolume = "shm"
	sharedPath   = "/dev/shm"
	tempVolume   = "tmp"
	tempPath     = "/tmp"

	defaultShared mobula.Size = 8 << 30
)

// volumes gives those of a pod, and mounts where its engine has them.
func (e Engine) volumes() []corev1.Volume {
	var out []corev1.Volume
	if e.hasData() {
		out = append(out, corev1.Volume{Name: dataVolume, VolumeSource: e.data()})
	}
	if size := e.shared(); size > 0 {
		out = append(out, corev1.Volume{Name: sharedVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: quantity(size),
		}}})
	}
	if e.simulated() { // its root is read-only
		out = append(out, corev1.Volume{Name: tempVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	}
	return out
}

func (e Engine) mounts() []corev1.VolumeMount {
	var out []corev1.VolumeMount
	if e.hasData() {
		out = append(out, corev1.VolumeMount{Name: dataVolume, MountPath: DataPath})
	}
	if e.shared() > 0 {
		out = append(out, corev1.VolumeMount{Name: sharedVolume, MountPath: sharedPath})
	}
	if e.simulated() {
		out = append(out, corev1.VolumeMount{Name: tempVolume, MountPath: tempPath})
	}
	return out
}

// writable gives a merged pod whose image can't be written what vLLM and Ray need to write: a folder for temporary files and
// sockets, a home for caches, and a name for a user whom the image does not know, which Python asks for.
func writable(pod *corev1.PodTemplateSpec) {
	c := &pod.Spec.Containers[0]
	readOnly := c.SecurityContext != nil && c.SecurityContext.ReadOnlyRootFilesystem != nil && *c.SecurityContext.ReadOnlyRootFilesystem
	if !readOnly && !notRoot(pod.Spec.SecurityContext, c.SecurityContext) {
		return
	}
	mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return path.Clean(m.MountPath) == tempPath })
	taken := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == tempVolume })
	if readOnly && !mounted && !taken {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: tempVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: tempVolume, MountPath: tempPath})
	}
	for _, v := range []corev1.EnvVar{{Name: "HOME", Value: tempPath}, {Name: "USER", Value: "vllm"}} {
		if !slices.ContainsFunc(c.Env, func(given corev1.EnvVar) bool { return given.Name == v.Name }) {
			c.Env = append(c.Env, v)
		}
	}
}

// notRoot tells whether a container runs as another user than root. What it says itself counts before what its pod says.
func notRoot(pod *corev1.PodSecurityContext, c *corev1.SecurityContext) bool {
	var user *int64
	var never *bool
	if pod != nil {
		user, never = pod.RunAsUser, pod.RunAsNonRoot
	}
	if c != nil {
		user, never = cmp.Or(c.RunAsUser, user), cmp.Or(c.RunAsNonRoot, never)
	}
	return user != nil && *user != 0 || never != nil && *never
}

// hasData tells whether there is a volume at DataPath: a simulated engine has nothing to keep.
func (e Engine) hasData() bool {
	return !e.simulated() || e.Model.Kubernetes.Data != mobula.KubernetesData{}
}

func (e Engine) data() corev1.VolumeSource {
	d := &e.Model.Kubernetes.Data
	claim := d.Claim
	if d.Size > 0 {
		claim = e.claimName()
	}
	switch {
	case claim != "":
		return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}
	case d.HostPath != "":
		return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: d.HostPath, Type: new(corev1.HostPathDirectoryOrCreate)}}
	default:
		return corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	}
}

// shared is the size of /dev/shm, 0 for the runtime's own: its 64 MiB are too little for vLLM as soon as it has a process for a worker, which
// on CPUs it always has. What is not used takes no memory.
func (e Engine) shared() mobula.Size {
	size := e.Model.Kubernetes.SharedMemory
	if size == 0 && !e.simulated() {
		return defaultShared
	}
	return size
}

func (e Engine) claimName() string { return Label(e.Model.Name) + "-data" }

// Claim gives the PersistentVolumeClaim that the model's engines share, complete but for namespace and owner; false when
// it has none of its own (KubernetesData.Size). It belongs to no revision. pods is how many will use it, for its default access mode.
func (e Engine) Claim(pods int) (*corev1.PersistentVolumeClaim, bool) {
	d := &e.Model.Kubernetes.Data
	if d.Size <= 0 {
		return nil, false
	}
	mode := corev1.ReadWriteOnce
	if pods > 1 || e.hosts() > 1 {
		mode = corev1.ReadWriteMany
	}
	claim := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: e.ofModel(e.claimName()),
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.PersistentVolumeAccessMode(cmp.Or(d.AccessMode, string(mode)))},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *quantity(d.Size)}},
		},
	}
	if d.StorageClass != "" {
		claim.Spec.StorageClassName = new(d.StorageClass)
	}
	return claim, true
}

// Budget gives the PodDisruptionBudget of the model's pods that serve, of all revisions, complete but for namespace and owner. There
// is none for RayClusters: Kubernetes can count only the pods of its own controllers, and would forbid each eviction.
func (e Engine) Budget() (*policyv1.PodDisruptionBudget, bool) {
	if e.Workload() == KindRayCluster {
		return nil, false
	}
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: e.ofModel(Label(e.Model.Name)),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable:             new(intstr.Parse(cmp.Or(e.Model.Kubernetes.MaxUnavailable, "1"))),
			Selector:                   &metav1.LabelSelector{MatchLabels: e.servingLabels()},
			UnhealthyPodEvictionPolicy: new(policyv1.AlwaysAllow), // an engine that can't start must not hold a node
		},
	}, true
}

// ofModel names an object that all revisions of a model share.
func (e Engine) ofModel(name string) metav1.ObjectMeta {
	labels := e.Labels()
	delete(labels, LabelRevision)
	return metav1.ObjectMeta{Name: name, Labels: labels, Annotations: map[string]string{AnnotationModel: e.Model.Name}}
}

// quantity writes a size as Kubernetes does.
func quantity(size mobula.Size) *resource.Quantity {
	format := resource.DecimalSI
	if size%mebibyte == 0 {
		format = resource.BinarySI
	}
	return resource.NewQuantity(int64(size), format)
}

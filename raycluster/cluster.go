package raycluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// ErrNoKubeRay says that a RayCluster was asked for on a platform that is not KubeRay.
var ErrNoKubeRay = errors.New("a RayCluster needs platform.kuberay")

const (
	// DefaultRayVersion is the version of Ray that platform.kuberay takes the engines' image to have.
	DefaultRayVersion = "2.60.0"
	// tokenVersion is the first version of Ray that KubeRay gives tokens to.
	tokenVersion = "2.52.0"

	defaultGPU = "nvidia.com/gpu"
	// objectStore of each node in bytes: vLLM passes tensors by NCCL, and Ray would take a third of the node's memory.
	objectStore = 512 << 20

	groupEngine  = "engine"  // the worker that serves, beside a head without GPUs
	groupWorkers = "workers" // the other hosts of an engine

	annotationCommand = "ray.io/overwrite-container-cmd"
	labelCluster      = "ray.io/cluster"
)

// gang is what the pods of one replica are made from.
type gang struct {
	engine    kube.Engine // with Ray as what vLLM spreads by
	kubeRay   mobula.KubeRay
	replica   string
	hosts     int
	simulated bool
}

// Cluster gives the RayCluster of one replica of an engine, complete but for namespace and owner: it is made, lost and scaled as
// one. Rank 0, which serves, is the head; with platform.kuberay.headWithoutGPUs it is a worker, since vLLM has to run on a
// node with a GPU. Ray and vLLM run under a supervisor, so that neither outlives the other. A simulated engine
// runs without Ray. The error is kube.Engine.Member's, ErrNoKubeRay, or names the field that is wrong.
func Cluster(e kube.Engine, replica string) (*rayv1.RayCluster, error) {
	g, err := newGang(e, replica)
	if err != nil {
		return nil, err
	}
	if e.Model.Kubernetes.Image == "" && !g.simulated {
		return nil, fmt.Errorf("%w: models[%s].kubernetes.image: a RayCluster needs an image with vLLM and Ray, and vLLM's own images have no Ray: name one, such as rayproject/ray-llm", kube.ErrInvalid, e.Model.Name)
	}
	spec, err := g.spec()
	if err != nil {
		return nil, err
	}
	labels := e.Labels()
	labels[kube.LabelReplica] = replica
	return &rayv1.RayCluster{
		TypeMeta: typeMeta("RayCluster"),
		ObjectMeta: metav1.ObjectMeta{
			Name: ClusterName(replica), Labels: labels,
			Annotations: map[string]string{kube.AnnotationModel: e.Model.Name, annotationCommand: "true"},
		},
		Spec: *spec,
	}, nil
}

// ClusterName is what the RayCluster of a replica is called: its ID, when KubeRay takes that as a name.
func ClusterName(replica string) string {
	name := replica
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		name = "r-" + name
	}
	return fitting(name, maxName)
}

func newGang(e kube.Engine, replica string) (*gang, error) {
	k, err := settings(e)
	if err != nil {
		return nil, err
	}
	g := &gang{
		engine: e, kubeRay: k, replica: replica,
		hosts: max(1, e.Model.Resources.Hosts), simulated: e.Model.Engine.Kind == "sim",
	}
	g.engine.Model.Kubernetes.Workload = kube.KindRayCluster
	if g.simulated {
		return g, nil
	}
	switch backend := flagValue(e.Model.Engine.Args, "distributed-executor-backend"); backend {
	case "":
		g.engine.Model.Engine.Args = append([]string{"--distributed-executor-backend", "ray"}, e.Model.Engine.Args...)
	case "ray":
	default:
		if g.hosts > 1 {
			return nil, fmt.Errorf("models[%s].engine.args: --distributed-executor-backend %s can't span %d hosts of a RayCluster: "+
				"leave it out, or use kubernetes.workload StatefulSet", e.Model.Name, backend, g.hosts)
		}
	}
	return g, nil
}

// settings gives the platform's section with its defaults, checked.
func settings(e kube.Engine) (mobula.KubeRay, error) {
	if e.KubeRay == nil {
		return mobula.KubeRay{}, fmt.Errorf("models[%s].kubernetes.workload: %w", e.Model.Name, ErrNoKubeRay)
	}
	k := *e.KubeRay
	k.RayVersion, k.Auth = cmp.Or(k.RayVersion, DefaultRayVersion), cmp.Or(k.Auth, string(rayv1.AuthModeToken))
	v, err := version.ParseGeneric(k.RayVersion)
	if err != nil {
		return k, fmt.Errorf("platform.kuberay.rayVersion: want a version such as %s, got %q", DefaultRayVersion, k.RayVersion)
	}
	if k.Auth == string(rayv1.AuthModeToken) && v.LessThan(version.MustParseGeneric(tokenVersion)) {
		return k, fmt.Errorf("platform.kuberay.auth: Ray has tokens from %s on, rayVersion is %s: use a newer image, or auth: disabled", tokenVersion, k.RayVersion)
	}
	return k, nil
}

// spec gives the cluster: its head, and workers where there are several pods.
func (g *gang) spec() (*rayv1.RayClusterSpec, error) {
	serving, err := g.serving()
	if err != nil {
		return nil, err
	}
	spec := clusterSpec(g.kubeRay)
	head := serving
	if g.kubeRay.HeadWithoutGPUs && !g.simulated {
		if head, err = g.bareHead(mobula.KubernetesData{}); err != nil { // a claim may be mounted on one node only: the engine's
			return nil, err
		}
		g.onWorker(serving)
		spec.WorkerGroupSpecs = append(spec.WorkerGroupSpecs, g.group(groupEngine, 1, serving))
	}
	openPorts(head)
	spec.HeadGroupSpec = rayv1.HeadGroupSpec{RayStartParams: g.startParams(head, true), Template: *head}
	if g.hosts > 1 {
		worker, err := g.worker()
		if err != nil {
			return nil, err
		}
		spec.WorkerGroupSpecs = append(spec.WorkerGroupSpecs, g.group(groupWorkers, g.hosts-1, worker))
	}
	return spec, nil
}

// clusterSpec gives what all RayClusters of ours have, without pods.
func clusterSpec(k mobula.KubeRay) *rayv1.RayClusterSpec {
	spec := &rayv1.RayClusterSpec{
		RayVersion:              k.RayVersion,
		AuthOptions:             &rayv1.AuthOptions{Mode: rayv1.AuthMode(k.Auth)}, // KubeRay makes the token
		EnableInTreeAutoscaling: new(false),
		// A new revision has a RayCluster of its own: KubeRay must not take pods away under requests.
		UpgradeStrategy: &rayv1.RayClusterUpgradeStrategy{Type: new(rayv1.RayClusterUpgradeNone)},
	}
	if k.RedisAddress != "" {
		spec.GcsFaultToleranceOptions = &rayv1.GcsFaultToleranceOptions{RedisAddress: k.RedisAddress}
		if k.RedisPassword.Name != "" {
			spec.GcsFaultToleranceOptions.RedisPassword = &rayv1.RedisCredential{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: k.RedisPassword.Name},
				Key:                  cmp.Or(k.RedisPassword.Key, "password"),
			}}}
		}
	}
	return spec
}

func (g *gang) group(name string, replicas int, pod *corev1.PodTemplateSpec) rayv1.WorkerGroupSpec {
	n := int32(replicas) //nolint:gosec // at most 64, by the fleet's check
	return rayv1.WorkerGroupSpec{
		GroupName: name, Replicas: new(n), MinReplicas: new(n), MaxReplicas: new(n), NumOfHosts: 1,
		RayStartParams: g.startParams(pod, false), Template: *pod,
	}
}

// startParams are arguments of ray start that KubeRay would not choose so. GPUs by another name than gpu (MIG) are unknown to it.
func (g *gang) startParams(pod *corev1.PodTemplateSpec, head bool) map[string]string {
	params := map[string]string{
		"num-gpus":            strconv.Itoa(gpus(g.engine, pod)),
		"object-store-memory": strconv.Itoa(objectStore),
	}
	if head {
		params["dashboard-host"] = "0.0.0.0"
	}
	return params
}

// gpus is how many a pod has.
func gpus(e kube.Engine, pod *corev1.PodTemplateSpec) int {
	limit := engineOf(pod).Resources.Limits[corev1.ResourceName(cmp.Or(e.Model.Kubernetes.GPUResource, defaultGPU))]
	return int(limit.Value())
}

// engineOf gives the container of the engine, which KubeRay wants to be the first.
func engineOf(pod *corev1.PodTemplateSpec) *corev1.Container {
	containers := pod.Spec.Containers
	for i := range containers {
		if containers[i].Name == kube.Container && i > 0 {
			containers[0], containers[i] = containers[i], containers[0]
		}
	}
	return &containers[0]
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: rayv1.GroupVersion.String(), Kind: kind}
}

// timeout of the wait for nodes: below that of the engine's start, so that the reason is told before the kubelet ends the container.
func (g *gang) timeout() time.Duration {
	start := time.Duration(g.engine.Model.Engine.StartTimeout)
	if start <= 0 {
		start = 30 * time.Minute
	}
	return start * 9 / 10
}

// setDefault adds variables that the container does not have yet.
func setDefault(c *corev1.Container, variables map[string]string) {
	missing := maps.Clone(variables)
	for _, v := range c.Env {
		delete(missing, v.Name)
	}
	for _, name := range sortedKeys(missing) {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: missing[name]})
	}
}

// flagValue finds the value of a flag's last occurrence in vLLM's arguments.
func flagValue(args []string, flag string) string {
	value := ""
	for i, a := range args {
		name, v, joined := strings.Cut(a, "=")
		switch {
		case strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-") != flag || !strings.HasPrefix(name, "--"):
		case joined:
			value = v
		case i+1 < len(args):
			value = args[i+1]
		}
	}
	return value
}

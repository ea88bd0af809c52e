package raycluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// ErrNothingToFetch says that a warm-up has nothing to download, or nowhere to keep it.
var ErrNothingToFetch = errors.New("nothing to download for the model")

const (
	servePort = 8000
	// fetchedFor is how long the cluster of a warm-up that is done stays, for its log, in seconds.
	fetchedFor = 300
)

// Service gives a RayService that serves the model by Ray's own ray.serve.llm, with replicas from min to max: for those who want Ray
// Serve itself, which Mobula's router then has as one upstream (platform.ray.serve). The image needs ray[llm]. Each replica takes
// Resources.Hosts pods; the head has no GPU. Complete but for namespace and owner.
func Service(e kube.Engine, replicas mobula.Range) (*rayv1.RayService, error) {
	k, err := settings(e)
	if err != nil {
		return nil, err
	}
	config, err := serveConfig(e, replicas)
	if err != nil {
		return nil, err
	}
	cluster, err := plainCluster(e, k, max(1, replicas.Min), max(1, replicas.Max))
	if err != nil {
		return nil, err
	}
	return &rayv1.RayService{
		TypeMeta:   typeMeta("RayService"),
		ObjectMeta: called(e, ""),
		Spec:       rayv1.RayServiceSpec{ServeConfigV2: config, RayClusterSpec: *cluster},
	}, nil
}

// WarmUp gives a RayJob that downloads the model's weights to its volume, so that engines find them there; then it goes away. It needs
// kubernetes.data with claim, size or hostPath. The error wraps ErrNothingToFetch where there is nothing for it to do.
func WarmUp(e kube.Engine) (*rayv1.RayJob, error) {
	k, err := settings(e)
	if err != nil {
		return nil, err
	}
	d, from := e.Model.Kubernetes.Data, e.Model.From()
	switch {
	case e.Model.Engine.Kind == "sim":
		return nil, fmt.Errorf("models[%s]: %w: it is simulated", e.Model.Name, ErrNothingToFetch)
	case path.IsAbs(from):
		return nil, fmt.Errorf("models[%s].source: %w: %s is a folder", e.Model.Name, ErrNothingToFetch, from)
	case d.Claim == "" && d.Size == 0 && d.HostPath == "":
		return nil, fmt.Errorf("models[%s].kubernetes.data: %w: want a claim, size or hostPath that keeps it", e.Model.Name, ErrNothingToFetch)
	}
	cluster, err := plainCluster(e, k, 0, 0)
	if err != nil {
		return nil, err
	}
	return &rayv1.RayJob{
		TypeMeta:   typeMeta("RayJob"),
		ObjectMeta: called(e, "warm"),
		Spec: rayv1.RayJobSpec{
			Entrypoint:               "python3 -c " + quote("import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1]))") + " " + quote(from),
			RayClusterSpec:           cluster,
			SubmissionMode:           rayv1.K8sJobMode,
			ShutdownAfterJobFinishes: true,
			TTLSecondsAfterFinished:  fetchedFor,
			BackoffLimit:             new(int32(2)),
		},
	}, nil
}

// plainCluster gives a RayCluster as KubeRay starts it, with a head without GPUs and groups of workers that an engine fits on each.
func plainCluster(e kube.Engine, k mobula.KubeRay, least, most int) (*rayv1.RayClusterSpec, error) {
	spec := clusterSpec(k)
	spec.UpgradeStrategy = nil // a RayService's is its own
	e.Model.Kubernetes.Workload = kube.KindRayCluster
	g := &gang{engine: e, kubeRay: k, hosts: max(1, e.Model.Resources.Hosts)}
	data := mobula.KubernetesData{}
	if most == 0 { // it is for what the head does
		data = e.Model.Kubernetes.Data
	}
	head, err := g.bareHead(data)
	if err != nil {
		return nil, err
	}
	openPorts(head)
	asKubeRayHasIt(head)
	c := engineOf(head)
	c.Ports = append(c.Ports, corev1.ContainerPort{Name: "serve", ContainerPort: servePort, Protocol: corev1.ProtocolTCP})
	spec.HeadGroupSpec = rayv1.HeadGroupSpec{RayStartParams: g.startParams(head, true), Template: *head}
	spec.HeadGroupSpec.RayStartParams["num-cpus"] = "0" // nothing but Ray's own runs there
	if most == 0 {
		delete(spec.HeadGroupSpec.RayStartParams, "num-cpus")
		return spec, nil
	}
	worker, err := e.Member(kube.Member{Rank: 1})
	if err != nil {
		return nil, err
	}
	asKubeRayHasIt(&worker)
	group := g.group(groupWorkers, least*g.hosts, &worker)
	group.MaxReplicas = new(int32(most * g.hosts)) //nolint:gosec // at most 64 hosts of 1000 replicas
	if least != most {
		spec.EnableInTreeAutoscaling = new(true)
		spec.HeadGroupSpec.Template.Spec.AutomountServiceAccountToken = nil // Ray's autoscaler runs in the head, and asks for pods
	}
	spec.WorkerGroupSpecs = []rayv1.WorkerGroupSpec{group}
	return spec, nil
}

// asKubeRayHasIt leaves command and probes to KubeRay. The pods are no engines of ours, and no control plane is to take them for its own.
func asKubeRayHasIt(pod *corev1.PodTemplateSpec) {
	c := engineOf(pod)
	c.Command, c.Args, c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = nil, nil, nil, nil, nil
	for _, label := range []string{kube.LabelManagedBy, kube.LabelReplica, kube.LabelServes, kube.LabelRevision, kube.LabelFleet} {
		delete(pod.Labels, label)
	}
	pod.Labels[kube.LabelName] = "ray"
}

// called gives name and labels of what is made for a model, not for a revision. KubeRay copies the labels to the RayCluster that it
// makes, which a control plane would take for its own and delete if it were said to be managed by Mobula.
func called(e kube.Engine, suffix string) metav1.ObjectMeta {
	name := kube.Label(e.Model.Name)
	if suffix != "" {
		name += "-" + suffix
	}
	return metav1.ObjectMeta{
		Name:        fitting(name, maxOwnerName),
		Labels:      map[string]string{kube.LabelModel: kube.Label(e.Model.Name)},
		Annotations: map[string]string{kube.AnnotationModel: e.Model.Name},
	}
}

// serveConfig gives the RayService's applications, as JSON, which is YAML.
func serveConfig(e kube.Engine, replicas mobula.Range) (string, error) {
	m := &e.Model
	engine, err := kwargs(m.Engine.Args)
	if err != nil {
		return "", fmt.Errorf("models[%s].engine.args: %w", m.Name, err)
	}
	delete(engine, "distributed_executor_backend") // ray.serve.llm takes none but its own choice
	deployment := map[string]any{}
	if replicas.Min == replicas.Max {
		deployment["num_replicas"] = max(1, replicas.Max)
	} else {
		deployment["autoscaling_config"] = map[string]any{"min_replicas": replicas.Min, "max_replicas": replicas.Max}
	}
	llm := map[string]any{
		"model_loading_config": map[string]any{"model_id": m.Name, "model_source": m.From()},
		"engine_kwargs":        engine,
		"deployment_config":    deployment,
	}
	if len(m.Engine.Env) > 0 {
		llm["runtime_env"] = map[string]any{"env_vars": m.Engine.Env}
	}
	if m.Ray.AcceleratorType != "" {
		llm["accelerator_type"] = m.Ray.AcceleratorType
	}
	text, err := json.MarshalIndent(map[string]any{"applications": []any{map[string]any{
		"name": "mobula-" + kube.Label(m.Name), "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app",
		"args": map[string]any{"llm_configs": []any{llm}},
	}}}, "", "  ")
	return string(text) + "\n", err
}

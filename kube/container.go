package kube

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mobula-serve/mobula/engine"
)

const (
	// vllmImage is the engine that this Mobula is tested with.
	vllmImage = "vllm/vllm-openai:v0.32.0"
	// ownCommand is where Mobula is in its own image.
	ownCommand = "/mobula"
	// podIP stands for the pod's address in values of variables that come after it.
	podIP = "POD_IP"

	startPeriod = 2 // seconds; a pod serves as soon as a probe has seen it
)

// container gives the engine's container.
func (e Engine) container(a *ask, member *Member, serves bool) corev1.Container {
	p := &e.Model.Kubernetes
	command, args, env := e.command(member)
	c := corev1.Container{
		Name:            Container,
		Image:           cmp.Or(p.Image, e.image()),
		ImagePullPolicy: corev1.PullPolicy(cmp.Or(p.PullPolicy, string(corev1.PullIfNotPresent))),
		Command:         command,
		Args:            args,
		Env:             e.variables(env),
		Resources:       corev1.ResourceRequirements{Requests: a.requests, Limits: a.limits},
		VolumeMounts:    e.mounts(),
		// The end of the log says why it ended, also when it is no longer there to be asked.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Sleep: &corev1.SleepAction{Seconds: seconds(lookAway)}, // needs no shell in the image
		}},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	if e.simulated() {
		c.SecurityContext.ReadOnlyRootFilesystem = new(true)
	}
	if serves { // the others have no HTTP: when their part dies its process ends, and the engine with it
		c.Ports = []corev1.ContainerPort{{Name: PortName, ContainerPort: Port, Protocol: corev1.ProtocolTCP}}
		c.StartupProbe = health(startPeriod, 5, int32(max(1, seconds(e.start())/startPeriod)))
		c.ReadinessProbe = health(5, 5, 3)
		// Generous, since it is for engines that hang: a busy one answers late, and to kill it loses all its streams.
		c.LivenessProbe = health(10, 10, 6)
	}
	return c
}

// health is a probe of vLLM's /health, times in seconds.
func health(period, timeout, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/health", Port: intstr.FromString(PortName), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures, SuccessThreshold: 1,
	}
}

func (e Engine) image() string {
	if e.simulated() {
		return e.OwnImage
	}
	return vllmImage
}

// command gives how the engine is started, and the variables for it, both with references such as $(POD_IP) that Kubernetes fills in.
func (e Engine) command(member *Member) (command, args []string, env map[string]string) {
	s := engine.ForModel(e.Model)
	s.Prefix, s.Args, s.Model, s.ServedName = literals(s.Prefix), literals(s.Args), literal(s.Model), literal(s.ServedName)
	s.Env = map[string]string{}
	for name, value := range e.Model.Engine.Env {
		s.Env[name] = literal(value)
	}
	port := strconv.Itoa(Port)
	if e.simulated() {
		if command = s.Prefix; len(command) == 0 {
			command = []string{ownCommand}
		}
		args = []string{"sim", "--model", s.ServedName, "--host", anyHost, "--port", port, "--drain-timeout", e.drain().String()}
		return command, append(args, s.Args...), s.Env
	}
	at := engine.Place{Host: anyHost, Port: port, MasterPort: strconv.Itoa(MasterPort)}
	rank := 0
	if member != nil && e.Workload() != KindRayCluster { // Ray has its own way to start the parts
		s.Nodes, rank, at.Master = e.hosts(), member.Rank, member.Master
		if member.RankVar != "" {
			rank = min(1, s.Nodes-1) // all but the first have the same arguments but for the rank
		}
	}
	// SIGTERM ends vLLM's requests at once unless it is told to let them end. Arguments of the fleet come after it and win.
	s.Args = append([]string{"--shutdown-timeout", strconv.FormatInt(seconds(e.drain()), 10)}, s.Args...)
	argv, env := s.Template(at)
	argv[rank] = withRank(argv[rank], member)
	if _, given := s.Env["VLLM_HOST_IP"]; !given {
		env["VLLM_HOST_IP"] = "$(" + podIP + ")"
	}
	n := max(1, len(s.Prefix))
	return argv[rank][:n:n], argv[rank][n:], env
}

// anyHost has an engine listen on all of the pod's addresses: the kubelet forwards ports to loopback.
const anyHost = "0.0.0.0"

// withRank puts the expression for the rank in its place.
func withRank(argv []string, member *Member) []string {
	if i := slices.Index(argv, "--node-rank"); member != nil && member.RankVar != "" && i >= 0 && i+1 < len(argv) {
		argv[i+1] = member.RankVar
	}
	return argv
}

// variables gives the environment of the engine's container, those first that others refer to.
func (e Engine) variables(env map[string]string) []corev1.EnvVar {
	p := &e.Model.Kubernetes
	var out []corev1.EnvVar
	if _, given := env[podIP]; !e.simulated() && !given {
		out = append(out, corev1.EnvVar{Name: podIP, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "status.podIP"}}})
	}
	if !e.simulated() {
		caches := map[string]string{"HF_HOME": DataPath + "/huggingface", "VLLM_CACHE_ROOT": DataPath + "/vllm"} // what was compiled speeds the next start up
		maps.Copy(caches, env)
		env = caches
	}
	if _, given := env[hubToken]; p.HuggingFaceToken.Name != "" && !given {
		out = append(out, corev1.EnvVar{Name: hubToken, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: p.HuggingFaceToken.Name}, Key: cmp.Or(p.HuggingFaceToken.Key, "token"),
		}}})
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, corev1.EnvVar{Name: name, Value: env[name]})
	}
	return out
}

const hubToken = "HF_TOKEN"

// literal gives text so that Kubernetes, which fills in $(NAME) and makes one $ of two, leaves it as it is.
func literal(text string) string {
	if strings.Contains(text, "$(") || strings.Contains(text, "$$") {
		return strings.ReplaceAll(text, "$", "$$")
	}
	return text
}

func literals(texts []string) []string {
	out := make([]string, 0, len(texts))
	for _, t := range texts {
		out = append(out, literal(t))
	}
	return out
}

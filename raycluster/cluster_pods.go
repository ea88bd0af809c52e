package raycluster

import (
	_ "embed"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// supervisor is the program, with Python's own library only, that runs Ray and the engine in a container.
//
//go:embed supervisor/supervisor.py
var supervisor string

// Ports of a Ray node.
const (
	gcsPort       = 6379
	clientPort    = 10001
	dashboardPort = 8265
	metricsPort   = 8080
	agentPort     = 52365
)

// goneAfter is how long a node waits for a head that it has lost, in seconds (Ray's own default is 60). Without Redis a head that
// comes back knows none of its nodes: they have to start again, the sooner the better. With Redis KubeRay sets it.
const goneAfter = "20"

// serving gives the pod of rank 0: Ray and, when all its nodes are there, the engine.
func (g *gang) serving() (*corev1.PodTemplateSpec, error) {
	pod, err := g.engine.Member(kube.Member{Replica: g.replica})
	if err != nil || g.simulated {
		return &pod, err
	}
	c, nodes := engineOf(&pod), g.hosts
	if g.kubeRay.HeadWithoutGPUs {
		nodes++
	}
	argv := append(append([]string(nil), c.Command...), c.Args...)
	supervise(c, append([]string{
		"--nodes", strconv.Itoa(nodes), "--gpus", strconv.Itoa(g.hosts * gpus(g.engine, &pod)),
		"--timeout", strconv.Itoa(int(g.timeout().Seconds())), "--",
	}, argv...)...)
	return &pod, nil
}

// worker gives the pod of another host of the engine: a Ray node that vLLM puts its workers on.
func (g *gang) worker() (*corev1.PodTemplateSpec, error) {
	pod, err := g.engine.Member(kube.Member{Rank: 1, Replica: g.replica})
	if err != nil || g.simulated {
		return &pod, err
	}
	c := engineOf(&pod)
	supervise(c)
	g.nodeProbes(c)
	g.onWorker(&pod)
	return &pod, nil
}

// onWorker adds what a Ray node needs that is not the head.
func (g *gang) onWorker(pod *corev1.PodTemplateSpec) {
	if g.kubeRay.RedisAddress == "" {
		setDefault(engineOf(pod), map[string]string{"RAY_gcs_rpc_server_reconnect_timeout_s": goneAfter})
	}
}

// bareHead gives the pod of a head that has no part of the engine, for any node of the Kubernetes cluster; data is what it has under /data.
func (g *gang) bareHead(data mobula.KubernetesData) (*corev1.PodTemplateSpec, error) {
	e := g.engine
	e.Model.Resources.Hosts, e.Model.Resources.GPUs = 1, new(0)
	e.Model.Resources.GPUMemory, e.Model.Resources.HostLabels = 0, nil
	k := &e.Model.Kubernetes
	k.RuntimeClass, k.CPU, k.Memory, k.CPULimit, k.MemoryLimit, k.Data = "", "", "", "", "", data
	pod, err := e.Member(kube.Member{Rank: 1, Replica: g.replica})
	if err != nil {
		return nil, err
	}
	c := engineOf(&pod)
	supervise(c, "--head", "--nodes", strconv.Itoa(g.hosts+1))
	g.nodeProbes(c)
	return &pod, nil
}

// supervise has the container run the supervisor.
func supervise(c *corev1.Container, args ...string) {
	c.Command, c.Args = []string{"python3", "-u", "-c", supervisor}, args
	setDefault(c, map[string]string{"RAY_USAGE_STATS_ENABLED": "0"}) // nothing leaves the cluster unasked
}

// nodeProbes of a pod that has no engine ask Ray's agent about its raylet. KubeRay would add its own, by a shell and wget for older Rays.
func (g *gang) nodeProbes(c *corev1.Container) {
	probe := func(period, timeout, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: "/api/local_raylet_healthz", Port: intstr.FromInt32(agentPort), Scheme: corev1.URISchemeHTTP,
			}},
			PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures, SuccessThreshold: 1,
		}
	}
	c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = probe(2, 5, 150), probe(5, 5, 3), probe(10, 10, 12)
}

// openPorts names those of a head for its Service, which has no other ports than the container's.
func openPorts(pod *corev1.PodTemplateSpec) {
	c := engineOf(pod)
	for _, p := range []corev1.ContainerPort{
		{Name: "gcs-server", ContainerPort: gcsPort},
		{Name: "client", ContainerPort: clientPort},
		{Name: "dashboard", ContainerPort: dashboardPort},
		{Name: "metrics", ContainerPort: metricsPort},
	} {
		p.Protocol = corev1.ProtocolTCP
		c.Ports = append(c.Ports, p)
	}
}

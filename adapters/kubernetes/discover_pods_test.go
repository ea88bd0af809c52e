package kubernetes

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// stranger is a pod of others that serves on port 8000, with what change does to it.
func stranger(change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "vllm-0", Labels: map[string]string{"app": "vllm"}},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{
			{Name: "proxy"}, {Name: "vllm", Ports: []corev1.ContainerPort{{Name: "api", ContainerPort: 8000}}},
		}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.7",
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, c := range change {
		c(pod)
	}
	return pod
}

func TestPodsOfOthers(t *testing.T) {
	notReady := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	statuses := func(all ...corev1.ContainerStatus) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.ContainerStatuses = all }
	}
	ports := func(all ...corev1.ContainerPort) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[1].Ports = all }
	}
	label := func(k, v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[k] = v } }
	now := metav1.Now()
	for name, tc := range map[string]struct {
		pod     *corev1.Pod
		port    string
		url     string // empty for no endpoint
		drains  bool
		leftOut string
	}{
		"ready":                             {pod: stranger(), url: "http://10.0.0.7:8000"},
		"never ready":                       {pod: stranger(notReady)},
		"started, readiness lost":           {pod: stranger(notReady, statuses(corev1.ContainerStatus{Name: "vllm", Started: new(true)})), url: "http://10.0.0.7:8000"},
		"another container has started":     {pod: stranger(notReady, statuses(corev1.ContainerStatus{Name: "proxy", Started: new(true)}))},
		"crashed":                           {pod: stranger(notReady, statuses(corev1.ContainerStatus{Name: "vllm", Started: new(false)}))},
		"no address yet":                    {pod: stranger(func(p *corev1.Pod) { p.Status.PodIP = "" })},
		"evicted":                           {pod: stranger(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })},
		"being deleted":                     {pod: stranger(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), url: "http://10.0.0.7:8000", drains: true},
		"drained by another fleet":          {pod: stranger(func(p *corev1.Pod) { p.Annotations = map[string]string{kube.AnnotationDrain: "x"} }), url: "http://10.0.0.7:8000", drains: true},
		"IPv6":                              {pod: stranger(func(p *corev1.Pod) { p.Status.PodIP = "fd00::7" }), url: "http://[fd00::7]:8000"},
		"port by name":                      {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 9000}, corev1.ContainerPort{Name: "openai", ContainerPort: 9001})), port: "openai", url: "http://10.0.0.7:9001"},
		"port by number":                    {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 9000}, corev1.ContainerPort{ContainerPort: 9001})), port: "9001", url: "http://10.0.0.7:9001"},
		"port that no container names":      {pod: stranger(ports()), port: "9002", url: "http://10.0.0.7:9002"},
		"the only port":                     {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 9000})), url: "http://10.0.0.7:9000"},
		"8000 among several":                {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 9000}, corev1.ContainerPort{ContainerPort: 8000})), url: "http://10.0.0.7:8000"},
		"UDP is no port":                    {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 53, Protocol: corev1.ProtocolUDP}, corev1.ContainerPort{ContainerPort: 9000})), url: "http://10.0.0.7:9000"},
		"several, none of them 8000":        {pod: stranger(ports(corev1.ContainerPort{ContainerPort: 1}, corev1.ContainerPort{ContainerPort: 2})), leftOut: "has several ports and none is 8000: left out; set port"},
		"no port":                           {pod: stranger(ports()), leftOut: "names no port: left out"},
		"no such name":                      {pod: stranger(), port: "http", leftOut: "has no port named http: left out"},
		"worker of a Ray cluster":           {pod: stranger(label("ray.io/node-type", "worker")), leftOut: "is a worker of a Ray cluster"},
		"head of a Ray cluster":             {pod: stranger(label("ray.io/node-type", "head")), url: "http://10.0.0.7:8000"},
		"the fleet's own":                   {pod: stranger(label(kube.LabelFleet, "mine"), label(kube.LabelServes, "true"), func(p *corev1.Pod) { p.Namespace = "home" })},
		"another fleet's":                   {pod: stranger(label(kube.LabelFleet, "theirs"), label(kube.LabelServes, "true")), url: "http://10.0.0.7:8000"},
		"another fleet's that serves not":   {pod: stranger(label(kube.LabelFleet, "theirs"))},
		"a fleet of our name elsewhere":     {pod: stranger(label(kube.LabelFleet, "mine"), label(kube.LabelServes, "true")), url: "http://10.0.0.7:8000"},
		"a port of a sidecar":               {pod: stranger(ports(), sidecar), port: "side", url: "http://10.0.0.7:7000"},
		"a port of a container before them": {pod: stranger(ports(), sidecar, func(p *corev1.Pod) { p.Spec.InitContainers[0].RestartPolicy = nil }), port: "side", leftOut: "has no port named side"},
	} {
		t.Run(name, func(t *testing.T) {
			q := query{fleet: "mine", home: "home", key: "secret", entry: mobula.KubernetesDiscover{Port: tc.port, Models: []string{"m"}, Role: mobula.RolePrefill}}
			got, kept := q.pod(tc.pod)
			require.Equal(t, tc.url != "" || tc.leftOut != "", kept)
			if !kept {
				return
			}
			require.Equal(t, tc.leftOut == "", got.leftOut == "", got.leftOut)
			require.Contains(t, got.leftOut, tc.leftOut)
			if tc.url == "" {
				return
			}
			want := mobula.Endpoint{
				ID: tc.pod.Namespace + "/vllm-0:" + tc.url[len(tc.url)-4:], URL: tc.url, Models: []string{"m"}, Role: mobula.RolePrefill, APIKey: "secret",
				Labels: map[string]string{"namespace": tc.pod.Namespace, "pod": "vllm-0", "host": "node-1"}, Draining: tc.drains,
			}
			require.Empty(t, cmp.Diff(want, got.endpoint))
		})
	}
}

// sidecar adds one with the port side, 7000.
func sidecar(p *corev1.Pod) {
	p.Spec.InitContainers = []corev1.Container{{
		Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
		Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 7000}},
	}}
}

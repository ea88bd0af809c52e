package kubernetes

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// Labels that others put on their pods.
const (
	labelRayType  = "ray.io/node-type"
	rayTypeWorker = "worker"
)

// findPods has f find pods, each one an endpoint.
func (f *finder) findPods(changed func()) {
	s := &store[*found]{read: f.query.pod, same: sameFound, changed: changed}
	f.watches = []*watched{newWatched("pods", &corev1.Pod{}, f.connection.Client.CoreV1().Pods(f.query.namespace), f.query.entry.Selector, s, changed)}
	f.each = each(s)
}

// each gives the pods that s keeps.
func each(s *store[*found]) func(yield func(string, *found) bool) {
	return func(yield func(string, *found) bool) {
		for _, i := range s.list() {
			if !yield(i.key, i.value) {
				return
			}
		}
	}
}

// pod gives what a pod is to the query, false for nothing, or nothing yet.
func (q query) pod(object any) (*found, bool) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil, false
	}
	if q.own {
		e, serves := kube.Endpoint(pod)
		return &found{endpoint: e}, serves
	}
	fleet, ours := pod.Labels[kube.LabelFleet]
	if ours && (fleet == q.fleet && pod.Namespace == q.home || pod.Labels[kube.LabelServes] != "true") {
		return nil, false // found as the fleet's own, or one of those behind the pod that serves
	}
	if pod.Labels[labelRayType] == rayTypeWorker {
		return &found{leftOut: "is a worker of a Ray cluster, requests go to its head: left out", fine: true}, true
	}
	port, container, problem := podPort(pod, q.entry.Port)
	if problem != "" {
		return &found{leftOut: problem}, true
	}
	if pod.Status.PodIP == "" || !started(pod, container) {
		return nil, false
	}
	_, drains := pod.Annotations[kube.AnnotationDrain]
	address := strconv.Itoa(int(port))
	return &found{endpoint: mobula.Endpoint{
		ID:       pod.Namespace + "/" + pod.Name + ":" + address,
		URL:      "http://" + net.JoinHostPort(pod.Status.PodIP, address),
		Models:   q.entry.Models,
		Role:     q.entry.Role,
		Labels:   map[string]string{"namespace": pod.Namespace, "pod": pod.Name, "host": pod.Spec.NodeName},
		APIKey:   q.key,
		Draining: drains || pod.DeletionTimestamp != nil,
	}}, true
}

// podPort finds the port that is wanted (a number, a name, empty for the usual one) and the container that has it, empty for none that
// says so. The problem, if not empty, says why there is no such port.
func podPort(pod *corev1.Pod, want string) (port int32, container, problem string) {
	number, err := strconv.ParseInt(want, 10, 32)
	isNumber := err == nil
	var all []int32
	for _, c := range serving(&pod.Spec) {
		for _, p := range c.Ports {
			if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
				continue
			}
			if isNumber && int64(p.ContainerPort) == number || want != "" && p.Name == want || want == "" && p.ContainerPort == kube.Port {
				return p.ContainerPort, c.Name, ""
			}
			all, container = append(all, p.ContainerPort), c.Name
		}
	}
	switch {
	case isNumber: // containers need not say what they listen on
		return int32(number), "", ""
	case want == "" && len(all) == 1:
		return all[0], container, ""
	}
	return 0, "", noPort(want, "container", all)
}

// serving are the containers that run for as long as the pod does.
func serving(spec *corev1.PodSpec) []corev1.Container {
	all := slices.Clone(spec.InitContainers)
	all = slices.DeleteFunc(all, func(c corev1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways
	})
	return append(all, spec.Containers...)
}

// noPort says what is wrong with the ports of something, and what to do.
func noPort(want, of string, all []int32) string {
	switch {
	case want != "":
		return fmt.Sprintf("has no port named %s: left out; set port to a number or name of its %s's, or have the selector leave it out", want, of)
	case len(all) == 0:
		return "names no port: left out; set port, or have the selector leave it out"
	}
	return fmt.Sprintf("has several ports and none is %d: left out; set port", kube.Port)
}

// started tells whether what serves has begun to: once it has, probes of routers say more than readiness does.
func started(pod *corev1.Pod, container string) bool {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	for _, all := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for i := range all {
			if s := &all[i]; (s.Name == container || container == "") && s.Started != nil && *s.Started && s.State.Terminated == nil {
				return true
			}
		}
	}
	return false
}

// sameFound compares what of a find can change here.
func sameFound(a, b *found) bool {
	return a.leftOut == b.leftOut && a.fine == b.fine && sameEndpoint(a.endpoint, b.endpoint)
}

// sameEndpoint compares what of an endpoint can change here.
func sameEndpoint(a, b mobula.Endpoint) bool {
	return a.ID == b.ID && a.URL == b.URL && a.Draining == b.Draining && a.Role == b.Role && a.APIKey == b.APIKey &&
		slices.Equal(a.Models, b.Models) && maps.Equal(a.Labels, b.Labels)
}

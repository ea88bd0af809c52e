package kubetest_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

func deploy(t *testing.T, c *kubetest.Cluster, d *appsv1.Deployment) {
	t.Helper()
	_, err := c.Client().AppsV1().Deployments("default").Create(within(t), d, metav1.CreateOptions{})
	require.NoError(t, err)
}

func scaleTo(t *testing.T, c *kubetest.Cluster, name string, replicas int) {
	t.Helper()
	_, err := c.Client().AppsV1().Deployments("default").Patch(within(t), name, types.MergePatchType,
		fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas), metav1.PatchOptions{})
	require.NoError(t, err)
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestPodsThatFitNowhereSayWhy(t *testing.T) {
	c := start(t, kubetest.Options{Nodes: []kubetest.Node{
		{Name: "a", GPUs: 2}, {Name: "b", GPUs: 4, Labels: map[string]string{"gpu": "h100"}},
	}})
	deploy(t, c, deployment("big", 1, "8"))
	pod := c.Pods("default", "app=big")[0]
	require.Equal(t, corev1.PodPending, pod.Status.Phase)
	require.Equal(t, "Unschedulable", condition(pod, corev1.PodScheduled).Reason)
	require.Contains(t, condition(pod, corev1.PodScheduled).Message, "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")

	picky := deployment("picky", 1, "1")
	picky.Spec.Template.Spec.NodeSelector = map[string]string{"gpu": "b200"}
	deploy(t, c, picky)
	require.Contains(t, condition(c.Pods("default", "app=picky")[0], corev1.PodScheduled).Message, "2 node(s) didn't match Pod's node affinity/selector")

	// GPUs are counted; those that are freed and those of new nodes are used.
	deploy(t, c, deployment("small", 3, "2"))
	require.Len(t, ready(c, "app=small"), 3)
	c.AddNode(kubetest.Node{Name: "c", GPUs: 8})
	require.Len(t, ready(c, "app=big"), 1)
	deploy(t, c, deployment("more", 1, "4"))
	require.Empty(t, ready(c, "app=more"))
	scaleTo(t, c, "small", 0)
	require.Len(t, ready(c, "app=more"), 1)
	claimed := deployment("claimed", 1, "")
	claimed.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	deploy(t, c, claimed)
	require.Contains(t, condition(c.Pods("default", "app=claimed")[0], corev1.PodScheduled).Message, `persistentvolumeclaim "data" not found`)
	c.Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}})
	require.Len(t, ready(c, "app=claimed"), 1)
}

func ready(c *kubetest.Cluster, selector string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range c.Pods("default", selector) {
		if condition(p, corev1.PodReady).Status == corev1.ConditionTrue {
			out = append(out, p)
		}
	}
	return out
}

func TestReplicaSetsDeleteInKubernetesOrder(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true, Nodes: []kubetest.Node{{Name: "a", GPUs: 5}}})
	deploy(t, c, deployment("a", 6, "1"))
	var placed []string
	for _, p := range c.Pods("default", "") {
		if p.Spec.NodeName != "" {
			placed = append(placed, p.Name)
		}
	}
	require.Len(t, placed, 5)
	pending, unready, cheap, restarted, last := placed[0], placed[1], placed[2], placed[3], placed[4]
	require.NoError(t, c.Start("default", unready))
	for _, name := range []string{cheap, restarted, last} {
		require.NoError(t, c.Ready("default", name))
	}
	_, err := c.Client().CoreV1().Pods("default").Patch(within(t), cheap, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"-5"}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.NoError(t, c.Crash("default", restarted, 1, "boom"))
	require.NoError(t, c.Ready("default", restarted))
	left := func() (out []string) {
		for _, p := range c.Pods("default", "") {
			out = append(out, p.Name)
		}
		return out
	}
	for _, gone := range []string{"", pending, unready, cheap, restarted} {
		scaleTo(t, c, "a", len(left())-1)
		if gone != "" {
			require.NotContains(t, left(), gone)
		}
	}
	require.Equal(t, []string{last}, left())
}

func TestPodsFare(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true})
	d := deployment("a", 1, "")
	d.Spec.Template.Spec.Containers[0].StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/health"}}}
	deploy(t, c, d)
	name := c.Pods("default", "")[0].Name
	engine := func() corev1.ContainerStatus { return c.Pod("default", name).Status.ContainerStatuses[0] }
	require.Equal(t, "ContainerCreating", engine().State.Waiting.Reason)
	require.NoError(t, c.Start("default", name))
	require.NotNil(t, engine().State.Running)
	require.False(t, *engine().Started)
	require.NotEmpty(t, c.Pod("default", name).Status.PodIP)
	require.NoError(t, c.Ready("default", name))
	require.True(t, *engine().Started)
	require.True(t, engine().Ready)
	require.NoError(t, c.Unready("default", name))
	require.True(t, *engine().Started)
	require.False(t, engine().Ready)
	require.NoError(t, c.Crash("default", name, 137, "CUDA out of memory"))
	require.Equal(t, "CrashLoopBackOff", engine().State.Waiting.Reason)
	require.Equal(t, int32(1), engine().RestartCount)
	require.Equal(t, int32(137), engine().LastTerminationState.Terminated.ExitCode)
	require.Equal(t, "CUDA out of memory", engine().LastTerminationState.Terminated.Message)
	require.NoError(t, c.Ready("default", name))
	require.True(t, engine().Ready)

	require.NoError(t, c.Evict("default", name))
	require.Equal(t, corev1.PodFailed, c.Pod("default", name).Status.Phase)
	require.Len(t, c.Pods("default", ""), 2, "another takes the place of one that failed")
	require.ErrorContains(t, c.Ready("default", "nobody"), "no such pod: default/nobody")
}

func TestImagesThatCannotBePulled(t *testing.T) {
	c := start(t, kubetest.Options{})
	c.ImagePullFails("engine:1")
	deploy(t, c, deployment("a", 1, ""))
	waiting := c.Pods("default", "")[0].Status.ContainerStatuses[0].State.Waiting
	require.Equal(t, "ImagePullBackOff", waiting.Reason)
	require.Contains(t, waiting.Message, `Back-off pulling image "engine:1"`)
	c.ImagePullWorks("engine:1")
	require.Len(t, ready(c, ""), 1)
}

func TestPodsThatAreRefused(t *testing.T) {
	c := start(t, kubetest.Options{})
	c.RefusePods("exceeded quota: gpus")
	deploy(t, c, deployment("a", 2, ""))
	require.Empty(t, c.Pods("default", ""))
	conditions, _, err := unstructured.NestedSlice(c.Objects("deployments", "default", "")[0].Object, "status", "conditions")
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(conditions), "exceeded quota: gpus")
	c.RefusePods("")
	require.Len(t, ready(c, ""), 2)
}

func TestLostNodes(t *testing.T) {
	c := start(t, kubetest.Options{Nodes: []kubetest.Node{{Name: "a", GPUs: 4}, {Name: "b", GPUs: 4}}})
	deploy(t, c, deployment("a", 8, "1"))
	require.Len(t, ready(c, ""), 8)
	c.NodeLost("a")
	require.Len(t, ready(c, ""), 4)
	scaleTo(t, c, "a", 4)
	require.Len(t, c.Pods("default", ""), 8, "nobody hears that the pods of a lost node end")
	c.NodeBack("a")
	require.Len(t, c.Pods("default", ""), 4)
	require.NoError(t, c.Client().CoreV1().Nodes().Delete(within(t), "b", metav1.DeleteOptions{}))
	require.Len(t, ready(c, ""), 4, "the pods of a node that is gone are made anew")
}

func TestDeploymentsRollOver(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true})
	deploy(t, c, deployment("a", 2, ""))
	for _, p := range c.Pods("default", "") {
		require.NoError(t, c.Ready("default", p.Name))
	}
	_, err := c.Client().AppsV1().Deployments("default").Patch(within(t), "a", types.StrategicMergePatchType,
		[]byte(`{"spec":{"template":{"spec":{"containers":[{"name":"engine","image":"engine:2"}]}}}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.Len(t, c.Objects("replicasets", "default", ""), 2)
	require.Len(t, c.Pods("default", ""), 4)
	for _, p := range c.Pods("default", "") {
		if p.Spec.Containers[0].Image == "engine:2" {
			require.NoError(t, c.Ready("default", p.Name))
		}
	}
	require.Len(t, c.Pods("default", ""), 2)
}

func TestStatefulSets(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true})
	set := map[string]string{"app": "s"}
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(2)), ServiceName: "s", Selector: &metav1.LabelSelector{MatchLabels: set}, Ordinals: &appsv1.StatefulSetOrdinals{Start: 1},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: set}, Spec: podSpec("")},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
		},
	}
	sets := c.Client().AppsV1().StatefulSets("default")
	_, err := sets.Create(within(t), s, metav1.CreateOptions{})
	require.NoError(t, err)
	names := func() (out []string) {
		for _, p := range c.Pods("default", "app=s") {
			out = append(out, p.Name)
		}
		return out
	}
	require.Equal(t, []string{"s-1"}, names(), "the next one waits for the one before")
	require.NoError(t, c.Ready("default", "s-1"))
	require.Equal(t, []string{"s-1", "s-2"}, names())
	require.NoError(t, c.Ready("default", "s-2"))
	require.Equal(t, "2", c.Pod("default", "s-2").Labels["apps.kubernetes.io/pod-index"])
	require.Equal(t, "s", c.Pod("default", "s-2").Spec.Subdomain)
	got, err := sets.Get(within(t), "s", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, int32(2), got.Status.ReadyReplicas)
	require.Len(t, c.Objects("persistentvolumeclaims", "default", ""), 2)

	uid := c.Pod("default", "s-1").UID
	require.NoError(t, c.Client().CoreV1().Pods("default").Delete(within(t), "s-1", metav1.DeleteOptions{}))
	require.NotEqual(t, uid, c.Pod("default", "s-1").UID)
	require.NoError(t, c.Ready("default", "s-1"))
	_, err = sets.Patch(within(t), "s", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"s-1"}, names())
	require.NoError(t, sets.Delete(within(t), "s", metav1.DeleteOptions{}))
	require.Empty(t, names())
}

func TestServicesHaveEndpoints(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true})
	_, err := c.Client().CoreV1().Services("default").Create(within(t), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "a"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	deploy(t, c, deployment("a", 2, ""))
	deploy(t, c, deployment("b", 2, ""))
	for i, p := range c.Pods("default", "") {
		if i%2 == 0 {
			require.NoError(t, c.Ready("default", p.Name))
		} else {
			require.NoError(t, c.Start("default", p.Name))
		}
	}
	slices, err := c.Client().DiscoveryV1().EndpointSlices("default").List(within(t), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=a"})
	require.NoError(t, err)
	require.Len(t, slices.Items, 1)
	require.Len(t, slices.Items[0].Endpoints, 2)
	require.Equal(t, int32(80), *slices.Items[0].Ports[0].Port)
	require.NotEqual(t, *slices.Items[0].Endpoints[0].Conditions.Ready, *slices.Items[0].Endpoints[1].Conditions.Ready)
	require.NoError(t, c.Client().CoreV1().Services("default").Delete(within(t), "a", metav1.DeleteOptions{}))
	require.Empty(t, c.Objects("endpointslices", "default", ""))
}

func TestRayClusters(t *testing.T) {
	c := start(t, kubetest.Options{Nodes: []kubetest.Node{{Name: "a", GPUs: 8}, {Name: "b", GPUs: 8}}})
	group := func(gpus int64) map[string]any {
		return map[string]any{"rayStartParams": map[string]any{}, "template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{
			"name": "engine", "image": "engine:1", "resources": map[string]any{"limits": map[string]any{"nvidia.com/gpu": gpus}},
		}}}}}
	}
	worker := group(8)
	worker["groupName"], worker["replicas"] = "gpus", int64(1)
	clusters := c.Dynamic().Resource(schema.GroupVersionResource{Group: "ray.io", Version: "v1", Resource: "rayclusters"}).Namespace("default")
	rc, err := clusters.Create(within(t), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": map[string]any{"name": "r"},
		"spec": map[string]any{"headGroupSpec": group(8), "workerGroupSpecs": []any{worker}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	state := func() (string, string) {
		rc, err := clusters.Get(within(t), "r", metav1.GetOptions{})
		require.NoError(t, err)
		s, _, _ := unstructured.NestedString(rc.Object, "status", "state")
		head, _, _ := unstructured.NestedString(rc.Object, "status", "head", "podName")
		return s, head
	}
	s, head := state()
	require.Equal(t, "ready", s)
	require.Equal(t, "r-head", head)
	require.Len(t, c.Pods("default", "ray.io/cluster=r,ray.io/node-type=worker"), 1)
	require.Len(t, c.Objects("services", "default", "ray.io/cluster=r"), 1)

	require.NoError(t, c.Client().CoreV1().Pods("default").Delete(within(t), "r-head", metav1.DeleteOptions{}))
	require.NotNil(t, c.Pod("default", "r-head"))
	_, err = clusters.Patch(within(t), rc.GetName(), types.MergePatchType, []byte(`{"spec":{"suspend":true}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	s, _ = state()
	require.Equal(t, "suspended", s)
	require.Empty(t, c.Pods("default", ""))
	_, err = clusters.Patch(within(t), rc.GetName(), types.MergePatchType, []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{})
	require.NoError(t, err)
	s, _ = state()
	require.Equal(t, "ready", s)
	require.NoError(t, clusters.Delete(within(t), "r", metav1.DeleteOptions{}))
	require.Empty(t, c.Pods("default", ""))
	require.Empty(t, c.Objects("services", "default", ""))
}

func TestPodsCanBeServers(t *testing.T) {
	var mu sync.Mutex
	servers := map[string]*http.Server{}
	var running sync.WaitGroup
	c := start(t, kubetest.Options{
		PodAddress: func(pod *corev1.Pod) (string, int) {
			var config net.ListenConfig
			l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
			if err != nil {
				panic(err)
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, pod.Name) })} //nolint:gosec // a test
			mu.Lock()
			defer mu.Unlock()
			servers[pod.Name] = s
			running.Go(func() { _ = s.Serve(l) })
			return "127.0.0.1", l.Addr().(*net.TCPAddr).Port
		},
		PodStopped: func(pod *corev1.Pod) {
			mu.Lock()
			defer mu.Unlock()
			_ = servers[pod.Name].Close()
		},
	})
	deploy(t, c, deployment("a", 2, ""))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, p := range c.Pods("default", "") {
		url := fmt.Sprintf("http://%s:%d", p.Status.PodIP, p.Spec.Containers[0].Ports[0].ContainerPort)
		answer, err := client.Get(url) //nolint:noctx // a test
		require.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, p.Name, string(body))
	}
	scaleTo(t, c, "a", 0)
	running.Wait()
}

func TestLogs(t *testing.T) {
	c := start(t, kubetest.Options{Manual: true})
	deploy(t, c, deployment("a", 1, ""))
	name := c.Pods("default", "")[0].Name
	read := func(o *corev1.PodLogOptions) (string, error) {
		stream, err := c.Client().CoreV1().Pods("default").GetLogs(name, o).Stream(within(t))
		if err != nil {
			return "", err
		}
		raw, err := io.ReadAll(stream)
		require.NoError(t, stream.Close())
		return string(raw), err
	}
	_, err := read(&corev1.PodLogOptions{})
	require.ErrorContains(t, err, "is waiting to start: ContainerCreating")
	require.NoError(t, c.Ready("default", name))
	c.Log("default", name, "one\ntwo\nthree\n")
	got, err := read(&corev1.PodLogOptions{TailLines: new(int64(2))})
	require.NoError(t, err)
	require.Equal(t, "two\nthree\n", got)
	_, err = read(&corev1.PodLogOptions{Previous: true})
	require.ErrorContains(t, err, "previous terminated container")
	_, err = read(&corev1.PodLogOptions{Container: "nope"})
	require.ErrorContains(t, err, "container nope is not valid for pod")

	stream, err := c.Client().CoreV1().Pods("default").GetLogs(name, &corev1.PodLogOptions{Follow: true, TailLines: new(int64(1))}).Stream(within(t))
	require.NoError(t, err)
	c.Log("default", name, "four\n")
	more := make([]byte, len("three\nfour\n"))
	_, err = io.ReadFull(stream, more)
	require.NoError(t, err)
	require.Equal(t, "three\nfour\n", string(more))
	c.DropLogs()
	_, err = stream.Read(more)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, stream.Close())
	c.CutLogs(5)
	_, err = read(&corev1.PodLogOptions{})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)

	follow, err := c.Client().CoreV1().Pods("default").GetLogs(name, &corev1.PodLogOptions{Follow: true, TailLines: new(int64(0))}).Stream(within(t))
	require.NoError(t, err)
	c.Log("default", name, "fi")
	c.Log("default", name, "ve\nsix")
	require.NoError(t, c.Crash("default", name, 1, ""))
	rest, err := io.ReadAll(follow)
	require.NoError(t, err)
	require.Equal(t, "five\nsix", string(rest), "whole lines, and what is left at the end")
	require.NoError(t, follow.Close())
	for _, previous := range []bool{true, false} { // while it waits, the run that ended is the last one
		got, err = read(&corev1.PodLogOptions{Previous: previous})
		require.NoError(t, err)
		require.Equal(t, "one\ntwo\nthree\nfour\nfive\nsix", got)
	}
	require.NoError(t, c.Ready("default", name))
	got, err = read(&corev1.PodLogOptions{})
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestTimesInLogs(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 5, time.UTC)
	c := start(t, kubetest.Options{Now: func() time.Time { return now }})
	deploy(t, c, deployment("a", 1, ""))
	name := c.Pods("default", "")[0].Name
	for _, line := range []string{"one", "two", "three"} {
		c.Log("default", name, line+"\n")
		now = now.Add(1500 * time.Millisecond)
	}
	for _, test := range []struct {
		name string
		o    corev1.PodLogOptions
		want string
	}{
		{"all with times", corev1.PodLogOptions{Timestamps: true}, "2026-01-01T00:00:00.000000005Z one\n2026-01-01T00:00:01.500000005Z two\n2026-01-01T00:00:03.000000005Z three\n"},
		{"since a time", corev1.PodLogOptions{SinceTime: new(metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 1, 999, time.UTC)))}, "two\nthree\n"},
		{"since the future", corev1.PodLogOptions{SinceTime: new(metav1.NewTime(now))}, ""},
		{"the last line since a time", corev1.PodLogOptions{SinceTime: new(metav1.NewTime(time.Unix(0, 0))), TailLines: new(int64(1))}, "three\n"},
		{"so many bytes", corev1.PodLogOptions{LimitBytes: new(int64(5))}, "one\nt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream, err := c.Client().CoreV1().Pods("default").GetLogs(name, &test.o).Stream(within(t))
			require.NoError(t, err)
			raw, err := io.ReadAll(stream)
			require.NoError(t, err)
			require.NoError(t, stream.Close())
			require.Equal(t, test.want, string(raw))
		})
	}
}

func TestEvictionAndPause(t *testing.T) {
	c := start(t, kubetest.Options{})
	deploy(t, c, deployment("a", 1, ""))
	name := c.Pods("default", "")[0].Name
	require.NoError(t, c.Client().PolicyV1().Evictions("default").Evict(within(t), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}))
	require.Nil(t, c.Pod("default", name))
	require.Len(t, ready(c, ""), 1)
	c.Pause(true)
	deploy(t, c, deployment("b", 1, ""))
	require.Empty(t, c.Pods("default", "app=b"))
	c.Pause(false)
	require.Len(t, ready(c, "app=b"), 1)
}

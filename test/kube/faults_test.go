//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// node is the one that has a kubelet.
	node = "node0"
	// serving and routing are the labels of engines' and of routers' pods.
	serving = "mobula.dev/serves=true"
	routing = "app.kubernetes.io/component=router"
)

// pods gives the pods with these labels that nobody has deleted.
func (r *release) pods(ctx context.Context, client *kubernetes.Clientset, labels string) ([]corev1.Pod, error) {
	all, err := client.CoreV1().Pods(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: labels})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), nil
}

func named(pods []corev1.Pod) []string {
	var names []string
	for i := range pods {
		names = append(names, pods[i].Name)
	}
	slices.Sort(names)
	return names
}

// endpoints are what a router may choose from, by its metrics.
func endpoints(ctx context.Context, url string) ([]string, error) {
	page, err := Get(ctx, url+"/metrics")
	var names []string
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, `mobula_router_endpoint_up{endpoint="`); ok {
			name, _, _ := strings.Cut(rest, `"`)
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// noZombies waits until all routers know the engines that are there, and no others.
func (r *release) noZombies(t *testing.T, client *kubernetes.Clientset) {
	t.Helper()
	r.Await(t, "routers know the engines that are there", func(ctx context.Context) error {
		pods, err := r.pods(ctx, client, serving)
		if err != nil {
			return err
		}
		routers, err := r.pods(ctx, client, routing)
		if err != nil {
			return err
		}
		for i := range routers {
			known, err := endpoints(ctx, "http://"+routers[i].Status.PodIP+":8000")
			if err != nil {
				return err
			}
			if want := named(pods); !slices.Equal(want, known) {
				return fmt.Errorf("%s knows %s, and there are %s", routers[i].Name, known, want)
			}
		}
		return nil
	})
}

// long is an answer of about five seconds, on a connection of its own.
func long() ask { return ask{model: model, stream: true, tokens: 1000, alone: true} }

// testDrain drains the node as people do, of engines and then of routers, while they stream.
func (c *Cluster) testDrain(t *testing.T) {
	r := c.install(t, "--set", "router.replicas=2")
	r.ready(t, 2)
	client := c.client(t)
	t.Run("engines", func(t *testing.T) {
		l, streams := r.load(t, true), r.loadOf(t, long(), long(), long(), long())
		r.drain(t, client, serving, func(pods []corev1.Pod) error {
			for i := range pods {
				if _, running := streams.of(pods[i].Name); running == 0 {
					return fmt.Errorf("%s has no stream", pods[i].Name)
				}
			}
			return nil
		})
		r.ready(t, 2)
		r.noZombies(t, client)
		streams.more(8)
		streams.end()
		l.end()
	})
	t.Run("routers", func(t *testing.T) {
		l, streams := r.load(t, true), r.loadOf(t, long(), long(), long(), long())
		r.drain(t, client, routing, func(pods []corev1.Pod) error {
			for i := range pods {
				if page, err := Get(t.Context(), "http://"+pods[i].Status.PodIP+":8000/metrics"); err != nil || sum(page, "mobula_router_inflight_requests") == 0 {
					return fmt.Errorf("%s has no stream: %w", pods[i].Name, err)
				}
			}
			return nil
		})
		r.kubectl(t, "rollout", "status", "deployment/mobula-router", "--timeout", deadline.String())
		r.noZombies(t, client)
		streams.more(8)
		streams.end()
		l.end()
	})
}

// drain runs kubectl drain for the two pods with these labels, once they are busy. The node gets free for others again when
// one pod has no place and the other must not go yet.
func (r *release) drain(t *testing.T, client *kubernetes.Clientset, labels string, busy func([]corev1.Pod) error) {
	t.Helper()
	was, err := r.pods(t.Context(), client, labels)
	require.NoError(t, err)
	require.Len(t, was, 2)
	for i := range was { // kubectl drain looks at all namespaces
		r.kubectl(t, "label", "pod", was[i].Name, "drained="+r.namespace)
	}
	r.Await(t, "all are busy", func(context.Context) error { return busy(was) })
	done := make(chan error, 1)
	go func() {
		_, err := r.TryKubectl(t.Context(), "drain", node, "--pod-selector", "drained="+r.namespace, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout", deadline.String())
		done <- err
	}()
	drained := sync.OnceValue(func() error { return <-done })
	t.Cleanup(func() {
		_, err := r.TryKubectl(context.WithoutCancel(t.Context()), "uncordon", node)
		require.NoError(t, err)
		_ = drained() // it ends with the test's context
	})

	stays := r.displaced(t, client, labels, named(was))
	err = client.PolicyV1().Evictions(r.namespace).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: stays, Namespace: r.namespace}})
	require.True(t, apierrors.IsTooManyRequests(err), "the PodDisruptionBudget holds the other one: %v", err)
	r.Kubectl(t, "uncordon", node)
	require.NoError(t, drained())
	now, err := r.pods(t.Context(), client, labels)
	require.NoError(t, err)
	for i := range now {
		require.NotContains(t, named(was), now[i].Name)
	}
}

// displaced waits until one of two pods has gone and the one in its place finds none, and gives the name of the other.
func (r *release) displaced(t *testing.T, client *kubernetes.Clientset, labels string, was []string) (stays string) {
	t.Helper()
	r.Await(t, "one has gone, and another waits for a place", func(ctx context.Context) error {
		now, err := r.pods(ctx, client, labels)
		if err != nil {
			return err
		}
		waits := 0
		for i := range now {
			switch {
			case slices.Contains(was, now[i].Name):
				stays = now[i].Name
			case now[i].Spec.NodeName == "":
				waits++
			}
		}
		if waits != 1 || len(now) != 2 {
			return fmt.Errorf("there are %s, %d of them without a node", named(now), waits)
		}
		return nil
	})
	return stays
}

// testNodeLost takes a node away with all that runs there. The nodes are kwok's, and their engines never answer.
func (c *Cluster) testNodeLost(t *testing.T) {
	c.FakeNodes(t, 2, 0)
	r := c.install(t, "--set-json", `platform.kubernetes.pods.pod.spec={"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]}`)
	client := c.client(t)
	r.kubectl(t, "scale", "model/"+model, "--replicas", "4")
	r.ready(t, 4)
	r.noZombies(t, client)
	was, err := r.pods(t.Context(), client, serving)
	require.NoError(t, err)
	lost := func(p corev1.Pod) bool { return p.Spec.NodeName == "fake-0" }
	require.True(t, slices.ContainsFunc(was, lost))
	r.Kubectl(t, "delete", "node", "fake-0")
	r.Await(t, "all are on the other node", func(ctx context.Context) error {
		now, err := r.pods(ctx, client, serving)
		if err == nil && (len(now) != 4 || slices.ContainsFunc(now, func(p corev1.Pod) bool { return p.Spec.NodeName != "fake-1" })) {
			err = fmt.Errorf("there are %s", named(now))
		}
		return err
	})
	r.ready(t, 4)
	r.noZombies(t, client)
	now, err := r.pods(t.Context(), client, serving)
	require.NoError(t, err)
	for i := range was {
		require.Equal(t, !lost(was[i]), slices.Contains(named(now), was[i].Name), "only those of that node are replaced: %s", was[i].Name)
	}
}

// testAPIServer has the API server be slow, silent, killed and back, while requests are answered and engines die.
func (c *Cluster) testAPIServer(t *testing.T) {
	r := c.install(t)
	r.ready(t, 2)
	client := c.client(t)
	was, err := r.pods(t.Context(), client, serving)
	require.NoError(t, err)
	crashes, deleted := was[0], was[1]
	l := r.load(t, false)
	l.more(20)
	back := func() {
		_, _ = r.run(context.WithoutCancel(t.Context()), "", script(), "resume", "apiserver")
		_, _ = r.run(context.WithoutCancel(t.Context()), "", script(), "start", "apiserver")
	}
	t.Cleanup(back)
	audit := c.audit(t)

	for range 10 { // slow
		c.PausePart(t, "apiserver")
		time.Sleep(time.Second)
		c.ResumePart(t, "apiserver")
		time.Sleep(200 * time.Millisecond)
	}
	l.more(20)
	c.PausePart(t, "apiserver") // silent
	begin := time.Now()
	_, container, _ := strings.Cut(crashes.Status.ContainerStatuses[0].ContainerID, "://")
	c.Enter(t, "ctr", "--address", filepath.Join(state, "containerd.sock"), "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", container)
	before, _ := l.of(crashes.Name)
	r.Await(t, "the engine that died is asked again", func(context.Context) error {
		if now, _ := l.of(crashes.Name); now <= before+5 {
			return fmt.Errorf("%d answers then, %d now", before, now)
		}
		return nil
	})
	for time.Since(begin) < time.Minute {
		l.more(20)
	}
	c.KillPart(t, "apiserver")
	l.more(20)
	c.StartPart(t, "apiserver")
	c.Await(t, "the API server answers again", func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	require.NoError(t, client.CoreV1().Pods(r.namespace).Delete(t.Context(), deleted.Name, metav1.DeleteOptions{}))

	r.Await(t, "another engine in its place answers", func(ctx context.Context) error {
		now, err := r.pods(ctx, client, serving)
		for i := range now {
			if begun, _ := l.of(now[i].Name); begun == 0 {
				err = fmt.Errorf("%s has answered nothing", now[i].Name)
			}
		}
		if err == nil && (len(now) != 2 || slices.Contains(named(now), deleted.Name)) {
			err = fmt.Errorf("there are %s", named(now))
		}
		return err
	})
	r.noZombies(t, client)
	before, _ = l.of(deleted.Name)
	r.kubectl(t, "scale", "model/"+model, "--replicas", "3") // which takes a control plane that leads
	r.ready(t, 3)
	r.noZombies(t, client)
	l.more(20)
	after, _ := l.of(deleted.Name)
	require.Equal(t, before, after, "requests for an engine that has gone")
	require.Regexp(t, `(?m)^mobula-sim +mobula-sim +3/3 +Complete`, r.kubectl(t, "get", "models"))
	l.end()
	t.Logf("restarts: %s", r.kubectl(t, "get", "pods", "--output", `jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].restartCount} {end}`))
	asked := audit.since(t, r.namespace)
	t.Logf("asked of the API server: %v", asked)
	for what, n := range asked {
		if strings.Contains(what, " list ") {
			require.LessOrEqual(t, n, 5, "a few look at it all: %s", what)
		}
	}
	require.Equal(t, "0", r.kubectl(t, "get", "pods", "--selector", routing, "--output", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"))
}

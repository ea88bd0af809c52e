package kubernetes

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// patience is how long a state may take to come. It is no claim on speed.
const patience = 60 * time.Second

func startCluster(tb testing.TB, o kubetest.Options) *kubetest.Cluster {
	tb.Helper()
	c := kubetest.New(o)
	tb.Cleanup(c.Close)
	return c
}

// fresh is a pod as somebody creates it: the cluster says the rest.
func fresh(pod *corev1.Pod) *corev1.Pod {
	pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels},
		Spec:       corev1.PodSpec{Containers: pod.Spec.Containers},
	}
	for i := range pod.Spec.Containers {
		pod.Spec.Containers[i].Image = "vllm"
	}
	return pod
}

// create has somebody create pods.
func create(tb testing.TB, c *kubetest.Cluster, pods ...*corev1.Pod) {
	tb.Helper()
	for _, pod := range pods {
		_, err := c.Client().CoreV1().Pods(pod.Namespace).Create(tb.Context(), fresh(pod), metav1.CreateOptions{})
		require.NoError(tb, err)
	}
}

func remove(tb testing.TB, c *kubetest.Cluster, namespace, name string) {
	tb.Helper()
	require.NoError(tb, c.Client().CoreV1().Pods(namespace).Delete(tb.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
}

func TestConformance(t *testing.T) {
	conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
		tb.Helper()
		c := startCluster(tb, kubetest.Options{})
		create(tb, c, own("a"), own("b"), stranger())
		want := func() []mobula.Endpoint {
			var all []mobula.Endpoint
			for _, pod := range c.Pods("llm", "") {
				if e, serves := kube.Endpoint(pod); serves {
					all = append(all, e)
				}
			}
			return all
		}
		d, err := NewDiscovery("chat", platform(), DiscoveryOptions{Client: c.Client()})
		require.NoError(tb, err)
		n := 0
		return conformance.Subject{Discoverer: d, Want: want(), Change: func(tb testing.TB) []mobula.Endpoint {
			tb.Helper()
			if n++; n%3 == 0 {
				remove(tb, c, "llm", fmt.Sprintf("p%d", n-1))
			} else {
				create(tb, c, own(fmt.Sprintf("p%d", n)))
			}
			return want()
		}}
	})
}

// follower keeps the last state of a Run.
type follower struct {
	t  *testing.T
	up chan []mobula.Endpoint
}

// follow begins a Run of a Discovery that finds its cluster by a kubeconfig file.
func follow(t *testing.T, c *kubetest.Cluster, p mobula.Platform) (*Discovery, *follower) {
	t.Helper()
	outside(t)
	file := t.TempDir() + "/kubeconfig"
	require.NoError(t, os.WriteFile(file, c.Kubeconfig("llm"), 0o600))
	p.Kubernetes.Kubeconfig, p.Kubernetes.Namespace = file, ""
	d, err := NewDiscovery("chat", p, DiscoveryOptions{Version: "test"})
	require.NoError(t, err)
	f := &follower{t: t, up: make(chan []mobula.Endpoint)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx, f.up) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	return d, f
}

// until takes states until want comes; each of those before has all of always.
func (f *follower) until(always []string, want ...string) {
	f.t.Helper()
	var ids []string
	for deadline := time.After(patience); ; {
		select {
		case state := <-f.up:
			ids = ids[:0]
			for _, e := range state {
				if e.Draining {
					e.ID += " drains"
				}
				ids = append(ids, e.ID)
			}
			for _, id := range always {
				require.Contains(f.t, ids, id)
			}
			if slices.Equal(ids, want) {
				return
			}
		case <-deadline:
			require.FailNow(f.t, "state did not come", "want %v, the last one was %v", want, ids)
		}
	}
}

func TestPodsOfAClusterComeAndGo(t *testing.T) {
	c := startCluster(t, kubetest.Options{Manual: true, Lingers: true})
	create(t, c, own("a"), stranger())
	_, f := follow(t, c, platform(others("team")))
	f.until(nil)
	require.NoError(t, c.Start("llm", "a"))
	require.NoError(t, c.Ready("llm", "a"))
	f.until(nil, "a")
	require.NoError(t, c.Start("team", "vllm-0"))
	require.NoError(t, c.Ready("team", "vllm-0"))
	f.until([]string{"a"}, "a", "team/vllm-0:8000")
	require.NoError(t, c.Client().CoreV1().Pods("llm").Delete(t.Context(), "a", metav1.DeleteOptions{}))
	f.until(nil, "a drains", "team/vllm-0:8000")
	require.NoError(t, c.Finish("llm", "a"))
	f.until(nil, "team/vllm-0:8000")
	require.NoError(t, c.Evict("team", "vllm-0"))
	f.until(nil)
}

func TestServicesOfACluster(t *testing.T) {
	c := startCluster(t, kubetest.Options{Manual: true})
	s := service()
	s.Spec.Selector = map[string]string{"app": "vllm"}
	_, err := c.Client().CoreV1().Services("team").Create(t.Context(), s, metav1.CreateOptions{})
	require.NoError(t, err)
	create(t, c, stranger())
	_, err = c.Client().DiscoveryV1().EndpointSlices("team").Patch(t.Context(), "chat-slice", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"app":"vllm"}}}`), metav1.PatchOptions{}) // as the cluster's controller copies them
	require.NoError(t, err)
	entry := others("team")
	entry.By = "services"
	_, f := follow(t, c, platform(entry))
	f.until(nil)
	require.NoError(t, c.Start("team", "vllm-0"))
	require.NoError(t, c.Ready("team", "vllm-0"))
	f.until(nil, "chat.team:80")
	remove(t, c, "team", "vllm-0")
	f.until(nil)
}

// Whatever goes wrong between a router and the API server, what serves stays and what went is gone.
func TestTroubleWithTheAPIServer(t *testing.T) {
	for name, tc := range map[string]struct {
		begin, end func(c *kubetest.Cluster)
	}{
		"down": {func(c *kubetest.Cluster) { c.Down(true) }, func(c *kubetest.Cluster) { c.Down(false) }},
		"down, and back without its history": {
			func(c *kubetest.Cluster) { c.Down(true) },
			func(c *kubetest.Cluster) { c.Compact(); c.Down(false) },
		},
		"watches dropped and refused": {
			func(c *kubetest.Cluster) { c.Deny("watch", "pods"); c.Deny("list", "pods"); c.DropWatches() },
			func(c *kubetest.Cluster) { c.Allow("watch", "pods"); c.Allow("list", "pods") },
		},
		"410 Gone":        {func(c *kubetest.Cluster) { c.DropWatches(); c.Compact() }, func(c *kubetest.Cluster) { c.Compact(); c.DropWatches() }},
		"errors for long": {func(c *kubetest.Cluster) { c.Fail("*", "pods", 500, 3); c.DropWatches() }, func(*kubetest.Cluster) {}},
		"slow":            {func(c *kubetest.Cluster) { c.Slow(time.Second / 2); c.DropWatches() }, func(c *kubetest.Cluster) { c.Slow(0) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := kubetest.New(kubetest.Options{})
			t.Cleanup(c.Close)
			create(t, c, own("a"), own("b"), own("c"))
			d, err := NewDiscovery("chat", platform(), DiscoveryOptions{Client: c.Client()})
			require.NoError(t, err)
			f := &follower{t: t, up: make(chan []mobula.Endpoint)}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- d.Run(ctx, f.up) }()
			t.Cleanup(func() { cancel(); <-done })
			f.until(nil, "a", "b", "c")

			tc.begin(c)
			require.NoError(t, c.Evict("llm", "b")) // nobody here may see it
			tc.end(c)
			f.until([]string{"a", "c"}, "a", "c")
			if name != "slow" {
				require.Eventually(t, func() bool { return len(d.Problems()) == 0 }, patience, 10*time.Millisecond)
			}
			create(t, c, own("d"))
			f.until([]string{"a", "c"}, "a", "c", "d")
		})
	}
}

func TestAMissingRightOnACluster(t *testing.T) {
	c := startCluster(t, kubetest.Options{})
	create(t, c, own("a"))
	c.Deny("list", "endpointslices")
	entry := others("team")
	entry.By = "services"
	d, f := follow(t, c, platform(entry))
	f.until(nil, "a")
	require.Eventually(t, func() bool { return len(d.Problems()) == 1 }, patience, 10*time.Millisecond)
	require.Contains(t, d.Problems()[0], "may not list endpointslices.discovery.k8s.io in namespace team: grant it")
	require.True(t, strings.HasPrefix(d.Problems()[0], "endpointslices of platform.kubernetes.discover[0] (app=vllm) in namespace team"))
}

func TestPodsThatAreNotSelectedCostNothing(t *testing.T) {
	c := startCluster(t, kubetest.Options{})
	create(t, c, own("a"))
	for i := range 1000 {
		c.Add(fresh(stranger(named("llm", fmt.Sprintf("job-%d", i)))))
	}
	c.ResetCalls()
	_, f := follow(t, c, platform())
	f.until(nil, "a")
	for i := range 100 {
		remove(t, c, "llm", fmt.Sprintf("job-%d", i))
	}
	create(t, c, own("b"))
	f.until(nil, "a", "b")
	calls := c.Calls()
	require.Equal(t, 1, calls["list pods"])
	require.Equal(t, 1, calls["watch pods"])
}

package app

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/kuberay"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

const (
	rayFleet = "conformance"
	raySpace = "engines"
	rayChat  = "org/Chat-72B"
	rayWait  = 60 * time.Second // a claim on nothing: it ends a test that hangs
)

// rayLab is a Kubernetes cluster in memory with KubeRay, and a Cluster that places RayClusters on it.
type rayLab struct {
	t    testing.TB
	cube *kubetest.Cluster
	*kubernetes.Cluster
	stop func()
}

func onKubeRay() mobula.Platform {
	return mobula.Platform{KubeRay: &mobula.KubeRay{RayVersion: "2.60.0", Auth: "token"}}
}

func newRayLab(tb testing.TB) *rayLab {
	tb.Helper()
	cube := kubetest.New(kubetest.Options{Namespaces: []string{raySpace}, Nodes: []kubetest.Node{{Name: "node-a"}, {Name: "node-b"}}})
	tb.Cleanup(cube.Close)
	l := &rayLab{t: tb, cube: cube}
	l.start()
	tb.Cleanup(func() { l.stop() })
	return l
}

func (l *rayLab) start() {
	l.t.Helper()
	c, err := kubernetes.New(kubernetes.Options{
		Client: l.cube.Client(), Dynamic: l.cube.Dynamic(), Namespace: raySpace, OwnImage: "mobula:test",
		Workloads: []kube.Workload{kubernetes.Deployments{}, kubernetes.StatefulSets{}, kuberay.New()},
	})
	require.NoError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it ends with stop
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	l.Cluster, l.stop = c, func() { cancel(); wg.Wait() }
	require.NoError(l.t, c.Configure(ctx, rayFleet, onKubeRay(), false))
}

// Logs has the engine print something first: nothing runs in the pods.
func (l *rayLab) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	for _, pod := range l.cube.Pods(raySpace, kube.LabelReplica+"="+replica) {
		l.cube.Log(raySpace, pod.Name, "hello\n")
	}
	return l.Cluster.Logs(ctx, replica, tail, follow)
}

// running gives the engines that truly run.
func (l *rayLab) running() (all []string) {
	for _, pod := range l.cube.Pods(raySpace, kube.LabelServes+"=true") {
		if pod.DeletionTimestamp == nil {
			all = append(all, pod.Labels[kube.LabelReplica])
		}
	}
	return all
}

func rayModel(name string) mobula.Model {
	m := mobula.NewModel(name)
	m.Engine.Kind, m.Kubernetes.Workload = "sim", kube.KindRayCluster
	return m
}

func TestPlacerConformanceOfRayClusters(t *testing.T) {
	conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
		tb.Helper()
		l := newRayLab(tb)
		p, impossible := onKubeRay(), rayModel("too-odd")
		impossible.Kubernetes.CPU = "two"
		return conformance.PlacerSubject{
			Placer: l, Discoverer: l.Discoverer(), Model: rayModel(rayChat), Impossible: &impossible,
			Platform: &p, Refused: &mobula.Platform{KubeRay: &mobula.KubeRay{Kubernetes: mobula.Kubernetes{Namespace: "elsewhere"}}},
			Crash: func(id string) {
				for _, pod := range l.cube.Pods(raySpace, kube.LabelReplica+"="+id) {
					require.NoError(tb, l.cube.Crash(raySpace, pod.Name, 1, "boom"))
					require.NoError(tb, l.cube.Ready(raySpace, pod.Name))
				}
			},
			Lose: l.cube.Down,
			Restart: func() (adapters.Placer, adapters.Discoverer) {
				l.stop()
				l.start()
				return l, l.Discoverer()
			},
			Running: l.running,
		}
	})
}

// scale asks for so many replicas and waits until they are ready, and no others there.
func (l *rayLab) scale(n int) []string {
	l.t.Helper()
	require.NoError(l.t, l.Apply(l.t.Context(), adapters.Deployment{
		Key: adapters.Key{Fleet: rayFleet, Model: rayChat, Revision: "0123456789"}, Model: rayModel(rayChat), Replicas: n,
	}))
	var ids []string
	l.await("replicas that are ready", func() bool {
		all, err := l.Status(l.t.Context(), rayFleet)
		ids = nil
		for _, r := range all {
			if r.State == mobula.StateReady {
				ids = append(ids, r.ID)
			}
		}
		return err == nil && len(all) == n && len(ids) == n && len(l.cube.Pods(raySpace, "")) == n
	})
	return ids
}

func (l *rayLab) await(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(rayWait); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			all, err := l.Status(context.WithoutCancel(l.t.Context()), rayFleet)
			l.t.Fatalf("%s: it did not come; now: %+v, %v, %v", what, all, err, l.clusters())
		}
	}
}

// clusters names the RayClusters, those that are suspended with a bar before them.
func (l *rayLab) clusters() (all []string) {
	for _, o := range l.cube.Objects("rayclusters", raySpace, "") {
		bar := ""
		if on, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend"); on {
			bar = "-"
		}
		all = append(all, bar+o.GetName())
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(strings.TrimPrefix(a, "-"), strings.TrimPrefix(b, "-")) })
	return all
}

// asleep are those that are suspended.
func asleep(clusters []string) []string {
	return slices.DeleteFunc(clusters, func(name string) bool { return !strings.HasPrefix(name, "-") })
}

// awaitClusters waits until these are there and no others.
func (l *rayLab) awaitClusters(want ...string) {
	l.t.Helper()
	l.await("RayClusters", func() bool { return slices.Equal(l.clusters(), want) })
}

func TestRayClustersOfAModelAtZeroSleep(t *testing.T) {
	l := newRayLab(t)
	two := l.scale(2)
	names := l.clusters()
	require.Len(t, names, 2)
	l.scale(0)
	l.awaitClusters("-"+names[0], "-"+names[1])

	one := l.scale(1)
	require.NotContains(t, two, one[0], "no ID is used twice")
	l.await("one is awake", func() bool { return slices.Contains(l.clusters(), names[0]) != slices.Contains(l.clusters(), names[1]) })
	require.Len(t, l.clusters(), 2)
	l.stop()
	l.start() // a control plane that takes over knows who sleeps
	three := l.scale(3)
	require.Len(t, l.clusters(), 3, "both sleepers are awake, and there is a new one")
	require.Contains(t, three, one[0])
	for _, id := range three {
		require.NotContains(t, two, id)
	}

	l.scale(0)
	l.await("all of them sleep", func() bool { return len(asleep(l.clusters())) == 3 })
	l.scale(1)
	l.scale(0)
	l.await("as many as it had last", func() bool { return len(l.clusters()) == 1 && len(asleep(l.clusters())) == 1 })
	require.NoError(t, l.Remove(t.Context(), adapters.Key{Fleet: rayFleet, Model: rayChat, Revision: "0123456789"}))
	l.awaitClusters()
}

func TestRayClusterThatSomebodyElseWakesGoes(t *testing.T) {
	l := newRayLab(t)
	l.scale(1)
	name := l.clusters()[0]
	l.scale(0)
	l.awaitClusters("-" + name)
	l.patch(name, `{"spec":{"suspend":false}}`)
	l.awaitClusters()
	l.scale(1)
	require.Len(t, l.clusters(), 1)
}

func TestRayClusterThatSomebodyElseSuspendsIsTheirs(t *testing.T) {
	l := newRayLab(t)
	id := l.scale(1)[0]
	name := l.clusters()[0]
	l.patch(name, `{"spec":{"suspend":true}}`)
	l.await("it says who may wake it", func() bool {
		all, err := l.Status(t.Context(), rayFleet)
		return err == nil && len(all) == 1 && all[0].ID == id && all[0].State == mobula.StatePending && strings.Contains(all[0].Reason, "find out who has set it")
	})
	l.patch(name, `{"spec":{"suspend":false}}`)
	l.await("it is back", func() bool { return slices.Equal(l.running(), []string{id}) })
}

// patch is kubectl patch --type merge.
func (l *rayLab) patch(name, body string) {
	l.t.Helper()
	_, err := l.cube.Dynamic().Resource(kuberay.New().Resources()[0]).Namespace(raySpace).
		Patch(l.t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "kubectl"})
	require.NoError(l.t, err)
}

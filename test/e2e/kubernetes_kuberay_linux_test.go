package e2e

import (
	"context"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/adapters/ray/raytest"
	"github.com/mobula-serve/mobula/engine/sim"
	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/raycluster"
)

// sharedToken is that of all RayClusters.
const sharedToken = "t0k"

// engines are simulated engines of this process, which a twin of a Ray cluster starts.
type engines struct {
	t  *testing.T
	wg sync.WaitGroup
}

// start runs one.
func (e *engines) start(s raycluster.Start) (at string, stop func()) {
	engine, err := sim.New(sim.Options{Model: s.Model})
	if err != nil {
		e.t.Error(err)
		return "", nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Error(err)
		return "", nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.wg.Go(func() { _ = engine.Run(ctx, l) })
	return "http://" + l.Addr().String(), cancel
}

// newRay starts a Ray cluster that is the nth in its life.
func newRay(t *testing.T, n int) *raytest.Cluster {
	t.Helper()
	e := &engines{t: t}
	t.Cleanup(e.wg.Wait)
	twin := raytest.New(t, raytest.Options{Token: sharedToken, Engine: e.start})
	for range n {
		twin.Restart()
	}
	return twin
}

// addRayCluster adds a RayCluster of others, whose head is the twin.
func (w *world) addRayCluster(name string, twin *raytest.Cluster) {
	w.t.Helper()
	at, err := url.Parse(twin.URL())
	require.NoError(w.t, err)
	w.cluster.Add(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{"auth_token": []byte(sharedToken)}},
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": map[string]any{"namespace": "default", "name": name},
			"spec": map[string]any{
				"authOptions": map[string]any{"mode": "token"},
				"headGroupSpec": map[string]any{
					"rayStartParams": map[string]any{"dashboard-port": at.Port()},
					"template":       map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": "ray", "image": "rayproject/ray:2.60.0"}}}},
				},
			},
		}},
	)
	head := w.cluster.Pod("default", name+"-head")
	require.NotNil(w.t, head)
	w.kubelet.mu.Lock()
	w.kubelet.where[head.UID] = at.Host
	w.kubelet.mu.Unlock()
	require.NoError(w.t, w.cluster.Start("default", head.Name))
}

// serveFrom has a RayService serve from a RayCluster.
func (w *world) serveFrom(service, cluster string) {
	w.t.Helper()
	w.cluster.Add(&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": map[string]any{"namespace": "default", "name": service},
		"spec": map[string]any{}, "status": map[string]any{"activeServiceStatus": map[string]any{"rayClusterName": cluster}},
	}})
}

func TestKubeRayServiceHoldsEngines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second := newRay(t, 0), newRay(t, 1)
	w.startControl("control-a")
	w.leads("control-a")
	w.apply("apiVersion: mobula.dev/v1alpha1\nkind: Fleet\nmetadata: {name: default}\nspec: {platform: {kuberay: {shared: {service: llm}}}}\n" + chatObject(2, "}"))
	w.Await("the Fleet says what it waits for", func() bool {
		return w.is(resources.KindFleet, "default", resources.ConditionAccepted, "False", "Refused", "rayservices llm in namespace default", "made by you, not by Mobula")
	})
	w.addRayCluster("llm-a", first)
	w.serveFrom("llm", "llm-a")
	w.startRouter("router")
	w.awaitServing("chat", 2)
	w.awaitAnswers(chatModel)
	require.Len(t, first.Running(), 2)
	require.Empty(t, w.cluster.Pods("default", kube.LabelManagedBy), "there are no pods of ours")

	load := w.Traffic(chatModel, 2, true)
	load.More(20)
	w.patch(resources.KindModel, "chat", `{"spec":{"replicas":3}}`, "scale")
	w.awaitServing("chat", 3)
	before := first.Running()
	for _, id := range before {
		w.AwaitServes(chatModel, id)
	}
	load.More(20)
	w.Kill("control-a")
	load.More(20)
	w.startControl("control-a")
	w.leads("control-a")
	w.awaitServing("chat", 3)
	require.ElementsMatch(t, before, first.Running(), "no engine was started again")
	load.More(20)
	load.End()

	// An upgrade of the RayService: another RayCluster takes over, and the former one ends with all that is in it.
	w.addRayCluster("llm-b", second)
	w.serveFrom("llm", "llm-b")
	first.Restart()
	first.Cut(true)
	w.Await("the engines are in the other cluster", func() bool { return len(second.Running()) == 3 })
	w.awaitServing("chat", 3)
	for _, id := range second.Running() {
		w.AwaitServes(chatModel, id)
	}
	w.Await("the router reports again", func() bool { return w.object(resources.KindFleet, "default").Get("status.routers").Int() == 1 })
	require.Contains(t, w.Run("get", "replicas"), "10.77.0.1", "Ray's nodes are the hosts")
	w.remove(resources.KindModel, "chat")
	w.Await("nothing is left", func() bool { return len(second.Running()) == 0 && len(w.Replicas()) == 0 })
}

package kubernetes

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// clock is a Cluster's, which a test moves.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// told keeps what a Cluster tells.
type told struct {
	mu  sync.Mutex
	all []Event
}

func (l *told) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
}

// has tells whether an event of the model was told, with all of these texts.
func (l *told) has(model, reason string, texts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(e Event) bool {
		return e.Model == model && e.Reason == reason && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(e.Message, text) })
	})
}

func TestAReplicaWhoseImageCannotBePulledFailsAfterAWhile(t *testing.T) {
	clock := &clock{}
	l := newLab(t, kubetest.Options{}, func(o *Options) { o.Now = clock.now })
	const image = "registry.example/none:v1"
	l.cube.ImagePullFails(image)
	d := deployment("chat", "r1", 1)
	d.Model.Kubernetes.Image = image
	l.apply(d)
	is := func(state mobula.State, texts ...string) func() bool {
		return func() bool {
			all := l.replicas()
			ok := len(all) == 1 && all[0].State == state
			for _, text := range texts {
				ok = ok && strings.Contains(all[0].Reason, text)
			}
			return ok
		}
	}
	l.await("it waits for its image", is(mobula.StatePending, image, "can't be pulled"))
	clock.forward(stuckGrace / 2)
	l.keeper.refresh(groupOf(testFleet, "chat"))
	require.True(t, is(mobula.StatePending)(), "a registry may have hiccups")
	clock.forward(stuckGrace)
	l.keeper.refresh(groupOf(testFleet, "chat"))
	require.True(t, is(mobula.StateFailed, "for more than 2m: ", image, "models[chat].kubernetes.image")(), l.replicas())
	l.cube.ImagePullWorks(image)
	l.await("it serves all the same", is(mobula.StateReady))
}

func TestWhatWasDoneToAModelIsTold(t *testing.T) {
	events := &told{}
	l := newLab(t, kubetest.Options{}, func(o *Options) { o.Tell = events.add })
	l.apply(deployment("chat", "r1", 1))
	big := deployment("big", "r1", 1)
	big.Model.Resources.Hosts = 2
	big.Model.Engine.Kind = "vllm"
	l.apply(big)
	ids := l.ready(2)
	l.quiet()

	name := kube.Name("chat", "r1")
	_, err := l.cube.Client().AppsV1().Deployments(testSpace).Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	require.NoError(t, err)
	l.await("it was put back", func() bool { return events.has("chat", "PutBack", "Deployment "+name, "spec.replicas", "kubectl-edit") })
	require.Empty(t, l.Problems(), "it is told once")
	l.ready(2)
	l.quiet()
	require.NoError(t, l.cube.Client().AppsV1().Deployments(testSpace).Delete(t.Context(), name, metav1.DeleteOptions{}))
	l.await("it was made again", func() bool { return events.has("chat", "PutBack", "Deployment "+name, "was deleted by somebody else") })
	l.ready(2)

	gang := ids[slices.IndexFunc(ids, func(id string) bool { return l.cube.Pod(testSpace, id+"-0") != nil })]
	other := gang + othersSuffix + "-1"
	require.NoError(t, l.cube.Crash(testSpace, other, 1, "NCCL error"))
	require.NoError(t, l.cube.Ready(testSpace, other))
	l.await("the other one was deleted", func() bool { return events.has("big", "PodsDeleted", gang+"-0", "start anew") })
}

func TestAFleetOfObjectsIsNotForASecondControlPlane(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	fleet := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{}}}
	fleet.SetAPIVersion(kube.Group + "/v1alpha1")
	fleet.SetKind("Fleet")
	fleet.SetName("other")
	fleet.SetNamespace(testSpace)
	l.cube.Add(fleet)
	const why = "namespace engines has a Fleet object other, whose own control plane looks after the engines"
	second, err := New(l.options)
	require.NoError(t, err)
	require.ErrorContains(t, second.Configure(t.Context(), "other", onKubernetes(), false), why)
	require.False(t, second.Configured())
	require.NoError(t, second.Configure(t.Context(), "mine", onKubernetes(), false), "fleets of other names share a namespace")

	of := l.options
	of.Owner = func(string) *metav1.OwnerReference { return nil }
	its, err := New(of)
	require.NoError(t, err)
	require.NoError(t, its.Configure(t.Context(), "other", onKubernetes(), false))

	l.cube.Deny("get", "fleets")
	third, err := New(l.options)
	require.NoError(t, err)
	require.NoError(t, third.Configure(t.Context(), "other", onKubernetes(), false), "who may not look can't tell")
	l.cube.Unregister(schema.GroupVersionResource{Group: kube.Group, Version: "v1alpha1", Resource: "fleets"})
	l.cube.Allow("get", "fleets")
	require.NoError(t, third.Configure(t.Context(), "other2", onKubernetes(), false))
}

package kubernetes

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// takeName has somebody else have a Deployment of a revision's name.
func (l *lab) takeName(revision string) *appsv1.Deployment {
	l.t.Helper()
	labels := map[string]string{"app": "theirs"}
	theirs, err := l.cube.Client().AppsV1().Deployments(testSpace).Create(l.t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: kube.Name("chat", revision)},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "engine", Image: "theirs"}}}},
		},
	}, metav1.CreateOptions{FieldManager: "somebody"})
	require.NoError(l.t, err)
	return theirs
}

func TestARevisionThatCannotBeMadeFreezesNoOther(t *testing.T) {
	events := &told{}
	l := newLab(t, kubetest.Options{}, func(o *Options) { o.Tell = events.add })
	l.apply(deployment("chat", "r1", 1))
	id := l.ready(1)[0]
	l.takeName("r2")
	l.apply(deployment("chat", "r2", 1))
	l.told("not Mobula's: delete or rename it")

	l.apply(deployment("chat", "r1", 3, id))
	l.await("it grows, and the drained one is marked", func() bool {
		_, marked := l.cube.Pod(testSpace, id).Annotations[kube.AnnotationDrain]
		return marked && len(l.pods()) == 3
	})
	require.NoError(t, l.cube.Evict(testSpace, id))
	l.await("what has ended is deleted, and that is told", func() bool {
		return !slices.Contains(l.pods(), id) && len(l.pods()) == 3 && events.has("chat", "PodsDeleted", id)
	})
	l.apply(deployment("chat", "r1", 1))
	l.await("it shrinks", func() bool { return len(l.pods()) == 1 })
	require.Len(t, l.Problems(), 1)

	require.NoError(t, l.cube.Client().AppsV1().Deployments(testSpace).Delete(t.Context(), kube.Name("chat", "r2"), metav1.DeleteOptions{}))
	l.ready(2)
	l.await("no problem any more", func() bool { return len(l.Problems()) == 0 })
}

func TestAClusterThatCannotBeAskedIsAskedOnce(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.stop() // so that nothing else is performed
	s := newKeeper(l.Cluster, l.link)
	t.Cleanup(func() { s.queue.ShutDown(); s.crashes.queue.ShutDown() })
	applies := func() int { return l.cube.Calls()["patch deployments"] + l.cube.Calls()["apply deployments"] }
	object := func(name string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{}}
		o.SetAPIVersion("apps/v1")
		o.SetKind(kube.KindDeployment)
		o.SetName(name)
		return o
	}
	for _, test := range []struct{ code, want int }{{http.StatusForbidden, 2}, {http.StatusInternalServerError, 1}} {
		l.cube.ResetCalls()
		for _, verb := range []string{"patch", "create"} {
			l.cube.Fail(verb, "deployments", test.code, 2)
		}
		p := pace{fights: map[ident]fight{}}
		require.Error(t, s.perform(t.Context(), &situation{}, &actions{apply: []*unstructured.Unstructured{object("a"), object("b")}}, &p))
		require.Equal(t, test.want, applies(), l.cube.Calls())
	}
}

func TestErrorsThatLastAreToldOnceAndNotHiddenByThoseThatPass(t *testing.T) {
	conflict := explain("update", "ConfigMap", "a", apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, "a", errors.New("changed")))
	quota := func() error { return errors.New("exceeded quota") }
	require.NoError(t, lasting(nil, nil))
	require.True(t, transient(lasting(nil, conflict)))
	require.True(t, transient(lasting(conflict, context.Canceled)))
	for _, all := range [][]error{{quota(), conflict}, {conflict, nil, quota()}, {quota(), quota(), conflict}} {
		err := lasting(all...)
		require.False(t, transient(err))
		require.EqualError(t, err, "exceeded quota")
	}
	require.EqualError(t, lasting(quota(), errors.New("another")), "exceeded quota\nanother")
}

func TestRevisionsThatShareAClaimMakeItOnceEach(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	for _, revision := range []string{"r1", "r2"} {
		l.apply(dataOf(deployment("chat", revision, 1)))
	}
	l.ready(2)
	l.quiet()
	group := groupOf(testFleet, "chat")
	for range 3 {
		l.keeper.look(t.Context(), group)
	}
	require.Equal(t, 2, l.cube.Calls()["create persistentvolumeclaims"])
	require.Len(t, l.keeper.paceOf(group).claimed, 2)
	for _, revision := range []string{"r1", "r2"} {
		require.NoError(t, l.Remove(t.Context(), deployment("chat", revision, 0).Key))
	}
	l.await("nothing is kept of them", func() bool {
		l.keeper.paceLock.Lock()
		defer l.keeper.paceLock.Unlock()
		return len(l.of(group)) == 0 && len(l.keeper.pace) == 0
	})
}

func TestWhatIsKnownOfReplicasThatAreGoneIsForgotten(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("chat", "r1", 0)
	d.Model.Kubernetes.Workload = kube.KindStatefulSet
	for _, n := range []int{2, 1, 3, 1} {
		d.Replicas = n
		l.apply(d)
		l.ready(n)
	}
	shapes := func() int {
		l.keeper.memo.Lock()
		defer l.keeper.memo.Unlock()
		n := 0
		for _, of := range l.keeper.shapes {
			n += len(of)
		}
		return n
	}
	l.apply(d) // which drops the victims that are gone from the record
	l.await("only the one that is left is known", func() bool { return shapes() == 1 })
	require.NoError(t, l.Remove(t.Context(), d.Key))
	l.await("nothing is", func() bool { return shapes() == 0 && len(l.pods()) == 0 })
}

package kubernetes

import (
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// owners is a cluster whose models have objects of their own, played by ConfigMaps.
type owners struct {
	*lab
	mu  sync.Mutex
	now *metav1.OwnerReference
}

func newOwners(tb testing.TB) *owners {
	tb.Helper()
	o := &owners{}
	o.lab = newLab(tb, kubetest.Options{}, func(options *Options) {
		options.Owner = func(string) *metav1.OwnerReference {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.now
		}
	})
	return o
}

// comes has the model's object be there, or another one, and gives its UID.
func (o *owners) comes() types.UID {
	o.t.Helper()
	m, err := o.cube.Client().CoreV1().ConfigMaps(testSpace).Create(o.t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "the-model"}}, metav1.CreateOptions{})
	require.NoError(o.t, err)
	o.set(&metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: m.Name, UID: m.UID})
	return m.UID
}

func (o *owners) set(to *metav1.OwnerReference) {
	o.mu.Lock()
	o.now = to
	o.mu.Unlock()
	o.Poke("chat")
}

// owned gives who owns the objects of the model, by kind and name.
func (o *owners) owned() map[string][]types.UID {
	all := map[string][]types.UID{}
	for _, resource := range []string{"configmaps", "deployments", "poddisruptionbudgets"} {
		for _, u := range o.cube.Objects(resource, testSpace, kube.LabelManagedBy+"="+kube.ManagedBy) {
			var who []types.UID
			for _, r := range u.GetOwnerReferences() {
				who = append(who, r.UID)
			}
			all[resource] = append(all[resource], who...)
		}
	}
	return all
}

// belong waits until all objects belong to an owner; those of a budget that is made once stay with who owned it then.
func (o *owners) belong(uid types.UID) {
	o.t.Helper()
	o.await("objects that belong to the model", func() bool {
		all := o.owned()
		return len(all["configmaps"]) == 1 && all["configmaps"][0] == uid && len(all["deployments"]) == 1 && all["deployments"][0] == uid
	})
}

func TestWhatAModelsObjectsBelongTo(t *testing.T) {
	o := newOwners(t)
	require.ErrorIs(t, o.Apply(t.Context(), deployment("chat", "r1", 1)), adapters.ErrWithdrawn)
	require.Empty(t, o.cube.Objects("configmaps", testSpace, labelRecord), "nothing is made for a model without an object")
	uid := o.comes()
	o.apply(deployment("chat", "r1", 1))
	ids := o.ready(1)
	o.belong(uid)
	record := o.cube.Objects("configmaps", testSpace, labelRecord)[0]

	// It is deleted without what it owns, and comes back.
	orphan := metav1.DeletePropagationOrphan
	o.set(nil) // it is being deleted, which is seen before anything else of that happens
	o.await("objects that belong to the record", func() bool { return slices.Equal(o.owned()["deployments"], []types.UID{record.GetUID()}) })
	require.NoError(t, o.cube.Client().CoreV1().ConfigMaps(testSpace).Delete(t.Context(), "the-model", metav1.DeleteOptions{PropagationPolicy: &orphan}))
	o.belong(o.comes())
	require.Equal(t, ids, o.ready(1))
	o.quiet()

	o.apply(deployment("chat", "r2", 1)) // another revision belongs to it from the beginning
	o.ready(2)
	require.NoError(t, o.cube.Client().CoreV1().ConfigMaps(testSpace).Delete(t.Context(), "the-model", metav1.DeleteOptions{}))
	o.set(nil)
	o.await("all of it is gone with the model", func() bool {
		return len(o.pods()) == 0 && len(o.replicas()) == 0 && len(o.cube.Objects("configmaps", testSpace, labelRecord)) == 0
	})
	o.await("it is known to be gone", func() bool {
		held, err := o.Deployments(t.Context(), testFleet)
		return err == nil && len(held) == 0
	})
}

func TestAnOwnerThatOthersAddStays(t *testing.T) {
	o := newOwners(t)
	uid := o.comes()
	o.apply(deployment("chat", "r1", 1))
	o.ready(1)
	o.belong(uid)
	foreign, err := o.cube.Client().CoreV1().ConfigMaps(testSpace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "somebody"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	deployments := o.cube.Client().AppsV1().Deployments(testSpace)
	change := func(f func(d *appsv1.Deployment)) {
		d, err := deployments.Get(t.Context(), kube.Name("chat", "r1"), metav1.GetOptions{})
		require.NoError(t, err)
		f(d)
		_, err = deployments.Update(t.Context(), d, metav1.UpdateOptions{FieldManager: "somebody"})
		require.NoError(t, err)
	}
	theirs := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: foreign.Name, UID: foreign.UID}
	change(func(d *appsv1.Deployment) { d.OwnerReferences = append(d.OwnerReferences, theirs) })
	o.quiet()
	require.ElementsMatch(t, []types.UID{uid, foreign.UID}, o.owned()["deployments"])
	change(func(d *appsv1.Deployment) { d.OwnerReferences = []metav1.OwnerReference{theirs} })
	o.await("ours is there again", func() bool {
		all := o.owned()["deployments"]
		return len(all) > 0 && all[0] == uid
	})
}

func dataOf(d adapters.Deployment) adapters.Deployment {
	d.Model.Kubernetes.Data = mobula.KubernetesData{Size: 1 << 30}
	return d
}

func TestAModelsClaimIsMadeOnceAndOutlivesIt(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := dataOf(deployment("chat", "r1", 1))
	l.apply(d)
	l.ready(1)
	claims := func() []types.UID {
		var all []types.UID
		for _, c := range l.cube.Objects("persistentvolumeclaims", testSpace, "") {
			require.Empty(t, c.GetOwnerReferences(), "it goes with nothing")
			all = append(all, c.GetUID())
		}
		return all
	}
	first := claims()
	require.Len(t, first, 1)
	l.quiet()
	l.cube.ResetCalls()
	d.Replicas = 2
	l.apply(d)
	l.ready(2)
	l.quiet()
	require.Zero(t, l.cube.Calls()["create persistentvolumeclaims"], "once for a deployment")

	l.restart()
	l.ready(2)
	l.apply(dataOf(deployment("chat", "r2", 1)))
	l.ready(3)
	require.Equal(t, first, claims(), "revisions share it")
	for _, revision := range []string{"r1", "r2"} {
		require.NoError(t, l.Remove(t.Context(), deployment("chat", revision, 0).Key))
	}
	l.await("nothing is left of the model", func() bool {
		return len(l.pods()) == 0 && len(l.cube.Objects("configmaps", testSpace, labelRecord)) == 0
	})
	require.Equal(t, first, claims())
	l.apply(d)
	l.ready(2)
	require.Equal(t, first, claims(), "its weights are still there")
	for call := range l.cube.Calls() {
		require.NotContains(t, []string{"delete persistentvolumeclaims", "update persistentvolumeclaims", "patch persistentvolumeclaims"}, call)
	}
}

func TestAClaimThatMayNotBeMadeIsToldAndTriedAgain(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.cube.Deny("create", "persistentvolumeclaims")
	l.apply(dataOf(deployment("chat", "r1", 1)))
	l.told("service account default/mobula may not create persistentvolumeclaims in namespace " + testSpace)
	require.Empty(t, l.pods(), "no engine loads weights into what is lost")
	l.cube.Allow("create", "persistentvolumeclaims")
	l.ready(1)
	l.await("no problem any more", func() bool { return len(l.Problems()) == 0 })
}

func TestAClaimThatIsThereNeedsNoQuota(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := dataOf(deployment("chat", "r1", 1))
	l.apply(d)
	l.ready(1)
	l.cube.Fail("create", "persistentvolumeclaims", http.StatusForbidden, 1000)
	l.restart() // which knows nothing of the claim
	d.Replicas = 2
	l.apply(d)
	l.ready(2)
}

func TestWhatIsNotOursIsNotTakenOver(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	deployments := l.cube.Client().AppsV1().Deployments(testSpace)
	theirs := l.takeName("r1")
	l.apply(deployment("chat", "r1", 1))
	l.told("not Mobula's: delete or rename it")
	there, err := deployments.Get(t.Context(), theirs.Name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, theirs.Spec, there.Spec)
	require.NoError(t, deployments.Delete(t.Context(), theirs.Name, metav1.DeleteOptions{}))
	l.ready(1)
}

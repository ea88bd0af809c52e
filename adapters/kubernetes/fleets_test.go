package kubernetes

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

const otherFleet = "depot"

// beside starts a control plane of another fleet in the namespace.
func (l *lab) beside(more ...func(*Options)) *lab {
	l.t.Helper()
	other := &lab{t: l.t, cube: l.cube, options: l.options}
	other.options.Owner = nil
	for _, f := range more {
		f(&other.options)
	}
	other.startAs(otherFleet)
	l.t.Cleanup(func() { other.stop() })
	return other
}

func ofFleet(fleet string, d adapters.Deployment) adapters.Deployment {
	d.Fleet = fleet
	return d
}

// readyOf waits until a fleet has n replicas, all of them Ready, and gives their IDs.
func (l *lab) readyOf(fleet string, n int) (ids []string) {
	l.t.Helper()
	l.await("replicas of "+fleet+" that are ready", func() bool {
		all, err := l.Status(l.t.Context(), fleet)
		ids = nil
		for _, r := range all {
			if r.State == mobula.StateReady {
				ids = append(ids, r.ID)
			}
		}
		return err == nil && len(all) == n && len(ids) == n
	})
	return ids
}

// lookAll has all groups be looked at that there are, those of other fleets too.
func (l *lab) lookAll(groups ...string) {
	for _, group := range groups {
		l.keeper.look(l.t.Context(), group)
	}
}

// bothQuiet waits until the watches have shown what both have written.
func bothQuiet(a, b *lab) {
	a.quiet()
	b.quiet()
	a.await("both know the records", func() bool {
		n := len(a.cube.Objects("configmaps", testSpace, labelRecord))
		return len(a.keeper.maps.every()) == n && len(b.keeper.maps.every()) == n
	})
}

func TestTwoFleetsInANamespaceLeaveEachOtherAlone(t *testing.T) {
	a := newOwners(t)
	uid := a.comes()
	b := a.beside()
	a.apply(deployment("chat", "r1", 2))
	ids := a.ready(2)
	a.belong(uid)
	bothQuiet(a.lab, b)
	groups := []string{groupOf(testFleet, "chat"), groupOf(otherFleet, "chat")}
	steady := func() {
		t.Helper()
		a.cube.ResetCalls()
		for range 3 {
			a.lookAll(groups...)
			b.lookAll(groups...)
		}
		require.Zero(t, a.writes(), a.cube.Requests())
		require.Empty(t, a.Problems())
		require.Empty(t, b.Problems())
	}
	steady()
	require.Equal(t, []string{groups[0]}, a.keeper.groups())
	require.Empty(t, b.keeper.groups())
	require.NoError(t, b.Configure(t.Context(), otherFleet, mobula.Platform{}, true), "without deployments it may go")

	mine := ofFleet(otherFleet, deployment("chat", "r1", 1))
	b.apply(mine)
	theirs := b.readyOf(otherFleet, 1)
	bothQuiet(a.lab, b)
	steady()
	require.Equal(t, ids, a.ready(2))
	require.Equal(t, theirs, b.readyOf(otherFleet, 1))
	owners := map[string]int{}
	for _, d := range a.cube.Objects("deployments", testSpace, "") {
		for _, o := range d.GetOwnerReferences() {
			owners[d.GetLabels()[kube.LabelFleet]+" "+o.Kind+" "+o.Name]++
		}
	}
	require.Equal(t, map[string]int{testFleet + " ConfigMap the-model": 1, otherFleet + " ConfigMap mobula-chat-r1-2": 1}, owners)
	require.ErrorContains(t, b.Configure(t.Context(), otherFleet, mobula.Platform{}, true), "fleet depot has deployments")

	require.NoError(t, b.Remove(t.Context(), mine.Key))
	a.await("nothing of the other fleet is left", func() bool {
		return len(a.pods()) == 2 && len(a.cube.Objects("configmaps", testSpace, labelRecord)) == 1
	})
	bothQuiet(a.lab, b)
	require.Equal(t, ids, a.ready(2))
	steady()
}

func TestAFleetTellsNothingOfAnotherOnesWorkloads(t *testing.T) {
	a := newLab(t, kubetest.Options{})
	b := a.beside(func(o *Options) { o.Workloads = []kube.Workload{Deployments{}} })
	d := deployment("chat", "r1", 1)
	d.Model.Kubernetes.Workload = kube.KindStatefulSet
	a.apply(d)
	a.ready(1)
	bothQuiet(a, b)
	b.lookAll(groupOf(testFleet, "chat"))
	require.Empty(t, b.Problems())
	require.Empty(t, b.replicasOf(testFleet))
}

func podsNamed(bases map[string]string) (all []*corev1.Pod) {
	for _, name := range slices.Sorted(maps.Keys(bases)) {
		all = append(all, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelRecord: bases[name]}}})
	}
	return all
}

func (l *lab) replicasOf(fleet string) []mobula.Replica {
	l.t.Helper()
	all, err := l.Status(l.t.Context(), fleet)
	require.NoError(l.t, err)
	return all
}

// TestAFleetOfAnotherNameEndsWhatTheFormerOneHad: what control.evict does, be it after a restart in between.
func TestAFleetOfAnotherNameEndsWhatTheFormerOneHad(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(map[bool]string{false: "at once", true: "after a restart"}[restarted], func(t *testing.T) {
			l := newLab(t, kubetest.Options{})
			l.apply(deployment("chat", "r1", 2))
			big := deployment("big", "r1", 1)
			big.Model.Resources.Hosts, big.Model.Engine.Kind = 2, "vllm"
			l.apply(big)
			l.ready(3)
			l.quiet()
			if restarted {
				l.stop()
				l.startAs(otherFleet)
			} else {
				require.NoError(t, l.Configure(t.Context(), otherFleet, onKubernetes(), false))
			}
			l.apply(ofFleet(otherFleet, deployment("chat", "r1", 1)))
			ids := l.readyOf(otherFleet, 1)
			held, err := l.Deployments(t.Context(), testFleet)
			require.NoError(t, err)
			require.Len(t, held, 2)
			require.Len(t, l.running(), 4, "nobody has asked for their end yet")
			for _, d := range held {
				require.NoError(t, l.Remove(t.Context(), d.Key))
			}
			l.await("nothing of the former fleet is left", func() bool {
				left := 0
				for _, resource := range []string{"configmaps", "deployments", "statefulsets", "poddisruptionbudgets", "pods"} {
					left += len(l.cube.Objects(resource, testSpace, kube.LabelFleet+"="+testFleet))
				}
				return left == 0 && len(l.replicasOf(testFleet)) == 0
			})
			require.Equal(t, ids, l.readyOf(otherFleet, 1))
		})
	}
}

func TestWhatIsLeftOfAFormerFleet(t *testing.T) {
	object := func(name, base string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{Object: map[string]any{}}
		o.SetName(name)
		if base != "" {
			o.SetLabels(map[string]string{labelRecord: base})
		}
		return o
	}
	live, gone := &record{Base: "chat-r2"}, &record{Base: "chat-r1", Removed: true}
	objects := []*unstructured.Unstructured{object("budget", ""), object("d1", "chat-r1"), object("d2", "chat-r2"), object("d3", "chat-r3")}
	for _, test := range []struct {
		records []*record
		want    string
	}{
		{[]*record{gone, live}, "d1"},
		{[]*record{gone}, "budget d1"},
	} {
		in := &situation{
			records: append([]*record{}, test.records...), objects: append([]*unstructured.Unstructured{}, objects...),
			pods: podsNamed(map[string]string{"p1": "chat-r1", "p2": "chat-r2"}),
		}
		in.former()
		var names []string
		for _, o := range in.objects {
			names = append(names, o.GetName())
		}
		require.Equal(t, []*record{gone}, in.records)
		require.Equal(t, test.want, strings.Join(names, " "))
		require.Len(t, in.pods, 1)
		require.Equal(t, "p1", in.pods[0].Name)
	}
}

func TestWhatIsAskedForAfterAChangeOfNamespaceIsInTheNewOne(t *testing.T) {
	const next = "others"
	l := newLab(t, kubetest.Options{Namespaces: []string{next}})
	d := deployment("chat", "r1", 1)
	l.apply(d)
	l.ready(1)
	require.NoError(t, l.Remove(t.Context(), d.Key))
	records := func(namespace string) int { return len(l.cube.Objects("configmaps", namespace, labelRecord)) }
	for i, to := range []string{next, testSpace, next, testSpace, next} {
		p := onKubernetes()
		p.Kubernetes.Namespace = to
		l.await("nothing is held any more", func() bool { return l.Configure(t.Context(), testFleet, p, false) == nil })
		l.apply(d) // at once
		require.Equal(t, 1, records(to), i)
		require.Equal(t, 1, records(next)+records(testSpace), i)
		require.NoError(t, l.Remove(t.Context(), d.Key))
	}
}

package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// writes counts the requests that change something since ResetCalls, reviews of rights left out.
func (l *lab) writes() int {
	n := 0
	for call, times := range l.cube.Calls() {
		if verb, _, _ := strings.Cut(call, " "); slices.Contains([]string{"create", "update", "patch", "apply", "delete"}, verb) && !strings.Contains(call, "subjectaccessreviews") && !strings.Contains(call, "subjectrulesreviews") {
			n += times
		}
	}
	return n
}

func TestSteadyStateAsksNothing(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 2))
	l.apply(deployment("code", "r1", 1))
	l.ready(3)
	l.quiet()
	l.cube.ResetCalls()
	for range 3 {
		l.apply(deployment("chat", "r1", 2))
		for _, group := range l.keeper.groups() {
			l.keeper.look(t.Context(), group)
		}
	}
	require.Empty(t, l.cube.Calls())
}

// quiet waits until nothing is left to be done.
func (l *lab) quiet() {
	l.t.Helper()
	l.await("nothing left to do", func() bool {
		for _, group := range l.keeper.groups() {
			p := pace{fights: map[ident]fight{}}
			if todo, err := plan(l.keeper.situation(group, &p)); err != nil || !todo.none() {
				return false
			}
		}
		return true
	})
}

func TestAChangeOfOneModelTouchesOnlyThatModelsObjects(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 1))
	l.apply(deployment("code", "r1", 1))
	l.ready(2)
	l.quiet()
	l.cube.ResetCalls()
	l.apply(deployment("chat", "r1", 2))
	l.ready(3)
	l.quiet()
	for _, r := range l.cube.Requests() {
		require.NotContains(t, fmt.Sprint(r), "code")
	}
}

func TestWhatOthersSetIsPutBackAndWhatWeDoNotSetIsKept(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 1))
	l.ready(1)
	l.quiet()
	name := kube.Name("chat", "r1")
	patch := func(body string) {
		_, err := l.cube.Client().AppsV1().Deployments(testSpace).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "kubectl-edit"})
		require.NoError(t, err)
	}
	patch(`{"metadata":{"annotations":{"mine":"yes"}},"spec":{"replicas":3,"minReadySeconds":7}}`)
	l.await("the number of replicas is put back", func() bool {
		d := l.cube.Objects("deployments", testSpace, "")[0]
		n, _ := replicasOf(d)
		return n == 1
	})
	l.await("a problem that says who and what", func() bool {
		return slices.ContainsFunc(l.Problems(), func(p string) bool {
			return strings.Contains(p, name) && strings.Contains(p, "replicas") && strings.Contains(p, "kubectl-edit")
		})
	})
	l.ready(1)
	d, err := l.cube.Client().AppsV1().Deployments(testSpace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, "yes", d.Annotations["mine"])
	require.EqualValues(t, 7, d.Spec.MinReadySeconds)

	patch(`{"spec":{"template":{"spec":{"containers":[{"name":"engine","image":"other:1"}]}}}}`)
	l.await("the image is put back", func() bool {
		d, err := l.cube.Client().AppsV1().Deployments(testSpace).Get(t.Context(), name, metav1.GetOptions{})
		return err == nil && d.Spec.Template.Spec.Containers[0].Image == "mobula:test"
	})
}

func TestAnEngineOfSeveralPodsStartsAnewAsAWhole(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("big", "r1", 1)
	d.Model.Resources.Hosts = 2
	d.Model.Engine.Kind = "vllm"
	l.apply(d)
	id := l.ready(1)[0]
	l.quiet()
	first, other := id+"-0", id+othersSuffix+"-1"
	require.ElementsMatch(t, []string{first, other}, l.pods())
	was := l.cube.Pod(testSpace, first).UID
	require.NoError(t, l.cube.Crash(testSpace, other, 1, "NCCL error"))
	require.NoError(t, l.cube.Ready(testSpace, other))
	l.await("the pod of rank 0 is another one", func() bool {
		pod := l.cube.Pod(testSpace, first)
		return pod != nil && pod.UID != was
	})
	require.Equal(t, []string{id}, l.ready(1))
	l.quiet()
	now := l.cube.Pod(testSpace, first).UID
	uid := l.cube.Pod(testSpace, other).UID
	l.keeper.look(t.Context(), groupOf(testFleet, "big"))
	require.Equal(t, now, l.cube.Pod(testSpace, first).UID)
	require.Equal(t, uid, l.cube.Pod(testSpace, other).UID, "the one that began anew is left alone")
}

func TestPodsThatKubernetesRefusesAreToldOfAsReplicas(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.cube.RefusePods(`pods "chat" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4`)
	l.apply(deployment("chat", "r1", 2))
	l.await("two replicas that tell of the quota", func() bool {
		all := l.replicas()
		return len(all) == 2 && all[0].State == mobula.StatePending && all[0].NoRoom && strings.Contains(all[0].Reason, "exceeded quota: gpus")
	})
}

func TestAnEvictedPodIsNoReplica(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 1))
	id := l.ready(1)[0]
	require.NoError(t, l.cube.Evict(testSpace, id))
	l.await("another replica, and the pod gone", func() bool {
		all := l.replicas()
		return len(all) == 1 && all[0].ID != id && !slices.Contains(l.pods(), id)
	})
}

func TestMissingPodsThatWaitedForStartGoNotBeforeTheOnesThatAreToGo(t *testing.T) {
	l := newLab(t, kubetest.Options{Manual: true})
	l.apply(deployment("chat", "r1", 2))
	l.await("two pods", func() bool { return len(l.pods()) == 2 })
	ids := l.pods()
	require.NoError(t, l.cube.Ready(testSpace, ids[0])) // a ReplicaSet takes the other one first
	l.await("one is ready", func() bool {
		return slices.ContainsFunc(l.replicas(), func(r mobula.Replica) bool { return r.ID == ids[0] && r.State == mobula.StateReady })
	})
	l.apply(deployment("chat", "r1", 2, ids[0]))
	l.apply(deployment("chat", "r1", 1, ids[0]))
	l.await("the drained one is gone and there is one", func() bool {
		pods := l.pods()
		return len(pods) == 1 && pods[0] != ids[0]
	})
}

func TestADeploymentThatComesBackWhileItsPodsEndHasPodsOfItsOwn(t *testing.T) {
	events := &told{}
	l := newLab(t, kubetest.Options{Lingers: true}, func(o *Options) { o.Tell = events.add })
	d := deployment("chat", "r1", 1)
	l.apply(d)
	id := l.ready(1)[0]
	require.NoError(t, l.Remove(t.Context(), d.Key))
	l.await("it drains", func() bool {
		pod := l.cube.Pod(testSpace, id)
		return pod != nil && pod.DeletionTimestamp != nil
	})
	l.apply(d)
	l.await("one drains, one is ready", func() bool {
		states := map[mobula.State]int{}
		for _, r := range l.replicas() {
			states[r.State]++
		}
		return states[mobula.StateDraining] == 1 && states[mobula.StateReady] == 1
	})
	require.NoError(t, l.cube.Finish(testSpace, id))
	l.await("the first record is gone", func() bool { return len(l.cube.Objects("configmaps", testSpace, labelRecord)) == 1 })
	held, err := l.Deployments(t.Context(), testFleet)
	require.NoError(t, err)
	require.Len(t, held, 1)
	require.False(t, events.has("chat", "PutBack"), "nobody else has deleted anything")
}

func TestWhatWeDeleteOurselvesIsNotTakenAway(t *testing.T) {
	ours, other := ident{"Deployment", "ours"}, ident{"Deployment", "other"}
	k := &keeper{lost: map[string][]lost{"group": {{ours, "1"}, {other, "2"}}}}
	p := pace{removed: []types.UID{"1", "3"}}
	require.Equal(t, map[ident]bool{other: true}, k.taken("group", &p))
	require.Equal(t, []types.UID{"3"}, p.removed, "it has not gone yet")
	require.Empty(t, k.taken("group", &p), "it is told once")
}

func TestDroppedWatchesAndExpiredVersionsLoseNothing(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 2))
	ids := l.ready(2)
	l.cube.Down(true)
	require.ErrorIs(t, l.Apply(t.Context(), deployment("chat", "r1", 3)), adapters.ErrUnavailable)
	l.cube.Compact()
	l.cube.Down(false)
	l.cube.DropWatches()
	l.await("it is looked at again", func() bool { return l.Apply(t.Context(), deployment("chat", "r1", 3)) == nil })
	now := l.ready(3)
	for _, id := range ids {
		require.Contains(t, now, id)
	}
}

func TestAnEngineBesideASidecarIsReady(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("chat", "r1", 1)
	d.Model.Kubernetes.Pod = map[string]any{"spec": map[string]any{"initContainers": []any{
		map[string]any{"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
	}}}
	l.apply(d)
	id := l.ready(1)[0]
	require.NotNil(t, l.cube.Pod(testSpace, id).Status.InitContainerStatuses[0].State.Running)
}

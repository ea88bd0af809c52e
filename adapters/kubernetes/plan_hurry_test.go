package kubernetes

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// leavingPod is one that runs since noon and is being deleted.
func leavingPod(name string, grace int64, change ...func(*corev1.Pod)) *corev1.Pod {
	noon := metav1.NewTime(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: "u", Labels: map[string]string{kube.LabelServes: "true"}, DeletionTimestamp: &noon, DeletionGracePeriodSeconds: &grace,
	}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: noon}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: kube.Container, Started: new(false), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: noon}},
	}}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func TestPodsAreHurriedThatGoAndHaveNothingToEnd(t *testing.T) {
	started := func(p *corev1.Pod) { p.Status.ContainerStatuses[0].Started = new(true) }
	wasReady := func(p *corev1.Pod) {
		p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(p.DeletionTimestamp.Add(time.Minute))
	}
	stays := func(p *corev1.Pod) { p.DeletionTimestamp, p.DeletionGracePeriodSeconds = nil, nil }
	waits := func(p *corev1.Pod) {
		p.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	}
	of := func(p *corev1.Pod) { p.Labels[kube.LabelReplica] = "big-1" }
	other := func(p *corev1.Pod) { p.Labels = map[string]string{kube.LabelReplica: "big-1"}; started(p) }
	for _, test := range []struct {
		name string
		pods []*corev1.Pod
		want []string
	}{
		{"its engine starts", []*corev1.Pod{leavingPod("a", 350)}, []string{"a"}},
		{"its engine starts, and it stays", []*corev1.Pod{leavingPod("a", 350, stays)}, nil},
		{"it was asked for before", []*corev1.Pod{leavingPod("a", hurryGrace)}, nil},
		{"it goes soon anyhow", []*corev1.Pod{leavingPod("a", 2)}, nil},
		{"its engine has started", []*corev1.Pod{leavingPod("a", 350, started)}, nil},
		{"its engine was ready", []*corev1.Pod{leavingPod("a", 350, wasReady)}, nil},
		{"its engine does not run", []*corev1.Pod{leavingPod("a", 350, waits)}, nil},
		{"its containers have not begun", []*corev1.Pod{leavingPod("a", 350, func(p *corev1.Pod) { p.Status.ContainerStatuses = nil })}, nil},
		{"all of an engine of several", []*corev1.Pod{leavingPod("a", 350, of), leavingPod("b", 350, other)}, []string{"a", "b"}},
		{"all of one that served", []*corev1.Pod{leavingPod("a", 350, of, started), leavingPod("b", 350, other)}, nil},
		{"one pod of an engine that stays", []*corev1.Pod{leavingPod("a", 350, of, stays), leavingPod("b", 350, other)}, nil},
		{"the pod that served is gone", []*corev1.Pod{leavingPod("b", 350, other)}, []string{"b"}},
		{"the pod that served has ended", []*corev1.Pod{leavingPod("a", 350, of, started, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), leavingPod("b", 350, other)}, []string{"b"}},
		{"a pod of no engine", []*corev1.Pod{leavingPod("b", 350, other, func(p *corev1.Pod) { p.Labels = nil })}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			todo, err := plan(&situation{pods: test.pods})
			require.NoError(t, err)
			var got []string
			for _, k := range todo.kill {
				got = append(got, k.name)
				require.EqualValues(t, hurryGrace, k.grace)
				require.EqualValues(t, "u", k.uid)
			}
			require.Empty(t, cmp.Diff(test.want, got))
		})
	}
}

// TestAnEngineThatStartsAndIsDeletedGivesItsGPUBackSoon: once, whoever deletes it; one that serves has all of its time.
func TestAnEngineThatStartsAndIsDeletedGivesItsGPUBackSoon(t *testing.T) {
	l := newLab(t, kubetest.Options{Manual: true, Lingers: true})
	d := deployment("chat", "r1", 2)
	l.apply(d)
	l.await("two pods", func() bool { return len(l.pods()) == 2 })
	serves, starts := l.pods()[0], l.pods()[1]
	require.NoError(t, l.cube.Ready(testSpace, serves))
	require.NoError(t, l.cube.Start(testSpace, starts))
	l.await("one is ready", func() bool {
		for _, r := range l.replicas() {
			if r.ID == serves {
				return r.State == mobula.StateReady
			}
		}
		return false
	})
	l.quiet()
	l.cube.ResetCalls()
	require.NoError(t, l.Remove(t.Context(), d.Key))
	grace := func(name string) int64 {
		pod := l.cube.Pod(testSpace, name)
		if pod == nil || pod.DeletionGracePeriodSeconds == nil {
			return 0
		}
		return *pod.DeletionGracePeriodSeconds
	}
	l.await("both go, one of them soon", func() bool { return grace(starts) == hurryGrace && grace(serves) > hurryGrace })
	for range 5 {
		l.look()
		l.quiet()
	}
	require.Greater(t, grace(serves), int64(hurryGrace))
	require.Equal(t, 1, l.cube.Calls()["delete pods"], "it is asked for once")
	require.NoError(t, l.cube.Finish(testSpace, serves))
	require.NoError(t, l.cube.Finish(testSpace, starts))
	l.await("nothing is left", func() bool { return len(l.cube.Objects("configmaps", testSpace, labelRecord)) == 0 })
}

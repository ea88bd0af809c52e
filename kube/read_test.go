package kube_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// born is when the pods of these tests were made.
func born() time.Time { return time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC) }

func after(d time.Duration) metav1.Time { return metav1.NewTime(born().Add(d)) }

// podOf makes a pod as the cluster has it before it is given to a node, and changes it.
func podOf(t *testing.T, e kube.Engine, name string, member *kube.Member, changes ...func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	template, err := e.Pod()
	if member != nil {
		template, err = e.Member(*member)
	}
	require.NoError(t, err)
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace, pod.CreationTimestamp = name, "ai", after(0)
	pod.Status.Phase = corev1.PodPending
	for _, change := range changes {
		change(pod)
	}
	return pod
}

func set(pod *corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus, at time.Duration, reason, message string) {
	c := corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: after(at), Reason: reason, Message: message}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			pod.Status.Conditions[i] = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}

func unschedulable(message string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		set(p, corev1.PodScheduled, corev1.ConditionFalse, time.Second, "Unschedulable", message)
	}
}

// on gives a pod to a node, where its container waits.
func on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.NodeName = node
		set(p, corev1.PodScheduled, corev1.ConditionTrue, time.Second, "", "")
		set(p, corev1.PodReady, corev1.ConditionFalse, time.Second, "ContainersNotReady", "")
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: kube.Container, Image: p.Spec.Containers[0].Image, Started: new(false),
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}},
		}}
	}
}

// status changes that of the engine's container.
func status(change func(*corev1.ContainerStatus)) func(*corev1.Pod) {
	return func(p *corev1.Pod) { change(&p.Status.ContainerStatuses[0]) }
}

func waits(reason, message string) func(*corev1.Pod) {
	return status(func(s *corev1.ContainerStatus) {
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	})
}

// runs has the engine's process run since then.
func runs(since time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Phase, p.Status.PodIP = corev1.PodRunning, "10.0.0.7"
		status(func(s *corev1.ContainerStatus) {
			s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: after(since)}}
			s.Started = new(false)
		})(p)
	}
}

func ready(at time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		status(func(s *corev1.ContainerStatus) { s.Started, s.Ready = new(true), true })(p)
		set(p, corev1.PodReady, corev1.ConditionTrue, at, "", "")
	}
}

func unready(at time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		status(func(s *corev1.ContainerStatus) { s.Ready = false })(p)
		set(p, corev1.PodReady, corev1.ConditionFalse, at, "ContainersNotReady", "")
	}
}

func startedUp(p *corev1.Pod) { status(func(s *corev1.ContainerStatus) { s.Started = new(true) })(p) }

// crash has the engine end after it ran from one time to another, so often in all.
func crash(times int, from, to time.Duration, t corev1.ContainerStateTerminated) func(*corev1.Pod) {
	return status(func(s *corev1.ContainerStatus) {
		t.StartedAt, t.FinishedAt = after(from), after(to)
		s.LastTerminationState, s.State = corev1.ContainerState{Terminated: &t}, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s restarting failed container"}}
		s.RestartCount, s.Started, s.Ready = int32(times-1), new(false), false
	})
}

// again has the engine's process run once more.
func again(at time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		runs(at)(p)
		status(func(s *corev1.ContainerStatus) { s.RestartCount++ })(p)
	}
}

func deleted(at time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(after(at+30*time.Second)), new(int64(30))
	}
}

func evicted(p *corev1.Pod) {
	p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: ephemeral-storage."
}

func TestReplicaOfOnePod(t *testing.T) {
	e := engineOf("chat", func(m *mobula.Model) { m.Engine.StartTimeout = mobula.Duration(10 * time.Minute) })
	failure := corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "INFO starting\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nRuntimeError: Engine core initialization failed."}
	type changes = []func(*corev1.Pod)
	for _, tc := range []struct {
		name   string
		pod    changes
		state  mobula.State
		reason string
		noRoom bool
		since  time.Duration
	}{
		{"new", nil, mobula.StatePending, "it has not been given to a node yet", false, 0},
		{
			"no GPU",
			changes{unschedulable("0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available.")},
			mobula.StatePending,
			"no node can take it: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available; it asks for 1 nvidia.com/gpu, 2 cpu, 8Gi memory: " +
				"free some, add nodes, or ask for less (models[chat].resources, kubernetes); if nodes have it, see that kubectl describe node lists it as allocatable", true, 0,
		},
		{
			"taint",
			changes{unschedulable("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}.")},
			mobula.StatePending,
			"no node can take it: 0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}; tolerate the taint with models[chat].kubernetes.pod.spec.tolerations", false, 0,
		},
		{
			"selector",
			changes{unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.")},
			mobula.StatePending,
			"no node can take it: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector; " +
				"nodes need what resources.hostLabels, resources.gpuMemory (label nvidia.com/gpu.memory) and kubernetes.pod of the model ask for", false, 0,
		},
		{
			"claim",
			changes{unschedulable(`persistentvolumeclaim "weights" not found`)},
			mobula.StatePending,
			`no node can take it: persistentvolumeclaim "weights" not found; see models[chat].kubernetes.data and kubectl get pvc`, false, 0,
		},
		{"comes", changes{on("n1")}, mobula.StatePending, "node n1 pulls its image and mounts its volumes", false, 0},
		{
			"no image",
			changes{on("n1"), waits("ImagePullBackOff", `Back-off pulling image "vllm/vllm-openai:v0.32.0": not found`)},
			mobula.StatePending,
			`image vllm/vllm-openai:v0.32.0 can't be pulled: Back-off pulling image "vllm/vllm-openai:v0.32.0": not found; see that models[chat].kubernetes.image exists, ` +
				"that node n1 reaches its registry, and that kubernetes.pullSecrets has what it wants to see", false, 0,
		},
		{
			"no Secret",
			changes{on("n1"), waits("CreateContainerConfigError", `secret "hub" not found`)},
			mobula.StatePending,
			`its container can't be made: secret "hub" not found; make the Secret or ConfigMap that it names, in the pod's namespace, ai`, false, 0,
		},
		{"starts", changes{on("n1"), runs(5 * time.Second)}, mobula.StateStarting, "its engine has not answered at /health yet", false, 5 * time.Second},
		{"has started and waits for its first readiness", changes{on("n1"), runs(5 * time.Second), startedUp}, mobula.StateStarting, "its engine has not answered at /health yet", false, 5 * time.Second},
		{"serves", changes{on("n1"), runs(5 * time.Second), ready(time.Minute)}, mobula.StateReady, "", false, time.Minute},
		{
			"hangs",
			changes{on("n1"), runs(5 * time.Second), ready(time.Minute), unready(time.Hour)},
			mobula.StateSuspect,
			"its engine no longer answers at /health as it should: look at its log; Kubernetes starts it again after a minute of that", false, time.Hour,
		},
		{
			"node lost",
			changes{on("n1"), runs(5 * time.Second), ready(time.Minute), func(p *corev1.Pod) {
				set(p, corev1.PodReady, corev1.ConditionUnknown, time.Hour, "NodeStatusUnknown", "")
			}},
			mobula.StateSuspect,
			"its node n1 does not answer: it may serve or not; look at the node with kubectl describe node n1", false, time.Hour,
		},
		{
			"node lost, as the controller manager tells it",
			changes{on("n1"), runs(5 * time.Second), ready(time.Minute), func(p *corev1.Pod) {
				set(p, corev1.ContainersReady, corev1.ConditionTrue, time.Minute, "", "")
				set(p, corev1.PodReady, corev1.ConditionFalse, time.Hour, "", "")
			}},
			mobula.StateSuspect,
			"its node n1 does not answer: it may serve or not; look at the node with kubectl describe node n1", false, time.Hour,
		},
		{"crashed", changes{on("n1"), crash(1, 5*time.Second, time.Minute, failure)}, mobula.StateStarting, "it will be started again: it ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", false, time.Second},
		{"crashed and runs", changes{on("n1"), crash(1, 5*time.Second, time.Minute, failure), again(2 * time.Minute)}, mobula.StateStarting, "it is started again: it ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", false, time.Second},
		{"crash loop", changes{on("n1"), crash(3, 5*time.Second, time.Minute, failure)}, mobula.StateFailed, "it crashed 3 times; at last it ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", false, time.Second},
		{"crash loop, runs once more", changes{on("n1"), crash(3, 5*time.Second, time.Minute, failure), again(2 * time.Minute)}, mobula.StateFailed, "it crashed 3 times; at last it ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", false, time.Second},
		{"came up after crashes", changes{on("n1"), crash(3, 5*time.Second, time.Minute, failure), again(2 * time.Minute), ready(3 * time.Minute)}, mobula.StateReady, "", false, 3 * time.Minute},
		{"starts after crashes", changes{on("n1"), crash(3, 5*time.Second, time.Minute, failure), again(2 * time.Minute), startedUp}, mobula.StateStarting, "its engine has not answered at /health yet", false, 2 * time.Minute},
		{"crashed after it was well", changes{on("n1"), crash(7, time.Hour, 5*time.Hour, failure), func(p *corev1.Pod) {
			set(p, corev1.PodReady, corev1.ConditionFalse, 5*time.Hour, "", "")
		}}, mobula.StateStarting, "it will be started again: it ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", false, 5 * time.Hour},
		{
			"memory",
			changes{on("n1"), crash(1, 5*time.Second, time.Minute, corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"})},
			mobula.StateStarting,
			"it will be started again: it was killed for the memory that it took (OOMKilled): give it more by models[chat].kubernetes.memoryLimit, or let its nodes keep more free", false, time.Second,
		},
		{
			"never answered",
			changes{on("n1"), crash(1, 5*time.Second, 11*time.Minute, corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error"})},
			mobula.StateStarting,
			"it will be started again: it did not answer at /health for 10m55s and was stopped: if it needs longer, raise models[chat].engine.startTimeout; if it hangs, its log says at what", false, time.Second,
		},
		{
			"wrong image",
			changes{on("n1"), crash(1, 0, 0, corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: `exec: "vllm": executable file not found in $PATH`})},
			mobula.StateStarting,
			`it will be started again: its container can't start: exec: "vllm": executable file not found in $PATH; is models[chat].kubernetes.image an image with vLLM, and engine.command in it?`, false, time.Second,
		},
		{"is deleted", changes{on("n1"), runs(5 * time.Second), ready(time.Minute), deleted(time.Hour)}, mobula.StateDraining, "its pod is being deleted", false, time.Hour},
		{
			"its node is drained", changes{on("n1"), runs(5 * time.Second), ready(time.Minute), deleted(time.Hour), func(p *corev1.Pod) {
				set(p, corev1.DisruptionTarget, corev1.ConditionTrue, time.Hour, "EvictionByEvictionAPI", "Eviction API: evicting")
			}}, mobula.StateDraining, "its pod is being taken from node n1: Eviction API: evicting", false, time.Hour,
		},
		{"was evicted", changes{on("n1"), evicted}, mobula.StateGone, "its pod has ended: The node was low on resource: ephemeral-storage", false, 0},
		{"waits for an init container", changes{on("n1"), func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "download", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		}}, mobula.StatePending, "its init container download runs", false, 0},
		{"init container fails", changes{on("n1"), func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
				Name: "download", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2, Reason: "Error", Message: "cp: no space left on device\n"}},
			}}
		}}, mobula.StatePending, "its init container download ended with exit code 2: cp: no space left on device", false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := podOf(t, e, "chat-0123456789-abc", nil, tc.pod...)
			r := kube.Replica("r1", e, []*corev1.Pod{pod}, "", born().Add(24*time.Hour))
			require.Equal(t, tc.reason, r.Reason)
			require.Equal(t, tc.state, r.State)
			require.Equal(t, tc.noRoom, r.NoRoom)
			if tc.name != "was evicted" {
				require.Equal(t, born().Add(tc.since), r.Since)
			}
			require.Equal(t, "chat", r.Model)
			require.Equal(t, "0123456789", r.Revision)
			require.Equal(t, "pod chat-0123456789-abc", r.Detail)
		})
	}
}

func TestReplicaOfSeveralPods(t *testing.T) {
	e := engineOf("llama", func(m *mobula.Model) { m.Resources.Hosts = 3 })
	first := func(changes ...func(*corev1.Pod)) *corev1.Pod {
		return podOf(t, e, "r1-0", &kube.Member{Replica: "r1"}, changes...)
	}
	other := func(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
		return podOf(t, e, name, &kube.Member{Rank: 1, RankVar: "$(R)", Replica: "r1"}, changes...)
	}
	works := func(node string) []func(*corev1.Pod) {
		return []func(*corev1.Pod){on(node), runs(5 * time.Second), ready(5 * time.Second)}
	}
	for _, tc := range []struct {
		name    string
		pods    []*corev1.Pod
		problem string
		state   mobula.State
		reason  string
		hosts   []string
		noRoom  bool
	}{
		{"none", nil, "", mobula.StatePending, "its pod has not been made yet", nil, false},
		{"none, and why", nil, "exceeded quota", mobula.StatePending, "exceeded quota", nil, false},
		{
			"one is missing",
			[]*corev1.Pod{first(works("a")...), other("r1-w-1", works("b")...)},
			"", mobula.StatePending, "1 of its 3 pods have not been made yet",
			[]string{"a", "b"},
			false,
		},
		{
			"all serve, in any order",
			[]*corev1.Pod{other("r1-w-10", works("c")...), other("r1-w-2", works("b")...), first(works("a")...)},
			"", mobula.StateReady, "",
			[]string{"a", "b", "c"},
			false,
		},
		{
			"the first starts",
			[]*corev1.Pod{first(on("a"), runs(time.Second)), other("r1-w-1", works("b")...), other("r1-w-2", works("c")...)},
			"", mobula.StateStarting, "pod r1-0: its engine has not answered at /health yet",
			[]string{"a", "b", "c"},
			false,
		},
		{
			"one has no room while the first crashes for it",
			[]*corev1.Pod{first(on("a"), crash(4, 0, time.Minute, corev1.ContainerStateTerminated{ExitCode: 1})), other("r1-w-1", unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")), other("r1-w-2", works("c")...)},
			"", mobula.StatePending, "pod r1-w-1: no node can take it: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu; it asks for 1 nvidia.com/gpu, 2 cpu, 8Gi memory: " +
				"free some, add nodes, or ask for less (models[llama].resources, kubernetes); if nodes have it, see that kubectl describe node lists it as allocatable",
			[]string{"a", "c"},
			true,
		},
		{
			"one crashes, which has no probes",
			[]*corev1.Pod{first(works("a")...), other("r1-w-1", append(works("b"), unready(time.Minute), crash(3, 0, time.Minute, corev1.ContainerStateTerminated{ExitCode: 1}))...), other("r1-w-2", works("c")...)},
			"", mobula.StateFailed, "pod r1-w-1: it crashed 3 times; at last it ended with exit code 1",
			[]string{"a", "b", "c"},
			false,
		},
		{
			"one is evicted",
			[]*corev1.Pod{first(works("a")...), other("r1-w-1", append(works("b"), deleted(time.Hour))...), other("r1-w-2", works("c")...)},
			"", mobula.StateSuspect, "pod r1-w-1: its pod is being deleted",
			[]string{"a", "b", "c"},
			false,
		},
		{
			"all are deleted",
			[]*corev1.Pod{first(append(works("a"), deleted(time.Hour))...), other("r1-w-2", append(works("c"), deleted(time.Hour))...)},
			"", mobula.StateDraining, "pod r1-0: its pod is being deleted",
			[]string{"a", "c"},
			false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := kube.Replica("r1", e, tc.pods, tc.problem, born().Add(time.Hour))
			require.Equal(t, tc.reason, r.Reason)
			require.Equal(t, tc.state, r.State)
			require.Equal(t, tc.hosts, r.Hosts)
			require.Equal(t, tc.noRoom, r.NoRoom)
		})
	}
	r := kube.Replica("r1", e, []*corev1.Pod{other("r1-w-1", works("b")...), first(works("a")...)}, "", born())
	require.Equal(t, "http://10.0.0.7:8000", r.URL)
	require.Equal(t, "pods r1-0, r1-w-1", r.Detail)
}

func TestRestartsAreCounted(t *testing.T) {
	e := engineOf("chat", nil)
	pod := podOf(t, e, "p", nil, on("n1"), crash(2, 0, time.Second, corev1.ContainerStateTerminated{ExitCode: 1}), again(time.Minute))
	require.Equal(t, 2, kube.Replica("p", e, []*corev1.Pod{pod}, "", born()).Restarts)
}

func TestEndpointIsThereFromStartToEnd(t *testing.T) {
	e := engineOf("org/chat", nil)
	serving := []func(*corev1.Pod){on("n1"), runs(5 * time.Second), startedUp}
	for _, tc := range []struct {
		name         string
		pod          []func(*corev1.Pod)
		is, draining bool
	}{
		{"new", nil, false, false},
		{"starts", []func(*corev1.Pod){on("n1"), runs(0)}, false, false},
		{"has started", serving, true, false},
		{"is ready", append(serving, ready(time.Minute)), true, false},
		{"is ready no more", append(serving, ready(time.Minute), unready(time.Hour)), true, false},
		{"is marked", append(serving, func(p *corev1.Pod) { p.Annotations[kube.AnnotationDrain] = "scaled down" }), true, true},
		{"is deleted", append(serving, deleted(time.Hour)), true, true},
		{"crashed", append(serving, crash(1, 0, time.Minute, corev1.ContainerStateTerminated{ExitCode: 1})), false, false},
		{"has ended", append(serving, evicted), false, false},
		{"has no address", append(serving, func(p *corev1.Pod) { p.Status.PodIP = "" }), false, false},
		{"does not serve", append(serving, func(p *corev1.Pod) { delete(p.Labels, kube.LabelServes) }), false, false},
		{"of a platform without started", append(serving, ready(time.Minute), status(func(s *corev1.ContainerStatus) { s.Started = nil })), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, is := kube.Endpoint(podOf(t, e, "chat-1", nil, tc.pod...))
			require.Equal(t, tc.is, is)
			if !is {
				return
			}
			want := mobula.Endpoint{
				ID: "chat-1", URL: "http://10.0.0.7:8000", Draining: tc.draining,
				Labels: map[string]string{"model": "org/chat", "revision": "0123456789", "host": "n1"},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestEndpointOfAGangIsItsReplica(t *testing.T) {
	e := engineOf("llama", func(m *mobula.Model) { m.Resources.Hosts = 2 })
	serving := []func(*corev1.Pod){on("n1"), runs(0), startedUp, func(p *corev1.Pod) { p.Status.PodIP = "fd00::7" }}
	got, is := kube.Endpoint(podOf(t, e, "r1-0", &kube.Member{Replica: "r1"}, serving...))
	require.True(t, is)
	require.Equal(t, "r1", got.ID)
	require.Equal(t, "http://[fd00::7]:8000", got.URL)
	_, is = kube.Endpoint(podOf(t, e, "r1-w-1", &kube.Member{Rank: 1, Replica: "r1"}, serving...))
	require.False(t, is)
}

// Whatever a pod's status, its replica has a state, and a reason where people need one.
func TestReplicaAlwaysSaysWhy(t *testing.T) {
	e := engineOf("chat", nil)
	steps := []func(*corev1.Pod){
		unschedulable("0/1 nodes are available: 1 Insufficient cpu."), unschedulable(""), on("n1"), waits("ErrImagePull", ""), waits("CrashLoopBackOff", ""), waits("", ""),
		runs(time.Minute), startedUp, ready(2 * time.Minute), unready(3 * time.Minute), crash(1, 0, time.Minute, corev1.ContainerStateTerminated{}),
		crash(5, 0, time.Minute, corev1.ContainerStateTerminated{ExitCode: 139, Signal: 11, Message: "\xff\n\n"}), again(5 * time.Minute), deleted(time.Hour), evicted,
		func(p *corev1.Pod) { p.Status = corev1.PodStatus{} },
		func(p *corev1.Pod) { p.Status.ContainerStatuses = nil },
		func(p *corev1.Pod) { p.Status.Conditions = nil },
		func(p *corev1.Pod) { p.Status.Reason = "NodeLost" },
		func(p *corev1.Pod) { p.Spec.NodeName = "" },
		func(p *corev1.Pod) { p.DeletionGracePeriodSeconds = nil },
		func(p *corev1.Pod) { p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "i"}} },
	}
	rapid.Check(t, func(rt *rapid.T) {
		pod := podOf(t, e, "p", nil)
		for _, i := range rapid.SliceOf(rapid.IntRange(0, len(steps)-1)).Draw(rt, "steps") {
			if len(pod.Status.ContainerStatuses) == 0 {
				on("n0")(pod)
			}
			steps[i](pod)
		}
		r := kube.Replica("p", e, []*corev1.Pod{pod}, "", born())
		require.NotEmpty(rt, r.State)
		require.False(rt, r.Since.IsZero())
		require.Equal(rt, r.State == mobula.StateReady, r.Reason == "", "%s: %s", r.State, r.Reason)
		endpoint, is := kube.Endpoint(pod)
		if is {
			require.NotEmpty(rt, endpoint.URL)
			require.NotEqual(rt, mobula.StateGone, r.State)
		}
	})
}

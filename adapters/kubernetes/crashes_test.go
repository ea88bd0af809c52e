package kubernetes

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/kube"
)

const (
	hollow    = "exit code 1: RuntimeError: Engine core initialization failed. See root cause above."
	rootCause = "exit code 1: ValueError: To serve at least one request with the model's max seq len (2048), (0.0 GiB KV cache is needed"
	getLog    = "get pods/log"
)

// noRoom is the log of a vLLM whose KV cache has no room for a request of full length, and what a kubelet keeps of it.
func noRoom(t *testing.T) (log, kept string) {
	t.Helper()
	text, err := os.ReadFile("testdata/vllm-0.32-no-room.log")
	require.NoError(t, err)
	log = string(text)
	kept = log[len(log)-2048:]
	require.Contains(t, hollow, engine.FailureReason(strings.Split(kept, "\n"))[:40], "the part has lost the cause")
	return log, kept
}

// reason waits for a replica, the only one, to tell of these words.
func (l *lab) reason(words string) {
	l.t.Helper()
	l.await("a reason: "+words, func() bool {
		all := l.replicas()
		return len(all) == 1 && strings.Contains(all[0].Reason, words)
	})
}

func TestTheCauseOfACrashIsReadFromTheLogOfItsRunOnce(t *testing.T) {
	l, id := one(t, kubetest.Options{})
	log, kept := noRoom(t)
	l.cube.ResetCalls()
	l.cube.Log(testSpace, id, log)
	require.NoError(t, l.cube.Crash(testSpace, id, 1, kept))
	l.reason(rootCause)
	for range 3 {
		l.look()
		l.quiet()
	}
	require.Equal(t, 1, l.cube.Calls()[getLog])

	require.NoError(t, l.cube.Start(testSpace, id))
	l.reason("it is started again: it ended with " + rootCause)
	require.Equal(t, 1, l.cube.Calls()[getLog])

	l.cube.Log(testSpace, id, "ValueError: another one\n"+kept)
	require.NoError(t, l.cube.Crash(testSpace, id, 1, kept))
	l.reason("exit code 1: ValueError: another one")
	require.Equal(t, 2, l.cube.Calls()[getLog], "each crash has its own")

	require.NoError(t, l.cube.DeletePod(testSpace, id))
	l.await("nothing is kept of a pod that is gone", func() bool {
		l.keeper.crashes.mu.Lock()
		defer l.keeper.crashes.mu.Unlock()
		return len(l.keeper.crashes.causes) == 0
	})
}

func TestACrashWhoseLogCantBeReadHasTheReasonThatTheKubeletKept(t *testing.T) {
	log, kept := noRoom(t)
	for _, test := range []struct {
		name, log, kept, want string
		with                  func(c *kubetest.Cluster)
		calls                 int
	}{
		{name: "we may not read it", log: log, kept: kept, with: func(c *kubetest.Cluster) { c.Deny("get", "pods/log") }, want: hollow, calls: 1},
		{name: "it is gone", log: "", kept: kept, want: hollow, calls: 1},
		{name: "it says no more", log: kept, kept: kept, want: hollow, calls: 1},
		{name: "all of it was kept", log: log, kept: "ValueError: short", want: "ValueError: short"},
		{name: "nothing was said", log: log, kept: "", want: "exit code 1"},
		{
			name: "the node does not answer at first", log: log, kept: kept, want: rootCause, calls: 2,
			with: func(c *kubetest.Cluster) { c.Fail("get", "pods/log", http.StatusBadGateway, 1) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, id := one(t, kubetest.Options{})
			if test.with != nil {
				test.with(l.cube)
			}
			l.cube.ResetCalls()
			l.cube.Log(testSpace, id, test.log)
			require.NoError(t, l.cube.Crash(testSpace, id, 1, test.kept))
			l.reason(test.want)
			l.await("it was asked for", func() bool { return l.cube.Calls()[getLog] == test.calls })
			for range 3 {
				l.look()
				l.quiet()
			}
			l.reason(test.want)
			require.Equal(t, test.calls, l.cube.Calls()[getLog], "it is not asked for again")
		})
	}
}

func TestOnlyCrashesThatMayHaveLostTheirCauseAreRead(t *testing.T) {
	long := strings.Repeat("x", crashBytes)
	for _, test := range []struct {
		name    string
		message string
		change  func(*corev1.Pod, *corev1.ContainerStatus)
		want    int
	}{
		{"many bytes", long, nil, 0},
		{"many lines", strings.Repeat("x\n", crashKeptLines), nil, 0},
		{"few of both", "ValueError: x\n", nil, -1},
		{"it is ready again", long, func(_ *corev1.Pod, s *corev1.ContainerStatus) { s.Ready = true }, -1},
		{"it has just crashed once more", long, func(_ *corev1.Pod, s *corev1.ContainerStatus) {
			s.State.Terminated = &corev1.ContainerStateTerminated{}
		}, -1},
		{"it has not crashed", long, func(_ *corev1.Pod, s *corev1.ContainerStatus) { s.LastTerminationState.Terminated = nil }, -1},
		{"it is another container", long, func(_ *corev1.Pod, s *corev1.ContainerStatus) { s.Name = "proxy" }, -1},
		{"its pod has ended", long, func(p *corev1.Pod, _ *corev1.ContainerStatus) { p.Status.Phase = corev1.PodFailed }, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: kube.Container}}
			s := &pod.Status.ContainerStatuses[0]
			s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Message: test.message}
			if test.change != nil {
				test.change(pod, s)
			}
			require.Equal(t, test.want, cutShort(pod))
			before := pod.DeepCopy()
			c := newCrashes()
			defer c.queue.ShutDown()
			c.causes[pod.Name] = cause{text: "ValueError: x"}
			worded := c.worded([]*corev1.Pod{pod})
			require.Equal(t, before, pod, "what is on the shelf is not changed")
			require.Equal(t, test.want == 0, slices.ContainsFunc(worded, func(p *corev1.Pod) bool { return p != pod }))
		})
	}
}

package kubernetes

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/kube"
)

const (
	// crashLines of the log of a run that crashed are read for its cause: vLLM's processes write a traceback each after it.
	crashLines = 400
	// Kubelets keep the last 2048 bytes or 80 lines of a log with the pod, less bytes with many containers: with less of both it is all there was.
	crashBytes     = 1024
	crashKeptLines = 80

	crashReaders = 2
	crashTries   = 4
	crashRetry   = time.Second
)

// crashes finds the causes of crashes in the logs of the runs that ended: what kubelets keep of one is often no more than the last traceback,
// "see root cause above". Each run is read once.
type crashes struct {
	queue workqueue.TypedRateLimitingInterface[string] // names of pods

	mu     sync.Mutex
	causes map[string]cause // by pod, of those on the shelf
}

// cause is why a run crashed, as its log has it; empty for one that says no more.
type cause struct {
	uid  types.UID
	run  int32 // that came after it
	text string
	kept string // what the kubelet's part of the log says
}

func newCrashes() *crashes {
	return &crashes{
		causes: map[string]cause{},
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](crashRetry, lastRetry)),
	}
}

// cutShort gives where a pod tells how its engine's last run crashed, if the kubelet may have kept only a part of what was said; -1 if not.
func cutShort(pod *corev1.Pod) int {
	return slices.IndexFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		t := s.LastTerminationState.Terminated
		return s.Name == kube.Container && t != nil && s.State.Terminated == nil && !s.Ready && pod.DeletionTimestamp == nil && !over(pod) &&
			(len(t.Message) >= crashBytes || strings.Count(t.Message, "\n") >= crashKeptLines-1)
	})
}

// worded gives the pods with the causes of their crashes in the place of what their kubelets kept, and has those be read that are not known.
func (c *crashes) worded(pods []*corev1.Pod) []*corev1.Pod {
	all := slices.Clone(pods)
	for i, pod := range all {
		at := cutShort(pod)
		if at < 0 {
			continue
		}
		s := pod.Status.ContainerStatuses[at]
		why, read := c.cause(pod, s)
		if !read {
			c.queue.Add(pod.Name)
			if why.kept != kept(s) { // until then a crash like the last one has its cause
				continue
			}
		}
		if why.text != "" {
			all[i] = withWords(pod, at, why.text)
		}
	}
	return all
}

// cause gives the last one that is known of a pod, and whether it is that of its last crash.
func (c *crashes) cause(pod *corev1.Pod, s corev1.ContainerStatus) (why cause, read bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	why, known := c.causes[pod.Name]
	return why, known && why.uid == pod.UID && why.run == s.RestartCount
}

// kept is what the kubelet's part of a log says.
func kept(s corev1.ContainerStatus) string {
	return engine.FailureReason(strings.Split(s.LastTerminationState.Terminated.Message, "\n"))
}

// withWords gives a pod with another message of a container's last end. The pod itself is not changed.
func withWords(pod *corev1.Pod, at int, text string) *corev1.Pod {
	next := *pod
	next.Status.ContainerStatuses = slices.Clone(pod.Status.ContainerStatuses)
	end := *next.Status.ContainerStatuses[at].LastTerminationState.Terminated
	end.Message = text
	next.Status.ContainerStatuses[at].LastTerminationState.Terminated = &end
	return &next
}

func (c *crashes) forget(pod string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.causes, pod)
}

// readCrashes reads the logs of runs that crashed until the queue is shut down.
func (s *keeper) readCrashes(ctx context.Context) {
	for {
		pod, over := s.crashes.queue.Get()
		if over {
			return
		}
		s.readCrash(ctx, pod)
		s.crashes.queue.Done(pod)
	}
}

func (s *keeper) readCrash(ctx context.Context, name string) {
	pod, ok := s.pods.get(name).(*corev1.Pod)
	if !ok || cutShort(pod) < 0 {
		s.crashes.queue.Forget(name)
		return
	}
	status := pod.Status.ContainerStatuses[cutShort(pod)]
	if _, read := s.crashes.cause(pod, status); read { // it was asked for once more while it was read
		s.crashes.queue.Forget(name)
		return
	}
	why := cause{uid: pod.UID, run: status.RestartCount, kept: kept(status)}
	err := inTime(ctx, func(ctx context.Context) error {
		log, err := s.read(ctx, name, excerpt{tail: crashLines, previous: true})
		why.text = engine.FailureReason(strings.Split(string(log), "\n"))
		return err
	})
	if err != nil && !refused(err) && s.crashes.queue.NumRequeues(name) < crashTries {
		s.crashes.queue.AddRateLimited(name)
		return
	}
	s.crashes.queue.Forget(name)
	if err != nil {
		s.log.Info("the log of a crash can't be read", "pod", name, "error", Explain(err))
	}
	s.crashes.mu.Lock()
	s.crashes.causes[name] = why
	s.crashes.mu.Unlock()
	if s.pods.get(name) == nil { // it went meanwhile
		s.crashes.forget(name)
	}
	s.queue.Add(groupByLabels(pod))
}

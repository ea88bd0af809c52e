package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const maxLog = 4 << 20 // bytes of a log at most, before what is followed

// Logs reads what a replica's engine prints; for one of several pods, the one that serves. It begins with the end of the run before this one
// when the engine has started again and has said less than tail lines since. Following goes on over runs of the engine, pods that take each
// other's place, and connections that break; it ends when the replica is gone.
func (c *Cluster) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	s, err := c.reach(ctx)
	if err != nil {
		return nil, err
	}
	pod, err := s.serving(replica)
	if err != nil {
		return nil, err
	}
	if !follow {
		text, err := s.past(ctx, pod, tail, false)
		if err != nil {
			return nil, s.notYet(replica, pod, err)
		}
		return io.NopCloser(bytes.NewReader(lastLines(text, tail))), nil
	}
	text, err := s.past(ctx, pod, max(1, tail), true) // one line, to know where to go on
	if err != nil {
		return nil, s.notYet(replica, pod, err)
	}
	return s.follow(ctx, replica, pod, text, tail), nil
}

// serving finds the pod whose log is a replica's.
func (s *keeper) serving(replica string) (*corev1.Pod, error) {
	if pod, ok := s.pods.get(replica).(*corev1.Pod); ok && pod.Labels[kube.LabelServes] == "true" {
		return pod, nil
	}
	for _, o := range s.pods.every() {
		if pod, ok := o.(*corev1.Pod); ok && pod.Labels[kube.LabelReplica] == replica && pod.Labels[kube.LabelServes] == "true" {
			return pod, nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, some := range s.statuses {
		for _, r := range some {
			if r.ID == replica {
				return nil, fmt.Errorf("replica %s has no pod yet: %s", replica, r.Reason)
			}
		}
	}
	return nil, fmt.Errorf("replica %s: %w", replica, adapters.ErrUnknownReplica)
}

// excerpt says what of a log is read.
type excerpt struct {
	tail             int // lines, all of them if it is less than 0
	since            time.Time
	follow, previous bool
	stamps           bool // each line after its time
}

func (s *keeper) stream(ctx context.Context, pod string, x excerpt) (io.ReadCloser, error) {
	o := &corev1.PodLogOptions{Container: kube.Container, Follow: x.follow, Previous: x.previous, Timestamps: x.stamps}
	if x.tail >= 0 {
		o.TailLines = new(int64(x.tail))
	}
	if !x.since.IsZero() {
		o.SinceTime = new(metav1.NewTime(x.since)) // of whole seconds on its way
	}
	return s.link.Client.CoreV1().Pods(s.link.Namespace).GetLogs(pod, o).Stream(ctx)
}

// past gives the last lines of a log, with those of the former run if there are less in this one.
func (s *keeper) past(ctx context.Context, pod *corev1.Pod, tail int, stamps bool) ([]byte, error) {
	now, err := s.read(ctx, pod.Name, excerpt{tail: tail, stamps: stamps})
	if err != nil || !restarted(pod) || tail >= 0 && bytes.Count(now, []byte("\n")) >= tail {
		return now, err
	}
	former, err := s.read(ctx, pod.Name, excerpt{tail: tail, stamps: stamps, previous: true})
	if err != nil || len(former) == 0 {
		return now, nil //nolint:nilerr // it may be gone by now
	}
	if former[len(former)-1] != '\n' {
		former = append(former, '\n')
	}
	return append(former, now...), nil
}

// read gives the end of an excerpt.
func (s *keeper) read(ctx context.Context, pod string, x excerpt) ([]byte, error) {
	log, err := s.stream(ctx, pod, x)
	if err != nil {
		return nil, err
	}
	var text []byte
	for buf := make([]byte, 64<<10); err == nil; {
		var n int
		n, err = log.Read(buf)
		if text = append(text, buf[:n]...); len(text) > 2*maxLog {
			text = append(text[:0], text[len(text)-maxLog:]...)
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, log.Close())
	}
	if more := len(text) - maxLog; more > 0 { // whole lines
		_, text, _ = bytes.Cut(text[more-1:], []byte("\n"))
	}
	return text, log.Close()
}

// lastLines gives the last n lines of a text, all of them for n < 0.
func lastLines(text []byte, n int) []byte {
	if n < 0 {
		return text
	}
	at := len(text)
	for i := len(text) - 2; i >= 0 && n > 0; i-- {
		if text[i] == '\n' {
			n--
			at = i + 1
		}
	}
	if n > 0 {
		at = 0
	}
	return text[at:]
}

// notYet says why there is no log.
func (s *keeper) notYet(replica string, pod *corev1.Pod, err error) error {
	if apierrors.IsBadRequest(err) { // it waits to start
		reason := "its pod waits"
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.statuses[groupByLabels(pod)] {
			if r.ID == replica && r.Reason != "" {
				reason = r.Reason
			}
		}
		return fmt.Errorf("replica %s has not started: %s", replica, reason)
	}
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("replica %s: %w", replica, adapters.ErrUnknownReplica)
	}
	return fmt.Errorf("logs of replica %s: %w", replica, Explain(err))
}

// restarted tells of an engine that runs, or has, after another run in the same pod. While it waits to start its last run is the one that there is.
func restarted(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == kube.Container && s.RestartCount > 0 && s.State.Waiting == nil
	})
}

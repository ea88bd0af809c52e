package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	maxLog     = 4 << 20 // bytes of a log that is not followed
	reopenTail = 1000    // lines of a new run's log, when one is followed
)

// Logs reads what a replica's engine prints; for one of several pods, the one that serves. Following goes on when the engine starts
// again. A log that is not followed has the end of the run before this one when the engine has crashed.
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
		return s.past(ctx, replica, pod, tail)
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &followed{ctx: ctx, cancel: cancel, keeper: s, replica: replica, life: life(pod)}
	if f.log, err = s.stream(ctx, pod.Name, tail, true, false); err != nil {
		cancel()
		return nil, s.notYet(replica, pod, err)
	}
	return f, nil
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

func (s *keeper) stream(ctx context.Context, pod string, tail int, follow, previous bool) (io.ReadCloser, error) {
	o := &corev1.PodLogOptions{Container: kube.Container, Follow: follow, Previous: previous}
	if tail >= 0 {
		o.TailLines = new(int64(tail))
	}
	if !follow {
		o.LimitBytes = new(int64(maxLog))
	}
	return s.link.Client.CoreV1().Pods(s.link.Namespace).GetLogs(pod, o).Stream(ctx)
}

// past gives the last lines of a log, those of the former run first.
func (s *keeper) past(ctx context.Context, replica string, pod *corev1.Pod, tail int) (io.ReadCloser, error) {
	var text []byte
	if restarted(pod) {
		if former, err := s.read(ctx, pod.Name, tail, true); err == nil { // it may be gone by now
			text = former
		}
	}
	now, err := s.read(ctx, pod.Name, tail, false)
	if err != nil && len(text) == 0 {
		return nil, s.notYet(replica, pod, err)
	}
	return io.NopCloser(bytes.NewReader(lastLines(append(text, now...), tail))), nil
}

func (s *keeper) read(ctx context.Context, pod string, tail int, previous bool) ([]byte, error) {
	log, err := s.stream(ctx, pod, tail, false, previous)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(log, maxLog))
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, err
	}
	if n := len(text); n > 0 && text[n-1] != '\n' {
		text = append(text, '\n')
	}
	return text, nil
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

func restarted(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == kube.Container && s.RestartCount > 0
	})
}

// followed is the output of a replica over all lives of its pod. It is for one reader.
type followed struct {
	ctx     context.Context //nolint:containedctx // of the call that it is the answer to
	cancel  context.CancelFunc
	keeper  *keeper
	replica string
	life    string // whose output log is
	log     io.ReadCloser
}

// Read gives the output; when the engine starts again it goes on with that.
func (f *followed) Read(p []byte) (int, error) {
	for {
		if f.log != nil {
			n, err := f.log.Read(p)
			if n > 0 || err == nil {
				return n, nil //nolint:nilerr // it comes again
			}
			_ = f.log.Close()
			f.log = nil
		}
		changed := f.keeper.Changed()
		pod, err := f.keeper.serving(f.replica)
		switch {
		case f.ctx.Err() != nil, errors.Is(err, adapters.ErrUnknownReplica):
			return 0, io.EOF
		case err == nil && life(pod) != f.life:
			if log, err := f.keeper.stream(f.ctx, pod.Name, reopenTail, true, false); err == nil {
				f.log, f.life = log, life(pod)
				continue
			}
		}
		select {
		case <-f.ctx.Done():
			return 0, io.EOF
		case <-changed:
		}
	}
}

// Close ends it; a Read that waits ends too.
func (f *followed) Close() error {
	f.cancel()
	return nil
}

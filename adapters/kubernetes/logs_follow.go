package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	logBuffer    = 32 << 10
	lastReattach = 5 * time.Second // between attempts to go on with a log, at most
)

// followed is the output of a replica over all runs of its engine. It is for one reader.
type followed struct {
	ctx     context.Context //nolint:containedctx // of the call that it is the answer to
	cancel  context.CancelFunc
	keeper  *keeper
	replica string

	text []byte // to be given before anything else
	mark mark   // where in the log that ends
	pod  types.UID
	life string // of the pod's engine, the one to be read now
	seen string // version of the pod that both are from
	// former tells that the end of the run before it is still to be read.
	former bool

	log     io.ReadCloser // nil while there is none
	lines   *bufio.Reader
	before  bool // log is of the former run
	given   bool // it had something new
	settled bool // what ended has been read to its end
	pause   time.Duration
}

// follow gives what was read of a pod's log, up to the last tail lines of it, and then what comes.
func (s *keeper) follow(ctx context.Context, replica string, pod *corev1.Pod, stamped []byte, tail int) io.ReadCloser {
	f := &followed{keeper: s, replica: replica, pod: pod.UID, life: life(pod), seen: pod.ResourceVersion}
	f.ctx, f.cancel = context.WithCancel(ctx)
	var text []byte
	for line := range bytes.Lines(stamped) {
		text = append(text, f.mark.take(line)...)
	}
	f.text = lastLines(text, tail)
	return f
}

// Read gives the output.
func (f *followed) Read(p []byte) (int, error) {
	for len(f.text) == 0 {
		if f.log != nil {
			f.text = f.next()
		} else if err := f.attach(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.text)
	f.text = f.text[n:]
	return n, nil
}

// next gives what is new of a piece of the log.
func (f *followed) next() []byte {
	piece, err := f.lines.ReadSlice('\n')
	text := f.mark.take(piece)
	f.given = f.given || len(text) > 0
	if err == nil || errors.Is(err, bufio.ErrBufferFull) {
		return text
	}
	_ = f.log.Close()
	f.log = nil
	f.settled = errors.Is(err, io.EOF) && !f.given && !f.before
	switch {
	case f.before:
		f.pause = 0
	case f.given:
		f.pause = firstRetry
	}
	return text
}

// attach goes on with the log once there may be more: another run, or more of one that has not ended. The error is io.EOF when there never
// will be.
func (f *followed) attach() error {
	again := time.NewTimer(f.pause)
	defer again.Stop()
	for due := false; ; {
		changed := f.keeper.Changed()
		pod, err := f.keeper.serving(f.replica)
		if f.ctx.Err() != nil || errors.Is(err, adapters.ErrUnknownReplica) {
			return io.EOF
		}
		var next <-chan time.Time
		switch {
		case err != nil: // it has no pod now
		case due, newer(pod.ResourceVersion, f.seen) && (pod.UID != f.pod || life(pod) != f.life):
			return f.open(pod.Name)
		case runs(pod), !f.settled:
			next = again.C
		}
		select {
		case <-f.ctx.Done():
			return io.EOF
		case <-changed:
		case <-next:
			due = true
		}
	}
}

// open asks for the log from where it was read last. What fails is tried again, unless it is refused.
func (f *followed) open(pod string) error {
	f.pause = min(max(firstRetry, 2*f.pause), lastReattach)
	err := f.look(pod)
	if err != nil {
		return f.failed(pod, err)
	}
	f.before, f.given, f.settled = f.former, false, false
	f.mark.again()
	log, err := f.keeper.stream(f.ctx, pod, excerpt{tail: -1, since: f.mark.at, follow: !f.before, previous: f.before, stamps: true})
	if err != nil {
		return f.failed(pod, err)
	}
	f.former, f.log, f.lines = false, log, bufio.NewReaderSize(log, logBuffer)
	return nil
}

// look sees which run there is to be read now. What the watch has shown may be older than the log.
func (f *followed) look(name string) error {
	s := f.keeper
	pod, err := s.link.Client.CoreV1().Pods(s.link.Namespace).Get(f.ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := life(pod)
	switch {
	case pod.UID != f.pod: // on another node, with another clock
		f.former, f.mark = false, mark{part: f.mark.part}
	case now != f.life:
		f.former = restarted(pod)
	}
	f.pod, f.life, f.seen = pod.UID, now, pod.ResourceVersion
	return nil
}

// failed gives the error if it is for good.
func (f *followed) failed(pod string, err error) error {
	switch err = Explain(err); {
	case apierrors.IsForbidden(err):
		return explain("read the log of", "Pod", pod, err)
	case refused(err) && f.former: // the run before is gone, this one is not
		f.former, f.pause = false, 0
	default:
		f.settled = refused(err) // it waits to start, or is about to be gone
	}
	return nil
}

// Close ends it; a Read that waits ends too.
func (f *followed) Close() error {
	f.cancel()
	return nil
}

// runs tells whether the engine's process runs.
func runs(pod *corev1.Pod) bool {
	for i := range pod.Status.ContainerStatuses {
		if s := &pod.Status.ContainerStatuses[i]; s.Name == kube.Container {
			return s.State.Running != nil
		}
	}
	return false
}

// Package gpu tells which GPUs a host has and how they fare, by NVIDIA's management library (NVML) where
// there is one.
package gpu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
)

// Errors of reading GPUs.
var (
	// ErrNVML: the library is there and fails; the message says what to do.
	ErrNVML = errors.New("NVML failed")
	// ErrSilent: it doesn't answer, as it happens when a GPU hangs.
	ErrSilent = errors.New("NVML does not answer")
	// ErrClosed: the reader has been closed.
	ErrClosed = errors.New("GPU reader is closed")

	// errNoLibrary: there is no NVML on this host, or no driver for it.
	errNoLibrary = errors.New("no NVML")
)

const (
	readTimeout  = 10 * time.Second
	eventTimeout = time.Second
)

// library is NVML as far as it is used here; recorded values stand in for it in tests. read and wait may be called at once.
type library interface {
	// read tells how all GPUs are now.
	read() (snapshot, error)
	// wait gives the next XID errors; none when there was none for a while.
	wait(timeout time.Duration) ([]xidEvent, error)
	close() error
}

// Options of a Reader.
type Options struct {
	// Environ is the agent's own environment, whose CUDA_VISIBLE_DEVICES bounds what it may use. Default os.Environ.
	Environ []string
	// Dev is where device files are, for hosts without NVML. Default /dev.
	Dev string
	// Logger takes what the driver reports of GPUs. Default: nowhere.
	Logger *slog.Logger
}

// Reader reads a host's GPUs. Its methods may be called by many goroutines at once.
type Reader struct {
	log     *slog.Logger
	visible visible
	dev     string
	lib     library // nil without NVML

	reads chan chan<- reading
	stop  chan struct{}
	done  sync.WaitGroup
	once  sync.Once

	mu   sync.Mutex
	xids map[string]int // the first critical XID of a GPU by its UUID
}

type reading struct {
	snapshot snapshot
	err      error
}

// Open finds NVML. A host without it, and a Mobula built without cgo, has the GPUs that its device files show; a host
// without those has none, and that is no error. NVML that is there and fails is one (ErrNVML).
func Open(o Options) (*Reader, error) {
	lib, err := openNVML()
	if err != nil && !errors.Is(err, errNoLibrary) {
		return nil, err
	}
	return newReader(o, lib), nil
}

func newReader(o Options, lib library) *Reader {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Dev == "" {
		o.Dev = "/dev"
	}
	r := &Reader{
		log: o.Logger, visible: visibleIn(o.Environ), dev: o.Dev, lib: lib,
		reads: make(chan chan<- reading), stop: make(chan struct{}), xids: map[string]int{},
	}
	if lib != nil {
		r.done.Go(r.serve)
		r.done.Go(r.watch)
	}
	return r
}

// Devices gives the GPUs and MIG instances that the agent may use, in the order of CUDA_VISIBLE_DEVICES if that is
// set. A device that must not be used is among them, with Unhealthy. It takes at most ten seconds.
func (r *Reader) Devices(ctx context.Context) ([]mobula.Device, error) {
	if r.lib == nil {
		return bare(r.visible, r.dev, listed(ctx)), nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, fmt.Errorf("%w for %s: look for a hung GPU with `dmesg | grep -i xid`, then reboot the host", ErrSilent, readTimeout))
	defer cancel()
	answer := make(chan reading, 1)
	select {
	case r.reads <- answer:
	case <-r.stop:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case got := <-answer:
		if got.err != nil {
			return nil, got.err
		}
		r.mu.Lock()
		xids := maps.Clone(r.xids)
		r.mu.Unlock()
		return r.visible.filter(devices(got.snapshot, xids)), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Close ends the reader. A call into a driver that hangs can't be ended: then it gives up after ten
// seconds with ErrSilent. A second call does nothing.
func (r *Reader) Close() error {
	var err error
	r.once.Do(func() {
		close(r.stop)
		if r.lib == nil {
			return
		}
		ended := make(chan error, 1)
		go func() {
			r.done.Wait()
			ended <- r.lib.close()
		}()
		select {
		case err = <-ended:
		case <-time.After(readTimeout):
			err = fmt.Errorf("close: %w", ErrSilent)
		}
	})
	return err
}

// serve reads one at a time, so that a driver that hangs holds one goroutine and not one for each caller.
func (r *Reader) serve() {
	var last snapshot
	for {
		select {
		case answer := <-r.reads:
			now, err := r.lib.read()
			if err == nil {
				now = now.remember(last)
				last = now
			}
			answer <- reading{now, err}
		case <-r.stop:
			return
		}
	}
}

// watch gathers critical XID errors.
func (r *Reader) watch() {
	failing := false
	for {
		select {
		case <-r.stop:
			return
		default:
		}
		events, err := r.lib.wait(eventTimeout)
		if err != nil {
			if !failing {
				r.log.Warn("XID errors of GPUs can't be watched", "err", err)
			}
			failing = true
			select {
			case <-r.stop:
				return
			case <-time.After(10 * eventTimeout):
			}
			continue
		}
		failing = false
		for _, e := range events {
			r.note(e)
		}
	}
}

func (r *Reader) note(e xidEvent) {
	what := critical(e.xid)
	if what == "" {
		r.log.Warn("GPU has reported an error that ends an application at most", "gpu", e.uuid, "xid", e.xid)
		return
	}
	r.log.Error("GPU has reported a critical error", "gpu", e.uuid, "xid", e.xid, "what", what)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, seen := r.xids[e.uuid]; !seen {
		r.xids[e.uuid] = e.xid
	}
}

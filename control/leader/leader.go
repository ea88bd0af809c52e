// Package leader lets several control planes of one fleet stand by for each other on Kubernetes: one of them leads, by a
// Lease, and what it has to remember is in a Secret that the next one takes over.
package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/retry"
)

// ErrLost is why a leader has to end: another one leads, or it could not say in time that it still does.
var ErrLost = errors.New("no longer the leader")

// Pace of the election, that of Kubernetes' own controllers: a leader that dies is followed after 15 s, one that ends in order at once.
const (
	leaseFor    = 15 * time.Second
	renewWithin = 10 * time.Second
	renewEvery  = 2 * time.Second
)

// Options are of one who stands for election.
type Options struct {
	Client    kubernetes.Interface
	Namespace string
	// Lease is the name of the Lease, which is made when it is not there.
	Lease string
	// Identity tells this one from the others: the pod's name.
	Identity string
	// Logger is told who leads. Required.
	Logger *slog.Logger
}

// Lead waits until it is this one's turn, then calls lead with a context that ends with ctx and when leadership is lost. Once lead has
// returned in order the lease is given up. Who has lost it leaves it to run out: lead has leaseFor - renewWithin to end before anybody
// else may begin. Lead gives lead's error, ErrLost when leadership was lost, and ctx's when that ended before its turn.
func Lead(ctx context.Context, o Options, lead func(context.Context) error) error {
	// What holds the lease outlives ctx: lead ends in order while nobody else may begin.
	hold, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	lost := fmt.Errorf("lease %s/%s: %w", o.Namespace, o.Lease, ErrLost)
	l := &lease{Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Lease},
		Client:     o.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}, lose: func() { stop(lost) }}
	defer l.close()
	done := make(chan error, 1)
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l, LeaseDuration: leaseFor, RenewDeadline: renewWithin, RetryPeriod: renewEvery, Name: o.Lease,
		ReleaseOnCancel: false, // it would release a lease that is lost, too, while lead goes on
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { // ends later than work
				o.Logger.InfoContext(ctx, "this control plane leads", "lease", o.Lease, "identity", o.Identity)
				err := lead(work)
				if cause := context.Cause(work); errors.Is(cause, ErrLost) {
					err = cause
				}
				done <- err
				release()
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if identity != o.Identity {
					o.Logger.InfoContext(ctx, "another control plane leads", "lease", o.Lease, "leader", identity)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", o.Namespace, o.Lease, err)
	}
	defer context.AfterFunc(ctx, func() {
		if !l.won.Load() {
			release()
		}
	})()
	e.Run(hold)
	if !l.won.Load() {
		return ctx.Err()
	}
	err = <-done // lead has ended, or will: its context has
	if !errors.Is(err, ErrLost) {
		if err := l.giveUp(context.WithoutCancel(ctx)); err != nil {
			o.Logger.WarnContext(ctx, "can't give the lease up: it runs out", "lease", o.Lease, "err", err)
		}
	}
	return err
}

// lease is a Lease that is lost renewWithin after the last write of it began, whatever the elector does: that counts from the answer,
// and ends the lead only when its last request has ended.
type lease struct {
	resourcelock.Interface
	won  atomic.Bool // it was written, thus is this one's turn
	lose func()
	over *time.Timer // of the elector alone, while it runs
}

// Create implements resourcelock.Interface.
func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	began := time.Now()
	return l.written(began, l.Interface.Create(ctx, r))
}

// Update implements resourcelock.Interface.
func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	began := time.Now()
	return l.written(began, l.Interface.Update(ctx, r))
}

func (l *lease) written(began time.Time, err error) error {
	if err != nil {
		return err
	}
	left := time.Until(began.Add(renewWithin))
	if l.over == nil {
		l.over = time.AfterFunc(left, l.lose)
	} else {
		l.over.Reset(left)
	}
	l.won.Store(true)
	return nil
}

func (l *lease) close() {
	if l.over != nil {
		l.over.Stop()
	}
}

// giveUp frees the lease for whoever asks next, unless it is another's by now: what this one remembers of it does not count.
func (l *lease) giveUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewWithin)
	defer cancel()
	return retry.RetryOnConflict(retry.DefaultRetry, func() error { // a renewal may be under way still
		r, _, err := l.Get(ctx)
		if err != nil || r.HolderIdentity != l.Identity() {
			return err
		}
		now := metav1.Now()
		return l.Interface.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaderTransitions: r.LeaderTransitions, LeaseDurationSeconds: 1, AcquireTime: now, RenewTime: now,
		})
	})
}

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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
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

// Lead waits until it is this one's turn, then calls lead with a context that ends with ctx and when leadership is lost. The lease is
// given up once lead has returned. Lead gives lead's error, ErrLost when leadership was lost, and ctx's when that ended before its turn.
func Lead(ctx context.Context, o Options, lead func(context.Context) error) error {
	// What holds the lease outlives ctx: lead ends in order while nobody else may begin.
	hold, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	turn := new(turn)
	done := make(chan error, 1)
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Lease},
			Client:     o.Client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity, EventRecorder: turn},
		},
		LeaseDuration: leaseFor, RenewDeadline: renewWithin, RetryPeriod: renewEvery, ReleaseOnCancel: true, Name: o.Lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(elected context.Context) {
				o.Logger.InfoContext(ctx, "this control plane leads", "lease", o.Lease, "identity", o.Identity)
				work, stop := context.WithCancel(elected)
				defer stop()
				defer context.AfterFunc(ctx, stop)()
				err := lead(work)
				if elected.Err() != nil && ctx.Err() == nil {
					err = fmt.Errorf("lease %s/%s: %w", o.Namespace, o.Lease, ErrLost)
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
		if !turn.came() {
			release()
		}
	})()
	e.Run(hold)
	if !turn.came() {
		return ctx.Err()
	}
	return <-done // lead has ended, or will: its context has
}

// turn notes that the election was won: the elector sends an event of it before it does anything else.
type turn struct{ won atomic.Bool }

func (t *turn) came() bool { return t.won.Load() }

// Eventf implements resourcelock.EventRecorder. The first event is of the election, one of its end may follow.
func (t *turn) Eventf(runtime.Object, string, string, string, ...any) { t.won.Store(true) }

package leader

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

const patience = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cluster(t *testing.T) *kubetest.Cluster {
	t.Helper()
	c := kubetest.New(kubetest.Options{})
	t.Cleanup(c.Close)
	return c
}

// candidate stands for election until the returned stop is called, which gives Lead's error.
func candidate(t *testing.T, c *kubetest.Cluster, name string) (leads <-chan context.Context, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	began, done := make(chan context.Context, 1), make(chan error, 1)
	o := Options{Client: c.Client(), Namespace: "n", Lease: "l", Identity: name, Logger: slog.New(slog.DiscardHandler)}
	go func() {
		done <- Lead(ctx, o, func(ctx context.Context) error {
			began <- ctx
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	stop = func() error {
		cancel()
		return receive(t, done)
	}
	return began, stop
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		require.FailNow(t, "it never came")
		panic("unreachable")
	}
}

func TestOneLeadsAndTheNextFollows(t *testing.T) {
	c := cluster(t)
	first, stopFirst := candidate(t, c, "a")
	receive(t, first)
	second, stopSecond := candidate(t, c, "b")
	select {
	case <-second:
		require.FailNow(t, "two lead")
	case <-time.After(3 * renewEvery / 2):
	}
	require.ErrorIs(t, stopFirst(), context.Canceled)
	receive(t, second) // long before the lease would have run out, if it was given up
	require.ErrorIs(t, stopSecond(), context.Canceled)
}

func TestWhoNeverLedStopsAtOnce(t *testing.T) {
	c := cluster(t)
	first, stopFirst := candidate(t, c, "a")
	receive(t, first)
	_, stopSecond := candidate(t, c, "b")
	require.ErrorIs(t, stopSecond(), context.Canceled)
	require.ErrorIs(t, stopFirst(), context.Canceled)
}

func TestALeaderThatCannotSaySoEnds(t *testing.T) {
	c := cluster(t)
	began, done := make(chan struct{}), make(chan error, 1)
	o := Options{Client: c.Client(), Namespace: "n", Lease: "l", Identity: "a", Logger: slog.New(slog.DiscardHandler)}
	go func() {
		done <- Lead(t.Context(), o, func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	receive(t, began)
	c.Down(true)
	require.ErrorIs(t, receive(t, done), ErrLost)
}

// A control plane whose pod starts again in an outage waits: it does not end again and again.
func TestWhoStandsForElectionOutlivesAnOutage(t *testing.T) {
	c := cluster(t)
	c.Down(true)
	leads, stop := candidate(t, c, "a")
	select {
	case <-leads:
		require.FailNow(t, "it leads and nobody knows")
	case <-time.After(3 * renewEvery / 2): // it has tried
	}
	c.Down(false)
	receive(t, leads)
	require.ErrorIs(t, stop(), context.Canceled)
}

// Who has lost the lease in an outage may take it again, with the state as it was written last.
func TestWhoLostTheLeaseLeadsAgain(t *testing.T) {
	c := cluster(t)
	o := Options{Client: c.Client(), Namespace: "n", Lease: "l", Identity: "a", Logger: slog.New(slog.DiscardHandler)}
	written := errors.New("written")
	var old *Store
	for turn := range 2 {
		began, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- Lead(t.Context(), o, func(ctx context.Context) error {
				s, err := OpenStore(ctx, o.Client, "n", "state")
				if err != nil {
					return err
				}
				close(began)
				if turn > 0 {
					return errors.Join(written, s.Write(set("k", "2")))
				}
				old = s
				err = s.Write(set("k", "1"))
				<-ctx.Done()
				return err
			})
		}()
		receive(t, began)
		if turn == 0 {
			c.Down(true)
			require.ErrorIs(t, receive(t, done), ErrLost)
			c.Down(false)
			continue
		}
		require.ErrorIs(t, receive(t, done), written)
	}
	require.ErrorIs(t, old.Write(set("k", "3")), ErrLost, "what is left of the first turn writes nothing")
	require.Equal(t, []string{"b/k=2"}, all(t, open(t, c), "b"))
}

func TestWhatTheLeaderFailsAt(t *testing.T) {
	c := cluster(t)
	broken := errors.New("broken")
	o := Options{Client: c.Client(), Namespace: "n", Lease: "l", Identity: "a", Logger: slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, Lead(t.Context(), o, func(context.Context) error { return broken }), broken)
	next, stop := candidate(t, c, "b")
	receive(t, next)
	require.ErrorIs(t, stop(), context.Canceled)
}

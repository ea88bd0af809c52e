package leader

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// server is an API server that has one Lease, within the process: its time is the test's.
type server struct {
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
}

// answer does what a request asks for.
func (s *server) answer(method string, body []byte) (int, any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case method == http.MethodGet && s.lease == nil:
		return http.StatusNotFound, refusal("NotFound")
	case method == http.MethodGet:
		return http.StatusOK, s.lease
	}
	var sent coordinationv1.Lease
	if err := json.Unmarshal(body, &sent); err != nil {
		return http.StatusBadRequest, refusal("BadRequest")
	}
	switch {
	case method == http.MethodPost && s.lease != nil:
		return http.StatusConflict, refusal("AlreadyExists")
	case method == http.MethodPut && sent.ResourceVersion != s.lease.ResourceVersion:
		return http.StatusConflict, refusal("Conflict")
	}
	s.keep(&sent)
	return http.StatusOK, s.lease
}

func (s *server) keep(l *coordinationv1.Lease) {
	s.version++
	l.ResourceVersion = strconv.Itoa(s.version)
	l.APIVersion, l.Kind = "coordination.k8s.io/v1", "Lease"
	s.lease = l
}

// seize writes who holds the lease, past the election.
func (s *server) seize(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lease.DeepCopy()
	l.Spec.HolderIdentity = &who
	s.keep(l)
}

func (s *server) holder() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil || s.lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *s.lease.Spec.HolderIdentity
}

func refusal(reason string) any {
	return map[string]string{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason}
}

// wire is one candidate's way to the server.
type wire struct {
	server *server
	before atomic.Pointer[func(ctx context.Context, method string) (code int)] // code 0: go on
	after  atomic.Pointer[func(ctx context.Context, method string)]
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	code, answer := 0, any(nil)
	if do := w.before.Load(); do != nil {
		code, answer = (*do)(r.Context(), r.Method), refusal("InternalError")
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if code == 0 {
		code, answer = w.server.answer(r.Method, body)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	if do := w.after.Load(); do != nil {
		(*do)(r.Context(), r.Method)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(text)), Request: r,
	}, nil
}

// runner stands for election.
type runner struct {
	wire  *wire
	stop  context.CancelFunc
	began chan context.Context
	done  chan error
}

// field is a server with candidates, of whom two led at a time or not.
type field struct {
	server  server
	leading atomic.Int32
	two     atomic.Bool
}

// run has one stand for election, whose lead takes a while to end.
func (f *field) run(t *testing.T, name string, windDown time.Duration) *runner {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &runner{wire: &wire{server: &f.server}, stop: cancel, began: make(chan context.Context, 1), done: make(chan error, 1)}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://api", Transport: r.wire, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	require.NoError(t, err)
	o := Options{Client: client, Namespace: "n", Lease: "l", Identity: name, Logger: slog.New(slog.DiscardHandler)}
	go func() {
		r.done <- Lead(ctx, o, func(ctx context.Context) error {
			if f.leading.Add(1) > 1 {
				f.two.Store(true)
			}
			defer f.leading.Add(-1)
			r.began <- ctx
			<-ctx.Done()
			time.Sleep(windDown)
			return ctx.Err()
		})
	}()
	return r
}

// renewed waits for the next answer to a renewal.
func (w *wire) renewed(t *testing.T) {
	t.Helper()
	next := make(chan struct{}, 1)
	w.after.Store(new(func(context.Context, string) {
		select {
		case next <- struct{}{}:
		default:
		}
	}))
	<-next
	w.after.Store(nil)
	synctest.Wait()
}

// hang waits for what to be closed, as long as the one who asks does.
func hang(ctx context.Context, until <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-until:
	}
}

// What is wrong on the way to the API server, and when it is right again: never do two lead, and the next one keeps what it took.
func TestNeverDoTwoLead(t *testing.T) {
	const windDown = leaseFor - renewWithin - time.Second
	for name, trouble := range map[string]func(w *wire, over <-chan struct{}){
		"writes fail, then work": func(w *wire, _ <-chan struct{}) {
			w.before.Store(new(func(_ context.Context, method string) int {
				if method == http.MethodGet {
					return 0
				}
				return http.StatusInternalServerError
			}))
			time.Sleep(renewWithin + renewEvery/2) // after the last try to renew
			w.before.Store(nil)
		},
		"packets are dropped until another leads": func(w *wire, over <-chan struct{}) {
			w.before.Store(new(func(ctx context.Context, _ string) int {
				hang(ctx, over)
				return 0
			}))
		},
		"an answer comes late, then none": func(w *wire, over <-chan struct{}) {
			late := make(chan struct{})
			w.after.Store(new(func(ctx context.Context, _ string) { hang(ctx, late) }))
			time.Sleep(renewWithin - renewEvery)
			w.before.Store(new(func(ctx context.Context, _ string) int {
				hang(ctx, over)
				return 0
			}))
			w.after.Store(nil)
			close(late)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(field)
				a := f.run(t, "a", windDown)
				<-a.began
				b := f.run(t, "b", 0)
				a.wire.renewed(t)
				over := make(chan struct{})
				trouble(a.wire, over)
				lead := <-b.began
				close(over)
				require.ErrorIs(t, <-a.done, ErrLost)
				synctest.Wait()
				require.False(t, f.two.Load(), "two led")
				require.NoError(t, lead.Err())
				require.Equal(t, "b", f.server.holder())
				b.stop()
				require.ErrorIs(t, <-b.done, context.Canceled)
			})
		})
	}
}

// Who has lost the lease writes nothing to it, even when it may again.
func TestALeaseThatIsLostIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(field)
		a := f.run(t, "a", 0)
		<-a.began
		b := f.run(t, "b", 0)
		over := make(chan struct{})
		a.wire.before.Store(new(func(ctx context.Context, _ string) int {
			hang(ctx, over)
			return 0
		}))
		<-b.began
		close(over)
		require.ErrorIs(t, <-a.done, ErrLost)
		require.Equal(t, "b", f.server.holder())
		b.stop()
		require.ErrorIs(t, <-b.done, context.Canceled)
	})
}

// However long an orderly end takes, nobody else leads meanwhile; then the lease is free.
func TestAnOrderlyEndGivesTheLeaseUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(field)
		a := f.run(t, "a", 4*leaseFor)
		<-a.began
		b := f.run(t, "b", 0)
		a.stop()
		<-b.began
		require.False(t, f.two.Load(), "two led")
		require.ErrorIs(t, <-a.done, context.Canceled)
		b.stop()
		require.ErrorIs(t, <-b.done, context.Canceled)
		require.Empty(t, f.server.holder(), "nobody has to wait for it")
	})
}

// Who gives the lease up looks whose it is now, and what came in between does not hurt.
func TestWhatIsGivenUpIsOnesOwn(t *testing.T) {
	for _, c := range []struct {
		name, holder, want string
		between            bool
	}{
		{"another's", "x", "x", false},
		{"another's just now", "x", "x", true},
		{"renewed just now", "a", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(field)
				a := f.run(t, "a", 0)
				<-a.began
				synctest.Wait()
				if c.between {
					var once sync.Once
					a.wire.after.Store(new(func(_ context.Context, method string) {
						if method == http.MethodGet {
							once.Do(func() { f.server.seize(c.holder) })
						}
					}))
				} else {
					f.server.seize(c.holder)
				}
				a.stop()
				require.ErrorIs(t, <-a.done, context.Canceled)
				require.Equal(t, c.want, f.server.holder())
			})
		})
	}
}

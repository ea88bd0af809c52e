package front

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/router/proxy"
)

// Ways for a client to leave.
var leaves = []struct {
	name  string
	leave func(t *testing.T, p *peer)
}{
	{"fin", func(t *testing.T, p *peer) { t.Helper(); require.NoError(t, p.Close()) }},
	{"half-close", func(t *testing.T, p *peer) { t.Helper(); require.NoError(t, p.CloseWrite()) }},
	{"rst", func(t *testing.T, p *peer) {
		t.Helper()
		require.NoError(t, p.SetLinger(0))
		require.NoError(t, p.Close())
	}},
}

func TestLeavingClientCancels(t *testing.T) {
	phases := []struct {
		name  string
		begin func(c proxy.Client) error // what is sent before the client leaves
	}{
		{"while waiting", func(proxy.Client) error { return nil }},
		{"in a stream", func(c proxy.Client) error {
			return errors.Join(c.Head(200, nil, -1), c.Write([]byte("data: 1\n\n")))
		}},
	}
	for _, w := range watchers {
		t.Run(w.name, func(t *testing.T) {
			for _, phase := range phases {
				for _, l := range leaves {
					t.Run(phase.name+" by "+l.name, func(t *testing.T) {
						running, cancelled := make(chan struct{}), make(chan struct{})
						s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
							if string(r.Path) == "/first" {
								return echo(r, c)
							}
							gone := make(signal)
							if !c.Watch(gone) {
								return errors.New("gone too early")
							}
							if err := phase.begin(c); err != nil {
								return err
							}
							close(running)
							<-gone
							c.Unwatch()
							if c.Watch(make(signal)) {
								t.Error("gone is not for ever")
							}
							close(cancelled)
							return nil
						})}, w.prepare)
						p := s.dial()
						p.send(post("/first", "x"))
						_, _ = p.answer()
						p.send(post("/", "x"))
						wait(t, running)
						l.leave(t, p)
						wait(t, cancelled)
					})
				}
			}
		})
	}
}

func TestClientThatLeftBeforeWatchIsNoticed(t *testing.T) {
	for _, w := range watchers {
		t.Run(w.name, func(t *testing.T) {
			left, cancelled := make(chan struct{}), make(chan struct{})
			s := start(t, Options{Handler: handlerFunc(func(_ *Request, c proxy.Client) error {
				<-left
				if gone := make(signal); c.Watch(gone) {
					<-gone
				}
				close(cancelled)
				return nil
			})}, w.prepare)
			p := s.dial()
			p.send(post("/", "x"))
			require.NoError(t, p.Close())
			close(left)
			wait(t, cancelled)
		})
	}
}

func TestClientThatStaysIsNotCancelled(t *testing.T) {
	for _, w := range watchers {
		t.Run(w.name, func(t *testing.T) {
			var cancelled atomic.Int64
			s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
				if string(r.Path) == "/last" { // its answer may be read, and the client gone, before an Unwatch
					return echo(r, c)
				}
				if !c.Watch(counter{&cancelled}) {
					return errors.New("gone")
				}
				defer c.Unwatch()
				return echo(r, c)
			})}, w.prepare)
			p := s.dial()
			for range 200 {
				p.send(post("/", "hello"))
				_, body := p.answer()
				require.Equal(t, "hello", body)
			}
			p.send(post("/last", ""))
			_, _ = p.answer()
			require.NoError(t, p.Close())
			require.Eventually(t, func() bool { return s.open.Load() == 0 }, patience, time.Millisecond)
			require.Zero(t, cancelled.Load())
		})
	}
}

// counter is a Canceler that counts.
type counter struct{ n *atomic.Int64 }

func (c counter) Cancel() { c.n.Add(1) }

// guard is a Canceler that must not run after Unwatch. Its field is not atomic: the race
// detector sees to it that Cancel and what follows Unwatch are ordered.
type guard struct {
	over      bool
	cancelled int
}

func (g *guard) Cancel() {
	if g.over {
		panic("cancelled after Unwatch")
	}
	g.cancelled++
}

func TestCancelNeverRunsAfterUnwatch(t *testing.T) {
	for _, w := range watchers {
		t.Run(w.name, func(t *testing.T) {
			var served, twice atomic.Int64
			s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
				for range 50 {
					g := &guard{}
					if !c.Watch(g) {
						break
					}
					c.Unwatch()
					if g.over = true; g.cancelled > 1 {
						twice.Add(1)
					}
				}
				served.Add(1)
				return echo(r, c)
			})}, w.prepare)
			const clients = 300
			for i := range clients {
				p := s.dial()
				p.send(post("/", "x"))
				if i%2 == 0 {
					require.NoError(t, p.SetLinger(0))
				}
				require.NoError(t, p.Close())
			}
			// A reset may overtake the request, so that not all are served.
			require.Eventually(t, func() bool { return s.open.Load() == 0 }, patience, time.Millisecond)
			require.NotZero(t, served.Load())
			require.Zero(t, twice.Load())
			require.Zero(t, s.panics.Load())
		})
	}
}

// Descriptors are used again at once; an event of the last owner must not hit the next one.
func TestEventsOfClosedConnectionsHitNobody(t *testing.T) {
	var wrong atomic.Int64
	unwatched := make(chan struct{})
	s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
		g := &guard{}
		watched := c.Watch(g)
		err := echo(r, c)
		c.Unwatch()
		if string(r.Path) == "/stay" {
			if !watched || g.cancelled > 0 {
				wrong.Add(1)
			}
			unwatched <- struct{}{}
		}
		return err
	})})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 300 {
			p := s.dial()
			p.send(post("/leave", "x"))
			_ = p.Close()
		}
	}()
	for range 300 {
		p := s.dial()
		p.send(post("/stay", "x"))
		_, _ = p.answer()
		wait(t, unwatched)
		_ = p.Close()
	}
	<-done
	require.Zero(t, wrong.Load())
}

func TestHandedOverConnectionsAreForgotten(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	s := start(t, Options{
		Handler: handlerFunc(func(r *Request, c proxy.Client) error {
			c.Watch(make(signal))
			return echo(r, c)
		}),
		Fallback: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			close(entered)
			<-r.Context().Done()
			close(left)
		}),
	})
	p := s.dial()
	p.send(post("/", "x"))
	_, _ = p.answer()
	p.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	wait(t, entered)
	require.NoError(t, p.Close())
	wait(t, left) // net/http finds out by itself
}

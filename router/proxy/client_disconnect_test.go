package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

func TestClientThatLeavesCancelsTheEngine(t *testing.T) {
	for _, c := range []struct {
		name   string
		script func(r *request, here chan<- bool) bool // says true when the client may leave, then waits for the end
	}{
		{name: "waiting for the first byte", script: func(r *request, here chan<- bool) bool {
			here <- true
			here <- r.waitGone() == nil
			return false
		}},
		{name: "after the head", script: func(r *request, here chan<- bool) bool {
			r.say(streamHead)
			here <- true
			here <- r.waitGone() == nil
			return false
		}},
		{name: "in a stream", script: func(r *request, here chan<- bool) bool {
			r.say(streamHead + chunk(token(0)))
			here <- true
			here <- r.waitGone() == nil
			return false
		}},
		{name: "in a plain answer", script: func(r *request, here chan<- bool) bool {
			r.say(plain(200, strings.Repeat("x", 1000))[:300])
			here <- true
			here <- r.waitGone() == nil
			return false
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			here := make(chan bool)
			f := newFake(t, func(r *request) bool { return c.script(r, here) })
			p, client := newProxy(t, retries(2)), &MemoryClient{}
			end := begin(p, exchange(f.Endpoint, f.Endpoint), client)
			<-here
			client.Leave()
			require.True(t, <-here, "the engine sees the connection close")
			got := end(t)
			require.Equal(t, CauseClientGone, cause(t, got.Err))
			require.Equal(t, []string{"client_gone"}, got.causes(), "nothing is retried")
			require.Equal(t, []Stat{{Endpoint: f.ID}}, p.Stats(), "the connection is not kept")
		})
	}
}

// leaver is a client that leaves a while after the attempt has begun, or after it has ended.
type leaver struct {
	log
	MemoryClient
	afterwards bool
}

func (l *leaver) Sent(e *pick.Endpoint) {
	l.log.Sent(e)
	if !l.afterwards {
		time.AfterFunc(50*time.Millisecond, l.Leave)
	}
}

func (l *leaver) Ended(e *pick.Endpoint, o Outcome) {
	l.log.Ended(e, o)
	if l.afterwards {
		time.AfterFunc(50*time.Millisecond, l.Leave)
	}
}

func TestClientThatLeavesEndsOtherWaits(t *testing.T) {
	leave := func(t *testing.T, x *Exchange, o Options, afterwards bool) *trip {
		t.Helper()
		l := &leaver{afterwards: afterwards}
		x.Client, x.Hooks = &l.MemoryClient, l
		result := newProxy(t, o).Do(x)
		got := &trip{Result: result, log: l.log}
		got.check(t, x)
		return got
	}
	t.Run("writing a body", func(t *testing.T) {
		l := listen(t, "127.0.0.1:0")
		defer l.Close()
		x := exchange(endpoint("e", "http://"+l.Addr().String()))
		x.Body = make([]byte, 64<<20)
		require.Equal(t, CauseClientGone, cause(t, leave(t, x, Options{}, false).Err))
	})
	t.Run("retry-after", func(t *testing.T) {
		f := newFake(t, always(plain(429, "", "Retry-After: 3000")))
		o := retries(2)
		o.Retries.MaxRetryAfter = long
		got := leave(t, exchange(f.Endpoint), o, true)
		require.Equal(t, CauseClientGone, cause(t, got.Err))
		require.Equal(t, []string{"busy+"}, got.causes())
	})
	t.Run("dialing", func(t *testing.T) {
		l := listen(t, "127.0.0.1:0") // never accepts, so the handshake hangs
		defer l.Close()
		got := leave(t, exchange(endpoint("e", "https://"+l.Addr().String())), Options{Timeouts: mobula.Timeouts{Connect: long}}, false)
		require.Equal(t, CauseClientGone, cause(t, got.Err))
		require.Equal(t, []string{"client_gone"}, got.causes())
	})
	t.Run("before it begins", func(t *testing.T) {
		f := newFake(t, always(plain(200, "hi")))
		client := &MemoryClient{}
		client.Leave()
		got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), client)
		require.Equal(t, CauseClientGone, cause(t, got.Err))
		require.Empty(t, got.sent)
		require.Zero(t, f.conns.Load())
	})
	t.Run("a write that fails", func(t *testing.T) {
		f := newFake(t, func(r *request) bool {
			r.say(streamHead)
			for r.conn.SetWriteDeadline(time.Now().Add(patience)); ; {
				if _, err := r.conn.Write([]byte(chunk(token(1)))); err != nil {
					return false
				}
			}
		})
		got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), &MemoryClient{LeaveAfter: 10000})
		require.Equal(t, CauseClientGone, cause(t, got.Err))
		require.True(t, got.Cut)
	})
}

// A cancel that comes just as the answer ends must not hit the connection's next request.
func TestCancelNeverHitsAPooledConnection(t *testing.T) {
	f := newFake(t, always(plain(200, "hi")))
	p := newProxy(t, Options{})
	for range 300 {
		client, left := &MemoryClient{}, make(chan struct{})
		client.OnWrite = func([]byte) {
			go func() { client.Leave(); close(left) }()
		}
		do(t, p, exchange(f.Endpoint), client)
		got := do(t, p, exchange(f.Endpoint), &MemoryClient{})
		require.NoError(t, got.Err)
		require.Equal(t, []string{"ok"}, got.causes())
		<-left
	}
}

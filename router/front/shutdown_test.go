package front

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestUpdateTakesEffectOnBothPaths(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := start(t, Options{Handler: echo, Registerer: reg})
	old := s.dial()
	old.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	_, _ = old.answer()

	short := mobula.Duration(50 * time.Millisecond)
	s.Update(mobula.Limits{Body: 3}, mobula.Timeouts{KeepAlive: short})
	s.Update(mobula.Limits{Body: 3}, mobula.Timeouts{KeepAlive: short})
	p := s.dial()
	p.send(post("/", "four"))
	resp, _ := p.answer()
	require.Equal(t, "POST /", resp.Header.Get("X-Fallback"), "the body limit is new")
	require.Empty(t, p.rest(), "the fallback's idle timeout is new")

	old.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, _ = old.answer()
	require.Equal(t, 200, resp.StatusCode, "connections from before live on")

	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 6)
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	running, finish := make(chan struct{}), make(chan struct{})
	s := start(t, Options{
		Handler: handlerFunc(func(r *Request, c proxy.Client) error {
			if string(r.Path) == "/idle" {
				return echo(r, c)
			}
			if err := c.Head(200, nil, -1); err != nil {
				return err
			}
			if err := c.Write([]byte("begin ")); err != nil {
				return err
			}
			running <- struct{}{}
			<-finish
			return c.Write([]byte("end"))
		}),
		Fallback: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running <- struct{}{}
			<-finish
			slow(w, r)
		}),
	})
	idle, fast, other, silent := s.dial(), s.dial(), s.dial(), s.dial()
	idle.send(post("/idle", "x"))
	_, _ = idle.answer()
	fast.send(post("/", "x"))
	wait(t, running)
	other.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	wait(t, running)
	require.Eventually(t, func() bool { return s.open.Load() == 4 }, patience, time.Millisecond, "all are accepted")

	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	require.Empty(t, idle.rest())
	require.Empty(t, silent.rest())
	_, err := net.Dial("tcp", s.addr)
	require.Error(t, err)
	select {
	case <-down:
		require.Fail(t, "shutdown did not wait")
	default:
	}
	close(finish)
	_, body := fast.answer()
	require.Equal(t, "begin end", body)
	require.Empty(t, fast.rest())
	resp, _ := other.answer()
	require.Equal(t, "GET /slow", resp.Header.Get("X-Fallback"))
	require.NoError(t, <-down)
}

// The head of a stream that began before the drain says that the connection stays open, so a
// client may have sent its next request already when the stream ends.
func TestShutdownServesWhatAKeptConnectionSendsNext(t *testing.T) {
	running, finish := make(chan struct{}), make(chan struct{})
	s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
		if string(r.Path) == "/next" {
			return echo(r, c)
		}
		if err := c.Head(200, nil, -1); err != nil {
			return err
		}
		if err := c.Write([]byte("begin ")); err != nil {
			return err
		}
		running <- struct{}{}
		<-finish
		return c.Write([]byte("end"))
	})})
	p := s.dial()
	p.send(post("/", "x"))
	wait(t, running)
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(t.Context()) }()
	wait(t, s.stop)
	close(finish)
	resp, body := p.answer()
	require.Equal(t, "begin end", body)
	require.False(t, resp.Close)
	p.send(post("/next", "more"))
	resp, body = p.answer()
	require.Equal(t, "more", body)
	require.True(t, resp.Close, "it is the last")
	require.Empty(t, p.rest())
	require.NoError(t, <-down)
}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	running := make(chan struct{})
	s := start(t, Options{Handler: handlerFunc(func(_ *Request, c proxy.Client) error {
		gone := make(signal)
		c.Watch(gone)
		running <- struct{}{}
		<-gone
		c.Unwatch()
		return errors.New("cancelled")
	})})
	p := s.dial()
	p.send(post("/", "x"))
	wait(t, running)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
	require.Zero(t, s.open.Load())
}

func TestServeAfterShutdownIsRefused(t *testing.T) {
	s := New(Options{})
	require.NoError(t, s.Shutdown(t.Context()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(l), http.ErrServerClosed)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

// Many clients of all kinds while limits change and the server stops: nothing races, nothing
// leaks, and every answer that comes is whole.
func TestMixedLoadAndShutdown(t *testing.T) {
	s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
		if !c.Watch(make(signal)) {
			return errors.New("gone")
		}
		defer c.Unwatch()
		return echo(r, c)
	})})
	var clients sync.WaitGroup
	var answers atomic.Int64
	for i := range 16 {
		clients.Go(func() {
			for n := 0; ; n++ {
				nc, err := net.Dial("tcp", s.addr)
				if err != nil {
					return // the listener is closed
				}
				_ = nc.SetDeadline(time.Now().Add(patience))
				r := bufio.NewReader(nc)
				for j := range 20 {
					path, body := "/", strings.Repeat("x", (i*j*997)%20_000)
					if (i+j+n)%11 == 0 {
						path = "/slow"
					}
					if _, err := io.WriteString(nc, post(path, body)); err != nil {
						break
					}
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						break
					}
					got, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err != nil || string(got) != body {
						t.Errorf("answer of %d bytes instead of %d: %v", len(got), len(body), err)
					}
					answers.Add(1)
				}
				_ = nc.Close()
			}
		})
	}
	for i := range 8 {
		before := answers.Load()
		require.Eventually(t, func() bool { return answers.Load() > before+50 }, patience, time.Millisecond)
		s.Update(mobula.Limits{Body: mobula.Size(10_000 + i)}, mobula.Timeouts{KeepAlive: mobula.Duration(time.Minute + time.Duration(i))})
	}
	require.NoError(t, s.Shutdown(t.Context()))
	clients.Wait()
	require.Zero(t, s.open.Load())
}

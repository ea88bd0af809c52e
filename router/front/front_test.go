package front

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// handlerFunc makes a Handler of a function.
type handlerFunc func(r *Request, c proxy.Client) error

func (f handlerFunc) ServeFast(r *Request, c proxy.Client) error { return f(r, c) }

// echo answers with the body.
var echo = handlerFunc(func(r *Request, c proxy.Client) error {
	if err := c.Head(200, []byte("X-Path: "+string(r.Path)+"\r\n"), int64(len(r.Body))); err != nil {
		return err
	}
	return c.Write(r.Body)
})

// slow is the fallback of most tests: it tells what net/http read.
func slow(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("X-Fallback", r.Method+" "+r.RequestURI)
	_, _ = w.Write(body)
}

// testServer is a Server on a port of loopback.
type testServer struct {
	*Server
	t      *testing.T
	addr   string
	served chan error
}

// start serves o, with POST as hot path by default, until the test ends.
func start(t *testing.T, o Options, prepare ...func(*Server)) *testServer {
	t.Helper()
	if o.Accepts == nil {
		o.Accepts = func(_, path []byte) bool { return !bytes.HasPrefix(path, []byte("/slow")) }
	}
	if o.Fallback == nil {
		o.Fallback = http.HandlerFunc(slow)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &testServer{Server: New(o), t: t, addr: l.Addr().String(), served: make(chan error, 1)}
	for _, p := range prepare {
		p(s.Server)
	}
	go func() { s.served <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-s.served, http.ErrServerClosed)
		require.Zero(t, s.open.Load(), "connections are still counted")
	})
	return s
}

// eachWatcher runs a test with epoll and with the reader that other systems have.
func eachWatcher(t *testing.T, f func(t *testing.T, prepare func(*Server))) {
	t.Helper()
	t.Run("default", func(t *testing.T) { f(t, func(*Server) {}) })
	t.Run("reader", func(t *testing.T) { f(t, func(s *Server) { s.watcher = reader{} }) })
}

// peer is a client that speaks bytes.
type peer struct {
	*net.TCPConn
	t *testing.T
	r *bufio.Reader
}

func (s *testServer) dial() *peer {
	s.t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = nc.Close() })
	require.NoError(s.t, nc.SetDeadline(time.Now().Add(patience)))
	return &peer{TCPConn: nc.(*net.TCPConn), t: s.t, r: bufio.NewReader(nc)}
}

func (p *peer) send(text string) {
	p.t.Helper()
	_, err := io.WriteString(p, text)
	require.NoError(p.t, err)
}

// answer reads one answer with its body.
func (p *peer) answer() (*http.Response, string) {
	p.t.Helper()
	resp, err := http.ReadResponse(p.r, nil)
	require.NoError(p.t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	require.NoError(p.t, resp.Body.Close())
	return resp, string(body)
}

// rest reads until the server closes, and fails when it resets.
func (p *peer) rest() string {
	p.t.Helper()
	b, err := io.ReadAll(p.r)
	require.NoError(p.t, err)
	return string(b)
}

func post(path, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: a\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// signal is a Canceler to wait for.
type signal chan struct{}

func (s signal) Cancel() { close(s) }

func wait[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		require.Fail(t, "it never happened")
	}
}

func TestKeepAliveServesOneRequestAfterAnother(t *testing.T) {
	s := start(t, Options{Handler: echo})
	p := s.dial()
	for i, n := range []int{0, 1, 100, 3000, 4096, 5000, 20_000, 70_000, 300_000, 5_000_000, 2} {
		body := strings.Repeat(strconv.Itoa(i%10), n)
		go p.send(post("/v1/x", body))
		resp, got := p.answer()
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, "/v1/x", resp.Header.Get("X-Path"))
		require.True(t, body == got, "%d bytes differ", n)
		_, err := http.ParseTime(resp.Header.Get("Date"))
		require.NoError(t, err)
	}
	require.Equal(t, uint64(11), s.requests.Load())
	require.Zero(t, s.handovers.Load())
}

func TestRequestShowsWhatWasReceived(t *testing.T) {
	var got Request
	begin := time.Now()
	s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
		got = *r
		got.Method, got.Path, got.Target = bytes.Clone(r.Method), bytes.Clone(r.Path), bytes.Clone(r.Target)
		got.Fields, got.Host, got.Body = bytes.Clone(r.Fields), bytes.Clone(r.Host), bytes.Clone(r.Body)
		r.Release()
		if r.Body != nil {
			return errors.New("released body is still there")
		}
		return echo(r, c)
	})})
	p := s.dial()
	p.send("POST /v1/a?b=c HTTP/1.1\r\nHost: h:80\r\nX: y\r\nContent-Length: 2\r\n\r\n{}")
	_, _ = p.answer()
	require.Equal(t, "POST", string(got.Method))
	require.Equal(t, "/v1/a", string(got.Path))
	require.Equal(t, "/v1/a?b=c", string(got.Target))
	require.Equal(t, "Host: h:80\r\nX: y\r\nContent-Length: 2\r\n", string(got.Fields))
	require.Equal(t, "h:80", string(got.Host))
	require.Equal(t, "{}", string(got.Body))
	require.Equal(t, p.LocalAddr().String(), got.Remote)
	require.WithinRange(t, got.Received, begin, time.Now())
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	eachWatcher(t, func(t *testing.T, prepare func(*Server)) {
		s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
			if !c.Watch(make(signal)) {
				return errors.New("gone")
			}
			return echo(r, c)
		})}, prepare)
		p := s.dial()
		var all, want strings.Builder
		for i := range 200 {
			body := strings.Repeat(strconv.Itoa(i%10), i*i%5000)
			all.WriteString(post("/"+strconv.Itoa(i), body))
			if i%7 == 0 {
				all.WriteString("\r\n") // tolerated, as net/http does after a POST
			}
			want.WriteString(body)
		}
		all.WriteString("GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		go p.send(all.String())
		var got strings.Builder
		for i := range 200 {
			resp, body := p.answer()
			require.Equal(t, "/"+strconv.Itoa(i), resp.Header.Get("X-Path"))
			got.WriteString(body)
		}
		require.True(t, want.String() == got.String())
		resp, _ := p.answer()
		require.Equal(t, "GET /slow", resp.Header.Get("X-Fallback"))
		require.Empty(t, p.rest())
	})
}

func TestRequestInSmallPiecesIsRead(t *testing.T) {
	s := start(t, Options{Handler: echo})
	p := s.dial()
	require.NoError(t, p.SetNoDelay(true))
	for i := range 3 {
		text := post("/x", strings.Repeat("b", 1+i))
		for j := range len(text) {
			p.send(text[j : j+1])
		}
		_, body := p.answer()
		require.Equal(t, strings.Repeat("b", 1+i), body)
	}
	require.Zero(t, s.handovers.Load())
}

func TestConnectionCloseIsHonoured(t *testing.T) {
	s := start(t, Options{Handler: echo})
	p := s.dial()
	p.send("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
	resp, body := p.answer()
	require.Equal(t, "hi", body)
	require.True(t, resp.Close)
	require.Empty(t, p.rest())
}

func TestHandoverKeepsEveryByte(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 20_000)
	var chunked strings.Builder
	for rest := big; rest != ""; {
		n := min(len(rest), 7777)
		fmt.Fprintf(&chunked, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	tests := []struct {
		name, text, what, body string
	}{
		{"get", "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", "GET /slow", ""},
		{"cold path", post("/slow/x?y", big), "POST /slow/x?y", big},
		{"chunked body", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked.String() + "0\r\n\r\n", "POST /", big},
		{"long head", "POST / HTTP/1.1\r\nHost: a\r\nX: " + big[:9000] + "\r\nContent-Length: 2\r\n\r\nhi", "POST /", "hi"},
		{"escaped path", post("/a%20b", big), "POST /a%20b", big},
		{"body over our limit", post("/", big+big), "POST /", big + big},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{Handler: echo, Limits: mobula.Limits{Body: mobula.Size(len(big))}})
			p := s.dial()
			// A fast one before, and one more in the same breath: it is net/http's then.
			go p.send(post("/", "fast") + tt.text + post("/", "late"))
			_, body := p.answer()
			require.Equal(t, "fast", body)
			resp, body := p.answer()
			require.Equal(t, tt.what, resp.Header.Get("X-Fallback"))
			require.True(t, tt.body == body)
			resp, body = p.answer()
			require.Equal(t, "POST /", resp.Header.Get("X-Fallback"))
			require.Equal(t, "late", body)
			require.Equal(t, uint64(1), s.requests.Load())
			require.Equal(t, uint64(1), s.handovers.Load())
		})
	}
}

func TestExpectContinueWorksThroughTheFallback(t *testing.T) {
	s := start(t, Options{Handler: echo})
	p := s.dial()
	p.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	line, err := p.r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
	_, err = p.r.ReadString('\n')
	require.NoError(t, err)
	p.send("hi")
	_, body := p.answer()
	require.Equal(t, "hi", body)
}

// What the front makes of nasty requests is what net/http alone makes of them.
func TestSmuggledRequestsAreReadAsByNetHTTP(t *testing.T) {
	seen := &requestLog{}
	fast := start(t, Options{
		Handler: handlerFunc(func(r *Request, c proxy.Client) error {
			seen.add(string(r.Target), string(r.Body))
			return echo(r, c)
		}),
		Fallback: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			seen.add(r.RequestURI, string(body))
			w.WriteHeader(http.StatusOK)
		}),
		Accepts: func(_, _ []byte) bool { return true },
	})
	plain := start(t, Options{
		Fallback: fast.other, // the scanner never gets a word
		Accepts:  func(_, _ []byte) bool { return false },
		Handler:  echo,
	})
	for _, tt := range heads {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.text + post("/second", "x")
			exchange := func(s *testServer) string {
				seen.take()
				p := s.dial()
				p.send(text)
				require.NoError(t, p.CloseWrite())
				_, _ = io.ReadAll(p.r) // net/http may reset
				return seen.take()
			}
			require.Equal(t, exchange(plain), exchange(fast))
		})
	}
}

// requestLog notes requests.
type requestLog struct {
	mu  sync.Mutex
	all []string
}

func (l *requestLog) add(target, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, target+" "+body)
}

func (l *requestLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := strings.Join(l.all, "\n")
	l.all = nil
	return all
}

func TestPanicsAreContained(t *testing.T) {
	tests := []struct {
		name    string
		handler handlerFunc
		want    string
	}{
		{"before the head", func(*Request, proxy.Client) error { panic("oops") }, "HTTP/1.1 500 "},
		{"with the head held", func(_ *Request, c proxy.Client) error { _ = c.Head(200, nil, -1); panic("oops") }, "HTTP/1.1 500 "},
		{"abort", func(*Request, proxy.Client) error { panic(http.ErrAbortHandler) }, "HTTP/1.1 500 "},
		{"in a stream", func(_ *Request, c proxy.Client) error {
			_ = c.Head(200, nil, -1)
			_ = c.Write([]byte("part"))
			panic("oops")
		}, "HTTP/1.1 200 "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
				c.Watch(make(signal))
				return tt.handler(r, c)
			})})
			p := s.dial()
			p.send(post("/", "x"))
			got := p.rest()
			require.True(t, strings.HasPrefix(got, tt.want), got)
			require.NotContains(t, got, "0\r\n\r\n")
			require.Equal(t, uint64(1), s.panics.Load())
		})
	}
}

func TestSlowClientsAreAnswered408(t *testing.T) {
	short := mobula.Duration(50 * time.Millisecond)
	s := start(t, Options{
		Handler:  echo,
		Timeouts: mobula.Timeouts{ReadHeader: short, ReadBody: short},
	})
	tests := []struct{ name, text, want string }{
		{"header", "POST / HTTP/1.1\r\nHost", "the request's header took too long"},
		{"small body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{", "the request's body took too long"},
		{"promised body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 64000000\r\n\r\n", "the request's body took too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := s.dial()
			p.send(post("/", "before"))
			_, _ = p.answer()
			p.send(tt.text)
			resp, body := p.answer()
			require.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
			require.Equal(t, "application/json", resp.Header.Get("Content-Type"))
			require.JSONEq(t, `{"error":{"message":"`+tt.want+`","type":"RequestTimeoutError","param":null,"code":408}}`, body)
			require.True(t, resp.Close)
			require.Empty(t, p.rest())
		})
	}
	require.Equal(t, uint64(1), s.slowHeads.Load())
	require.Equal(t, uint64(2), s.slowBodies.Load())
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	short := mobula.Duration(50 * time.Millisecond)
	s := start(t, Options{Handler: echo, Timeouts: mobula.Timeouts{ReadHeader: short, KeepAlive: short}})
	t.Run("without a request", func(t *testing.T) {
		require.Empty(t, s.dial().rest())
	})
	t.Run("after one", func(t *testing.T) {
		p := s.dial()
		p.send(post("/", "x"))
		_, _ = p.answer()
		require.Empty(t, p.rest())
	})
	t.Run("in the fallback", func(t *testing.T) {
		p := s.dial()
		p.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		_, _ = p.answer()
		require.Empty(t, p.rest())
	})
}

func TestTruncatedRequestsReachNobody(t *testing.T) {
	s := start(t, Options{Handler: handlerFunc(func(*Request, proxy.Client) error {
		t.Error("served")
		return nil
	})})
	for _, text := range []string{"", "POST", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nab"} {
		p := s.dial()
		p.send(text)
		require.NoError(t, p.CloseWrite())
		require.Empty(t, p.rest())
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, Options{Handler: echo, Limits: mobula.Limits{Connections: 2}})
	one, two := s.dial(), s.dial()
	one.send(post("/", "fast"))
	_, _ = one.answer()
	two.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") // the fallback's count too
	_, _ = two.answer()

	for range 3 {
		p := s.dial()
		p.send(post("/", "x"))
		resp, body := p.answer()
		require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		require.Contains(t, body, `"code":503`)
		require.Empty(t, p.rest())
	}
	require.Equal(t, uint64(3), s.rejected.Load())

	require.NoError(t, two.Close())
	require.Eventually(t, func() bool { return s.open.Load() == 1 }, patience, time.Millisecond)
	p := s.dial()
	p.send(post("/", "again"))
	_, body := p.answer()
	require.Equal(t, "again", body)
}

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

func TestTLSConnectionsAreNetHTTPs(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	t.Cleanup(certificate.Close)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := New(Options{
		Accepts:  func(_, _ []byte) bool { return true },
		Handler:  echo,
		Fallback: http.HandlerFunc(slow),
		Limits:   mobula.Limits{Connections: 1},
	})
	served := make(chan error, 1)
	go func() { served <- s.Serve(tls.NewListener(plain, certificate.TLS)) }()

	client := certificate.Client()
	url := "https://" + plain.Addr().String() + "/v1/x"
	resp, err := client.Post(url, "text/plain", strings.NewReader("hi"))
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "hi", string(body))
	require.Equal(t, "POST /v1/x", resp.Header.Get("X-Fallback"))

	_, err = tls.Dial("tcp", plain.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	require.Error(t, err, "one connection is the limit")

	client.CloseIdleConnections()
	require.NoError(t, s.Shutdown(t.Context()))
	require.ErrorIs(t, <-served, http.ErrServerClosed)
	require.Zero(t, s.open.Load())
}

func TestUnixSocketsAreServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	cancelled := make(signal)
	s := New(Options{
		Accepts: func(_, _ []byte) bool { return true },
		Handler: handlerFunc(func(r *Request, c proxy.Client) error {
			if string(r.Path) == "/" {
				return echo(r, c)
			}
			c.Watch(cancelled)
			<-cancelled
			return nil
		}),
	})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	nc, err := net.Dial("unix", path)
	require.NoError(t, err)
	_, err = io.WriteString(nc, post("/", "hi"))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	_, err = io.WriteString(nc, post("/wait", "hi"))
	require.NoError(t, err)
	require.NoError(t, nc.Close())
	wait(t, cancelled)
	require.NoError(t, s.Shutdown(t.Context()))
	require.ErrorIs(t, <-served, http.ErrServerClosed)
}

// brokenListener fails a few times before it accepts.
type brokenListener struct {
	net.Listener
	failures int
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptErrorsDoNotEndTheService(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &testServer{Server: New(Options{}), t: t, addr: inner.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&brokenListener{inner, 3}) }()
	p := s.dial()
	p.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, _ := p.answer()
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
	require.NoError(t, inner.Close())
	require.ErrorIs(t, <-served, net.ErrClosed)
	require.NoError(t, s.Close())
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
	for i := range 20 {
		before := answers.Load()
		require.Eventually(t, func() bool { return answers.Load() > before+50 }, patience, time.Millisecond)
		s.Update(mobula.Limits{Body: mobula.Size(10_000 + i)}, mobula.Timeouts{KeepAlive: mobula.Duration(time.Minute + time.Duration(i))})
	}
	require.NoError(t, s.Shutdown(t.Context()))
	clients.Wait()
	require.Zero(t, s.open.Load())
}

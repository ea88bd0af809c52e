package front

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

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

// watchers are the system's own and the one that other systems have.
var watchers = []struct {
	name    string
	prepare func(*Server)
}{
	{"default", func(*Server) {}},
	{"reader", func(s *Server) { s.watcher = reader{} }},
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
		require.Equal(t, body, got)
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
	for _, w := range watchers {
		t.Run(w.name, func(t *testing.T) {
			s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
				if !c.Watch(make(signal)) {
					return errors.New("gone")
				}
				return echo(r, c)
			})}, w.prepare)
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
			require.Equal(t, want.String(), got.String())
			resp, _ := p.answer()
			require.Equal(t, "GET /slow", resp.Header.Get("X-Fallback"))
			require.Empty(t, p.rest())
		})
	}
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
			require.Equal(t, tt.body, body)
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

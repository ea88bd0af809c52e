package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

// patience is how long tests wait for what must happen.
const patience = 20 * time.Second

// request is one request as the fake engine read it.
type request struct {
	*http.Request
	n    int // of this engine's requests, from 1
	body []byte
	conn net.Conn
}

// say writes raw bytes on the connection.
func (r *request) say(s string) { _, _ = io.WriteString(r.conn, s) }

// reset ends the connection with a RST.
func (r *request) reset() {
	_ = r.conn.(*net.TCPConn).SetLinger(0)
	_ = r.conn.Close()
}

// waitGone waits until the other side has closed the connection.
func (r *request) waitGone() error {
	_ = r.conn.SetReadDeadline(time.Now().Add(patience))
	_, err := r.conn.Read(make([]byte, 1))
	if ne := net.Error(nil); err == nil || errors.As(err, &ne) && ne.Timeout() {
		return errors.New("connection is still open")
	}
	return nil
}

// fake is a scripted engine on a raw TCP listener.
type fake struct {
	*pick.Endpoint
	l        net.Listener
	conns    atomic.Int64 // accepted
	requests atomic.Int64
	script   func(r *request) bool // false closes the connection

	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[net.Conn]bool
}

func endpoint(id, url string) *pick.Endpoint {
	return &pick.Endpoint{Endpoint: mobula.Endpoint{ID: id, URL: url}, Live: &pick.Live{}}
}

func listen(tb testing.TB, address string) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(tb, err)
	return l
}

// newFake starts an engine that answers each request by script.
func newFake(tb testing.TB, script func(r *request) bool) *fake {
	tb.Helper()
	return newFakeOn(tb, listen(tb, "127.0.0.1:0"), "http", script)
}

func newFakeOn(tb testing.TB, l net.Listener, scheme string, script func(r *request) bool) *fake {
	tb.Helper()
	url := scheme + "://" + l.Addr().String()
	f := &fake{Endpoint: endpoint(url, url), l: l, script: script, open: map[net.Conn]bool{}}
	f.wg.Go(f.accept)
	tb.Cleanup(f.stop)
	return f
}

func (f *fake) accept() {
	for {
		c, err := f.l.Accept()
		if err != nil {
			return
		}
		f.conns.Add(1)
		f.mu.Lock()
		f.open[c] = true
		f.mu.Unlock()
		f.wg.Go(func() {
			f.serve(c)
			_ = c.Close()
			f.mu.Lock()
			delete(f.open, c)
			f.mu.Unlock()
		})
	}
}

func (f *fake) serve(c net.Conn) {
	br := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if !f.script(&request{Request: r, n: int(f.requests.Add(1)), body: body, conn: c}) {
			return
		}
	}
}

// kill closes the listener and all connections.
func (f *fake) kill() {
	_ = f.l.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.open {
		_ = c.Close()
	}
}

func (f *fake) stop() {
	f.kill()
	f.wg.Wait()
}

// plain is a whole answer with a length.
func plain(status int, body string, fields ...string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\n%scontent-length: %d\r\ncontent-type: application/json\r\n\r\n%s",
		status, http.StatusText(status), strings.Join(append(fields, ""), "\r\n"), len(body), body)
}

const streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func event(s string) string { return "data: " + s + "\n\n" }

// token is a chat event of n's text.
func token(n int) string {
	return event(fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"t%d"},"finish_reason":null}]}`, n))
}

const lastChunk0 = "0\r\n\r\n"

// stream is a whole stream of n tokens.
func stream(n int) string {
	var b strings.Builder
	b.WriteString(streamHead)
	for i := range n {
		b.WriteString(chunk(token(i)))
	}
	b.WriteString(chunk(event("[DONE]")) + lastChunk0)
	return b.String()
}

// tokens is the body of stream.
func tokens(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(token(i))
	}
	return b.String()
}

// always answers every request with the same bytes.
func always(answer string) func(*request) bool {
	return func(r *request) bool { r.say(answer); return true }
}

// refusing is an endpoint that nobody listens at.
func refusing(tb testing.TB) *pick.Endpoint {
	tb.Helper()
	l := listen(tb, "127.0.0.1:0")
	require.NoError(tb, l.Close())
	return endpoint("refusing", "http://"+l.Addr().String())
}

// log is Hooks that record.
type log struct {
	sent   []string
	ended  []Outcome
	first  []string
	events int

	overdue   int
	onOverdue func(*pick.Endpoint)
}

func (l *log) Sent(e *pick.Endpoint) { l.sent = append(l.sent, e.ID) }
func (l *log) Overdue(e *pick.Endpoint) {
	l.overdue++
	if l.onOverdue != nil {
		l.onOverdue(e)
	}
}
func (l *log) Events(n int, _ time.Time) { l.events += n }
func (l *log) First(_ *pick.Endpoint, status int, p []byte, _ time.Time) {
	l.first = append(l.first, fmt.Sprintf("%d %s", status, p))
}
func (l *log) Ended(_ *pick.Endpoint, o Outcome) { l.ended = append(l.ended, o) }

func (l *log) causes() []string {
	var s []string
	for _, o := range l.ended {
		c := o.Cause.String()
		if o.Retried {
			c += "+"
		}
		s = append(s, c)
	}
	return s
}

// trip is one Do and what came of it.
type trip struct {
	Result
	log
	status int
	fields string
	length int64
	body   string
	writes int
}

func newProxy(tb testing.TB, o Options) *Proxy {
	tb.Helper()
	p := New(o)
	tb.Cleanup(p.Close)
	return p
}

func retries(n int) Options {
	return Options{Retries: mobula.Retries{Attempts: n, Budget: 1, MaxRetryAfter: mobula.Duration(2 * time.Second)}}
}

// exchange is a chat request for the endpoints.
func exchange(list ...*pick.Endpoint) *Exchange {
	return &Exchange{
		Method: "POST", Target: "/v1/chat/completions", Fields: []byte("Content-Type: application/json\r\nX-Request-Id: r1\r\n"),
		Body: []byte(`{"model":"m"}`), Tokens: 7, List: list,
	}
}

// do runs x and checks that nothing is left counted.
func do(tb testing.TB, p *Proxy, x *Exchange, c *MemoryClient) *trip {
	tb.Helper()
	return begin(p, x, c)(tb)
}

// begin runs x in the background; what it gives waits for the end and checks like do.
func begin(p *Proxy, x *Exchange, c *MemoryClient) func(tb testing.TB) *trip {
	r, done := &trip{}, make(chan struct{})
	x.Client, x.Hooks = c, &r.log
	go func() {
		defer close(done)
		r.Result = p.Do(x)
	}()
	return func(tb testing.TB) *trip {
		tb.Helper()
		<-done
		r.status, r.fields, r.length, r.body, r.writes = c.Answer()
		r.check(tb, x)
		return r
	}
}

func (r *trip) check(tb testing.TB, x *Exchange) {
	tb.Helper()
	require.Len(tb, r.ended, len(r.sent), "each Sent has one Ended")
	require.Equal(tb, r.status, r.Status)
	for _, e := range x.List {
		requireIdle(tb, e)
	}
}

func requireIdle(tb testing.TB, e *pick.Endpoint) {
	tb.Helper()
	require.Equal(tb, [3]int64{}, [3]int64{e.Live.InFlight.Load(), e.Live.Waiting.Load(), e.Live.Tokens.Load()}, "live counts of %s", e.ID)
}

func cause(tb testing.TB, err error) Cause {
	tb.Helper()
	var e *Error
	require.ErrorAs(tb, err, &e)
	return e.Cause
}

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

func TestAnswersPassThrough(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 16<<10)
	for _, c := range []struct {
		name, method, answer string
		status               int
		fields, body         string
		length               int64
		keeps                bool
	}{
		{name: "plain", answer: plain(200, `{"a":1}`), status: 200, fields: "content-type: application/json\r\n", body: `{"a":1}`, length: 7, keeps: true},
		{name: "an engine's 4xx", answer: plain(404, `{"error":{}}`), status: 404, fields: "content-type: application/json\r\n", body: `{"error":{}}`, length: 12, keeps: true},
		{name: "empty body", answer: plain(200, ""), status: 200, fields: "content-type: application/json\r\n", keeps: true},
		{name: "big body", answer: plain(200, big), status: 200, fields: "content-type: application/json\r\n", body: big, length: int64(len(big)), keeps: true},
		{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", status: 200, body: "hello world", length: -1, keeps: true},
		{name: "chunked and empty", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", status: 200, length: -1, keeps: true},
		{name: "chunked big body", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(big) + chunk(big) + "0\r\n\r\n", status: 200, body: big + big, length: -1, keeps: true},
		{name: "trailers are dropped", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n", status: 200, body: "hi", length: -1},
		{name: "chunked wins over a length", answer: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", status: 200, body: "hi", length: -1},
		{name: "same length twice", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", status: 200, body: "hi", length: 2, keeps: true},
		{name: "until close", answer: "HTTP/1.1 200 OK\r\nA: b\r\n\r\nuntil the end", status: 200, fields: "A: b\r\n", body: "until the end", length: -1},
		{name: "HTTP/1.0", answer: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", status: 200, body: "hi", length: 2},
		{name: "no reason", answer: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", status: 200, body: "hi", length: 2, keeps: true},
		{name: "close", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", status: 200, body: "hi", length: 2},
		{name: "hop-by-hop fields are dropped", answer: "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nTE: x\r\nUpgrade: h2c\r\nx-stays:  two  spaces \r\nX-Stays: again\r\nContent-Length: 2\r\n\r\nhi", status: 200, fields: "x-stays:  two  spaces \r\nX-Stays: again\r\n", body: "hi", length: 2, keeps: true},
		{name: "gzip stays gzip", answer: "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\xff", status: 200, fields: "Content-Encoding: gzip\r\nContent-Type: application/json\r\n", body: "\x1f\x8b\x00\xff", length: 4, keeps: true},
		{name: "1xx are skipped", answer: "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + plain(200, "hi"), status: 200, fields: "content-type: application/json\r\n", body: "hi", length: 2, keeps: true},
		{name: "204 has no body", answer: "HTTP/1.1 204 No Content\r\nA: b\r\n\r\n", status: 204, fields: "A: b\r\n", keeps: true},
		{name: "204 with a body is junk", answer: "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi", status: 204},
		{name: "HEAD has no body", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", status: 200, keeps: true},
		{name: "junk after the body", answer: plain(200, "hi") + "junk", status: 200, fields: "content-type: application/json\r\n", body: "hi", length: 2},
		{name: "a second answer is junk", answer: plain(200, "hi") + plain(200, "other"), status: 200, fields: "content-type: application/json\r\n", body: "hi", length: 2},
		{name: "junk after chunks", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\njunk", status: 200, body: "hi", length: -1},
		{name: "500 of the only engine", answer: plain(500, "oops"), status: 500, fields: "content-type: application/json\r\n", body: "oops", length: 4, keeps: true},
		{name: "head longer than a buffer", answer: "HTTP/1.1 200 OK\r\nX-Long: " + big[:40<<10] + "\r\nContent-Length: 2\r\n\r\nhi", status: 200, fields: "X-Long: " + big[:40<<10] + "\r\n", body: "hi", length: 2, keeps: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{1 << 20, 7} { // in one piece, and in small ones
				if size == 7 && len(c.answer) > 1<<10 {
					continue
				}
				f := newFake(t, func(r *request) bool {
					for rest := c.answer; rest != ""; {
						n := min(size, len(rest))
						r.say(rest[:n])
						rest = rest[n:]
					}
					return c.keeps
				})
				p, x := newProxy(t, Options{}), exchange(f.Endpoint)
				if c.method != "" {
					x.Method = c.method
				}
				got := do(t, p, x, &MemoryClient{})
				require.NoError(t, got.Err)
				require.Empty(t, cmp.Diff([]any{c.status, c.fields, c.length, c.body}, []any{got.status, got.fields, got.length, got.body}))
				require.Equal(t, f.Endpoint, got.Endpoint)
				idle := 0
				if c.keeps {
					idle = 1
				}
				if size > 7 || c.keeps { // whether junk is seen in time depends on its coming in one piece
					require.Equal(t, []Stat{{Endpoint: f.ID, Idle: idle}}, p.Stats())
				}
			}
		})
	}
}

func TestHeadAndSmallBodyComeInOneWrite(t *testing.T) {
	f := newFake(t, always(plain(200, `{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}`)))
	got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), &MemoryClient{})
	require.NoError(t, got.Err)
	require.Equal(t, 1, got.writes)
	require.Equal(t, []string{`200 {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}`}, got.first)
	require.Equal(t, []Outcome{{Status: 200, Bytes: 55, Usage: Usage{Seen: true, Prompt: 3, Completion: 2, Cached: -1}}}, got.ended)
}

func TestUsageOfALongAnswerIsFoundAtItsEnd(t *testing.T) {
	body := `{"data":[` + strings.Repeat(`"xxxxxxxxxxxxxxxxxxxx",`, 10000) + `1],"usage":{"prompt_tokens":5}}`
	for name, answer := range map[string]string{
		"with a length": plain(200, body),
		"chunked":       "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(body[:len(body)-20]) + chunk(body[len(body)-20:]) + lastChunk0,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, always(answer))
			got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, body, got.body)
			require.Equal(t, Usage{Seen: true, Prompt: 5, Cached: -1}, got.ended[0].Usage)
		})
	}
}

func TestStreamPassesAsItComes(t *testing.T) {
	next := make(chan struct{})
	f := newFake(t, func(r *request) bool {
		r.say(streamHead)
		for i := range 3 {
			r.say(chunk(token(i)))
			<-next
		}
		r.say(chunk(event("[DONE]")) + lastChunk0)
		return true
	})
	x := exchange(f.Endpoint)
	x.Stream = true
	var pieces []string
	c := &MemoryClient{OnWrite: func(p []byte) {
		pieces = append(pieces, string(p))
		if !strings.Contains(string(p), "DONE") {
			next <- struct{}{} // nothing more comes until this piece is here
		}
	}}
	got := do(t, newProxy(t, Options{}), x, c)
	require.NoError(t, got.Err)
	require.Equal(t, []string{token(0), token(1), token(2), event("[DONE]")}, pieces)
	require.Equal(t, 3, got.events)
	require.Equal(t, 3, got.ended[0].Events)
	require.Equal(t, int64(-1), got.length)
}

func TestBulkStreamIsWhole(t *testing.T) {
	f := newFake(t, always(stream(5000)))
	got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), &MemoryClient{})
	require.NoError(t, got.Err)
	require.Equal(t, tokens(5000)+event("[DONE]"), got.body)
	require.Equal(t, 5000, got.events)
}

func TestRequestAsTheEngineGetsIt(t *testing.T) {
	for _, c := range []struct {
		name, method, body, key string
		want                    http.Header
	}{
		{name: "client's key passes", method: "POST", body: "{}", want: http.Header{"Authorization": {"Bearer client"}, "X-A": {"1"}, "Content-Length": {"2"}}},
		{name: "engine's key replaces it", method: "POST", body: "{}", key: "engine", want: http.Header{"Authorization": {"Bearer engine"}, "X-A": {"1"}, "Content-Length": {"2"}}},
		{name: "POST without a body has a length", method: "POST", want: http.Header{"Authorization": {"Bearer client"}, "X-A": {"1"}, "Content-Length": {"0"}}},
		{name: "GET has none", method: "GET", want: http.Header{"Authorization": {"Bearer client"}, "X-A": {"1"}}},
		{name: "32 KiB body", method: "POST", body: strings.Repeat("x", 32<<10), want: http.Header{"Authorization": {"Bearer client"}, "X-A": {"1"}, "Content-Length": {"32768"}}},
		{name: "8 MiB body", method: "POST", body: strings.Repeat("x", 8<<20), want: http.Header{"Authorization": {"Bearer client"}, "X-A": {"1"}, "Content-Length": {"8388608"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			requests := make(chan *request, 1)
			f := newFake(t, func(r *request) bool { requests <- r; r.say(plain(200, "{}")); return true })
			f.APIKey = mobula.Secret(c.key)
			x := exchange(f.Endpoint)
			x.Method, x.Target, x.Body = c.method, "/v1/x?q=1", []byte(c.body)
			x.Fields = []byte("authorization: Bearer client\r\nX-A: 1\r\n")
			p := newProxy(t, Options{})
			for range 2 {
				require.NoError(t, do(t, p, x, &MemoryClient{}).Err)
				got := <-requests
				require.Equal(t, []string{c.method, "/v1/x?q=1", f.l.Addr().String()}, []string{got.Method, got.RequestURI, got.Host})
				require.Empty(t, cmp.Diff(c.want, got.Header))
				require.Equal(t, c.body, string(got.body))
			}
			require.EqualValues(t, 1, f.conns.Load(), "connection is used again")
		})
	}
}

func TestAnswerFieldsAreAppended(t *testing.T) {
	f := newFake(t, always(plain(200, "{}")))
	x := exchange(f.Endpoint)
	x.AnswerFields = func(dst []byte, e *pick.Endpoint) []byte {
		return fmt.Appendf(dst, "X-Mobula-Endpoint: %s\r\n", e.ID)
	}
	require.Equal(t, "content-type: application/json\r\nX-Mobula-Endpoint: "+f.ID+"\r\n", do(t, newProxy(t, Options{}), x, &MemoryClient{}).fields)
}

func TestHTTPSAndIPv6(t *testing.T) {
	hosts := make(chan string, 10)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		_, _ = fmt.Fprint(w, "hi")
	}))
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Log("not covered: IPv6, which this machine lacks")
		l = listen(t, "127.0.0.1:0")
	}
	require.NoError(t, s.Listener.Close())
	s.Listener = l
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for _, c := range []struct {
		name string
		tls  *tls.Config
		skip bool
		want Cause
	}{
		{name: "trusted", tls: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
		{name: "verification skipped", skip: true},
		{name: "unknown authority", want: CauseConnect},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := endpoint("tls", s.URL)
			e.TLSSkipVerify = c.skip
			p, x := newProxy(t, Options{TLS: c.tls}), exchange(e)
			x.Body = []byte(strings.Repeat("x", 100<<10))
			for range 3 {
				got := do(t, p, x, &MemoryClient{})
				if c.want != CauseOK {
					require.Equal(t, c.want, cause(t, got.Err))
					continue
				}
				require.NoError(t, got.Err)
				require.Equal(t, "hi", got.body)
				require.Equal(t, l.Addr().String(), <-hosts)
			}
			if c.want == CauseOK {
				require.Equal(t, []Stat{{Endpoint: "tls", Idle: 1}}, p.Stats())
			}
		})
	}
}

func TestEndpointAddresses(t *testing.T) {
	for _, c := range []struct{ url, addr, host, fails string }{
		{url: "http://vllm:8000", addr: "vllm:8000", host: "vllm:8000"},
		{url: "http://vllm", addr: "vllm:80", host: "vllm"},
		{url: "https://[::1]", addr: "[::1]:443", host: "[::1]"},
		{url: "https://10.0.0.1:8443", addr: "10.0.0.1:8443", host: "10.0.0.1:8443"},
		{url: "ftp://vllm", fails: "neither http nor https"},
		{url: "http://", fails: "no host"},
		{url: "http://[::1", fails: "parse endpoint"},
	} {
		t.Run(c.url, func(t *testing.T) {
			p := newPool(endpoint("e", c.url))
			if c.fails != "" {
				require.ErrorContains(t, p.err, c.fails)
				require.Equal(t, CauseConnect, cause(t, do(t, newProxy(t, Options{}), exchange(endpoint("e", c.url)), &MemoryClient{}).Err))
				return
			}
			require.NoError(t, p.err)
			require.Equal(t, []string{c.addr, c.host}, []string{p.addr, p.host})
		})
	}
}

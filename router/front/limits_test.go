package front

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

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

package front

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

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

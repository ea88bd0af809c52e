package front

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

const date = "Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n"

func TestAnswerBytes(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	tests := []struct {
		name    string
		handler handlerFunc
		want    string
		closes  bool
	}{
		{"known length", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date+"A: b\r\n"), 5), c.Write([]byte("he")), c.Write([]byte("llo")))
		}, "HTTP/1.1 200 OK\r\n" + date + "A: b\r\nContent-Length: 5\r\n\r\nhello", false},
		{"long", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date), 10_000), c.Write([]byte(long)))
		}, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 10000\r\n\r\n" + long, false},
		{
			"empty", func(_ *Request, c proxy.Client) error { return c.Head(200, []byte(date), 0) },
			"HTTP/1.1 200 OK\r\n" + date + "Content-Length: 0\r\n\r\n", false,
		},
		{
			"no content", func(_ *Request, c proxy.Client) error { return c.Head(204, []byte(date), -1) },
			"HTTP/1.1 204 No Content\r\n" + date + "\r\n", false,
		},
		{
			"unknown status", func(_ *Request, c proxy.Client) error { return c.Head(299, []byte(date), 0) },
			"HTTP/1.1 299 \r\n" + date + "Content-Length: 0\r\n\r\n", false,
		},
		{"stream", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date), -1), c.Flush(), c.Write([]byte("a")), c.Write(nil), c.Write([]byte(long)), c.Flush())
		}, "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2710\r\n" + long + "\r\n0\r\n\r\n", false},
		{
			"empty stream", func(_ *Request, c proxy.Client) error { return c.Head(200, []byte(date), -1) },
			"HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false,
		},
		{"head longer than a buffer", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte("X: "+long+"\r\n"+date), -1), c.Write([]byte(long)))
		}, "HTTP/1.1 200 OK\r\nX: " + long + "\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n2710\r\n" + long + "\r\n0\r\n\r\n", false},

		{"stream cut by an error", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date), -1), c.Write([]byte("a")), io.ErrUnexpectedEOF)
		}, "HTTP/1.1 200 OK\r\n" + date + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n", true},
		{"fewer bytes than announced", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date), 9), c.Write([]byte("a")))
		}, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 9\r\n\r\na", true},
		{"more bytes than announced", func(_ *Request, c proxy.Client) error {
			if c.Write([]byte("too early")) == nil || c.Head(200, []byte(date), 1) != nil || c.Flush() != nil ||
				c.Head(200, nil, 1) == nil || c.Write([]byte("a")) != nil || c.Write([]byte("b")) == nil || c.Flush() == nil {
				t.Error("misuse was not noticed")
			}
			return nil
		}, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 1\r\n\r\na", true},
		{
			"nothing sent of a short answer", func(_ *Request, c proxy.Client) error { return c.Head(200, []byte(date), 9) },
			"502", true,
		},
		{"error before the head", func(*Request, proxy.Client) error { return io.EOF }, "502", true},
		{"error with the head held", func(_ *Request, c proxy.Client) error {
			return errors.Join(c.Head(200, []byte(date), -1), io.EOF)
		}, "502", true},
		{"no answer", func(*Request, proxy.Client) error { return nil }, "502", true},
		{"informational status", func(_ *Request, c proxy.Client) error { return c.Head(103, nil, 0) }, "502", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
				if string(r.Path) == "/next" {
					return errors.Join(c.Head(200, []byte(date), 4), c.Write([]byte("next")))
				}
				return tt.handler(r, c)
			})})
			p := s.dial()
			p.send(post("/", "") + "POST /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			if tt.want == "502" {
				resp, body := p.answer()
				require.Equal(t, http.StatusBadGateway, resp.StatusCode)
				require.JSONEq(t, `{"error":{"message":"no answer from an engine","type":"BadGatewayError","param":null,"code":502}}`, body)
				require.True(t, resp.Close)
				_, _ = io.ReadAll(p.r)
				return
			}
			if tt.closes {
				b, _ := io.ReadAll(p.r) // the unread second request resets the connection
				require.Equal(t, tt.want, string(b))
				return
			}
			require.Equal(t, tt.want+"HTTP/1.1 200 OK\r\n"+date+"Content-Length: 4\r\nConnection: close\r\n\r\nnext", p.rest())
		})
	}
}

func TestErrorBodyIsTheCallers(t *testing.T) {
	s := start(t, Options{
		Handler: handlerFunc(func(*Request, proxy.Client) error { return io.EOF }),
		ErrorBody: func(path []byte, status int, message string) []byte {
			return fmt.Appendf(nil, "%s %d %s", path, status, message)
		},
	})
	p := s.dial()
	p.send(post("/v1/messages", "{}"))
	_, body := p.answer()
	require.Equal(t, "/v1/messages 502 no answer from an engine", body)
}

func TestStalledReaderIsDropped(t *testing.T) {
	failed := make(chan error, 1)
	s := start(t, Options{
		Timeouts: mobula.Timeouts{Write: mobula.Duration(100_000_000)},
		Handler: handlerFunc(func(_ *Request, c proxy.Client) error {
			err := c.Head(200, nil, -1)
			for chunk := make([]byte, 1<<20); err == nil; {
				err = c.Write(chunk)
			}
			failed <- err
			return err
		}),
	})
	p := s.dial()
	p.send(post("/", "x"))
	wait(t, failed)
}

// lazyConn is a connection whose peer takes seven bytes in each write timeout, until it stalls.
type lazyConn struct {
	net.Conn
	got   bytes.Buffer
	stall int
}

func (l *lazyConn) SetWriteDeadline(time.Time) error { return nil }

func (l *lazyConn) Write(p []byte) (int, error) {
	n := min(len(p), 7)
	if l.got.Len() >= l.stall {
		n = 0
	}
	l.got.Write(p[:n])
	if n < len(p) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

func TestSlowReaderGetsAll(t *testing.T) {
	tests := []struct {
		name    string
		body    int
		stall   int
		wantErr error
	}{
		{"short", 100, 1 << 20, nil},
		{"long", 20_000, 1 << 20, nil},
		{"short stalls", 100, 40, os.ErrDeadlineExceeded},
		{"long stalls", 20_000, 10_000, os.ErrDeadlineExceeded},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New(Options{})
			lazy := &lazyConn{stall: tt.stall}
			c := &conn{s: s, nc: lazy}
			body := strings.Repeat("x", tt.body)
			require.NoError(t, c.Head(200, []byte(date), int64(tt.body)))
			require.ErrorIs(t, c.Write([]byte(body)), tt.wantErr)
			require.Equal(t, tt.wantErr == nil, c.finish(nil))
			require.Equal(t, tt.wantErr == nil, strings.HasSuffix(lazy.got.String(), "\r\n\r\n"+body))

			lazy.got.Reset()
			r := &replayed{Conn: lazy, settings: &s.settings}
			n, err := r.Write([]byte(body))
			require.ErrorIs(t, err, tt.wantErr)
			require.Equal(t, lazy.got.Len(), n)
		})
	}
}

func TestDateIsAddedOnlyWhenMissing(t *testing.T) {
	tests := []struct {
		fields string
		want   bool
	}{
		{"", false},
		{"A: b\r\n", false},
		{"Date: x\r\n", true},
		{"date: x\r\n", true},
		{"A: b\r\nDATE: x\r\n", true},
		{"X-Date: x\r\n", false},
		{"Up: date:\r\n", false},
		{"Date", false},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, hasDate([]byte(tt.fields)), tt.fields)
	}
}

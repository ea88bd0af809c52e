package client

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
)

// serve answers with handle and gives a client that is closed with it.
func serve(t *testing.T, o Options, handle http.HandlerFunc) (*Client, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(handle)
	if o.URL == "" {
		o.URL = server.URL
	}
	c := New(o)
	t.Cleanup(func() {
		c.Close()
		server.Close()
	})
	return c, server
}

// nobody is where nothing listens.
const nobody = "127.0.0.1:1"

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://a:1": "http://a:1", "https://a/": "https://a", " a:8100 ": "http://a:8100", "http://a/mobula/": "http://a/mobula",
	} {
		require.Equal(t, want, baseURL(in, false))
	}
	require.Equal(t, "https://a:8100", baseURL("a:8100", true))
}

func TestNobodyThere(t *testing.T) {
	c := New(Options{URL: nobody, RetryFor: -1})
	defer c.Close()
	_, err := c.View(t.Context(), 0)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.ErrorContains(t, err, "no control plane at http://127.0.0.1:")
	require.ErrorContains(t, err, "mobula up")
	require.ErrorContains(t, c.Forget(t.Context(), "gpu-1"), "no control plane")
}

func TestBadURLsAreTold(t *testing.T) {
	for _, bad := range []string{"http://a b", "http://[::1", ""} {
		c := New(Options{URL: bad, RetryFor: -1})
		_, err := c.Fleet(t.Context())
		require.Error(t, err, bad)
		c.Close()
	}
}

func TestCallsAreTriedAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		first  http.HandlerFunc // of the first two requests
		call   func(c *Client) error
		asked  int64
		failed bool
	}{
		"503":                   {status(503), scale, 3, false},
		"502":                   {status(502), scale, 3, false},
		"504":                   {status(504), scale, 3, false},
		"500":                   {status(500), scale, 1, true},
		"409":                   {status(409), scale, 1, true},
		"read that is cut off":  {cut, view, 3, false},
		"write that is cut off": {cut, scale, 1, true}, // it may have been done
		"token":                 {status(503), func(c *Client) error { _, err := c.Token(t.Context()); return err }, 1, true},
		"report":                {status(503), func(c *Client) error { return c.Report(t.Context(), mobula.Report{}) }, 1, true},
		"the whole body is sent": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusServiceUnavailable)
		}, scale, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			c, _ := serve(t, Options{RetryFor: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) <= 2 {
					tc.first(w, r)
					return
				}
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Method == http.MethodPut && string(body) != `{"replicas":2}` {
					w.WriteHeader(http.StatusTeapot)
					return
				}
				_, _ = io.WriteString(w, `{"version":1}`)
			})
			c.reached.Store(true) // or it would give up after a second
			err := tc.call(c)
			require.Equal(t, tc.failed, err != nil, "%v", err)
			require.Equal(t, tc.asked, asked.Load())
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600") // nobody waits for that
		w.WriteHeader(code)
	}
}

func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func scale(c *Client) error { return c.Scale(context.Background(), "m", 2) }

func view(c *Client) error {
	_, err := c.View(context.Background(), 0)
	return err
}

func TestAControlPlaneThatComesBackIsFound(t *testing.T) {
	c, _ := serve(t, Options{RetryFor: time.Minute}, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	c.reached.Store(true)
	transport := c.http.Transport.(*http.Transport)
	dial, dials := transport.DialContext, 0
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials++; dials <= 3 {
			address = nobody
		}
		return dial(ctx, network, address)
	}
	require.NoError(t, scale(c))
	require.Equal(t, 4, dials)
}

func TestAnsweredErrorsAreThoseOfTheControlPlane(t *testing.T) {
	for code, want := range map[string]error{
		CodeInvalid: control.ErrInvalid, CodeConflict: control.ErrConflict, CodeNotFound: control.ErrNotFound,
		CodeImpossible: adapters.ErrImpossible, CodeUnavailable: adapters.ErrUnavailable,
	} {
		t.Run(code, func(t *testing.T) {
			c, _ := serve(t, Options{}, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusConflict)
				_, _ = io.WriteString(w, `{"error":{"code":"`+code+`","message":"the reason"}}`)
			})
			err := scale(c)
			require.ErrorIs(t, err, want)
			require.EqualError(t, err, "the reason")
			require.NotErrorIs(t, err, context.Canceled)
		})
	}
}

func TestAnswersOfOtherServersAreTold(t *testing.T) {
	for name, tc := range map[string]struct {
		handle http.HandlerFunc
		want   string
	}{
		"not JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not an answer of a control plane"},
		"page":     {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nginx", http.StatusNotFound) }, "answered 404 Not Found, not as a control plane does: is the URL right?"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "answered 302 Found"},
		"other errors": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"no"}`)
		}, "answered 400"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for chunk := strings.Repeat(" ", 1<<20); ; {
				if _, err := io.WriteString(w, chunk); err != nil {
					return
				}
			}
		}, "more than 64MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := serve(t, Options{}, tc.handle)
			require.ErrorContains(t, view(c), tc.want)
		})
	}
}

func TestTokensGoToTheControlPlane(t *testing.T) {
	seen := make(chan string, 1)
	c, server := serve(t, Options{Token: "mine"}, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Authorization")
		_, _ = io.WriteString(w, "{}")
	})
	require.NoError(t, view(c))
	require.Equal(t, "Bearer mine", <-seen)
	_, err := Join(t.Context(), server.URL, nil, "joining", agent.Join{})
	require.NoError(t, err)
	require.Equal(t, "Bearer joining", <-seen)
}

func TestSchemesThatDoNotMatch(t *testing.T) {
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	c := New(Options{URL: strings.Replace(secure.URL, "https", "http", 1)})
	defer c.Close()
	require.ErrorContains(t, view(c), "speaks https: write https://")

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	p := New(Options{URL: strings.Replace(plain.URL, "http", "https", 1), TLS: &tls.Config{MinVersion: tls.VersionTLS13}})
	defer p.Close()
	require.ErrorContains(t, view(p), "write http:// in its URL")

	u := New(Options{URL: secure.URL})
	defer u.Close()
	require.ErrorContains(t, view(u), "signed by a CA that is not the one given")
}

func TestCallsEnd(t *testing.T) {
	release := make(chan struct{})
	c, _ := serve(t, Options{Timeout: 20 * time.Millisecond, RetryFor: -1}, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	err := view(c)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "did not answer in time")
	_, err = c.Logs(t.Context(), "r", 1, true)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.View(ctx, 5)
	require.ErrorIs(t, err, context.Canceled)
}

func TestWaitsAskFromWhereTheyStand(t *testing.T) {
	var queries []string
	c, _ := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RequestURI())
		if len(queries) < 3 {
			_, _ = io.WriteString(w, `{"version":7}`) // the wait is over, nothing new
			return
		}
		_, _ = io.WriteString(w, `{"version":8}`)
	})
	v, err := c.View(t.Context(), 7)
	require.NoError(t, err)
	require.Equal(t, int64(8), v.Version)
	require.Equal(t, []string{"/v1/view?after=7&wait=20s", "/v1/view?after=7&wait=20s", "/v1/view?after=7&wait=20s"}, queries)
}

func TestBackoffIsBounded(t *testing.T) {
	require.Equal(t, leastBackoff, backoff(1))
	require.Equal(t, 2*leastBackoff, backoff(2))
	require.Equal(t, mostBackoff, backoff(1_000_000))
}

package sim

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// server is an engine that runs on loopback.
type server struct {
	*Engine
	t      *testing.T
	url    string
	addr   string
	client *http.Client
	stop   func() // ends Run and waits for it
}

func serve(t *testing.T, o Options) *server {
	t.Helper()
	e, err := New(o)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, l) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	s := &server{Engine: e, t: t, addr: l.Addr().String(), url: "http://" + l.Addr().String(), client: &http.Client{Transport: transport, Timeout: patience}}
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		transport.CloseIdleConnections()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(s.stop)
	return s
}

// start sends a request and gives the answer, still open.
func (s *server) start(ctx context.Context, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return s.client.Do(req)
}

// post gives status and body of an answer.
func (s *server) post(path, body string) (int, gjson.Result) {
	s.t.Helper()
	res, err := s.start(s.t.Context(), path, body)
	require.NoError(s.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	return res.StatusCode, gjson.ParseBytes(b)
}

// ok is the body of an answer with status 200.
func (s *server) ok(path, body string) gjson.Result {
	s.t.Helper()
	status, got := s.post(path, body)
	require.Equal(s.t, http.StatusOK, status, "%s", got.Raw)
	return got
}

func (s *server) get(path string) (int, string) {
	s.t.Helper()
	res, err := s.client.Get(s.url + path)
	require.NoError(s.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	return res.StatusCode, string(b)
}

// stream gives the data of a stream's events, and the error that ended it.
func (s *server) stream(path, body string) ([]string, error) {
	s.t.Helper()
	res, err := s.start(s.t.Context(), path, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	require.Equal(s.t, http.StatusOK, res.StatusCode)
	var out []string
	r := bufio.NewReader(res.Body)
	for {
		line, err := r.ReadString('\n')
		if data, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "data: "); ok {
			out = append(out, data)
		}
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return out, err
		}
	}
}

// until waits for a condition.
func (s *server) until(what string, cond func(Stats) bool) {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return cond(s.Stats()) }, patience, 5*time.Millisecond, what)
}

func chatBody(text string, more string) string {
	return `{"model":"mobula-sim","messages":[{"role":"user","content":"` + text + `"}]` + more + `}`
}

func ids(v gjson.Result) []int32 {
	var out []int32
	for _, id := range v.Array() {
		out = append(out, int32(id.Int()))
	}
	return out
}

func newLoopback(tb testing.TB, e *Engine) string {
	tb.Helper()
	srv := httptest.NewServer(e.Handler())
	tb.Cleanup(srv.Close)
	return srv.URL
}

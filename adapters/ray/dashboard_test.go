package ray

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/ray/raytest"
)

func isUnavailable(err error) bool { return errors.Is(err, adapters.ErrUnavailable) }

func TestDashboardOfSomethingElse(t *testing.T) {
	answers := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		is     error
		says   string
	}{
		"a web page":             {answers(200, "<!DOCTYPE html><html>hello"), ErrNotRay, "it answers /api/version with an HTML page"},
		"other JSON":             {answers(200, `{"version":"1.2"}`), ErrNotRay, "platform.ray.address is the dashboard's, port 8265 by default"},
		"half of an answer":      {answers(200, `{"ray_version":"2.60.0","sess`), ErrNotRay, "not the dashboard"},
		"nothing":                {answers(200, ""), ErrNotRay, "with nothing"},
		"no such route":          {answers(404, "404 page not found"), ErrNotRay, "404 page not found"},
		"a login elsewhere":      {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) }, ErrNotRay, "it sends elsewhere (HTTP 302 to /login)"},
		"an old Ray":             {answers(200, `{"ray_version":"2.48.0"}`), ErrTooOld, "it is 2.48.0, and 2.49 is the least"},
		"a very old Ray":         {answers(200, `{"ray_version":"1.13.0"}`), ErrTooOld, "it is 1.13.0"},
		"no token":               {answers(401, "Unauthorized: Missing authentication token"), ErrDenied, "Unauthorized: Missing authentication token (HTTP 401); give the cluster's token with platform.ray.tokenFile"},
		"a wrong token":          {answers(403, "Forbidden: Invalid authentication token"), ErrDenied, "platform.ray.tokenFile"},
		"too many requests":      {answers(429, `{"result":false,"msg":"Max number of in-progress requests=100 reached."}`), adapters.ErrUnavailable, "Max number of in-progress requests=100 reached. (HTTP 429)"},
		"a proxy with no one":    {answers(502, "<html>Bad Gateway"), adapters.ErrUnavailable, "an HTML page (HTTP 502)"},
		"a connection that ends": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, adapters.ErrUnavailable, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			d := dashboardTo(t, tc.answer)
			_, err := d.Version(t.Context())
			require.ErrorIs(t, err, tc.is)
			require.ErrorContains(t, err, tc.says)
			require.ErrorContains(t, err, d.base)
		})
	}
}

func TestDashboardTakesNewerVersions(t *testing.T) {
	for _, version := range []string{"2.49.0", "2.59.1", "2.61.0.dev0", "3.0.0", "nightly"} {
		require.False(t, tooOld(version), version)
	}
}

func TestDashboardThatIsNotThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	d, err := NewDashboard(DashboardOptions{Address: "http://" + address})
	require.NoError(t, err)
	defer d.Close()
	_, err = d.Version(t.Context())
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "Ray cluster at http://"+address+": ask for its version: ")

	for _, bad := range []string{"", "ray-head:8265", "ftp://x", "http://", "http://a b"} {
		_, err := NewDashboard(DashboardOptions{Address: bad})
		require.ErrorContains(t, err, "want http://HOST:8265", bad)
	}
}

// TestDashboardAtTheWrongPort: what Ray's own tools call the address is GCS, which speaks gRPC.
func TestDashboardAtTheWrongPort(t *testing.T) {
	for name, first := range map[string]bool{"it speaks first": true, "it answers": false} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			var wg sync.WaitGroup
			wg.Go(func() {
				for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
					wg.Go(func() {
						if !first {
							_, _ = conn.Read(make([]byte, 1))
						}
						_, _ = io.WriteString(conn, "\x00\x00\x24\x04\x00\x00\x00\x00\x00 settings of HTTP/2 \r\n\r\n")
						_, _ = io.Copy(io.Discard, conn)
						_ = conn.Close()
					})
				}
			})
			defer wg.Wait()
			defer listener.Close()
			d, err := NewDashboard(DashboardOptions{Address: "http://" + listener.Addr().String()})
			require.NoError(t, err)
			defer d.Close()
			_, err = d.Version(t.Context())
			require.ErrorIs(t, err, ErrNotRay)
			require.ErrorContains(t, err, "port 8265")
		})
	}
}

func TestDashboardThatHangs(t *testing.T) {
	held := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-held:
		case <-r.Context().Done():
		}
	}))
	defer server.Close()
	defer close(held)
	d, err := NewDashboard(DashboardOptions{Address: server.URL, Timeout: 50 * time.Millisecond})
	require.NoError(t, err)
	defer d.Close()
	_, err = d.State(t.Context(), "mobula")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "it does not answer in time")
	_, err = d.Logs(t.Context(), "ab", 1, true)
	require.ErrorIs(t, err, adapters.ErrUnavailable)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = d.State(ctx, "mobula")
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, adapters.ErrUnavailable, "the caller gave up, not the cluster")
}

func TestDashboardTriesAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		fails int // answers of code before the good one
		code  int
		call  func(*Dashboard) error
		ok    bool
		tries int64
	}{
		"a list that a proxy fails twice": {2, 503, func(d *Dashboard) error { _, err := d.Jobs(t.Context(), ""); return err }, true, 3},
		"a list, but no more than that":   {3, 503, func(d *Dashboard) error { _, err := d.Jobs(t.Context(), ""); return err }, false, 3},
		"not a list that Ray fails":       {1, 500, func(d *Dashboard) error { _, err := d.Jobs(t.Context(), ""); return err }, false, 1},
		"a job":                           {2, 500, func(d *Dashboard) error { return d.Submit(t.Context(), Submission{ID: "a", Entrypoint: "true"}) }, true, 3},
		"not what is denied":              {1, 403, func(d *Dashboard) error { return d.Submit(t.Context(), Submission{ID: "a", Entrypoint: "true"}) }, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int64
			d := dashboardTo(t, func(w http.ResponseWriter, r *http.Request) {
				if body, err := io.ReadAll(r.Body); err != nil || r.Method == http.MethodPost && len(body) == 0 {
					t.Error("a try without its body")
				}
				if tries.Add(1) <= int64(tc.fails) {
					http.Error(w, "no", tc.code)
					return
				}
				_, _ = io.WriteString(w, map[string]string{http.MethodGet: "[]", http.MethodPost: `{"submission_id": "a"}`}[r.Method])
			})
			err := tc.call(d)
			require.Equal(t, tc.ok, err == nil, "%v", err)
			require.Equal(t, tc.tries, tries.Load())
		})
	}
}

func TestDashboardUploadsOnce(t *testing.T) {
	c := raytest.New(t, raytest.Options{})
	d, err := NewDashboard(DashboardOptions{Address: c.URL() + "/"})
	require.NoError(t, err)
	defer d.Close()
	for want := range 3 {
		before := c.Requests()
		require.NoError(t, d.Upload(t.Context(), "_ray_pkg_0123.zip", []byte("PK")))
		require.Equal(t, map[bool]int{true: 2, false: 1}[want == 0], c.Requests()-before)
	}
}

func TestDashboardToken(t *testing.T) {
	c := raytest.New(t, raytest.Options{Token: "right"})
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	}
	write("wrong one")
	o, err := DashboardOptionsFor(mobula.Ray{Address: c.URL(), TokenFile: file})
	require.NoError(t, err)
	d, err := NewDashboard(o)
	require.NoError(t, err)
	defer d.Close()
	_, err = d.Version(t.Context())
	require.ErrorIs(t, err, ErrDenied)
	require.NotContains(t, err.Error(), "wrong one")

	write("right")
	_, err = d.Version(t.Context())
	require.NoError(t, err, "the file was read again")

	require.NoError(t, os.Remove(file))
	_, err = d.Version(t.Context())
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "tokenFile")
	write("right")
	_, err = d.Version(t.Context())
	require.NoError(t, err)

	t.Setenv("MOBULA_TEST_RAY_TOKEN", "right")
	o, err = DashboardOptionsFor(mobula.Ray{Address: c.URL(), TokenEnv: "MOBULA_TEST_RAY_TOKEN"})
	require.NoError(t, err)
	byEnv, err := NewDashboard(o)
	require.NoError(t, err)
	defer byEnv.Close()
	_, err = byEnv.State(t.Context(), "mobula")
	require.NoError(t, err)
}

func TestDashboardOptionsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	empty, binary, page := filepath.Join(dir, "empty"), filepath.Join(dir, "binary"), filepath.Join(dir, "page")
	require.NoError(t, os.WriteFile(empty, []byte(" \n"), 0o600))
	require.NoError(t, os.WriteFile(binary, []byte("a\x00b"), 0o600))
	require.NoError(t, os.WriteFile(page, []byte("<html>"), 0o600))
	for says, r := range map[string]mobula.Ray{
		"tokenFile: stat " + dir + "/none":             {TokenFile: filepath.Join(dir, "none")},
		"tokenFile " + empty + " holds no token":       {TokenFile: empty},
		"tokenFile " + binary + ": ":                   {TokenFile: binary},
		"tokenEnv MOBULA_NO_SUCH_TOKEN holds no token": {TokenEnv: "MOBULA_NO_SUCH_TOKEN"},
		"caFile: open " + dir + "/none":                {CAFile: filepath.Join(dir, "none")},
		"caFile: " + page + " holds no certificate":    {CAFile: page},
	} {
		_, err := DashboardOptionsFor(r)
		require.ErrorContains(t, err, says)
	}
}

func TestDashboardTLS(t *testing.T) {
	c := raytest.New(t, raytest.Options{TLS: true})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Server().Certificate().Raw})
	require.NoError(t, os.WriteFile(ca, block, 0o600))
	for name, tc := range map[string]struct {
		settings mobula.Ray
		says     string
	}{
		"the authority is known": {settings: mobula.Ray{CAFile: ca}},
		"nothing is verified":    {settings: mobula.Ray{InsecureSkipVerify: true}},
		"a stranger":             {says: "its certificate is not trusted, set platform.ray.caFile"},
		"http to https":          {settings: mobula.Ray{Address: strings.Replace(c.URL(), "https", "http", 1)}, says: "HTTP"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.settings.Address == "" {
				tc.settings.Address = c.URL()
			}
			o, err := DashboardOptionsFor(tc.settings)
			require.NoError(t, err)
			d, err := NewDashboard(o)
			require.NoError(t, err)
			defer d.Close()
			_, err = d.Version(t.Context())
			if tc.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.says)
			require.NotErrorIs(t, err, adapters.ErrUnavailable, "asking again does not help")
		})
	}
}

// TestDashboardBehindAPage: a proxy that shows a page for everything has done nothing of what it was asked.
func TestDashboardBehindAPage(t *testing.T) {
	d := dashboardTo(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>back soon") })
	for name, call := range map[string]func() error{
		"state":  func() error { _, err := d.State(t.Context(), "mobula"); return err },
		"dead":   func() error { _, err := d.Dead(t.Context(), "mobula"); return err },
		"jobs":   func() error { _, err := d.Jobs(t.Context(), ""); return err },
		"log":    func() error { _, err := d.JobLogs(t.Context(), "a"); return err },
		"submit": func() error { return d.Submit(t.Context(), Submission{ID: "a", Entrypoint: "true"}) },
		"upload": func() error { return d.Upload(t.Context(), "_ray_pkg_00.zip", nil) },
		"serve":  func() error { _, err := d.Serve(t.Context()); return err },
	} {
		err := call()
		require.ErrorIs(t, err, adapters.ErrUnavailable, name)
		require.ErrorContains(t, err, "an HTML page", name)
	}
}

func TestDashboardBoundsAnswers(t *testing.T) {
	d := dashboardTo(t, func(w http.ResponseWriter, r *http.Request) {
		most := dashboardMaxAnswer
		if strings.HasPrefix(r.URL.Path, "/api/v0") {
			most = dashboardMaxState
		}
		block := []byte(strings.Repeat("x", 1<<16))
		for n := 0; n <= most+1<<16; n += len(block) {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	_, err := d.Version(t.Context())
	require.ErrorIs(t, err, errOverlong)
	_, err = d.State(t.Context(), "mobula")
	require.ErrorIs(t, err, errOverlong)
	require.ErrorContains(t, err, "more than 67108864 bytes")
}

func TestDashboardErrorsAreShort(t *testing.T) {
	d := dashboardTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "Traceback (most recent call last):\n"+strings.Repeat("line of a traceback\n", 100_000)+strings.Repeat("é", 10_000)+"\n.\n")
	})
	err := d.StopJob(t.Context(), "x")
	require.ErrorContains(t, err, "éé…")
	require.Less(t, len(err.Error()), 600)
}

func TestDashboardJobLogsKeepTheEnd(t *testing.T) {
	d := dashboardTo(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"logs": "%slast"}`, strings.Repeat(`one line of the log\n`, 10_000))
	})
	log, err := d.JobLogs(t.Context(), "a")
	require.NoError(t, err)
	require.LessOrEqual(t, len(log), dashboardMaxJobLog)
	require.True(t, strings.HasPrefix(log, "one line"), "it begins with a whole line")
	require.True(t, strings.HasSuffix(log, "\nlast"))
}

func TestDashboardLogs(t *testing.T) {
	d, _ := replay(t, "logs_actor.txt")
	log, err := d.Logs(t.Context(), "d9a3e2d7b14581a78577332f02000000", 20, false)
	require.NoError(t, err)
	text, err := io.ReadAll(log)
	require.NoError(t, err)
	require.NoError(t, log.Close())
	require.True(t, strings.HasPrefix(string(text), "ENDPOINT {"), "%q", text)
	require.NotContains(t, string(text), ":actor_name:")
	require.NotContains(t, string(text), ":job_id:")
}

func TestDashboardLogsOfLongLines(t *testing.T) {
	long := strings.Repeat("0123456789", 20_000)
	d := dashboardTo(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, ":actor_name:"+long+"\n"+long+":job_id:\nrest without an end")
	})
	log, err := d.Logs(t.Context(), "ab", 20, false)
	require.NoError(t, err)
	text, err := io.ReadAll(log)
	require.NoError(t, err)
	require.NoError(t, log.Close())
	require.Equal(t, long+":job_id:\nrest without an end", string(text))
}

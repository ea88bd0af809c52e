package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a server that counts what it is asked.
type site struct {
	*httptest.Server

	asked atomic.Int32
}

func serve(t *testing.T, handler http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		handler(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func fetcher(t *testing.T, o Options) (*Fetcher, string) {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "fetched")
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	o.HTTP = &http.Client{Transport: transport}
	f, err := New(o)
	require.NoError(t, err)
	return f, o.Dir
}

// requireEmpty looks whether anything was left behind.
func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func TestFetchOverHTTP(t *testing.T) {
	archive := tarOf(t, entry{name: "lora/adapter_config.json", content: "{}"}, entry{name: "lora/weights", content: "1"})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/lora.tar":
			_, _ = w.Write(archive)
		case "/lora.tgz":
			_, _ = w.Write(gzipOf(t, archive))
		case "/lora.zip":
			_, _ = w.Write(zipOf(t, entry{name: "adapter_config.json", content: "{}"}, entry{name: "weights", content: "1"}))
		case "/moved":
			http.Redirect(w, r, "/lora.tar", http.StatusFound)
		default:
			_, _ = io.WriteString(w, "GGUF")
		}
	})
	f, dir := fetcher(t, Options{})
	for _, name := range []string{"/lora.tar", "/lora.tgz", "/lora.zip?signature=secret"} {
		path, err := f.Fetch(t.Context(), s.URL+name)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(path, dir))
		require.Equal(t, "{}", read(t, filepath.Join(path, "adapter_config.json")))
		require.Equal(t, "1", read(t, filepath.Join(path, "weights")))
	}
	path, err := f.Fetch(t.Context(), s.URL+"/models/tiny.gguf")
	require.NoError(t, err)
	require.Equal(t, "tiny.gguf", filepath.Base(path))
	require.Equal(t, "GGUF", read(t, path))
}

func TestFailures(t *testing.T) {
	reset := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	stall := func(sent string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if sent != "" {
				_, _ = io.WriteString(w, sent)
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		}
	}
	tarball := string(tarOf(t, entry{name: "a", content: "1"}))
	for name, tc := range map[string]struct {
		path    string
		handler http.HandlerFunc
		want    error
	}{
		"not there":           {handler: code(http.StatusNotFound), want: ErrNotFound},
		"gone":                {handler: code(http.StatusGone), want: ErrNotFound},
		"forbidden":           {handler: code(http.StatusForbidden), want: ErrForbidden},
		"unauthorized":        {handler: code(http.StatusUnauthorized), want: ErrForbidden},
		"server error":        {handler: code(http.StatusInternalServerError), want: ErrUnavailable},
		"the same as nothing": {handler: code(http.StatusNotModified), want: ErrUnavailable},
		"no content":          {handler: code(http.StatusNoContent), want: ErrUnavailable},
		"redirects for ever":  {handler: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, want: ErrUnavailable},
		"connection reset":    {handler: reset, want: ErrUnavailable},
		"broken off": {path: "/x.tar", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, tarball[:600])
		}, want: ErrUnavailable},
		"broken off after the archive": {path: "/x.tar", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, tarball)
		}, want: ErrUnavailable},
		"no answer":       {handler: stall(""), want: ErrStalled},
		"stalled":         {handler: stall("some of it"), want: ErrStalled},
		"stalled archive": {path: "/x.tar", handler: stall(tarball[:600]), want: ErrStalled},
		"stalled zip":     {path: "/x.zip", handler: stall("PK"), want: ErrStalled},
		"too large":       {handler: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("x", 5000)) }, want: ErrTooLarge},
		"a bomb": {path: "/x.tgz", handler: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(gzipOf(t, tarOf(t, entry{name: "a", content: strings.Repeat("\x00", 1<<20)})))
		}, want: ErrTooLarge},
		"a bad archive": {path: "/x.tgz", handler: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, want: ErrArchive},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tc.handler)
			f, dir := fetcher(t, Options{MaxBytes: 4096, Idle: patience(tc.want)})
			source := strings.Replace(s.URL, "http://", "http://user:hunter2@", 1) + tc.path + "?X-Amz-Signature=secret"
			_, err := f.Fetch(t.Context(), source)
			require.ErrorIs(t, err, tc.want)
			require.NotContains(t, err.Error(), "hunter2")
			require.NotContains(t, err.Error(), "secret")
			require.ErrorContains(t, err, shown(s.URL+tc.path))
			requireEmpty(t, dir)
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		s := serve(t, code(http.StatusOK))
		s.Close()
		f, dir := fetcher(t, Options{})
		_, err := f.Fetch(t.Context(), s.URL+"/x?secret")
		require.ErrorIs(t, err, ErrUnavailable)
		require.NotContains(t, err.Error(), "secret")
		requireEmpty(t, dir)
	})
}

// patience is short where it is to be lost.
func patience(want error) time.Duration {
	if errors.Is(want, ErrStalled) {
		return 200 * time.Millisecond
	}
	return time.Minute
}

func code(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func TestBadSources(t *testing.T) {
	f, dir := fetcher(t, Options{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for source, want := range map[string]error{
		"":                           ErrSource,
		"meta-llama/Llama":           ErrSource,
		"./lora":                     ErrSource,
		"ftp://host/x":               ErrSource,
		"file:///etc":                ErrSource,
		"http://":                    ErrSource,
		"s3://":                      ErrSource,
		"https://u:hunter2@h:x/%zz":  ErrSource,
		file:                         ErrSource,
		filepath.Join(dir, "no-one"): ErrNotFound,
	} {
		_, err := f.Fetch(t.Context(), source)
		require.ErrorIs(t, err, want, source)
		require.NotContains(t, err.Error(), "hunter2")
	}
	requireEmpty(t, dir)
	path, err := f.Fetch(t.Context(), filepath.Dir(file))
	require.NoError(t, err)
	require.Equal(t, filepath.Dir(file), path)
}

// TestReuse: what has been fetched is used until the source says that it is another one.
func TestReuse(t *testing.T) {
	for name, header := range map[string]string{"by ETag": "ETag", "by date": "Last-Modified", "by neither": ""} {
		t.Run(name, func(t *testing.T) {
			var state atomic.Pointer[string] // the content; empty for a server that fails
			now := func(s string) { state.Store(&s) }
			now("one")
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				content := *state.Load()
				if content == "" {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				marks := map[string]string{"ETag": fmt.Sprintf("%q", content), "Last-Modified": map[string]string{"one": "Mon, 02 Jan 2006 15:04:05 GMT", "two": "Tue, 03 Jan 2006 15:04:05 GMT"}[content]}
				if header != "" {
					w.Header().Set(header, marks[header])
					if r.Header.Get("If-None-Match") == marks[header] || r.Header.Get("If-Modified-Since") == marks[header] {
						w.WriteHeader(http.StatusNotModified)
						return
					}
				}
				_, _ = io.WriteString(w, content)
			})
			f, dir := fetcher(t, Options{})
			first, err := f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.Equal(t, "one", read(t, first))
			again, err := f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.Equal(t, first, again)
			require.EqualValues(t, 2, s.asked.Load())

			now("two")
			second, err := f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			if header == "" {
				require.Equal(t, first, second)
				return
			}
			require.Equal(t, "two", read(t, second))
			require.Equal(t, "one", read(t, first), "an engine may be reading it")

			// An agent that starts again sweeps up; the source can't be asked.
			now("")
			f, _ = fetcher(t, Options{Dir: dir})
			require.NoFileExists(t, first)
			offline, err := f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.Equal(t, second, offline)
			s.Close()
			offline, err = f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.Equal(t, second, offline)
		})
	}
}

func TestANewerOneThatIsBad(t *testing.T) {
	var bad atomic.Bool
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if bad.Load() {
			w.Header().Set("ETag", `"2"`)
			_, _ = io.WriteString(w, "rubbish")
			return
		}
		w.Header().Set("ETag", `"1"`)
		_, _ = w.Write(tarOf(t, entry{name: "a", content: "1"}))
	})
	f, dir := fetcher(t, Options{})
	path, err := f.Fetch(t.Context(), s.URL+"/x.tar")
	require.NoError(t, err)
	bad.Store(true)
	_, err = f.Fetch(t.Context(), s.URL+"/x.tar")
	require.ErrorIs(t, err, ErrArchive)
	require.Equal(t, "1", read(t, filepath.Join(path, "a")), "the copy of before is gone")
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 2, "its folder and copy.json")
	bad.Store(false)
	again, err := f.Fetch(t.Context(), s.URL+"/x.tar")
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.True(t, strings.HasPrefix(path, dir))
}

func TestADamagedCopyIsFetchedAgain(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"1"`)
		_, _ = io.WriteString(w, "content")
	})
	f, _ := fetcher(t, Options{})
	for name, damage := range map[string]func(path string) error{
		"file removed":      os.Remove,
		"folder removed":    func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
		"copy.json removed": func(path string) error { return os.Remove(filepath.Join(filepath.Dir(path), "..", copyFile)) },
		"copy.json rubbish": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "..", copyFile), []byte(`{"folder":`), 0o600)
		},
		"copy.json evil": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), "..", copyFile), []byte(`{"folder":"..","path":"../../../etc"}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.NoError(t, damage(path))
			path, err = f.Fetch(t.Context(), s.URL+"/x")
			require.NoError(t, err)
			require.Equal(t, "content", read(t, path))
		})
	}
}

func TestSweep(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "content") })
	f, dir := fetcher(t, Options{})
	path, err := f.Fetch(t.Context(), s.URL+"/x")
	require.NoError(t, err)
	half := filepath.Join(dir, strings.Repeat("a", 64), "copy-1")
	other := filepath.Join(dir, "notes")
	left := filepath.Join(filepath.Dir(path), "..", "copy-half")
	for _, d := range []string{half, other, left} {
		require.NoError(t, os.MkdirAll(d, 0o700))
	}
	fetcher(t, Options{Dir: dir})
	require.NoDirExists(t, filepath.Dir(half))
	require.NoDirExists(t, left)
	require.DirExists(t, other)
	require.Equal(t, "content", read(t, path))
}

// gate is a server that sends the first half, and the other one when it is let.
func gate(t *testing.T) (s *site, half, let chan struct{}) {
	t.Helper()
	half, let = make(chan struct{}, 16), make(chan struct{})
	s = serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "one ")
		_ = http.NewResponseController(w).Flush()
		half <- struct{}{}
		select {
		case <-let:
			_, _ = io.WriteString(w, "two")
		case <-r.Context().Done():
		}
	})
	return s, half, let
}

func TestCallsShareADownload(t *testing.T) {
	s, half, let := gate(t)
	f, dir := fetcher(t, Options{})
	var callers sync.WaitGroup
	paths, errs := make([]string, 8), make([]error, 8)
	impatient, leave := context.WithCancel(t.Context())
	for i := range paths {
		ctx := t.Context()
		if i%2 == 1 {
			ctx = impatient
		}
		callers.Go(func() { paths[i], errs[i] = f.Fetch(ctx, s.URL+"/x") })
	}
	<-half
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.flights[s.URL+"/x"].callers == 8
	}, time.Minute, time.Millisecond)
	leave()
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.flights[s.URL+"/x"].callers == 4
	}, time.Minute, time.Millisecond)
	close(let)
	callers.Wait()
	for i := range paths {
		if i%2 == 1 {
			require.ErrorIs(t, errs[i], context.Canceled)
			continue
		}
		require.NoError(t, errs[i])
		require.Equal(t, paths[0], paths[i])
	}
	require.Equal(t, "one two", read(t, paths[0]))
	require.EqualValues(t, 1, s.asked.Load())
	require.True(t, strings.HasPrefix(paths[0], dir))
}

func TestADownloadEndsWhenAllHaveLeft(t *testing.T) {
	s, half, let := gate(t)
	f, dir := fetcher(t, Options{})
	ctx, leave := context.WithCancel(t.Context())
	var caller sync.WaitGroup
	var err error
	caller.Go(func() { _, err = f.Fetch(ctx, s.URL+"/x") })
	<-half
	leave()
	caller.Wait()
	require.ErrorIs(t, err, context.Canceled)
	requireEmpty(t, dir)

	close(let)
	path, err := f.Fetch(t.Context(), s.URL+"/x")
	require.NoError(t, err)
	require.Equal(t, "one two", read(t, path))
}

// TestComingAndGoing has many callers that leave at any moment, for a few sources.
func TestComingAndGoing(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tarOf(t, many(20)...)) })
	f, dir := fetcher(t, Options{})
	var callers sync.WaitGroup
	for i := range 60 {
		callers.Go(func() {
			ctx, leave := context.WithTimeout(t.Context(), time.Duration(i)*500*time.Microsecond)
			defer leave()
			path, err := f.Fetch(ctx, fmt.Sprintf("%s/%d.tar", s.URL, i%3))
			if err == nil {
				_, err = os.Stat(filepath.Join(path, "19"))
			}
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("fetch: %v", err)
			}
		})
	}
	callers.Wait()
	for i := range 3 {
		path, err := f.Fetch(t.Context(), fmt.Sprintf("%s/%d.tar", s.URL, i))
		require.NoError(t, err)
		require.Equal(t, "1", read(t, filepath.Join(path, "19")))
		entries, err := os.ReadDir(filepath.Dir(path))
		require.NoError(t, err)
		require.Len(t, entries, 2, "more than the copy and copy.json")
	}
	require.Empty(t, f.flights)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 3)
}

func TestDiskFull(t *testing.T) {
	for name, err := range map[string]error{
		"disk":          &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC},
		"quota":         fmt.Errorf("write: %w", syscall.EDQUOT),
		"in an archive": unpack("x", &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}),
	} {
		require.True(t, isFull(err), name)
		require.NotErrorIs(t, broken(err), ErrArchive, name)
	}
	require.False(t, isFull(io.ErrUnexpectedEOF))
}

func TestNewNeedsAFolder(t *testing.T) {
	_, err := New(Options{})
	require.Error(t, err)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = New(Options{Dir: file})
	require.Error(t, err)
}

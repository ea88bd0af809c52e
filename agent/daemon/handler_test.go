//go:build unix

package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/engine"
)

// follow reads a task's log as it grows.
func follow(t *testing.T, a agent.API, id string) func() string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := a.Logs(ctx, id, 10, true)
	require.NoError(t, err)
	var mu sync.Mutex
	var text strings.Builder
	var done sync.WaitGroup
	done.Go(func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			mu.Lock()
			text.WriteString(lines.Text() + "\n")
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
		_ = r.Close()
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
}

func TestAClientSpeaksWithADaemon(t *testing.T) {
	o := options(newFolder(t))
	o.Fetch = func(_ context.Context, source string) (string, error) {
		switch source {
		case "full":
			return "", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
		case "broken":
			return "", errors.New("404 not found")
		}
		return "/models/" + source, nil
	}
	h := run(t, o)
	s := httptest.NewServer(h.Handler())
	defer s.Close()
	c := agent.NewClient(strings.TrimPrefix(s.URL, "http://"), nil)
	defer c.Close()

	state, err := c.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 1, Tasks: []agent.Task{simTask("a")}})
	require.NoError(t, err)
	require.Equal(t, "host-1", state.Name)
	require.Positive(t, state.Disk)
	waitFor(t, c, "ready", is("a", agent.TaskReady))
	require.Contains(t, logOf(t, c, "a"), "engine ")
	followed := follow(t, c, "a")
	require.Eventually(t, func() bool { return strings.Contains(followed(), "engine ") }, deadline, tick)
	path, err := c.Fetch(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, "/models/x", path)

	_, err = c.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 1})
	require.ErrorIs(t, err, agent.ErrOldWish)
	_, err = c.Tell(t.Context(), agent.Wish{Control: "d", Epoch: 2})
	require.ErrorIs(t, err, agent.ErrOtherControl)
	_, err = c.Tell(t.Context(), agent.Wish{})
	require.ErrorIs(t, err, agent.ErrInvalid)
	_, err = c.Logs(t.Context(), "nothing", 1, false)
	require.ErrorIs(t, err, agent.ErrUnknownTask)
	_, err = c.Fetch(t.Context(), "full")
	require.ErrorIs(t, err, agent.ErrNoSpace)
	_, err = c.Fetch(t.Context(), "broken")
	require.ErrorContains(t, err, "404 not found")
	_, err = c.Fetch(t.Context(), "")
	require.ErrorIs(t, err, agent.ErrInvalid)

	_, err = c.Tell(t.Context(), agent.Wish{Control: "c", Epoch: 2})
	require.NoError(t, err)
	waitFor(t, c, "nothing", func(s agent.State) bool { return len(s.Tasks) == 0 })
}

func TestALongPollEndsWithAChangeOrItsWait(t *testing.T) {
	h := run(t, options(newFolder(t)))
	s, err := h.State(t.Context(), 0, deadline)
	require.NoError(t, err, "Seq is not 0: at once")
	_, err = h.State(t.Context(), s.Seq+100, time.Hour)
	require.NoError(t, err, "an instance before had more changes: at once")
	_, err = h.State(t.Context(), s.Seq, time.Millisecond)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = h.State(ctx, s.Seq, time.Hour)
	require.ErrorIs(t, err, context.Canceled)
}

func TestBadRequestsAreAnsweredSo(t *testing.T) {
	h := run(t, options(newFolder(t)))
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
	}{
		"not JSON":           {http.MethodPut, "/v1/tasks", "{", 400},
		"a wrong type":       {http.MethodPut, "/v1/tasks", `{"epoch":"x"}`, 400},
		"a bad after":        {http.MethodGet, "/v1/state?after=x", "", 400},
		"a bad wait":         {http.MethodGet, "/v1/state?wait=x", "", 400},
		"a bad tail":         {http.MethodGet, "/v1/tasks/a/logs?tail=-1", "", 400},
		"a bad follow":       {http.MethodGet, "/v1/tasks/a/logs?follow=x", "", 400},
		"an unknown task":    {http.MethodGet, "/v1/tasks/a/logs", "", 404},
		"another's folder":   {http.MethodGet, "/v1/tasks/..%2F../logs", "", 404},
		"no method":          {http.MethodDelete, "/v1/tasks", "", 405},
		"nothing to fetch":   {http.MethodPost, "/v1/fetch", `{}`, 400},
		"fetch is not there": {http.MethodPost, "/v1/fetch", `{"source":"x"}`, 400},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(tc.body)))
			require.Equal(t, tc.status, w.Code)
			if tc.status != http.StatusMethodNotAllowed {
				require.Contains(t, w.Body.String(), `{"error":"`)
			}
		})
	}
}

func TestAFullDiskIsSaidSo(t *testing.T) {
	require.ErrorIs(t, diskError(&os.PathError{Op: "write", Err: syscall.ENOSPC}), agent.ErrNoSpace)
	require.ErrorIs(t, diskError(&os.PathError{Op: "write", Err: syscall.EDQUOT}), agent.ErrNoSpace)
	require.NotErrorIs(t, diskError(os.ErrNotExist), agent.ErrNoSpace)
	require.NoError(t, diskError(nil))
}

func TestLogsGiveTheLastLinesAndWhatComes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.log")
	read := func(tail int) string {
		r, err := openLog(t.Context(), path, tail, false)
		require.NoError(t, err)
		defer func() { _ = r.Close() }()
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		return string(b)
	}
	require.Empty(t, read(10))
	log, err := engine.OpenLog(path, 12)
	require.NoError(t, err)
	write := func(s string) {
		t.Helper()
		_, err := log.Write([]byte(s))
		require.NoError(t, err)
	}
	write("a\nb\nc\n")
	require.Equal(t, "b\nc\n", read(2))
	require.Equal(t, "a\nb\nc\n", read(100))
	require.Empty(t, read(0))
	write("d\nhalf of")
	require.Equal(t, "b\nc\nd\nhalf of", read(4))

	r, err := openLog(t.Context(), path, 1, true)
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	got := bufio.NewReader(r)
	write(" e\n")
	for _, want := range []string{"half of e\n", "f\n", "0123456789\n", "g\n"} {
		if want != "half of e\n" {
			write(want)
		}
		line, err := got.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want, line)
	}
	require.NoError(t, log.Close())
	require.NoError(t, os.RemoveAll(filepath.Dir(path)))
	_, err = got.ReadString('\n')
	require.ErrorIs(t, err, io.EOF)
}

func FuzzTell(f *testing.F) {
	f.Add(`{"control":"c","epoch":1,"tasks":[{"id":"a","model":{"Name":"m","Engine":{"Kind":"sim"}}}]}`)
	f.Add(`{"control":"c","epoch":1,"tasks":[{"id":"a.1","rank":1,"parts":2,"master":"h","masterPort":1,"model":{"Name":"m","Replicas":"1-4"}}]}`)
	f.Add(`{"control":"c","epoch":-1}`)
	f.Add(`{"tasks":[{"id":"../../etc"}]}`)
	folder := f.TempDir()
	d, err := New(options(folder)) // its tasks never run
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, body string) {
		d.wish = agent.Wish{}
		w := httptest.NewRecorder()
		d.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/tasks", strings.NewReader(body)))
		require.Contains(t, []int{200, 400}, w.Code)
		if w.Code == http.StatusOK {
			loaded, err := os.ReadFile(d.wishPath())
			require.NoError(t, err)
			require.NotEmpty(t, loaded)
			for _, task := range d.tasks {
				require.Equal(t, filepath.Join(folder, "tasks"), filepath.Dir(string(task.dir)))
			}
		}
		clear(d.tasks)
	})
}

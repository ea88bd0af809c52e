package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
)

const deadline = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func task(id string) Task { return Task{ID: id, Model: mobula.Model{Name: "m"}} }

func TestAWishIsChecked(t *testing.T) {
	parts := func(change func(*Task)) Task {
		p := task("a.1")
		p.Rank, p.Parts, p.Master, p.MasterPort = 1, 2, "10.0.0.1", 29500
		change(&p)
		return p
	}
	for name, tc := range map[string]struct {
		task Task
		want string
	}{
		"plain":            {task("llama-3-abc123-x7k2p"), ""},
		"a part":           {parts(func(*Task) {}), ""},
		"no id":            {task(""), "an id has"},
		"a path":           {task("a/b"), "an id has"},
		"a parent":         {task(".."), "an id has"},
		"too long":         {task(strings.Repeat("a", 129)), "an id has"},
		"no model":         {Task{ID: "a"}, "no model"},
		"an engine":        {Task{ID: "a", Model: mobula.Model{Name: "m", Engine: mobula.Engine{Kind: "tgi"}}}, "want vllm or sim"},
		"a rank too many":  {parts(func(p *Task) { p.Rank = 2 }), "part 2 of 2"},
		"a negative rank":  {parts(func(p *Task) { p.Rank = -1 }), "part -1 of 2"},
		"too many parts":   {parts(func(p *Task) { p.Parts = 65 }), "part 1 of 65"},
		"nowhere to meet":  {parts(func(p *Task) { p.Master = "" }), "parts meet at"},
		"no port to meet":  {parts(func(p *Task) { p.MasterPort = 0 }), "parts meet at"},
		"a nameless GPU":   {Task{ID: "a", Model: mobula.Model{Name: "m"}, Devices: []string{""}}, "a device without an id"},
		"the first twice":  {task("first"), "is there twice"},
		"a hidden folder":  {task(".a"), "an id has"},
		"an odd character": {task("a b"), "an id has"},
	} {
		t.Run(name, func(t *testing.T) {
			w := Wish{Control: "c", Epoch: 1, Tasks: []Task{task("first"), tc.task}}
			err := w.Check()
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, tc.want)
		})
	}
	require.ErrorIs(t, (&Wish{}).Check(), ErrInvalid)
	require.ErrorIs(t, (&Wish{Epoch: 1, Tasks: make([]Task, MaxTasks+1)}).Check(), ErrInvalid)
}

func TestErrorsSurviveTheWire(t *testing.T) {
	for want, status := range statuses() {
		t.Run(want.Error(), func(t *testing.T) {
			err := answered("http://h:1", status, []byte(`{"error":"why"}`))
			require.ErrorIs(t, err, want)
			require.ErrorContains(t, err, "why")
			require.Equal(t, status, StatusOf(err))
		})
	}
	require.Equal(t, http.StatusInternalServerError, StatusOf(io.EOF))
	err := answered("http://h:1", http.StatusBadGateway, []byte("<html>"))
	remote, ok := errors.AsType[*RemoteError](err)
	require.True(t, ok)
	require.Equal(t, http.StatusBadGateway, remote.Status)
	require.ErrorContains(t, err, "Bad Gateway")
	require.NoError(t, errors.Unwrap(err))
}

// serve gives a client of what answers.
func serve(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(answer)
	c := NewClient(strings.TrimPrefix(s.URL, "http://"), nil)
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c
}

func TestTheClientAsksAsTheAPISays(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.RequestURI()+" "+string(b))
		switch r.URL.Path {
		case "/v1/fetch":
			_, _ = io.WriteString(w, `{"path":"/p"}`)
		case "/v1/state":
			_, _ = io.WriteString(w, `{"seq":8,"clock":"2026-11-22T19:40:43Z"}`)
		default:
			_, _ = io.WriteString(w, "a line\n")
		}
	})
	s, err := c.State(t.Context(), 7, 20*time.Second)
	require.NoError(t, err)
	require.Equal(t, int64(8), s.Seq)
	_, err = c.State(t.Context(), 7, time.Hour)
	require.NoError(t, err)
	path, err := c.Fetch(t.Context(), "s3://b/k")
	require.NoError(t, err)
	require.Equal(t, "/p", path)
	r, err := c.Logs(t.Context(), "a.0", 5, true)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.Equal(t, "a line\n", string(b))
	require.Empty(t, cmp.Diff([]string{
		"GET /v1/state?after=7&wait=20s ",
		"GET /v1/state?after=7&wait=1m0s ",
		`POST /v1/fetch {"source":"s3://b/k"}`,
		"GET /v1/tasks/a.0/logs?follow=true&tail=5 ",
	}, got))
	_, err = c.Tell(t.Context(), Wish{Epoch: 1})
	require.ErrorContains(t, err, "answer to /v1/tasks")
}

func TestTheClientGivesUpWithItsContext(t *testing.T) {
	entered := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-entered; cancel() }()
	_, err := c.State(ctx, 1, deadline)
	require.ErrorIs(t, err, context.Canceled)
}

func TestTheClientSaysWhoDoesNotAnswer(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := c.State(ctx, 1, deadline)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Regexp(t, `^agent http://\S+ does not answer: context deadline exceeded$`, err.Error())
}

func TestAClosedFollowerLetsGo(t *testing.T) {
	ended := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})
	r, err := c.Logs(t.Context(), "a", 0, true)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	select {
	case <-ended:
	case <-time.After(deadline):
		t.Fatal("the request goes on")
	}
}

func TestAnAgentThatIsNotThereIsRefused(t *testing.T) {
	c := NewClient("127.0.0.1:1", nil)
	defer c.Close()
	_, err := c.State(t.Context(), 0, 0)
	require.ErrorContains(t, err, "127.0.0.1:1")
	require.NotErrorIs(t, err, ErrUnknownTask)
}

func TestInMemoryKeepsWhatIsWished(t *testing.T) {
	m := NewInMemory("h", 2, mobula.Device{ID: "0"})
	ctx := t.Context()
	s, err := m.Tell(ctx, Wish{Control: "c", Epoch: 1, Tasks: []Task{task("b"), task("a")}})
	require.NoError(t, err)
	require.Equal(t, "a", s.Tasks[0].ID)
	m.Set("a", TaskReady, "")
	m.Print("a", "x\ny\nz\n")
	s, err = m.Tell(ctx, Wish{Control: "c", Epoch: 2, Tasks: []Task{task("a")}})
	require.NoError(t, err)
	require.Len(t, s.Tasks, 1)
	require.Equal(t, TaskReady, s.Tasks[0].State, "left alone")
	next := task("a")
	next.Round = 1
	s, err = m.Tell(ctx, Wish{Control: "c", Epoch: 3, Tasks: []Task{next}})
	require.NoError(t, err)
	require.Equal(t, TaskStarting, s.Tasks[0].State)
	_, err = m.Tell(ctx, Wish{Control: "c", Epoch: 3})
	require.ErrorIs(t, err, ErrOldWish)
	_, err = m.Tell(ctx, Wish{Control: "d", Epoch: 4})
	require.ErrorIs(t, err, ErrOtherControl)

	r, err := m.Logs(ctx, "a", 2, false)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "y\nz\n", string(b))
	_, err = m.Logs(ctx, "b", 2, false)
	require.ErrorIs(t, err, ErrUnknownTask)

	changed := make(chan State)
	go func() {
		s, _ := m.State(ctx, s.Seq, deadline)
		changed <- s
	}()
	m.Set("a", TaskFailed, "why")
	require.Equal(t, "why", (<-changed).Tasks[0].Reason)
	m.Lose(true)
	_, err = m.State(ctx, 0, 0)
	require.ErrorIs(t, err, errLost)
	m.Lose(false)
	path, err := m.Fetch(ctx, "/p")
	require.NoError(t, err)
	require.Equal(t, "/p", path)
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"control":"c","epoch":1,"tasks":[{"id":"a","replica":"a","fleet":"f","model":{"Name":"m","Replicas":"1-4","Engine":{"Kind":"vllm","StopTimeout":"45s"}},"devices":["0"]}]}`))
	f.Add([]byte(`{"seq":1,"instance":"x","tasks":[{"id":"a","state":"ready","since":"2026-11-22T19:40:43Z"}],"clock":"2026-11-22T19:40:43Z","disk":"1GiB"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w Wish
		if json.Unmarshal(b, &w) == nil && w.Check() == nil {
			again, err := json.Marshal(w)
			require.NoError(t, err)
			var back Wish
			require.NoError(t, json.Unmarshal(again, &back))
			require.NoError(t, back.Check(), "what was taken is taken again after a restart")
			for _, task := range w.Tasks {
				require.NotContains(t, task.ID, string(os.PathSeparator))
			}
		}
		var s State
		_ = json.Unmarshal(b, &s)
		require.Error(t, answered("http://h:1", http.StatusConflict, b))
	})
}

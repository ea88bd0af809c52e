package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// later gives the result of f, which waits, when it comes.
func later[T any](t *testing.T, f func() (T, error)) func() T {
	t.Helper()
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		value, err = f()
	}()
	return func() T {
		t.Helper()
		<-done
		require.NoError(t, err)
		return value
	}
}

func TestViewWaitsForAChange(t *testing.T) {
	h := start(t)
	got := later(t, func() (*control.View, error) { return h.client.View(t.Context(), 1) })
	eventually(t, func() bool { return len(h.waiters) == 1 })
	h.fake.change(func(f *fake) { f.view.Fleet = "prod" })
	v := got()
	require.Equal(t, int64(2), v.Version)
	require.Equal(t, "prod", v.Fleet)
	eventually(t, func() bool { return len(h.waiters) == 0 })
}

func TestViewOfAControlPlaneStartedAnewIsGivenAtOnce(t *testing.T) {
	h := start(t)
	v, err := h.client.View(t.Context(), 500)
	require.NoError(t, err)
	require.Equal(t, int64(1), v.Version)
}

func TestWaitsEnd(t *testing.T) {
	h := start(t)
	for _, path := range []string{"/v1/view?after=1&wait=5ms", "/v1/events?wait=5ms"} {
		status, answer := h.do(t, http.MethodGet, path, "")
		require.Equal(t, http.StatusOK, status, answer)
	}
	_, version, _ := h.endpoints.get()
	status, answer := h.do(t, http.MethodGet, fmt.Sprintf("/v1/endpoints?after=%d&wait=5ms", version), "")
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, fmt.Sprintf(`{"version":%d,"endpoints":[]}`, version), answer)
}

func TestEventsWaitForOne(t *testing.T) {
	h := start(t)
	first := control.Event{Seq: 1, Object: "fleet", Reason: "Applied", Message: "by a person", Count: 1, At: time.Unix(1e9, 0).UTC()}
	h.fake.change(func(f *fake) { f.events = append(f.events, first) })
	events, err := h.client.Events(t.Context(), 0, false)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff([]control.Event{first}, events))
	got := later(t, func() ([]control.Event, error) { return h.client.Events(t.Context(), 1, true) })
	eventually(t, func() bool { return len(h.waiters) == 1 })
	second := control.Event{Seq: 2, Object: "model/llama", Reason: "RolloutFailed", Warning: true, Count: 2, At: first.At}
	h.fake.change(func(f *fake) { f.events = append(f.events, second) })
	require.Empty(t, cmp.Diff([]control.Event{second}, got()))
}

func TestSettingsFollowTheFleet(t *testing.T) {
	h := start(t)
	s, err := h.client.Settings(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, s.File, "nothing was applied")
	got := later(t, func() (*control.Settings, error) { return h.client.Settings(t.Context(), s.Version) })
	eventually(t, func() bool { return len(h.waiters) == 1 })
	h.fake.change(func(*fake) {}) // of something else: nobody is woken
	_, err = h.client.Apply(t.Context(), []byte("kind: Fleet # é\n"), "", false, false)
	require.NoError(t, err)
	now := got()
	require.Equal(t, "kind: Fleet # é\n", now.File)
	got = later(t, func() (*control.Settings, error) { return h.client.Settings(t.Context(), now.Version) })
	h.fake.change(func(f *fake) { f.deleted = []string{"llama"} })
	require.Equal(t, []string{"llama"}, got().Deleted)
}

func TestAThousandWaitersAreAllAnswered(t *testing.T) {
	h := start(t)
	const n = 1000
	_, version, _ := h.endpoints.get()
	var wg sync.WaitGroup
	answers := make([]string, n)
	for i := range n {
		wg.Go(func() {
			_, answers[i] = h.do(t, http.MethodGet, fmt.Sprintf("/v1/endpoints?after=%d&wait=1m", version), "")
		})
	}
	eventually(t, func() bool { return len(h.waiters) == n })
	h.source.Set(endpointsOf(3)...)
	wg.Wait()
	for _, answer := range answers {
		var list client.EndpointList
		require.NoError(t, json.Unmarshal([]byte(answer), &list))
		require.Len(t, list.Endpoints, 3)
		require.NotEqual(t, version, list.Version)
	}
	eventually(t, func() bool { return len(h.waiters) == 0 })
}

func TestTooManyWaitersAreRefusedAndOthersAreNot(t *testing.T) {
	h := start(t, func(o *Options) { o.Waiters = 1 })
	got := later(t, func() (*control.View, error) { return h.client.View(t.Context(), 1) })
	eventually(t, func() bool { return len(h.waiters) == 1 })
	for _, path := range []string{"/v1/view?after=1&wait=10s", "/v1/events?wait=10s", "/v1/replicas/a/logs?follow=true"} {
		status, answer := h.do(t, http.MethodGet, path, "")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, client.CodeUnavailable, errorOf(t, answer).Code)
	}
	status, _ := h.do(t, http.MethodGet, "/v1/view", "")
	require.Equal(t, http.StatusOK, status, "who doesn't wait needs no place")
	h.fake.change(func(*fake) {})
	got()
}

func TestAClientThatLeavesGivesItsPlaceBack(t *testing.T) {
	h := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = h.client.View(ctx, 1) })
	eventually(t, func() bool { return len(h.waiters) == 1 })
	cancel()
	wg.Wait()
	eventually(t, func() bool { return len(h.waiters) == 0 })
}

func TestStopEndsAllWaits(t *testing.T) {
	h := start(t)
	_, version, _ := h.endpoints.get()
	paths := []string{"/v1/view?after=1&wait=1m", "/v1/events?wait=1m", fmt.Sprintf("/v1/endpoints?after=%d&wait=1m", version)}
	var wg sync.WaitGroup
	statuses := make([]int, len(paths))
	for i, path := range paths {
		wg.Go(func() { statuses[i], _ = h.do(t, http.MethodGet, path, "") })
	}
	eventually(t, func() bool { return len(h.waiters) == len(paths) })
	h.stop()
	wg.Wait()
	for _, status := range statuses {
		require.Equal(t, http.StatusServiceUnavailable, status)
	}
	status, answer := h.do(t, http.MethodGet, paths[0], "")
	require.Equal(t, http.StatusServiceUnavailable, status, "nor does anybody wait afterwards")
	require.Contains(t, errorOf(t, answer).Message, "stopping")
	status, _ = h.do(t, http.MethodGet, "/ready", "")
	require.Equal(t, http.StatusServiceUnavailable, status)
	status, _ = h.do(t, http.MethodGet, "/health", "")
	require.Equal(t, http.StatusOK, status)
}

// mute is a source that has nothing to say yet.
type mute struct{ err error }

func (m mute) Run(ctx context.Context, _ chan<- []mobula.Endpoint) error {
	if m.err != nil {
		return m.err
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestEndpointsThatAreNotKnownAreNotNone(t *testing.T) {
	s := New(Options{Backend: newFake(), Endpoints: mute{}, Token: secret})
	require.False(t, s.endpoints.known())
	h := start(t)
	h.endpoints = newLatest() // as before the first state
	for _, path := range []string{"/v1/endpoints", "/v1/endpoints?after=7", "/v1/endpoints?wait=5ms"} {
		status, answer := h.do(t, http.MethodGet, path, "")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, client.CodeUnavailable, errorOf(t, answer).Code)
	}
	status, _ := h.do(t, http.MethodGet, "/ready", "")
	require.Equal(t, http.StatusServiceUnavailable, status)
}

func TestRunTellsThatEndpointsCanNeverBeKnown(t *testing.T) {
	never := errors.New("never")
	s := New(Options{Backend: newFake(), Endpoints: mute{never}, Token: secret})
	require.ErrorIs(t, s.Run(t.Context()), never)
}

func TestLatestKeepsItsVersionWhileNothingChanges(t *testing.T) {
	l := newLatest()
	require.False(t, l.known())
	l.set(endpointBody(nil))
	_, first, _ := l.get()
	l.set(endpointBody([]mobula.Endpoint{}))
	_, same, _ := l.get()
	require.Equal(t, first, same)
	l.set(endpointBody(endpointsOf(1)))
	_, next, _ := l.get()
	require.Greater(t, next, first)
}

var _ adapters.Discoverer = mute{}

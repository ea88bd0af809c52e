//go:build linux

package fleet

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/control"
)

// Answer is what the router said.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Do sends a request to the router, with a body if that is not empty.
func (f *Fleet) Do(ctx context.Context, method, path, body string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.URL+path, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, string(raw)}, err
}

// Chat asks a model something short, in vain or not.
func (f *Fleet) Chat(ctx context.Context, model string) (Answer, error) {
	return f.Do(ctx, http.MethodPost, "/v1/chat/completions", fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}],"max_tokens":4}`, model))
}

// Get gives a page of the router's.
func (f *Fleet) Get(path string) string {
	f.t.Helper()
	a, err := f.Do(f.t.Context(), http.MethodGet, path, "")
	require.NoError(f.t, err)
	require.Equal(f.t, http.StatusOK, a.Status, a.Body)
	return a.Body
}

// Burst sends n requests at once, every second one a stream. All must be answered.
func (f *Fleet) Burst(model string, n int) {
	f.t.Helper()
	failed := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { failed[i] = f.Ask(f.t.Context(), model, fmt.Sprint("burst ", i), i%2 == 1) })
	}
	all.Wait()
	failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	require.Empty(f.t, failed, "of %d requests\n%s", n, f.logs())
}

// Status of a placed model; its zero value when there is none of that name.
func (f *Fleet) Status(model string) control.ModelStatus {
	f.t.Helper()
	for _, m := range f.Models() {
		if m.Name == model {
			return m
		}
	}
	return control.ModelStatus{}
}

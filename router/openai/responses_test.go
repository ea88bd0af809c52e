package openai

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/router/proxy"
)

// shelf is engines that keep responses: only owner has one, and those in hung never answer.
type shelf struct {
	owner string
	hung  map[string]bool

	mu      sync.Mutex
	asked   int
	waiting int
	served  []string // method and target of what went to a client
}

func (d *shelf) Do(x *proxy.Exchange) proxy.Result {
	ep := x.List[0]
	_, question := x.Client.(*proxy.MemoryClient)
	d.mu.Lock()
	if question {
		d.asked++
	} else {
		d.served = append(d.served, x.Method+" "+x.Target)
	}
	d.mu.Unlock()
	gone := canceler{make(chan struct{})}
	left := !x.Client.Watch(gone)
	defer x.Client.Unwatch()
	if d.hung[ep.ID] && !left {
		d.count(1)
		<-gone.c
		d.count(-1)
		left = true
	}
	if left {
		return proxy.Result{Endpoint: ep, Err: &proxy.Error{Cause: proxy.CauseClientGone}}
	}
	status, body := http.StatusNotFound, `{"error":{}}`
	if ep.ID == d.owner {
		status, body = http.StatusOK, `{"id":"resp_9"}`
	}
	if err := x.Client.Head(status, x.AnswerFields(nil, ep), int64(len(body))); err != nil {
		return proxy.Result{Endpoint: ep, Err: err}
	}
	return proxy.Result{Endpoint: ep, Status: status, Err: x.Client.Write([]byte(body))}
}

func (d *shelf) count(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting += n
}

func (d *shelf) state() (asked, waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.waiting
}

type canceler struct{ c chan struct{} }

func (c canceler) Cancel() { close(c.c) }

func shelfBench(t *testing.T, owner string, hung ...string) (*bench, *shelf) {
	t.Helper()
	b := newBench(t, "roundrobin", "m")
	d := &shelf{owner: owner, hung: map[string]bool{}}
	for _, id := range hung {
		d.hung[id] = true
	}
	b.edge.proxy = d
	return b, d
}

func (b *bench) ask(ctx context.Context, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	b.edge.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, path, strings.NewReader("")))
	return w
}

func TestResponseOfUnknownOwnerIsAskedFor(t *testing.T) {
	b, d := shelfBench(t, "http://e2", "http://e0")
	for range 2 {
		w := b.ask(t.Context(), http.MethodPost, "/v1/responses/resp_9/cancel")
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "http://e2", w.Header().Get("X-Mobula-Endpoint"), "a hung engine holds nobody up")
	}
	asked, waiting := d.state()
	require.LessOrEqual(t, asked, 4, "once")
	require.Zero(t, waiting)
	require.Equal(t, []string{"POST /v1/responses/resp_9/cancel", "POST /v1/responses/resp_9/cancel"}, d.served)
	b.ask(t.Context(), http.MethodGet, "/v1/responses/resp_9?stream=true")
	require.Equal(t, "GET /v1/responses/resp_9?stream=true", d.served[2])
}

func TestResponseThatNobodyKnows(t *testing.T) {
	b, d := shelfBench(t, "")
	w := b.ask(t.Context(), http.MethodGet, "/v1/responses/resp_9")
	require.Equal(t, http.StatusNotFound, w.Code)
	require.Equal(t, "*", w.Header().Get("Access-Control-Allow-Origin"), "a page may read why")
	for _, id := range []string{"..", ".", "a%20b", "%0d%0aX"} {
		require.Equal(t, http.StatusNotFound, b.ask(t.Context(), http.MethodGet, "/v1/responses/"+id).Code, id)
	}
	asked, _ := d.state()
	require.Equal(t, 4, asked, "no engine is asked for what is no id")
	require.Empty(t, d.served)
}

func TestClientThatLeavesEndsTheSearch(t *testing.T) {
	b, d := shelfBench(t, "", "http://e1", "http://e3")
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.ask(ctx, http.MethodGet, "/v1/responses/resp_9")
	}()
	require.Eventually(t, func() bool { _, waiting := d.state(); return waiting == 2 }, 10*time.Second, time.Millisecond)
	leave()
	<-done
	_, waiting := d.state()
	require.Zero(t, waiting)
}

func TestModelListsAreForPagesOfAnyOrigin(t *testing.T) {
	b := newBench(t, "cost", "m")
	for _, path := range []string{"/v1/models", "/models", "/v1/models/m", "/v1/models/nope"} {
		require.Equal(t, []string{"*"}, b.ask(t.Context(), http.MethodGet, path).Header()["Access-Control-Allow-Origin"], path)
	}
}

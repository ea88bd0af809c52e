package health

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/proxy"
)

// server starts an engine over HTTP at addr.
func server(t *testing.T, addr string) *httptest.Server {
	t.Helper()
	var l net.Listener
	eventually(t, "the address is free", func() bool { // somebody else may have got the port of one that was closed
		var err error
		l, err = net.Listen("tcp", addr)
		return err == nil
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n")
	})
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}} // no /health: 404 is an answer
	s.Start()
	return s
}

// keep runs a Keeper over HTTP with discovery d until the test ends.
func keep(t *testing.T, d adapters.Discoverer) *Keeper {
	t.Helper()
	client := engine.NewClient(engine.Options{})
	k := New(Options{Client: client, Health: mobula.Health{Interval: mobula.Duration(20 * time.Millisecond), EjectAfter: 3}})
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan []mobula.Endpoint)
	var running sync.WaitGroup
	running.Go(func() { _ = d.Run(ctx, up) })
	running.Go(func() { _ = k.Run(ctx, up) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		client.Close()
	})
	return k
}

// eventually waits for what must come, however busy the machine is.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, 30*time.Second, 5*time.Millisecond, what)
}

func servingNow(k *Keeper) int {
	g := k.Snapshot().Lookup("m")
	if g == nil || g.Ejected {
		return 0
	}
	return len(g.Endpoints)
}

func TestServersThatDieAndReturn(t *testing.T) {
	a, b := server(t, "127.0.0.1:0"), server(t, "127.0.0.1:0")
	defer b.Close()
	d := adapters.NewInMemory(mobula.Endpoint{ID: "a", URL: a.URL}, mobula.Endpoint{ID: "b", URL: b.URL})
	k := keep(t, d)
	eventually(t, "both serve", func() bool { return servingNow(k) == 2 && k.Ready() })
	eventually(t, "their caches are known", func() bool { return k.Snapshot().Endpoints[0].CacheTokens == 1600 })

	addr := a.Listener.Addr().String()
	a.CloseClientConnections()
	a.Close()
	eventually(t, "the dead one is left", func() bool { return servingNow(k) == 1 })

	a = server(t, addr)
	defer a.Close()
	eventually(t, "it is taken back", func() bool { return servingNow(k) == 2 })

	d.Set()
	eventually(t, "nothing is left", func() bool { return servingNow(k) == 0 && !k.Ready() })
	require.NotNil(t, k.Snapshot().Lookup("m"))
}

// Reports, discovery and updates at once neither race nor leave a healthy endpoint out.
func TestReportsFromAllSides(t *testing.T) {
	a, b := server(t, "127.0.0.1:0"), server(t, "127.0.0.1:0")
	defer a.Close()
	defer b.Close()
	both := []mobula.Endpoint{{ID: "a", URL: a.URL}, {ID: "b", URL: b.URL}}
	d := adapters.NewInMemory(both...)
	k := keep(t, d)
	eventually(t, "both serve", func() bool { return servingNow(k) == 2 })

	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 2000 {
				for _, e := range k.Snapshot().Endpoints {
					k.Report(e, proxy.Outcome{Cause: proxy.Cause(rand.IntN(int(proxy.CauseIdle) + 1))})
				}
			}
		})
	}
	running.Go(func() {
		for i := range 50 {
			d.Set(both[:1+i%2]...)
			k.Update(mobula.Health{Interval: mobula.Duration(10 * time.Millisecond)}, []mobula.Model{{Name: "m", Aliases: []string{"x"}}})
			k.Statuses()
			k.Scraped("a")
			time.Sleep(time.Millisecond)
		}
		d.Set(both...)
	})
	running.Wait()
	eventually(t, "both serve again", func() bool { return servingNow(k) == 2 })
}

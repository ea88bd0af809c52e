package openai

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/engine/sim"
	"github.com/mobula-serve/mobula/router/flow"
	"github.com/mobula-serve/mobula/router/front"
	"github.com/mobula-serve/mobula/router/health"
	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long tests wait for what must happen.
const patience = time.Minute

// stack is a router in this process, from its front to its connections.
type stack struct {
	t        *testing.T
	edge     *Edge
	keeper   *health.Keeper
	flow     *flow.Holder
	reporter *metrics.Reporter
	front    *front.Server
	registry *prometheus.Registry
	up       chan []mobula.Endpoint
	url      string
}

// options of a stack; a zero field has the fleet file's default.
type options struct {
	policy string
	models []mobula.Model
	router func(*mobula.Router)
	proxy  func(*proxy.Options)
	beat   time.Duration
}

// placed is a model that engines are made for.
func placed(name string) mobula.Model {
	m := mobula.NewModel(name)
	m.Replicas = &mobula.Range{Max: 2}
	return m
}

func newStack(t *testing.T, o options) *stack {
	t.Helper()
	r := mobula.Default().Router
	r.Health.Interval = mobula.Duration(50 * time.Millisecond)
	if o.router != nil {
		o.router(&r)
	}
	s := &stack{t: t, registry: prometheus.NewRegistry(), up: make(chan []mobula.Endpoint)}
	client := engine.NewClient(engine.Options{})
	po := proxy.Options{Timeouts: r.Timeouts, Retries: r.Retries}
	if o.proxy != nil {
		o.proxy(&po)
	}
	p := proxy.New(po)
	policy, err := pick.New(pick.Options{Name: o.policy})
	require.NoError(t, err)
	set := metrics.New(s.registry)
	s.keeper = health.New(health.Options{Client: client, Health: r.Health, Models: o.models, OnChange: func(snapshot *pick.Snapshot) {
		p.Keep(snapshot)
		s.edge.Keep(snapshot)
	}})
	s.flow = flow.New(flow.Options{Snapshot: s.keeper.Snapshot, Registerer: s.registry, Beat: o.beat})
	s.edge = New(Options{Fleet: s.keeper, Proxy: p, Policy: policy, Router: r, Metrics: set, Flow: s.flow, Gatherer: s.registry})
	s.reporter = &metrics.Reporter{Router: "r", Set: set, Keeper: s.keeper, Traffic: s.edge}
	s.front = front.New(front.Options{
		Accepts: s.edge.Accepts, Handler: s.edge, Fallback: s.edge.Handler(), ErrorBody: s.edge.ErrorBody, Limits: r.Limits, Timeouts: r.Timeouts,
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var g sync.WaitGroup
	g.Go(func() { _ = s.front.Serve(l) })
	g.Go(func() { _ = s.keeper.Run(ctx, s.up) })
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		_ = s.front.Shutdown(ctx)
		cancel()
		g.Wait()
		p.Close()
		client.Close()
	})
	return s
}

// endpoints reports these.
func (s *stack) endpoints(all ...mobula.Endpoint) {
	s.t.Helper()
	select {
	case s.up <- all:
	case <-time.After(patience):
		s.t.Fatal("the keeper does not take endpoints")
	}
}

// reply is an answer as a client got it.
type reply struct {
	status int
	header http.Header
	body   string
	err    error
}

// ask posts a body and gives the answer when it is whole.
func (s *stack) ask(path, body string, header ...string) reply {
	return s.askUntil(s.t.Context(), path, body, header...)
}

func (s *stack) askUntil(ctx context.Context, path, body string, header ...string) reply {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		return reply{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err}
}

// later asks in the background.
func (s *stack) later(path, body string) <-chan reply {
	answer := make(chan reply, 1)
	go func() { answer <- s.ask(path, body) }()
	return answer
}

func (s *stack) take(answer <-chan reply) reply {
	s.t.Helper()
	select {
	case r := <-answer:
		require.NoError(s.t, r.err)
		return r
	case <-time.After(patience):
		s.t.Fatal("no answer")
		return reply{}
	}
}

func (s *stack) until(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, ok, patience, time.Millisecond, what)
}

func (s *stack) holds(n int64) {
	s.t.Helper()
	s.until("held requests", func() bool { return s.flow.Held() == n })
}

// simulated is an engine that can be killed and comes back at its address.
type simulated struct {
	t    *testing.T
	addr string
	o    sim.Options
	stop func()
	*sim.Engine
}

func startSim(t *testing.T, o sim.Options) *simulated {
	t.Helper()
	e := &simulated{t: t, addr: "127.0.0.1:0", o: o}
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

func (e *simulated) start() {
	e.t.Helper()
	var err error
	e.Engine, err = sim.New(e.o)
	require.NoError(e.t, err)
	l, err := net.Listen("tcp", e.addr)
	require.NoError(e.t, err)
	e.addr = l.Addr().String()
	srv := &http.Server{Handler: e.Handler(), ReadHeaderTimeout: patience}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			e.t.Error(err)
		}
	}()
	e.stop = func() {
		_ = srv.Close() // its connections are cut
		e.Abort()
		<-done
	}
}

func (e *simulated) endpoint() mobula.Endpoint {
	return mobula.Endpoint{ID: "replica-" + e.addr, URL: "http://" + e.addr}
}

// events are the data lines of a stream.
func events(body string) (data []string, comments int) {
	sc := bufio.NewScanner(strings.NewReader(body))
	for sc.Scan() {
		if d, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			data = append(data, d)
		}
		if strings.HasPrefix(sc.Text(), ":") {
			comments++
		}
	}
	return data, comments
}

// seen is a request as a provider got it.
type seen struct {
	path, host, body string
	header           http.Header
}

// provider is a stand-in for a service of others.
func newProvider(t *testing.T, answer http.HandlerFunc) (*httptest.Server, func() []seen) {
	t.Helper()
	var mu sync.Mutex
	var all []seen
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		all = append(all, seen{r.RequestURI, r.Host, string(b), r.Header})
		mu.Unlock()
		answer(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, func() []seen {
		mu.Lock()
		defer mu.Unlock()
		return append([]seen(nil), all...)
	}
}

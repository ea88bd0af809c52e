// Package api is the control plane's HTTP API, on port 8100: JSON over HTTP for the mobula commands, for
// routers and for agents that join. The routes stand in routes.go, and at /openapi.json.
package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

// Backend is the control plane behind the API. Its errors wrap those of packages control and adapters.
type Backend = client.Plane

// Tokens makes and checks join tokens.
type Tokens interface {
	New(ctx context.Context) (string, error)
	// Check uses a token once, and fails with an error for people when it is wrong, too old or used up.
	Check(ctx context.Context, token string) error
}

// Joiner takes hosts in. peer is the certificate that an agent that has joined before showed, nil for a
// new one, whose token was checked.
type Joiner interface {
	Join(ctx context.Context, j agent.Join, peer *x509.Certificate) (agent.Joined, error)
}

// Roles of client certificates.
const (
	RoleControl = string(trust.RoleControl) // may do all
	RoleRouter  = string(trust.RoleRouter)  // may report, and read endpoints and settings
	RoleAgent   = string(trust.RoleAgent)   // may renew its certificate
)

// Options of a Server. Backend and Endpoints are required.
type Options struct {
	Backend Backend
	// Endpoints are what routers get. They are asked for while Run runs.
	Endpoints adapters.Discoverer
	// Tokens and Joiner of agents; without them nobody joins.
	Tokens Tokens
	Joiner Joiner
	// Token that people and routers show; with an empty one only client certificates open the door.
	Token mobula.Secret
	// RouterToken opens what RoleRouter does, and nothing else; nothing when empty.
	RouterToken mobula.Secret
	// Role gives the role of a connection's verified client certificate, empty for none. Nil: no certificate has one.
	Role func(*tls.ConnectionState) string
	// Waiters bounds the calls that wait for a change or follow a log, 0 for 4096.
	Waiters int
	// Logger is required; a request is logged only when it fails by our own fault.
	Logger *slog.Logger
	// Registerer of our metrics, nil for none; Gatherer is what /metrics shows, nil for nothing.
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer
	// Version of mobula.
	Version string
}

// Server serves the API. Run it beside an http.Server (with a ReadHeaderTimeout) that has its Handler.
type Server struct {
	backend            Backend
	source             adapters.Discoverer
	tokens             Tokens
	joiner             Joiner
	token, routerToken secretSum // of Options
	role               func(*tls.ConnectionState) string
	logger             *slog.Logger
	gatherer           prometheus.Gatherer
	metrics            *metrics
	version            string
	document           []byte // OpenAPI, JSON

	waiters   chan struct{} // one in it for each call that waits
	endpoints *latest
	settings  *latest
	life      context.Context // until Run ends: nobody waits any more
	end       context.CancelFunc
	handler   http.Handler
}

const defaultWaiters = 4096

// New makes a Server.
func New(o Options) *Server {
	if o.Waiters == 0 {
		o.Waiters = defaultWaiters
	}
	if o.Role == nil {
		o.Role = func(*tls.ConnectionState) string { return "" }
	}
	life, end := context.WithCancel(context.Background()) // nobody's child: Run, which ends it, comes later
	s := &Server{
		backend: o.Backend, source: o.Endpoints, tokens: o.Tokens, joiner: o.Joiner,
		token: sumOf(string(o.Token)), routerToken: sumOf(string(o.RouterToken)), role: o.Role,
		logger: o.Logger, gatherer: o.Gatherer, metrics: newMetrics(o.Registerer), version: o.Version,
		waiters: make(chan struct{}, o.Waiters), endpoints: newLatest(), settings: newLatest(), life: life, end: end,
	}
	if s.gatherer == nil {
		s.gatherer = prometheus.NewRegistry()
	}
	routes := s.routes()
	s.document = document(routes, o.Version)
	s.handler = s.engine(routes)
	return s
}

// Handler serves the API.
func (s *Server) Handler() http.Handler { return s.handler }

// Run keeps what routers wait for up to date until ctx ends, and ends all calls that wait then: call it once, and
// end it before the http.Server is shut down. It returns ctx's error, or why endpoints can never be known.
func (s *Server) Run(ctx context.Context) error {
	defer s.end()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	up := make(chan []mobula.Endpoint)
	wg.Go(func() {
		if err := s.source.Run(ctx, up); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() { s.watchFleet(ctx) })
	for {
		select {
		case endpoints := <-up:
			s.endpoints.set(endpointBody(endpoints))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// engine makes Gin's side of the routes.
func (s *Server) engine(routes []route) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	g := gin.New()
	g.HandleMethodNotAllowed = true
	g.RedirectTrailingSlash = false
	g.UseEscapedPath = true      // a model's name may have slashes, as %2F
	g.UnescapePathValues = false // Gin's way takes + for a space; see pathValue
	g.Use(s.observe, s.recoverPanic)
	for _, r := range routes {
		g.Handle(r.method, ginPath(r.path), s.serve(r))
	}
	g.NoRoute(func(c *gin.Context) {
		s.fail(c, errors.New("there is no such route; /openapi.json lists them"), http.StatusNotFound)
	})
	g.NoMethod(func(c *gin.Context) {
		s.fail(c, errors.New("the route does not take this method; /openapi.json lists them"), http.StatusMethodNotAllowed)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.ServeHTTP(w, foldModel(r)) })
}

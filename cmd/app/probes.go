package app

import (
	"context"
	"net/http"
	"sync/atomic"
)

// probes answer /health and /ready of a control plane that may stand by: then it is well, and ready to follow. Once it leads
// its API answers.
type probes struct {
	leads  atomic.Bool
	api    atomic.Pointer[http.Handler]
	server *http.Server
	served chan struct{}
}

// serveProbes listens at an address; at none they are not served.
func (a *app) serveProbes(ctx context.Context, address string) (*probes, error) {
	p := &probes{served: make(chan struct{})}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: adminHeader, IdleTimeout: adminIdle}
	if address == "" {
		close(p.served)
		return p, nil
	}
	l, err := listen(ctx, address, "--health-listen")
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(p.served)
		_ = p.server.Serve(l) // until close
	}()
	return p, nil
}

func (p *probes) close() {
	_ = p.server.Close()
	<-p.served
}

// ServeHTTP answers GET of /health and /ready.
func (p *probes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	api := p.api.Load()
	switch {
	case r.Method != http.MethodGet || r.URL.Path != "/health" && r.URL.Path != "/ready":
		http.NotFound(w, r)
	case api != nil:
		(*api).ServeHTTP(w, r)
	case r.URL.Path == "/ready" && p.leads.Load():
		http.Error(w, "it begins to lead", http.StatusServiceUnavailable)
	}
}

package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mobula-serve/mobula"
)

// Server serves connections. Its zero value is not usable.
type Server struct {
	accepts   func(method, path []byte) bool
	handler   Handler
	other     http.Handler
	errorBody func(path []byte, status int, message string) []byte
	log       *slog.Logger

	settings atomic.Pointer[settings]
	fallback atomic.Pointer[fallback] // the current one
	watcher  watcher
	pools    pools
	date     clock
	rejects  chan struct{} // a token for each connection being rejected

	draining atomic.Bool
	stop     chan struct{} // closed when draining begins
	owned    sync.WaitGroup

	mu        sync.Mutex
	started   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	fallbacks []*fallback // all that may have connections

	open                                                         atomic.Int64
	requests, handovers, rejected, slowHeads, slowBodies, panics atomic.Uint64
}

// New makes a Server. It panics when o has Accepts but no Handler.
func New(o Options) *Server {
	if o.Accepts == nil {
		o.Accepts = func(_, _ []byte) bool { return false }
	} else if o.Handler == nil {
		panic("front: Accepts without Handler")
	}
	if o.Fallback == nil {
		o.Fallback = http.NotFoundHandler()
	}
	if o.ErrorBody == nil {
		o.ErrorBody = openAIError
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		accepts: o.Accepts, handler: o.Handler, other: o.Fallback, errorBody: o.ErrorBody, log: o.Logger,
		rejects:   make(chan struct{}, maxRejects),
		stop:      make(chan struct{}),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*conn]struct{}{},
	}
	s.settings.Store(newSettings(o.Limits, o.Timeouts))
	if o.Registerer != nil {
		s.register(o.Registerer)
	}
	return s
}

// Update changes limits and timeouts for what comes. Connections that net/http has keep theirs.
func (s *Server) Update(l mobula.Limits, t mobula.Timeouts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := newSettings(l, t)
	if *set == *s.settings.Load() {
		return
	}
	s.settings.Store(set)
	if s.started && !s.draining.Load() {
		s.renew()
	}
}

// renew puts a new fallback in the place of the last one. s.mu is held.
func (s *Server) renew() {
	old := s.fallback.Load()
	kept := s.fallbacks[:0:0]
	for _, f := range s.fallbacks {
		if f == old || f.open.Load() > 0 {
			kept = append(kept, f)
		}
	}
	f := s.newFallback()
	s.fallbacks = append(kept, f)
	s.fallback.Store(f)
	if old != nil {
		_ = old.Close()
	}
}

// Serve accepts connections from l until Shutdown or Close, and then returns
// http.ErrServerClosed. It may be called for several listeners. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }()
	if !s.begin(l) {
		return http.ErrServerClosed
	}
	defer s.forget(l)
	const shortest, longest = 5 * time.Millisecond, time.Second
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.admit(nc)
			continue
		case s.draining.Load():
			return http.ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		}
		// Out of descriptors, or a client that left while it waited: neither ends the service.
		pause = min(max(2*pause, shortest), longest)
		s.log.Warn("cannot accept a connection", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.stop:
		}
	}
}

// begin registers l, and starts with the first one what all of them share.
func (s *Server) begin(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	if !s.started {
		s.started = true
		if s.watcher == nil {
			s.watcher = newWatcher(s.log)
		}
		s.renew()
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) forget(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// admit starts on an accepted connection.
func (s *Server) admit(nc net.Conn) {
	plain := false
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn: // nothing that wraps one: we read past its Read
		plain = true
	}
	switch full := s.open.Add(1) > s.settings.Load().connections; {
	case full:
		s.open.Add(-1)
		s.reject(nc, plain)
		return
	case !plain:
		s.give(nc) // TLS, with its handshake and HTTP/2
		return
	}
	c := newConn(s, nc)
	if c.open() != nil || !s.track(c) {
		_ = nc.Close()
		s.open.Add(-1)
		return
	}
	go c.run()
}

func (s *Server) track(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	s.conns[c] = struct{}{}
	s.owned.Add(1)
	return true
}

func (s *Server) untrack(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.owned.Done()
}

// maxRejects bounds the connections that are told why they are not served; more are just closed.
const maxRejects = 64

// reject answers a plain connection above the limit with 503, without waiting for its request.
func (s *Server) reject(nc net.Conn, plain bool) {
	s.rejected.Add(1)
	if !plain {
		_ = nc.Close()
		return
	}
	select {
	case s.rejects <- struct{}{}:
	default:
		_ = nc.Close()
		return
	}
	c := newConn(s, nc)
	if !s.track(c) {
		_ = nc.Close()
		<-s.rejects
		return
	}
	go func() {
		defer s.untrack(c)
		c.refuse(nil, http.StatusServiceUnavailable, "too many connections")
		_ = nc.Close()
		<-s.rejects
	}()
}

// cutGrace is how long Shutdown waits for handlers whose connections it has cut.
const cutGrace = 5 * time.Second

// Shutdown stops accepting, closes idle connections and lets running requests end. When ctx
// ends first, it cuts what is left and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining.Swap(true) {
		close(s.stop)
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		if c.state.CompareAndSwap(stateIdle, stateTaken) {
			_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		}
	}
	fallbacks := s.fallbacks
	s.mu.Unlock()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.owned.Wait()
	}()
	var late atomic.Bool
	var wg sync.WaitGroup
	for _, f := range fallbacks {
		wg.Go(func() {
			if f.srv.Shutdown(ctx) != nil {
				late.Store(true)
			}
		})
	}
	wg.Wait()
	select {
	case <-ended:
	case <-ctx.Done():
		late.Store(true)
	}
	var err error
	if late.Load() {
		err = ctx.Err()
		s.cut()
		select {
		case <-ended:
		case <-time.After(cutGrace):
			s.log.Warn("handlers run on after their connections were cut")
		}
	}
	if s.watcher != nil {
		s.watcher.close()
	}
	return err
}

// cut closes all connections and cancels what runs on them.
func (s *Server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.fallbacks {
		_ = f.srv.Close()
	}
	for c := range s.conns {
		c.gone.mark()
		_ = c.nc.Close()
	}
}

// Close is Shutdown without patience.
func (s *Server) Close() error {
	ctx, cancel := context.WithCancel(context.Background()) // no caller's: nothing is waited for
	cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

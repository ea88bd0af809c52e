package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	readHeaderTimeout = 30 * time.Second
	readBodyTimeout   = 2 * time.Minute
	idleTimeout       = 2 * time.Minute
	// writeTimeout is for a client that takes nothing of its answer.
	writeTimeout = time.Minute
	// abortTimeout is for aborted requests to say so.
	abortTimeout = 5 * time.Second
	// maxConns bounds the connections of Run.
	maxConns = 16384
)

func randomBits() uint64 { return rand.Uint64() }

// Run serves on l, which it closes, until ctx ends; then it takes no new connections, lets
// running requests go on for the drain timeout, aborts the rest, and returns nil. While
// the fault "refuse" is on, all connections are cut and nothing listens.
func (e *Engine) Run(ctx context.Context, l net.Listener) error {
	addr := l.Addr()
	for {
		refuse, err := e.serve(ctx, l)
		if err != nil || ctx.Err() != nil {
			return err
		}
		e.logger.Info("connections are refused by a fault", "address", addr.String())
		if refuse.wait(ctx, nil) != nil {
			e.Abort()
			return nil
		}
		if l, err = relisten(ctx, addr); err != nil {
			return err
		}
	}
}

// serve returns when ctx ends or the fault "refuse" comes, which it returns.
func (e *Engine) serve(ctx context.Context, l net.Listener) (*active, error) {
	srv := &http.Server{
		Handler: e.handler, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(e.logger.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(&bounded{Listener: l, places: make(chan struct{}, maxConns)}) }()
	for {
		fault, changed := e.faults.watch()
		if fault != nil && fault.Kind == FaultRefuse {
			err := srv.Close()
			<-done
			return fault, err
		}
		select {
		case <-changed:
		case err := <-done:
			return nil, fmt.Errorf("serve simulated engine: %w", err)
		case <-ctx.Done():
			err := e.shutdown(ctx, srv)
			<-done
			return nil, err
		}
	}
}

// shutdown ends srv: gently for the drain timeout, then by abort, then by force.
func (e *Engine) shutdown(ctx context.Context, srv *http.Server) error {
	ctx = context.WithoutCancel(ctx) // it has ended; the bounds below are its own
	if e.opts.DrainTimeout > 0 {
		drain, cancel := context.WithTimeout(ctx, e.opts.DrainTimeout)
		err := srv.Shutdown(drain)
		cancel()
		if err == nil {
			e.Abort()
			return nil
		}
	}
	e.Abort()
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return srv.Close()
	}
	return nil
}

// relisten takes the address back that the engine had before.
func relisten(ctx context.Context, addr net.Addr) (net.Listener, error) {
	var lc net.ListenConfig
	for try := 0; ; try++ {
		l, err := lc.Listen(ctx, addr.Network(), addr.String())
		if err == nil || try == 50 {
			return l, err
		}
		if err := sleepUntil(ctx, time.Now().Add(100*time.Millisecond), nil); err != nil {
			return nil, err
		}
	}
}

// bounded is a listener that takes no more connections than it has places.
type bounded struct {
	net.Listener
	places chan struct{}
}

// Accept waits for a connection, and closes those that have no place.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.places <- struct{}{}:
			return &placed{Conn: c, leave: b.places}, nil
		default:
			_ = c.Close()
		}
	}
}

// placed is a connection that gives its place back when it is closed.
type placed struct {
	net.Conn
	leave <-chan struct{}
	once  sync.Once
}

// Close closes the connection.
func (p *placed) Close() error {
	p.once.Do(func() { <-p.leave })
	return p.Conn.Close()
}

// SetLinger is the TCP connection's.
func (p *placed) SetLinger(seconds int) error {
	if t, ok := p.Conn.(*net.TCPConn); ok {
		return t.SetLinger(seconds)
	}
	return nil
}

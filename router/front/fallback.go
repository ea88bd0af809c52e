package front

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// fallback is an http.Server for the connections that the front does not serve. It is a
// net.Listener itself, one whose connections are handed in. Its timeouts are fixed: Update
// makes a new one for new connections, and old connections go on with theirs.
type fallback struct {
	srv   *http.Server
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	open  atomic.Int64
}

func (s *Server) newFallback() *fallback {
	set := s.settings.Load()
	f := &fallback{conns: make(chan net.Conn), done: make(chan struct{})}
	f.srv = &http.Server{
		Handler:           s.other,
		ReadHeaderTimeout: set.readHeader,
		ReadTimeout:       set.readHeader + set.readBody,
		IdleTimeout:       set.keepAlive,
		MaxHeaderBytes:    int(set.header),
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				f.open.Add(-1)
				s.open.Add(-1)
				s.owned.Done()
			}
		},
	}
	s.owned.Go(func() { _ = f.srv.Serve(f) }) // ends with f's Close
	return f
}

// Accept implements net.Listener.
func (f *fallback) Accept() (net.Conn, error) {
	select {
	case nc := <-f.conns:
		return nc, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *fallback) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *fallback) Addr() net.Addr { return &net.TCPAddr{} }

// give hands nc, which counts as open, to net/http for good.
func (s *Server) give(nc net.Conn) {
	s.mu.Lock()
	ok := !s.draining.Load()
	if ok {
		s.owned.Add(1) // until ConnState says closed
	}
	s.mu.Unlock()
	for ok {
		f := s.fallback.Load()
		f.open.Add(1)
		select {
		case f.conns <- nc:
			return
		case <-f.done:
			f.open.Add(-1)
			if ok = s.fallback.Load() != f; !ok { // the end, not an Update
				s.owned.Done()
			}
		}
	}
	_ = nc.Close()
	s.open.Add(-1)
}

// handOver gives the connection with the bytes read so far to net/http.
func (c *conn) handOver() {
	s := c.s
	s.watcher.forget(c, true)
	replay := &replayed{Conn: c.nc, settings: &s.settings}
	replay.unread = append(replay.unread, c.in.b[c.r:c.w]...)
	if c.watch.taken {
		replay.unread = append(replay.unread, c.watch.peek[0])
	}
	c.release()
	_ = c.nc.SetDeadline(time.Time{})
	s.handovers.Add(1)
	s.give(replay)
}

// replayed is a connection that reads some bytes again. Its writes have the write timeout that
// http.Server lacks: its own bounds the whole answer, which a stream would break.
type replayed struct {
	net.Conn
	settings *atomic.Pointer[settings]
	unread   []byte
	writeBy  atomic.Int64 // the write deadline that is set, Unix nanoseconds
}

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.unread) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.unread)
	if r.unread = r.unread[n:]; len(r.unread) == 0 {
		r.unread = nil
	}
	return n, nil
}

// Write implements net.Conn.
func (r *replayed) Write(p []byte) (int, error) {
	done := 0
	for {
		d := r.settings.Load().write
		by := time.Now().Add(d)
		if set := r.writeBy.Load(); time.Duration(by.UnixNano()-set).Abs() > d/10 {
			r.writeBy.Store(by.UnixNano())
			_ = r.Conn.SetWriteDeadline(by)
		}
		n, err := r.Conn.Write(p[done:])
		done += n
		if err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return done, err
		}
	}
}

// SetWriteDeadline implements net.Conn. Only Write sets deadlines that last.
func (r *replayed) SetWriteDeadline(t time.Time) error {
	r.writeBy.Store(0)
	return r.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (r *replayed) SetDeadline(t time.Time) error {
	r.writeBy.Store(0)
	return r.Conn.SetDeadline(t)
}

// CloseWrite lets http.Server half-close before it closes on unread bytes.
func (r *replayed) CloseWrite() error {
	if w, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

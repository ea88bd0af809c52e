package front

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// newWatcher makes the best watcher that the system has.
func newWatcher(log *slog.Logger) watcher {
	e, err := newEpoll(log)
	if err != nil {
		log.Warn("no epoll to watch clients with", "error", err)
		return reader{}
	}
	return e
}

// epoll watches all connections with one edge-triggered epoll instance, which itself waits in
// Go's poller: no thread and no goroutine per connection, and no read of the clients' bytes.
type epoll struct {
	log  *slog.Logger
	fd   int
	file *os.File
	raw  syscall.RawConn
	done chan struct{}

	mu     sync.Mutex
	closed bool
	slots  []slot
	free   []int32
}

// slot holds a registered connection. An event names slot and generation, not the descriptor,
// whose number may belong to another connection by then.
type slot struct {
	c   *conn
	gen int32
}

func newEpoll(log *slog.Logger) (*epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // what makes os.NewFile use Go's poller
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make epoll non-blocking: %w", err)
	}
	e := &epoll{log: log, fd: fd, file: os.NewFile(uintptr(fd), "epoll"), done: make(chan struct{})}
	if e.raw, err = e.file.SyscallConn(); err != nil {
		_ = e.file.Close()
		return nil, fmt.Errorf("poll epoll: %w", err)
	}
	go e.run()
	return e, nil
}

// run marks the connections whose clients leave, until close.
func (e *epoll) run() {
	defer close(e.done)
	var events [128]unix.EpollEvent
	var conns []*conn
	for {
		n, werr := 0, error(nil)
		err := e.raw.Read(func(fd uintptr) bool {
			n, werr = unix.EpollWait(int(fd), events[:], 0)
			if errors.Is(werr, unix.EINTR) {
				n, werr = 0, nil
			}
			return n > 0 || werr != nil
		})
		if err != nil || werr != nil {
			e.mu.Lock()
			closed := e.closed // os has no exported error for a closed file here
			e.mu.Unlock()
			if !closed {
				e.log.Error("clients are no longer watched", "error", errors.Join(err, werr))
			}
			return
		}
		conns = e.find(conns[:0], events[:n])
		for _, c := range conns {
			c.gone.mark()
		}
		clear(conns)
	}
}

// find gives the connections of events that are still registered.
func (e *epoll) find(conns []*conn, events []unix.EpollEvent) []*conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range events {
		if s := e.slots[ev.Fd]; s.c != nil && s.gen == ev.Pad {
			conns = append(conns, s.c)
		}
	}
	return conns
}

// watch registers c with its first request. A client that left before is reported at once.
func (e *epoll) watch(c *conn) {
	if c.watch.registered {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	i := int32(len(e.slots))
	if n := len(e.free); n > 0 {
		i = e.free[n-1]
		e.free = e.free[:n-1]
	} else {
		e.slots = append(e.slots, slot{})
	}
	s := &e.slots[i]
	s.c = c
	c.watch.registered, c.watch.slot, c.watch.gen = true, i, s.gen
	ev := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: i, Pad: s.gen}
	if err := control(c.raw, e.fd, unix.EPOLL_CTL_ADD, &ev); err != nil {
		e.log.Warn("client is not watched", "client", c.remote, "error", err)
	}
}

func (e *epoll) unwatch(*conn) {}

func (e *epoll) forget(c *conn, keep bool) {
	if !c.watch.registered {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.watch.registered = false
	s := &e.slots[c.watch.slot]
	s.c = nil
	s.gen++
	e.free = append(e.free, c.watch.slot)
	if keep && !e.closed {
		_ = control(c.raw, e.fd, unix.EPOLL_CTL_DEL, &unix.EpollEvent{}) // a stale event is not found
	}
}

func (e *epoll) close() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		_ = e.file.Close()
	}
	e.mu.Unlock()
	<-e.done
}

// control is epoll_ctl for a connection.
func control(raw syscall.RawConn, epfd, op int, ev *unix.EpollEvent) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = unix.EpollCtl(epfd, op, int(fd), ev) }); cerr != nil {
		return cerr
	}
	return err
}

// fill waits for bytes without a buffer: an idle connection holds none.
func (c *conn) fill() error {
	if err := c.raw.Read(c.try); err != nil {
		return err
	}
	return c.tryErr
}

// open prepares for fill.
func (c *conn) open() error {
	sc, ok := c.nc.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	var err error
	c.raw, err = sc.SyscallConn()
	c.try = c.tryRead
	return err
}

// tryRead is one non-blocking read, called when there may be bytes; false to wait on.
func (c *conn) tryRead(fd uintptr) bool {
	b := c.s.pools.get(headSize)
	n, err := syscall.Read(int(fd), b.b)
	for err == syscall.EINTR { //nolint:errorlint // a bare errno
		n, err = syscall.Read(int(fd), b.b)
	}
	if n > 0 {
		c.in, c.r, c.w, c.tryErr = b, 0, n, nil
		return true
	}
	c.s.pools.put(b)
	if err == syscall.EAGAIN { //nolint:errorlint // a bare errno
		return false
	}
	if c.tryErr = err; err == nil {
		c.tryErr = io.EOF
	}
	return true
}

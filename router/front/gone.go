package front

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/router/proxy"
)

// gone is what is known of a client's leaving. The lock is held while a Canceler runs, which
// is what Unwatch promises: after it, Cancel is neither running nor called again.
type gone struct {
	mu   sync.Mutex
	left bool
	who  proxy.Canceler
}

// mark notes that the client left. Any goroutine.
func (g *gone) mark() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left = true
	if who := g.who; who != nil {
		g.who = nil
		who.Cancel()
	}
}

// set makes who the one to tell, nil for nobody. It reports false when the client left already.
func (g *gone) set(who proxy.Canceler) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left {
		return false
	}
	g.who = who
	return true
}

// watcher finds out about clients that leave, and marks their connections. All methods but
// close are called by the connection's goroutine.
type watcher interface {
	watch(c *conn)
	unwatch(c *conn)
	// forget ends it all for c, before it is closed, or, if keep, handed over.
	forget(c *conn, keep bool)
	close()
}

// watchState is a watcher's note on a connection.
type watchState struct {
	on         bool  // between Watch and Unwatch
	registered bool  // epoll
	slot, gen  int32 // epoll
	done       chan struct{}
	peek       [1]byte // a byte that the reader took
	taken      bool    // peek is not read yet
}

// Watch implements proxy.Client. A client that closes only its sending side counts as gone, as
// it does for net/http.
func (c *conn) Watch(who proxy.Canceler) bool {
	if !c.gone.set(who) {
		return false
	}
	c.watch.on = true
	c.s.watcher.watch(c)
	return true
}

// Unwatch implements proxy.Client.
func (c *conn) Unwatch() {
	if c.watch.on {
		c.watch.on = false
		c.s.watcher.unwatch(c)
		c.gone.set(nil)
	}
}

// reader watches by a read, in a goroutine a watch. It is for systems without epoll, and sees
// nothing more once a byte of the next request has come.
type reader struct{}

func (reader) watch(c *conn) {
	if c.watch.taken || c.watch.done != nil {
		return
	}
	done := make(chan struct{})
	c.watch.done = done
	c.readBy = time.Time{}
	_ = c.nc.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		n, err := c.nc.Read(c.watch.peek[:])
		c.watch.taken = n > 0
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.gone.mark()
		}
	}()
}

func (reader) unwatch(c *conn) {
	if c.watch.done == nil {
		return
	}
	c.readBy = time.Unix(1, 0)
	_ = c.nc.SetReadDeadline(c.readBy)
	<-c.watch.done
	c.watch.done = nil
}

func (reader) forget(*conn, bool) {}
func (reader) close()             {}

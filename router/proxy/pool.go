package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/router/pick"
)

// pool is the idle connections to one endpoint, last used first.
type pool struct {
	url    string
	host   string // for the Host field
	addr   string // to dial
	name   string // for the certificate
	secure bool
	trust  bool  // any certificate will do
	err    error // the URL is no good

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

func newPool(e *pick.Endpoint) *pool {
	p := &pool{url: e.URL, trust: e.TLSSkipVerify}
	u, err := url.Parse(e.URL)
	if err != nil {
		p.err = fmt.Errorf("parse endpoint: %w", err)
		return p
	}
	p.host, p.name = u.Host, u.Hostname()
	port := u.Port()
	switch {
	case p.name == "":
		p.err = fmt.Errorf("endpoint %q has no host", e.URL)
	case u.Scheme == "https":
		p.secure = true
		port = cmp.Or(port, "443")
	case u.Scheme == "http":
		port = cmp.Or(port, "80")
	default:
		p.err = fmt.Errorf("endpoint %q is neither http nor https", e.URL)
	}
	p.addr = net.JoinHostPort(p.name, port)
	return p
}

// serves tells whether p is a pool for e as it is now.
func (p *pool) serves(e *pick.Endpoint) bool {
	return p != nil && p.url == e.URL && p.trust == e.TLSSkipVerify
}

// get takes an idle connection, nil when there is none.
func (p *pool) get() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle) - 1
	if n < 0 {
		return nil
	}
	c := p.idle[n]
	p.idle[n] = nil
	p.idle = p.idle[:n]
	return c
}

// put keeps c, which nothing is under way on, unless there are enough or the pool is closed.
func (p *pool) put(c *conn, most int, now time.Time) {
	c.reused, c.since = true, now
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < most
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		c.shut()
	}
}

// dial connects, within ctx.
func (p *pool) dial(ctx context.Context, base *tls.Config) (*conn, error) {
	if p.err != nil {
		return nil, p.err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	tcp := nc.(*net.TCPConn)
	if p.secure {
		cfg := base.Clone()
		cfg.ServerName, cfg.NextProtos = p.name, nil
		cfg.InsecureSkipVerify = cfg.InsecureSkipVerify || p.trust
		t := tls.Client(tcp, cfg)
		if err = t.HandshakeContext(ctx); err != nil {
			_ = tcp.Close()
			return nil, fmt.Errorf("tls: %w", err)
		}
		nc = t
	}
	c, err := newConn(tcp, nc)
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	return c, nil
}

// reap closes connections that have been idle for too long or that the engine has closed.
// The longest idle are first, so it stops at the first good one.
func (p *pool) reap(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.idle) && (now.Sub(p.idle[n].since) > idleTimeout || !p.idle[n].alive()) {
		p.idle[n].shut()
		n++
	}
	if n > 0 {
		kept := copy(p.idle, p.idle[n:])
		clear(p.idle[kept:])
		p.idle = p.idle[:kept]
	}
}

// close drops what is idle now and what would become so.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.shut()
	}
	p.idle, p.closed = nil, true
}

// pool finds the pool of an endpoint, or makes it.
func (p *Proxy) pool(e *pick.Endpoint) *pool {
	if pl := (*p.pools.Load())[e.ID]; pl.serves(e) {
		return pl
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := (*p.pools.Load())[e.ID]
	if old.serves(e) {
		return old
	}
	pl := newPool(e)
	pl.closed = p.closed
	pools := maps.Clone(*p.pools.Load())
	pools[e.ID] = pl
	p.pools.Store(&pools)
	if old != nil {
		old.close()
	}
	return pl
}

// Keep drops the connections to endpoints that are not in s.
func (p *Proxy) Keep(s *pick.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.pools.Load()
	pools := make(map[string]*pool, len(old))
	for _, e := range s.Endpoints {
		if pl := old[e.ID]; pl.serves(e) {
			pools[e.ID] = pl
		}
	}
	p.pools.Store(&pools)
	for id, pl := range old {
		if pools[id] != pl {
			pl.close()
		}
	}
}

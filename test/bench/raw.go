package main

import (
	"bufio"
	"flag"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// rawProxy moves bytes round robin and looks at framing only: the lower bound for a proxy
// in Go with a goroutine a connection. It has no timeouts, routing, metrics or checks.
type rawProxy struct {
	backends []string
	next     atomic.Uint64
	mu       sync.Mutex
	idle     map[string][]*rawUpstream
}

type rawUpstream struct {
	net.Conn
	br *bufio.Reader
}

func runRaw(args []string) error {
	fs := flag.NewFlagSet("raw", flag.ExitOnError)
	listen := fs.String("listen", "127.0.0.1:8100", "address")
	backends := fs.String("backends", "127.0.0.1:9000", "engine addresses, comma separated")
	if err := fs.Parse(args); err != nil {
		return err
	}
	p := &rawProxy{backends: strings.Split(*backends, ","), idle: map[string][]*rawUpstream{}}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go p.serve(c)
	}
}

func (p *rawProxy) get(addr string) (*rawUpstream, error) {
	p.mu.Lock()
	if l := p.idle[addr]; len(l) > 0 {
		u := l[len(l)-1]
		p.idle[addr] = l[:len(l)-1]
		p.mu.Unlock()
		return u, nil
	}
	p.mu.Unlock()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &rawUpstream{c, bufio.NewReaderSize(c, 4<<10)}, nil
}

func (p *rawProxy) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReaderSize(c, 4<<10)
	var h Head
	var buf []byte
	for p.one(c, br, &h, &buf) {
	}
}

// one carries one request and tells whether the connection may go on.
func (p *rawProxy) one(c net.Conn, br *bufio.Reader, h *Head, buf *[]byte) bool {
	if ReadHead(br, h) != nil {
		return false
	}
	req := append((*buf)[:0], h.Raw...)
	if scanBody(br, h, false, func(p []byte) error { req = append(req, p...); return nil }, nil) != nil {
		return false
	}
	closing := h.Close
	addr := p.backends[p.next.Add(1)%uint64(len(p.backends))]
	u, err := p.get(addr)
	if err != nil {
		return false
	}
	if _, err = u.Write(req); err == nil {
		err = ReadHead(u.br, h)
	}
	write := func(p []byte) error { _, err := c.Write(p); return err }
	switch {
	case err != nil:
	case h.CL >= 0 && int(h.CL) <= u.br.Buffered(): // head and body in one write
		b, _ := u.br.Peek(int(h.CL))
		req = append(append(req[:0], h.Raw...), b...)
		if _, err = u.br.Discard(int(h.CL)); err == nil {
			err = write(req)
		}
	default:
		if err = write(h.Raw); err == nil {
			err = scanBody(u.br, h, true, write, nil)
		}
	}
	*buf = req
	if err != nil || h.Close || (h.CL < 0 && !h.Chunked) {
		u.Close()
		return false
	}
	p.mu.Lock()
	p.idle[addr] = append(p.idle[addr], u)
	p.mu.Unlock()
	return !closing
}

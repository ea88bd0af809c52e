package proxy

import (
	"sync"
	"sync/atomic"
	"time"
)

// janitorInterval is the time between two looks at idle connections.
const janitorInterval = 5 * time.Second

// Proxy carries requests to engines. Make one with New and Close it.
type Proxy struct {
	opts    atomic.Pointer[Options]
	pools   atomic.Pointer[map[string]*pool] // by endpoint id; the map is never changed
	buffers *buffers
	tasks   sync.Pool
	budget  *budget

	mu     sync.Mutex // for changes of pools
	closed bool
	stop   chan struct{}
	done   chan struct{}
}

// New makes a Proxy. Its one goroutine ends with Close.
func New(o Options) *Proxy {
	p := &Proxy{
		buffers: newBuffers(),
		budget:  newBudget(time.Now()),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	p.tasks.New = func() any {
		t := &task{proxy: p}
		t.look = t.overdue
		return t
	}
	p.opts.Store(o.withDefaults())
	p.pools.Store(&map[string]*pool{})
	go p.janitor()
	return p
}

// Update changes the options of requests to come.
func (p *Proxy) Update(o Options) { p.opts.Store(o.withDefaults()) }

// Close drops the idle connections. Requests under way go on; theirs are closed when they end.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	close(p.stop)
	<-p.done
	for _, pl := range *p.pools.Load() {
		pl.close()
	}
}

func (p *Proxy) janitor() {
	defer close(p.done)
	t := time.NewTicker(janitorInterval)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case now := <-t.C:
			for _, pl := range *p.pools.Load() {
				pl.reap(now)
			}
		}
	}
}

// Stat is the state of the connections to one endpoint.
type Stat struct {
	Endpoint string // its ID
	Idle     int    // connections that wait for a request
}

// Stats gives the state of all endpoints that have been connected to, in no order.
func (p *Proxy) Stats() []Stat {
	pools := *p.pools.Load()
	stats := make([]Stat, 0, len(pools))
	for id, pl := range pools {
		pl.mu.Lock()
		stats = append(stats, Stat{Endpoint: id, Idle: len(pl.idle)})
		pl.mu.Unlock()
	}
	return stats
}

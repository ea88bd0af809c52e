package proxy

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

func idle(p *Proxy, e *pick.Endpoint) int {
	for _, s := range p.Stats() {
		if s.Endpoint == e.ID {
			return s.Idle
		}
	}
	return -1
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	const n = 8
	var here sync.WaitGroup
	here.Add(n)
	f := newFake(t, func(r *request) bool {
		here.Done()
		here.Wait()
		r.say(plain(200, "hi"))
		return true
	})
	p := newProxy(t, Options{IdleConnections: 3})
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			x := exchange(f.Endpoint)
			x.Client, x.Hooks = &MemoryClient{}, &log{}
			p.Do(x)
		})
	}
	all.Wait()
	require.EqualValues(t, n, f.conns.Load())
	require.Equal(t, 3, idle(p, f.Endpoint))
	requireIdle(t, f.Endpoint)
}

func TestReapingClosesWhatIsOldOrClosed(t *testing.T) {
	f := newFake(t, always(plain(200, "hi")))
	p := newProxy(t, Options{})
	fill := func() *pool {
		require.NoError(t, do(t, p, exchange(f.Endpoint), &MemoryClient{}).Err)
		require.Equal(t, 1, idle(p, f.Endpoint))
		return p.pool(f.Endpoint)
	}
	pl := fill()
	pl.reap(time.Now())
	require.Equal(t, 1, idle(p, f.Endpoint), "young and open")
	pl.reap(time.Now().Add(idleTimeout + time.Second))
	require.Equal(t, 0, idle(p, f.Endpoint), "old")
	fill()
	f.kill()
	require.Eventually(t, func() bool {
		pl.reap(time.Now())
		return idle(p, f.Endpoint) == 0
	}, patience, time.Millisecond, "closed by the engine")
}

func TestKeepDropsEndpointsThatAreGone(t *testing.T) {
	gone := make(chan error, 1)
	script := func(r *request) bool {
		r.say(plain(200, "hi"))
		gone <- r.waitGone()
		return false
	}
	a, b := newFake(t, script), newFake(t, always(plain(200, "hi")))
	p := newProxy(t, Options{})
	do(t, p, exchange(a.Endpoint), &MemoryClient{})
	do(t, p, exchange(b.Endpoint), &MemoryClient{})
	p.Keep(pick.NewSnapshot([]*pick.Endpoint{b.Endpoint}, nil, nil))
	require.NoError(t, <-gone)
	require.Equal(t, []Stat{{Endpoint: b.ID, Idle: 1}}, p.Stats())

	moved := endpoint(b.ID, a.URL) // the same endpoint at another address
	p.Keep(pick.NewSnapshot([]*pick.Endpoint{moved}, nil, nil))
	require.Empty(t, p.Stats())
}

func TestAnEndpointThatMovesGetsNewConnections(t *testing.T) {
	a, b := newFake(t, always(plain(200, "a"))), newFake(t, always(plain(200, "b")))
	p := newProxy(t, Options{})
	require.Equal(t, "a", do(t, p, exchange(endpoint("e", a.URL)), &MemoryClient{}).body)
	require.Equal(t, "b", do(t, p, exchange(endpoint("e", b.URL)), &MemoryClient{}).body)
	require.Len(t, p.Stats(), 1)
}

func TestCloseKeepsNothing(t *testing.T) {
	f := newFake(t, always(plain(200, "hi")))
	p := New(Options{})
	do(t, p, exchange(f.Endpoint), &MemoryClient{})
	p.Close()
	p.Close()
	require.Equal(t, 0, idle(p, f.Endpoint))
	require.Equal(t, "hi", do(t, p, exchange(f.Endpoint), &MemoryClient{}).body, "requests still work")
	require.Equal(t, 0, idle(p, f.Endpoint))
}

func TestJanitorEndsWithClose(t *testing.T) {
	synctest.Test(t, func(*testing.T) {
		p := New(Options{})
		time.Sleep(10 * janitorInterval)
		p.Close()
	})
}

func TestBudget(t *testing.T) {
	start := time.Now()
	b := newBudget(start)
	take := func(now time.Time, share float64) (n int) {
		for b.retry(now, share) {
			n++
		}
		return n
	}
	require.Equal(t, budgetFree, take(start, 0.5), "free ones")
	for range 100 {
		b.request(start.Add(time.Second))
	}
	require.Equal(t, 50, take(start.Add(time.Second), 0.5), "and a share of the requests")
	require.Equal(t, 0, take(start.Add(9*time.Second), 0.5), "nothing is forgotten yet")
	require.Equal(t, budgetFree, take(start.Add(11*time.Second), 0.5), "the requests are forgotten, and so are their retries")
	require.Equal(t, budgetFree, take(start.Add(1000*time.Second), 0), "share 0")
}

func TestBudgetNeverExceedsItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Now()
		b := newBudget(start)
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		requests, retries := 0, 0
		// Within one window nothing is forgotten.
		for i := range rapid.IntRange(1, 300).Draw(t, "n") {
			now := start.Add(time.Duration(i) * 30 * time.Millisecond)
			if rapid.Bool().Draw(t, "request") {
				b.request(now)
				requests++
			} else if b.retry(now, share) {
				retries++
			}
			if float64(retries) > budgetFree+share*float64(requests)+1 {
				t.Fatalf("%d retries for %d requests", retries, requests)
			}
		}
	})
}

// Whatever engines and clients do, no count and no connection is left over.
func TestNothingIsLeftOfRequestsInRandomTrouble(t *testing.T) {
	scripts := []func(r *request) bool{
		always(plain(200, "hi")),
		always(stream(3)),
		always(plain(500, "oops")),
		always(plain(429, "busy", "Retry-After: 0")),
		func(*request) bool { return false },
		func(r *request) bool { r.reset(); return false },
		func(r *request) bool { r.say(streamHead + chunk(token(0))); return false },
		func(r *request) bool { r.say(streamHead + chunk(token(0))); r.reset(); return false },
		func(r *request) bool { r.say("garbage"); return false },
		func(r *request) bool { r.say(plain(200, "hi") + "junk"); return true },
		hang,
		func(r *request) bool { r.say(streamHead + chunk(token(0))); return hang(r) },
	}
	var list []*pick.Endpoint
	for _, s := range scripts {
		list = append(list, newFake(t, s).Endpoint)
	}
	list = append(list, refusing(t), endpoint("bad", "bad"))
	o := retries(3)
	o.Retries.Budget = 100
	o.Timeouts = mobula.Timeouts{FirstByte: soon / 10, Plain: soon / 10, Idle: soon / 10}
	p := newProxy(t, o)
	rapid.Check(t, func(rt *rapid.T) {
		var all sync.WaitGroup
		for range rapid.IntRange(1, 8).Draw(rt, "requests") {
			x := exchange(rapid.SliceOfN(rapid.SampledFrom(list), 1, 4).Draw(rt, "list")...)
			x.Tokens = rapid.IntRange(0, 1000).Draw(rt, "tokens")
			x.Stream = rapid.Bool().Draw(rt, "stream")
			client, l := &MemoryClient{LeaveAfter: rapid.IntRange(0, 200).Draw(rt, "leave")}, &log{}
			x.Client, x.Hooks = client, l
			early := rapid.IntRange(0, 20).Draw(rt, "early")
			all.Go(func() {
				if early < 10 {
					defer time.AfterFunc(time.Duration(early)*time.Millisecond, client.Leave).Stop()
				}
				r := p.Do(x)
				if len(l.sent) != len(l.ended) || len(l.first) > 1 || r.Attempts != len(l.sent) {
					t.Errorf("sent %d, ended %d, first %d, attempts %d", len(l.sent), len(l.ended), len(l.first), r.Attempts)
				}
				status, _, _, _, _ := client.Answer()
				if r.Err == nil && status == 0 {
					t.Error("no error and no answer")
				}
			})
		}
		all.Wait()
		for _, e := range list {
			requireIdle(t, e)
		}
	})
}

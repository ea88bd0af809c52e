package flow

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hall is a Holder over a fleet whose engines come and go.
type hall struct {
	*Holder
	snapshot atomic.Pointer[pick.Snapshot]
	models   []mobula.Model
}

func newHall(o Options, held int) *hall {
	m := mobula.NewModel("m")
	m.Replicas = &mobula.Range{Max: 2}
	m.Scaling.Held = held
	m.LoRAs = []mobula.LoRA{{Name: "lora", Source: "/l"}}
	h := &hall{models: []mobula.Model{m}}
	o.Snapshot = h.snapshot.Load
	h.Holder = New(o)
	h.engines()
	return h
}

func endpoint(id string, models ...string) *pick.Endpoint {
	e := pick.NewEndpoint(mobula.Endpoint{ID: id}, &pick.Live{})
	e.Serving = true
	for _, m := range models {
		e.Cards = append(e.Cards, mobula.Card{ID: m})
	}
	return e
}

func (h *hall) engines(all ...*pick.Endpoint) {
	h.snapshot.Store(pick.NewSnapshot(all, h.models, nil))
	h.Changed()
}

// ask gives a request that waits for a minute.
func (h *hall) ask(model string) *Request {
	now := time.Now()
	return &Request{Group: h.snapshot.Load().Lookup(model), Tokens: 10, Since: now, Until: now.Add(time.Minute), Client: &proxy.MemoryClient{}}
}

// waits has a request wait in the background.
func (h *hall) waits(g *sync.WaitGroup, r *Request, then func(*Pass, error)) {
	g.Go(func() { then(h.Hold(r)) })
	synctest.Wait()
}

func (h *hall) empty(t require.TestingT) {
	require.Zero(t, h.Held())
	require.Empty(t, h.Lines())
	h.mu.Lock()
	defer h.mu.Unlock()
	require.Empty(t, h.lines)
	require.Empty(t, h.byBase)
}

func TestRequestsGoInTheOrderInWhichTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Options{PerEngine: 1}, 100)
		var g sync.WaitGroup
		var order []int
		passes := make(chan *Pass, 10)
		for i := range 5 {
			h.waits(&g, h.ask("m"), func(p *Pass, err error) {
				require.NoError(t, err)
				order = append(order, i)
				passes <- p
			})
		}
		require.EqualValues(t, 5, h.Held())
		require.Equal(t, []Line{{Model: "m", Base: "m", Held: 5, Tokens: 50, Oldest: time.Now()}}, h.Lines())
		h.engines(endpoint("a", "m"))
		synctest.Wait()
		require.Equal(t, []int{0}, order, "an engine gets one that it has not begun to answer")
		p := <-passes
		p.Done()
		p.Done()
		synctest.Wait()
		require.Equal(t, []int{0, 1}, order, "one more for the first, however often it says so")
		back := h.ask("m")
		back.Again = true
		h.waits(&g, back, func(p *Pass, err error) {
			require.NoError(t, err)
			order = append(order, -1)
			passes <- p
		})
		for range 5 {
			(<-passes).Done()
			synctest.Wait()
		}
		require.Equal(t, []int{0, 1, -1, 2, 3, 4}, order, "who comes back goes first")
		g.Wait()
		h.empty(t)
	})
}

func TestARequestDoesNotWaitForWhatIsThere(t *testing.T) {
	h := newHall(Options{}, 0)
	r := h.ask("m") // read the fleet before the engine came
	h.engines(endpoint("a", "m"))
	p, err := h.Hold(r)
	require.NoError(t, err)
	p.Done()
	(*Pass)(nil).Done()
	h.empty(t)
}

func TestTheBoundIsTheModels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		h := newHall(Options{Registerer: registry}, 2)
		var g sync.WaitGroup
		for _, model := range []string{"m", "lora"} {
			h.waits(&g, h.ask(model), func(p *Pass, err error) {
				require.NoError(t, err)
				p.Done()
			})
		}
		_, err := h.Hold(h.ask("lora"))
		require.ErrorIs(t, err, ErrFull)
		h.engines(endpoint("a", "m"))
		synctest.Wait()
		require.EqualValues(t, 1, h.Held(), "the LoRA is not loaded yet")
		h.engines(endpoint("a", "m", "lora"))
		g.Wait()
		h.empty(t)
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP mobula_router_held_rejected_total Requests that waited in vain or were not let wait, by reason: full, timeout, draining or gone (the client left).
# TYPE mobula_router_held_rejected_total counter
mobula_router_held_rejected_total{model="lora",reason="full"} 1
# HELP mobula_router_held_requests Requests that wait because no engine of their model runs.
# TYPE mobula_router_held_requests gauge
mobula_router_held_requests{model="lora"} 0
mobula_router_held_requests{model="m"} 0
# HELP mobula_router_held_total Requests that had to wait for an engine.
# TYPE mobula_router_held_total counter
mobula_router_held_total{model="lora"} 1
mobula_router_held_total{model="m"} 1
`), "mobula_router_held_rejected_total", "mobula_router_held_requests", "mobula_router_held_total"))
	})
}

func TestWaitsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(h *hall, c *proxy.MemoryClient)
		want error
		took time.Duration
	}{
		"in time":                       {func(*hall, *proxy.MemoryClient) {}, ErrTimeout, time.Minute},
		"when the client leaves":        {func(_ *hall, c *proxy.MemoryClient) { c.Leave() }, ErrGone, 0},
		"when the router stops":         {func(h *hall, _ *proxy.MemoryClient) { h.Drain(time.Now().Add(3 * time.Second)) }, ErrDraining, 3 * time.Second},
		"in time before a router stops": {func(h *hall, _ *proxy.MemoryClient) { h.Drain(time.Now().Add(time.Hour)) }, ErrTimeout, time.Minute},
		"when the model is given up": {func(h *hall, _ *proxy.MemoryClient) {
			h.models = nil
			h.engines()
		}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHall(Options{}, 10)
				client := &proxy.MemoryClient{}
				r := h.ask("m")
				r.Client = client
				var g sync.WaitGroup
				begin := time.Now()
				h.waits(&g, r, func(p *Pass, err error) {
					require.ErrorIs(t, err, tc.want)
					p.Done()
				})
				tc.end(h, client)
				g.Wait()
				require.Equal(t, tc.took, time.Since(begin))
				h.empty(t)
			})
		})
	}
}

func TestAClientThatHasLeftIsNotHeld(t *testing.T) {
	h := newHall(Options{}, 10)
	r, client := h.ask("m"), &proxy.MemoryClient{}
	client.Leave()
	r.Client = client
	_, err := h.Hold(r)
	require.ErrorIs(t, err, ErrGone)
	h.empty(t)
}

func TestAStoppedRouterHoldsNobody(t *testing.T) {
	h := newHall(Options{}, 10)
	h.Drain(time.Now())
	h.Drain(time.Now().Add(time.Hour))
	_, err := h.Hold(h.ask("m"))
	require.ErrorIs(t, err, ErrDraining)
	h.empty(t)
}

func TestStreamsHearHowManyAreAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Options{}, 10)
		var g sync.WaitGroup
		var heard []int
		first := &proxy.MemoryClient{}
		for i := range 3 {
			r := h.ask("m")
			if i == 0 {
				r.Client = first
			}
			if i == 2 {
				r.Beat = func(ahead int) error {
					heard = append(heard, ahead)
					if len(heard) == 3 {
						return proxy.ErrMemoryGone
					}
					return nil
				}
			}
			h.waits(&g, r, func(_ *Pass, err error) { require.Error(t, err) })
		}
		time.Sleep(15 * time.Second)
		first.Leave()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		require.Equal(t, []int{2, 1, 1}, heard)
		require.EqualValues(t, 1, h.Held(), "who can't be told has left")
		g.Wait()
		h.empty(t)
	})
}

func TestAProviderTakesWhomItHasRoomFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Options{}, 10)
		e := pick.NewEndpoint(mobula.Endpoint{ID: "provider/p", Provider: &mobula.ProviderTarget{Kind: "openai", InFlight: 1}}, &pick.Live{})
		e.Serving, e.Cards = true, []mobula.Card{{ID: "m"}}
		e.Live.InFlight.Store(1)
		h.engines(e)
		var g sync.WaitGroup
		var went atomic.Int32
		var passes []*Pass
		for range 2 {
			r := h.ask("m")
			r.Kinds = []string{"openai"}
			h.waits(&g, r, func(p *Pass, err error) {
				require.NoError(t, err)
				went.Add(1)
				passes = append(passes, p)
			})
		}
		other := h.ask("m") // of a path that the provider does not have
		h.waits(&g, other, func(_ *Pass, err error) { require.ErrorIs(t, err, ErrTimeout) })
		require.Zero(t, went.Load())
		for n := range 2 {
			e.Live.InFlight.Store(0)
			h.Changed()
			synctest.Wait()
			require.EqualValues(t, n+1, went.Load(), "one at a time")
			e.Live.InFlight.Store(1)
			passes[n].Done()
		}
		e.Live.InFlight.Store(0)
		h.Changed()
		g.Wait()
		h.empty(t)
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &proxy.MemoryClient{}
		require.True(t, Pause(client, time.Hour))
		var g sync.WaitGroup
		g.Go(func() { require.False(t, Pause(client, time.Hour)) })
		synctest.Wait()
		client.Leave()
		g.Wait()
		require.False(t, Pause(client, time.Hour))
	})
}

// TestLinesHoldUnderAnySchedule: never more than the bound, first come first served among those who
// wait, nobody forgotten, and nothing left at the end.
func TestLinesHoldUnderAnySchedule(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) {
			bound, per := rapid.IntRange(0, 6).Draw(rt, "bound"), rapid.IntRange(1, 3).Draw(rt, "per")
			h := newHall(Options{PerEngine: per}, bound)
			var (
				g       sync.WaitGroup
				waiting []int // in the order in which they came
				clients = map[int]*proxy.MemoryClient{}
				passes  []*Pass
				up      bool
			)
			mu := sync.Mutex{}
			for i := range rapid.IntRange(1, 40).Draw(rt, "steps") {
				mu.Lock()
				before := slices.Clone(waiting)
				mu.Unlock()
				switch rapid.SampledFrom([]string{"come", "come", "come", "leave", "up", "down", "done"}).Draw(rt, "step") {
				case "come":
					r, c := h.ask("m"), &proxy.MemoryClient{}
					r.Client = c
					mu.Lock()
					waiting = append(waiting, i)
					clients[i] = c
					mu.Unlock()
					h.waits(&g, r, func(p *Pass, err error) {
						mu.Lock()
						defer mu.Unlock()
						at := slices.Index(waiting, i)
						waiting = slices.Delete(waiting, at, at+1)
						if p != nil {
							require.NoError(rt, err)
							passes = append(passes, p)
						}
					})
				case "leave":
					if len(before) > 0 {
						clients[before[rapid.IntRange(0, len(before)-1).Draw(rt, "who")]].Leave()
					}
				case "up":
					up = true
					h.engines(endpoint("a", "m"))
				case "down":
					up = false
					h.engines()
				case "done":
					mu.Lock()
					var p *Pass
					if len(passes) > 0 {
						p, passes = passes[0], passes[1:]
					}
					mu.Unlock()
					p.Done()
				}
				synctest.Wait()
				mu.Lock()
				require.LessOrEqual(rt, len(waiting), bound)
				require.EqualValues(rt, len(waiting), h.Held())
				require.True(rt, slices.IsSorted(waiting))
				if up {
					require.False(rt, len(waiting) > 0 && len(passes) < per, "an engine has room and somebody waits")
				}
				mu.Unlock()
			}
			h.engines()
			for _, p := range passes {
				p.Done()
			}
			time.Sleep(time.Minute)
			g.Wait()
			h.empty(rt)
		})
	})
}

// TestAPassOfOneWhoLeftComesBack: who is let go at the moment at which its client leaves may see either first.
func TestAPassOfOneWhoLeftComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(Options{}, 1)
		left := 0
		for range 100 {
			client := &proxy.MemoryClient{}
			r := h.ask("m")
			r.Client = client
			var g sync.WaitGroup
			h.waits(&g, r, func(p *Pass, err error) {
				if err != nil {
					left++
				}
				p.Done()
			})
			h.mu.Lock() // so that the other goroutine can't see one without the other
			client.Leave()
			h.pumpWith(endpoint("a", "m"))
			h.mu.Unlock()
			g.Wait()
			h.engines()
			h.empty(t)
		}
		require.Positive(t, left)
	})
}

// pumpWith is engines for one who has the lock.
func (h *hall) pumpWith(all ...*pick.Endpoint) {
	h.snapshot.Store(pick.NewSnapshot(all, h.models, nil))
	for _, l := range h.lines {
		h.pump(l)
	}
}

// TestWakeAndLeaveRace: whatever comes first, nobody is lost and every pass comes back.
func TestWakeAndLeaveRace(t *testing.T) {
	h := newHall(Options{PerEngine: 2}, 1000)
	var g sync.WaitGroup
	for i := range 200 {
		client := &proxy.MemoryClient{}
		r := h.ask("m")
		r.Client = client
		g.Go(func() {
			p, err := h.Hold(r)
			if err == nil {
				p.Done()
			}
		})
		if i%2 == 0 {
			g.Go(client.Leave)
		}
		if i%10 == 0 {
			g.Go(func() { h.engines(endpoint("a", "m")) })
			g.Go(func() { h.engines() })
		}
	}
	time.Sleep(time.Millisecond)
	h.engines(endpoint("a", "m"))
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			h.empty(t)
			return
		case <-time.After(50 * time.Millisecond):
			h.engines(endpoint("a", "m")) // one of the goroutines above may have been the last to take it away
		}
	}
}

func BenchmarkHeld(b *testing.B) {
	h := newHall(Options{}, 10)
	for b.Loop() {
		if h.Held() > 0 {
			b.Fatal("nobody waits")
		}
	}
}

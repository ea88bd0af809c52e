package control

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

func TestIdleWhenAllRoutersSaySo(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	marked := start.Add(time.Minute)
	type said struct {
		router   string
		after    time.Duration // the mark
		listed   bool
		draining bool
		inFlight int
	}
	for name, tc := range map[string]struct {
		said []said
		now  time.Duration
		want bool
	}{
		"no router, mark is fresh":              {nil, time.Second, false},
		"no router, mark is out":                {nil, 2 * time.Second, true},
		"drained":                               {[]said{{"a", time.Second, true, true, 0}}, 2 * time.Second, true},
		"requests left":                         {[]said{{"a", time.Second, true, true, 1}}, 2 * time.Second, false},
		"knows no mark":                         {[]said{{"a", time.Second, true, false, 0}}, 2 * time.Second, false},
		"one of two":                            {[]said{{"a", time.Second, true, true, 0}, {"b", time.Second, true, true, 2}}, 2 * time.Second, false},
		"both":                                  {[]said{{"a", time.Second, true, true, 0}, {"b", time.Second, true, true, 0}}, 2 * time.Second, true},
		"said before the mark":                  {[]said{{"a", -time.Second, true, true, 0}}, 2 * time.Second, false},
		"not listed, just after the mark":       {[]said{{"a", time.Second, false, false, 0}}, 2 * time.Second, false},
		"not listed":                            {[]said{{"a", 3 * time.Second, false, false, 0}}, 4 * time.Second, true},
		"a silent router is not waited for":     {[]said{{"a", time.Second, true, true, 5}, {"b", 10 * time.Second, true, true, 0}}, 12 * time.Second, true},
		"all routers silent, mark is long out":  {[]said{{"a", time.Second, true, true, 5}}, 12 * time.Second, true},
		"the newer word of one router is taken": {[]said{{"a", time.Second, true, true, 5}, {"a", 2 * time.Second, true, true, 0}}, 3 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			rs := &routers{found: start}
			for _, s := range tc.said {
				r := mobula.Report{Router: s.router}
				if s.listed {
					r.Endpoints = []mobula.EndpointReport{{ID: "x", State: "up", Draining: s.draining, InFlight: s.inFlight}}
				}
				rs = rs.with(r, marked.Add(s.after))
			}
			require.Equal(t, tc.want, rs.idle("x", marked, marked.Add(tc.now)))
			rs.found = marked.Add(tc.now).Add(time.Millisecond)
			require.False(t, rs.idle("x", marked, marked.Add(tc.now)), "just started, it may not have heard of all")
		})
	}
}

func TestRoutersAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	rs := &routers{found: now}
	for i := range 2 * maxRouters {
		rs = rs.with(mobula.Report{Router: strconv.Itoa(i)}, now.Add(time.Duration(i)*time.Millisecond))
	}
	require.Len(t, rs.reports, maxRouters)
	rs = rs.with(mobula.Report{Router: "late"}, now.Add(time.Hour))
	require.Len(t, rs.reports, 1)
}

func TestLoadsAreSums(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	rs := &routers{found: now}
	rs = rs.with(mobula.Report{
		Router:    "a",
		Endpoints: []mobula.EndpointReport{{ID: "x", State: "up", InFlight: 2, WaitingTokens: 10, KVUsage: 0.5, Running: 3, Waiting: -1}},
		Models:    []mobula.ModelReport{{Model: "m", Held: 1, TTFT90: 2, Requests: 4}},
	}, now)
	rs = rs.with(mobula.Report{
		Router:    "b",
		Endpoints: []mobula.EndpointReport{{ID: "x", State: "down", InFlight: 1, WaitingTokens: 5, KVUsage: 0.4, Running: 2, Waiting: -1}},
		Models:    []mobula.ModelReport{{Model: "m", Held: 2, TTFT90: 3, Requests: 5}},
	}, now)
	l := rs.loads["x"]
	require.Equal(t, []int{3, 15, 3, -1}, []int{l.InFlight, l.WaitingTokens, l.Running, l.Waiting})
	require.Equal(t, "up", l.State, "one router reaches it")
	require.Zero(t, rs.unreachable("x", now.Add(5*time.Second)))
	require.Equal(t, mobula.ModelReport{Model: "m", Held: 3, TTFT90: 3, Requests: 9}, rs.model("m", now))
	require.Equal(t, mobula.ModelReport{Model: "m"}, rs.model("m", now.Add(time.Minute)), "routers that are silent say nothing")
}

// brokenPlacer refuses one model.
type brokenPlacer struct {
	*adapters.InMemoryPlacer
	mu     sync.Mutex
	broken string
	err    error
	tries  int
}

func (p *brokenPlacer) Apply(ctx context.Context, d adapters.Deployment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.Key.Model == p.broken {
		p.tries++
		return p.err
	}
	return p.InMemoryPlacer.Apply(ctx, d)
}

func (p *brokenPlacer) mend() (tries int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = ""
	return p.tries
}

func TestOneModelsErrorIsItsOwn(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.stop()
		broken := &brokenPlacer{InMemoryPlacer: b.placer, broken: "a", err: errors.New("quota exceeded")}
		b.wrap = broken
		b.placer.Auto(true)
		b.start()
		b.apply(fleetFile(simModel("a", "1"), simModel("b", "1")))
		b.pass(10 * time.Minute)
		require.Equal(t, 1, b.model("b").Ready)
		require.Contains(t, b.reasons(), "PlatformError")
		require.LessOrEqual(t, broken.mend(), 20, "it is tried again with pauses")
		b.pass(2 * time.Minute)
		require.Equal(t, 1, b.model("a").Ready)
	})
}

func TestWhatIsWithdrawnIsNoPlatformsError(t *testing.T) {
	bubble(t, func(b *bench) {
		b.stop()
		b.wrap = &brokenPlacer{InMemoryPlacer: b.placer, broken: "a", err: adapters.ErrWithdrawn}
		b.start()
		b.apply(fleetFile(simModel("a", "1")))
		b.pass(time.Minute)
		require.NotContains(b.t, b.reasons(), "PlatformError")
	})
}

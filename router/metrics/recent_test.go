package metrics

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestQuantilesAreATenthOffAtMost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h durations
		var all []float64
		for _, us := range rapid.SliceOfN(rapid.Int64Range(128, int64(20*time.Minute/time.Microsecond)), 1, 200).Draw(t, "microseconds") {
			d := time.Duration(us) * time.Microsecond
			h.observe(d, 1)
			all = append(all, d.Seconds())
		}
		slices.Sort(all)
		var c counts
		h.addTo(&c)
		for _, q := range []float64{.5, .9} {
			want := all[int(q*float64(len(all)-1))]
			require.InEpsilon(t, want, c.quantile(q), .13)
		}
	})
}

func TestExtremesHaveABucket(t *testing.T) {
	for _, d := range []time.Duration{-1, 0, 1, 128 * time.Microsecond, time.Hour, 1<<63 - 1} {
		var h durations
		h.observe(d, 2)
		var c counts
		h.addTo(&c)
		require.Positive(t, c.quantile(.5))
	}
	require.Zero(t, (&counts{}).quantile(.5))
}

func TestAWindowForgets(t *testing.T) {
	m := New(prometheus.NewRegistry()).Model("m", "chat")
	begin := time.Unix(1000, 0)
	sum := func(at time.Duration) (t totals) {
		m.recent.sum(begin.Add(at), &t)
		return t
	}
	require.Zero(t, sum(0).last)
	for i := range 30 {
		now := begin.Add(time.Duration(i) * time.Second)
		m.Incoming(now)
		m.First(now, time.Second, i%2 == 0)
		m.Events(now, 4, time.Second)
		m.Failed(now)
		m.Prompt(now, 7)
		m.Prompt(now, -1)
	}
	got := sum(29 * time.Second)
	require.Equal(t, []int{10, 10, 10, 70}, []int{got.requests, got.answered, got.failed, got.prompt})
	require.InEpsilon(t, 1, got.ttft.quantile(.5), .13)
	require.InEpsilon(t, .25, got.itl.quantile(.5), .13)
	require.Equal(t, 5, sum(34*time.Second).requests)
	later := sum(time.Minute)
	require.Zero(t, later.requests)
	require.Zero(t, later.prompt)
	require.Zero(t, later.ttft.quantile(.9))
	require.Equal(t, begin.Add(29*time.Second).UnixNano(), later.last)
}

func TestAWindowCountsWhatManySay(t *testing.T) {
	set := New(prometheus.NewRegistry())
	now := time.Unix(1000, 0)
	var g sync.WaitGroup
	for _, route := range []string{"chat", "completions", "messages"} {
		g.Go(func() {
			m := set.Model("m", route)
			for range 1000 {
				m.Incoming(now)
			}
		})
	}
	g.Wait()
	var all totals
	set.Model("m", "chat").recent.sum(now, &all)
	require.InDelta(t, 3000, all.requests, 30, "what meets at the slot's turn may be lost")
}

func BenchmarkRecent(b *testing.B) {
	m := New(prometheus.NewRegistry()).Model("m", "chat")
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		m.Events(now, 1, 20*time.Millisecond)
	}
}

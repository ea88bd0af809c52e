package pick

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRoundRobin(t *testing.T) {
	p := newRoundRobin()
	g := testGroup(0, 9, 0)
	for _, want := range [][]string{{"e0", "e1"}, {"e1", "e2"}, {"e2", "e0"}, {"e0", "e1"}} {
		r := &Request{Model: testModel, Depth: 2}
		require.Equal(t, want, ids(p.Order(r, g, nil)))
		require.Equal(t, "turn", r.Reason)
	}
}

func TestRoundRobinIsFairToOneForEachModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newRoundRobin()
		groups := map[string]*Group{}
		counts := map[string]map[string]int{}
		for _, model := range []string{"a", "b", "c"} {
			g := testGroup(make([]int64, rapid.IntRange(1, 7).Draw(t, model))...)
			g.Model = model
			groups[model], counts[model] = g, map[string]int{}
		}
		for _, model := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 100).Draw(t, "requests") {
			counts[model][p.Order(&Request{Model: model, Depth: 1}, groups[model], nil)[0].ID]++
			least, most := 1<<30, 0
			for _, e := range groups[model].Endpoints {
				least, most = min(least, counts[model][e.ID]), max(most, counts[model][e.ID])
			}
			require.LessOrEqual(t, most-least, 1)
		}
	})
}

func TestRoundRobinIsFairToManyGoroutines(t *testing.T) {
	p := newRoundRobin()
	g := testGroup(0, 0, 0, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				e := p.Order(&Request{Model: testModel, Depth: 1}, g, nil)[0]
				e.Live.InFlight.Add(1)
			}
		})
	}
	wg.Wait()
	for _, e := range g.Endpoints {
		require.EqualValues(t, 200, e.Live.InFlight.Load())
	}
}

func TestRoundRobinBoundsItsModels(t *testing.T) {
	p := newRoundRobin()
	g := testGroup(0, 0)
	for i := range 2*maxTurns + 10 {
		g.Model = fmt.Sprint("lora-", i)
		p.Order(&Request{Model: g.Model, Depth: 1}, g, nil)
		require.LessOrEqual(t, len(p.turns), maxTurns)
	}
}

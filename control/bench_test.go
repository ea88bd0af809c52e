package control

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

const (
	benchHosts    = 1000
	benchModels   = 100
	benchReplicas = 100 // of each model
)

// largeControl makes a control plane of 1,000 hosts and 10,000 replicas of 100 models, all ready.
func largeControl(tb testing.TB) (*Control, *adapters.InMemoryPlacer) {
	tb.Helper()
	placer := adapters.NewInMemoryPlacer(nil)
	hosts := make([]mobula.Host, benchHosts)
	for i := range hosts {
		hosts[i].Name = fmt.Sprintf("host-%04d", i)
		for d := range 8 {
			hosts[i].Devices = append(hosts[i].Devices, mobula.Device{ID: strconv.Itoa(d), Name: "NVIDIA H200", Memory: 141e9})
		}
	}
	placer.SetHosts(hosts...)
	placer.Auto(true)
	c, err := New(Options{Store: state.NewInMemory(), Placer: placer})
	require.NoError(tb, err)
	var file strings.Builder
	for m := range benchModels {
		file.WriteString(simModel(fmt.Sprintf("model-%03d", m), strconv.Itoa(benchReplicas)))
	}
	_, err = c.Apply(tb.Context(), []byte(fleetFile(file.String())), "bench", false, false)
	require.NoError(tb, err)
	for range 10 {
		c.look()
		c.reconcile(tb.Context())
	}
	require.Len(tb, placer.Replicas(mobula.StateReady), benchModels*benchReplicas)
	return c, placer
}

// largeReport is a router's report on all of them.
func largeReport(c *Control) mobula.Report {
	r := mobula.Report{Router: "r"}
	for i := range c.view.Replicas {
		r.Endpoints = append(r.Endpoints, mobula.EndpointReport{ID: c.view.Replicas[i].ID, State: "up", InFlight: i % 7})
	}
	for i := range c.view.Models {
		r.Models = append(r.Models, mobula.ModelReport{Model: c.view.Models[i].Name, Requests: 10})
	}
	return r
}

// BenchmarkPlan10000 plans all models once: nothing changes, or all of them roll.
func BenchmarkPlan10000(b *testing.B) {
	c, _ := largeControl(b)
	now := time.Now().Add(time.Minute)
	for name, change := range map[string]func(s *situation){
		"steady": func(*situation) {},
		"roll":   func(s *situation) { m := *s.want; m.Source = "other"; s.want = &m },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				all := c.situations(now)
				for i := range all {
					change(&all[i])
					plan(&all[i])
				}
			}
		})
	}
}

// BenchmarkTick10000 is what a second costs when nothing changes: a router's report, a round, a view.
func BenchmarkTick10000(b *testing.B) {
	c, _ := largeControl(b)
	r := largeReport(c)
	for name, look := range map[string]bool{"nothing new": false, "platform has changed": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, c.Report(b.Context(), r))
				if look {
					c.look()
				}
				c.reconcile(b.Context())
			}
		})
	}
}

// BenchmarkMemory10000 tells what the heap holds, the platform in memory left out as far as its replicas are not ours.
func BenchmarkMemory10000(b *testing.B) {
	c, _ := largeControl(b)
	require.NoError(b, c.Report(b.Context(), largeReport(c)))
	c.reconcile(b.Context())
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	all := heap()
	for b.Loop() {
		runtime.KeepAlive(c)
	}
	c.view, c.observed, c.routers, c.models, c.asked, c.scaling = nil, observation{}, nil, nil, nil, nil
	c.events = events{}
	b.ReportMetric(all-heap(), "MiB")
	runtime.KeepAlive(c)
}

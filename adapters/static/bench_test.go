package static

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/state"
)

const (
	benchHosts    = 1000
	benchReplicas = 10_000 // of 100 models: more than the 8,000 GPUs; those of every fifth model take none
	benchModels   = 100
)

func benchDeployment(m int) adapters.Deployment {
	gpus := 1
	if m%5 == 0 {
		gpus = 0
	}
	name := fmt.Sprintf("org/model-%03d", m)
	return adapters.Deployment{
		Key:   adapters.Key{Fleet: "f", Model: name, Revision: "0123456789"},
		Model: mobula.Model{Name: name, Resources: mobula.Resources{GPUs: &gpus}}, Replicas: benchReplicas / benchModels,
	}
}

// noAgent is never asked: Run is not under way.
type noAgent struct{ AgentClient }

func (noAgent) State(context.Context, int64, time.Duration) (agent.State, error) {
	return agent.State{}, errors.New("nobody")
}

func (noAgent) Logs(context.Context, string, int, bool) (io.ReadCloser, error) {
	return nil, errors.New("nobody")
}

func benchFleet(tb testing.TB) *Hosts {
	tb.Helper()
	h, err := NewHosts(HostsOptions{Store: state.NewInMemory(), Control: "c", Dial: func(string, string) AgentClient { return noAgent{} }})
	require.NoError(tb, err)
	for i := range benchHosts {
		name := fmt.Sprintf("host-%04d", i)
		require.NoError(tb, h.Join(context.Background(), name, name+":8200"))
		s := agent.State{Seq: 1, Instance: "i", Name: name, Slots: 4}
		for d := range 8 {
			s.Devices = append(s.Devices, mobula.Device{ID: strconv.Itoa(d), Name: "NVIDIA H100", Memory: 80e9, Group: "nvlink"})
		}
		h.heard(name, h.hosts[name].client, s)
	}
	return h
}

// settleAll has all hosts answer that everything runs.
func settleAll(h *Hosts) {
	for name, host := range h.hosts {
		s := host.state
		w, due := h.wish(name, host.client)
		if !due {
			continue
		}
		s.Seq, s.Epoch, s.Tasks = s.Seq+1, w.Epoch, nil
		for _, t := range w.Tasks {
			s.Tasks = append(s.Tasks, agent.TaskStatus{
				ID: t.ID, Replica: t.Replica, Fleet: t.Fleet, Model: t.Model.Name, Revision: t.Revision,
				State: agent.TaskReady, URL: "http://" + name + ":8701", Devices: t.Devices,
			})
		}
		h.heard(name, host.client, s)
	}
}

func BenchmarkScheduleFromEmpty(b *testing.B) {
	h := benchFleet(b)
	var wants []want
	for m := range benchModels {
		d := benchDeployment(m)
		for range d.Replicas {
			wants = append(wants, want{id: strconv.Itoa(len(wants)), born: int64(len(wants)), key: d.Key, model: &d.Model})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		places, _ := schedule(h.nodes(false), wants)
		require.Len(b, places, benchReplicas)
	}
}

func BenchmarkHosts(b *testing.B) {
	ctx := context.Background()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	h := benchFleet(b)
	began := time.Now()
	for m := range benchModels {
		require.NoError(b, h.Apply(ctx, benchDeployment(m)))
	}
	applied := time.Since(began)
	settleAll(h)
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Logf("%d hosts, %d replicas: applied in %v, %.1f MiB with the store in memory",
		benchHosts, benchReplicas, applied.Round(time.Millisecond), float64(after.HeapAlloc-before.HeapAlloc)/(1<<20))

	b.Run("one replica more or less", func(b *testing.B) {
		b.ReportAllocs()
		d := benchDeployment(5)
		for n := 0; b.Loop(); n++ {
			d.Replicas = benchReplicas/benchModels + (n+1)%2
			require.NoError(b, h.Apply(ctx, d))
		}
	})
	b.Run("status", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			all, err := h.Status(ctx, "f")
			require.NoError(b, err)
			require.GreaterOrEqual(b, len(all), benchReplicas)
		}
	})
	b.Run("endpoints", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			all, _, _ := h.endpoints()
			require.GreaterOrEqual(b, len(all), benchReplicas-1)
		}
	})
	b.Run("one host tells of a task", func(b *testing.B) {
		b.ReportAllocs()
		host := h.hosts["host-0000"]
		for b.Loop() {
			s := host.state
			s.Seq++
			s.Tasks = append([]agent.TaskStatus(nil), s.Tasks...)
			s.Tasks[0].Restarts++
			h.heard("host-0000", host.client, s)
		}
	})
	b.Run("tick", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			require.NoError(b, h.do(h.tick))
		}
	})
}

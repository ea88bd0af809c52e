package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

// BenchmarkThousandModels has 1,000 models of 10 replicas each: made from nothing, looked at by a control plane that has just
// started, and looked at again when nothing has changed. Much of the first is the cluster in memory.
func BenchmarkThousandModels(b *testing.B) {
	const models, each = 1000, 10
	for range b.N {
		quiet := func(o *Options) { o.Logger = slog.New(slog.DiscardHandler) }
		l := newLab(b, kubetest.Options{}, quiet)
		begin := time.Now()
		var g errgroup.Group
		g.SetLimit(8)
		for i := range models {
			g.Go(func() error { return l.Apply(b.Context(), deployment(fmt.Sprintf("m%d", i), "r1", each)) })
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/apply")
		full := func() bool {
			time.Sleep(100 * time.Millisecond) // to look is work
			all, err := l.Status(b.Context(), testFleet)
			return err == nil && len(all) == models*each &&
				!slices.ContainsFunc(all, func(r mobula.Replica) bool { return r.State != mobula.StateReady })
		}
		l.await("all replicas", full)
		b.ReportMetric(time.Since(begin).Seconds(), "s/ready")
		b.ReportMetric(float64(l.writes())/models, "writes/model")
		l.quiet()

		l.cube.ResetCalls()
		begin = time.Now()
		l.restart()
		l.await("all replicas", full)
		b.ReportMetric(time.Since(begin).Seconds(), "s/restart")
		begin = time.Now()
		for _, group := range l.keeper.groups() {
			l.keeper.look(context.WithoutCancel(b.Context()), group)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/reconcile")
		b.ReportMetric(float64(l.writes()), "writes/steady")
		begin = time.Now()
		if _, err := l.Status(b.Context(), testFleet); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds()*1000, "ms/status")
		if err := l.Apply(b.Context(), adapters.Deployment{
			Key: adapters.Key{Fleet: testFleet, Model: "m7", Revision: "r1"}, Model: simModel("m7"), Replicas: each + 1,
		}); err != nil {
			b.Fatal(err)
		}
		l.stop()
	}
}

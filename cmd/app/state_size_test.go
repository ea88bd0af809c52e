package app

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/leader"
	"github.com/mobula-serve/mobula/state"
)

// remembered is what a control plane writes of n models with ten applies: each has been scaled, and is being rolled.
func remembered(t *testing.T, n int) (all []state.Change) {
	t.Helper()
	store := state.NewInMemory()
	synctest.Test(t, func(t *testing.T) {
		placer := adapters.NewInMemoryPlacer(nil)
		placer.Auto(true)
		c, err := control.New(control.Options{Store: store, Placer: placer})
		require.NoError(t, err)
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = c.Run(ctx)
		}()
		apply := func(length int) {
			_, err := c.Apply(ctx, manyModels(n, length), "test", false, true)
			require.NoError(t, err)
		}
		for range 9 {
			apply(8192)
		}
		for second := range 40 {
			time.Sleep(time.Second)
			v, err := c.View(ctx, 0)
			require.NoError(t, err)
			require.NoError(t, c.Report(ctx, randomReport(v, 1+second/30*50))) // it is learnt what one does, then there are more
		}
		placer.Auto(false)
		apply(16384)
		time.Sleep(5 * time.Second)
		end()
		<-done
	})
	require.NoError(t, store.Each("control", func(key string, value []byte) error {
		all = append(all, state.Change{Bucket: "control", Key: key, Value: value})
		return nil
	}))
	return all
}

// manyModels is a fleet file whose models are alike, but for what does not compress.
func manyModels(n, length int) []byte {
	var file strings.Builder
	file.WriteString("apiVersion: mobula/v1\nkind: Fleet\nname: large\nplatform: {static: {}}\nmodels:\n")
	for i := range n {
		_, _ = fmt.Fprintf(&file, "  - {name: org/model-%d-%08x, replicas: 1-4, engine: {args: [--max-model-len, '%d']}, resources: {gpus: 2}, scaling: {upAfter: 2s, downAfter: 20s}}\n",
			i, uint32(i)*2654435761, length)
	}
	return []byte(file.String())
}

func randomReport(v *control.View, load int) mobula.Report {
	r := mobula.Report{Router: "r", At: time.Now()}
	for i := range v.Replicas {
		n := rand.IntN(4 * load)
		r.Endpoints = append(r.Endpoints, mobula.EndpointReport{ID: v.Replicas[i].ID, State: "up", InFlight: n, Running: n, KVUsage: rand.Float64() / 2, PrefillRate: 1e4 * (1 + rand.Float64())})
	}
	for i := range v.Models {
		r.Models = append(r.Models, mobula.ModelReport{
			Model: v.Models[i].Name, Requests: load * (5 + rand.IntN(10)), Answered: 5 * load, PromptTokens: load * rand.IntN(10_000),
			TTFT50: rand.Float64(), TTFT90: 1 + rand.Float64()/2, ITL50: rand.Float64() / 50, ITL90: 0.01 + rand.Float64()/50, LastRequest: time.Now(),
		})
	}
	return r
}

// What a control plane remembers of many models fits.
func TestAThousandModelsFit(t *testing.T) {
	const part = 250 // of them: more take long
	c := kubetest.New(kubetest.Options{})
	t.Cleanup(c.Close)
	s, err := leader.OpenStore(t.Context(), c.Client(), "n", "state")
	require.NoError(t, err)
	all := remembered(t, part)
	learnt := 0
	for _, ch := range all {
		text := string(ch.Value)
		require.NotContains(t, text, `"downs"`, "the autoscaler's windows are not worth their room")
		if strings.HasPrefix(ch.Key, "model/") && strings.Contains(text, `"proven":`) && strings.Count(text, `"live":`) == 2 {
			learnt++
		}
	}
	require.Greater(t, learnt, part*9/10, "they are scaled and being rolled")
	require.NoError(t, s.Write(all...))
	secret, err := c.Client().CoreV1().Secrets("n").Get(t.Context(), "state", metav1.GetOptions{})
	require.NoError(t, err)
	size := 0
	for _, shard := range secret.Data {
		size += len(shard)
	}
	t.Logf("%d bytes for each of %d models", size/part, part)
	require.Less(t, size, 1_000_000*part/1000)
}

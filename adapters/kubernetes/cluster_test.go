package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

const (
	testSpace = "engines"
	testFleet = "shop"
	deadline  = 60 * time.Second // a claim on nothing: it ends a test that hangs
)

// lab is a cluster in memory and a Cluster that looks after it.
type lab struct {
	t    testing.TB
	cube *kubetest.Cluster
	*Cluster
	options Options
	stop    func()
}

func newLab(tb testing.TB, o kubetest.Options, more ...func(*Options)) *lab {
	tb.Helper()
	o.Namespaces = append(o.Namespaces, testSpace)
	cube := kubetest.New(o)
	tb.Cleanup(cube.Close)
	l := &lab{t: tb, cube: cube, options: Options{
		Client: cube.Client(), Dynamic: cube.Dynamic(), Namespace: testSpace, OwnImage: "mobula:test",
		Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}}
	for _, f := range more {
		f(&l.options)
	}
	l.start()
	tb.Cleanup(func() { l.stop() })
	return l
}

// start makes a Cluster over what there is and configures it.
func (l *lab) start() {
	l.t.Helper()
	l.startAs(testFleet)
}

func (l *lab) startAs(fleet string) {
	l.t.Helper()
	c, err := New(l.options)
	require.NoError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it ends with stop
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	l.Cluster, l.stop = c, func() { cancel(); wg.Wait() }
	require.NoError(l.t, c.Configure(ctx, fleet, onKubernetes(), false))
}

// restart ends the Cluster as a kill would.
func (l *lab) restart() {
	l.t.Helper()
	l.stop()
	l.start()
}

func onKubernetes() mobula.Platform { return mobula.Platform{Kubernetes: &mobula.Kubernetes{}} }

func simModel(name string) mobula.Model {
	m := mobula.NewModel(name)
	m.Engine.Kind = "sim"
	return m
}

func deployment(model, revision string, replicas int, drain ...string) adapters.Deployment {
	return adapters.Deployment{
		Key: adapters.Key{Fleet: testFleet, Model: model, Revision: revision}, Model: simModel(model), Replicas: replicas, Drain: drain,
	}
}

func (l *lab) apply(d adapters.Deployment) {
	l.t.Helper()
	require.NoError(l.t, l.Apply(l.t.Context(), d))
}

func (l *lab) replicas() []mobula.Replica {
	l.t.Helper()
	all, err := l.Status(l.t.Context(), testFleet)
	require.NoError(l.t, err)
	return all
}

// await waits for a condition.
func (l *lab) await(what string, ok func() bool) {
	l.t.Helper()
	await(l.t, what, func() any {
		all, err := l.Status(context.WithoutCancel(l.t.Context()), testFleet)
		return []any{all, err, l.Problems()}
	}, ok)
}

func await(tb testing.TB, what string, now func() any, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("%s: it did not come; now: %+v", what, now())
		}
	}
}

// ready waits until there are n replicas, all of them Ready, and gives their IDs.
func (l *lab) ready(n int) []string {
	l.t.Helper()
	var ids []string
	l.await("replicas that are ready", func() bool {
		all, err := l.Status(l.t.Context(), testFleet)
		if err != nil || len(all) != n {
			return false
		}
		ids = nil
		for _, r := range all {
			if r.State != mobula.StateReady {
				return false
			}
			ids = append(ids, r.ID)
		}
		return true
	})
	return ids
}

func (l *lab) pods() []string {
	var names []string
	for _, pod := range l.cube.Pods(testSpace, "") {
		names = append(names, pod.Name)
	}
	return names
}

// running gives the engines that truly run, by the IDs of their replicas.
func (l *lab) running() []string {
	var all []string
	for _, pod := range l.cube.Pods(testSpace, kube.LabelServes+"=true") {
		if !over(pod) && pod.DeletionTimestamp == nil {
			all = append(all, cmp.Or(pod.Labels[kube.LabelReplica], pod.Name))
		}
	}
	return all
}

package static_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
)

// TestKilledBetweenAnyTwoSteps has the n-th write fail, for each n there is: as one that did not come true, and
// as one that did although nobody was told, as when the process dies right after it. Then the control plane
// starts again, or tries again. It must always come to what was asked for, with nothing running twice.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("restart %t, kept %t", restart, kept), func(t *testing.T) {
				for n := 1; ; n++ {
					if failed := runWithFailure(t, n, kept, restart); !failed {
						require.Greater(t, n, 8, "the story has more steps than this")
						return
					}
				}
			})
		}
	}
}

// runWithFailure tells a roll from one revision to another, and whether a write of it failed.
func runWithFailure(t *testing.T, n int, kept, restart bool) (failed bool) {
	t.Helper()
	net := newNetwork()
	one, two := net.add("host-1", 2, 0), net.add("host-2", 2, 0)
	f := newFleet(t, net).run()
	defer func() { f.stop() }()
	f.store.broken(func(write int) (bool, bool) {
		failed = failed || write == n
		return write == n, kept
	})
	ctx := context.Background()
	do := func(step func() error) {
		err := step()
		if err == nil {
			return
		}
		require.ErrorIs(t, err, adapters.ErrUnavailable)
		if restart {
			f.run()
		}
		require.NoError(t, step(), "the failure is over")
	}
	apply := func(d adapters.Deployment) { do(func() error { return f.Apply(ctx, d) }) }
	ready := func(revision string, n int) []string {
		var ids []string
		f.await(func() bool {
			ids = nil
			for _, r := range f.status() {
				if r.Revision == revision && r.State == mobula.StateReady {
					ids = append(ids, r.ID)
				}
			}
			return len(ids) == n
		})
		return ids
	}

	do(func() error { return f.Join(ctx, one.name, one.address) })
	do(func() error { return f.Join(ctx, two.name, two.address) })
	apply(deployment("m", "r1", 2, 1))
	before := ready("r1", 2)
	apply(deployment("m", "r2", 1, 1))
	ready("r2", 1)
	apply(deployment("m", "r1", 2, 1, before[0]))
	apply(deployment("m", "r1", 1, 1, before[0]))
	require.Equal(t, before[1:], ready("r1", 1), "the other one stays")
	do(func() error { return f.Cordon(ctx, "host-1", true) })
	do(func() error { return f.Cordon(ctx, "host-1", false) })
	apply(deployment("m", "r2", 2, 1))
	do(func() error { return f.Remove(ctx, deployment("m", "r1", 0, 1).Key) })
	after := ready("r2", 2)
	f.await(func() bool { return slices.Equal(after, net.running()) && len(f.status()) == 2 })
	return failed
}

func TestStoreThatCannotBeReadEither(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 4, 0)
	f := newFleet(t, net).run().join(one)
	ctx := t.Context()
	f.apply(deployment("m", "r", 2, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	before := f.status()
	told := one.told()

	f.store.down(true)
	require.ErrorIs(t, f.Apply(ctx, deployment("m", "r", 4, 1, before[0].ID)), adapters.ErrUnavailable)
	_, err := f.Status(ctx, "f")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	_, err = f.Deployments(ctx, "f")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorIs(t, f.Check(ctx, deployment("m", "r", 1, 1)), adapters.ErrUnavailable)
	one.edit(func() { one.state.Tasks[0].Restarts++ }) // what is heard meanwhile is not lost
	require.Equal(t, told, one.told(), "an agent hears only of what is stored")

	f.store.down(false)
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	require.Equal(t, ids(before), ids(f.status()))
	f.await(func() bool { return f.status()[0].Restarts+f.status()[1].Restarts == 1 })
	for _, e := range f.endpoints() {
		require.False(t, e.Draining)
	}
	f.apply(deployment("m", "r", 4, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 4 })
}

// TestAnyHistoryEndsWell lets everything go wrong at once, and then nothing any more.
func TestAnyHistoryEndsWell(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			net := newNetwork()
			var agents []*fakeAgent
			for i := range 4 {
				agents = append(agents, net.add(fmt.Sprint("host-", i), 4, 0))
			}
			f := newFleet(t, net)
			f.timeout = 30 * time.Millisecond
			f.run().join(agents...)
			ctx := t.Context()
			wanted := map[string]int{}
			for range 60 {
				model := fmt.Sprint("m", random.IntN(3))
				switch a := agents[random.IntN(len(agents))]; random.IntN(8) {
				case 0, 1, 2:
					d := deployment(model, "r", random.IntN(5), 1)
					if all := f.status(); len(all) > 0 {
						d.Drain = []string{all[random.IntN(len(all))].ID}
					}
					wanted[model] = d.Replicas
					if err := f.Apply(ctx, d); err != nil {
						require.ErrorIs(t, err, adapters.ErrUnavailable)
					}
				case 3:
					a.partition(true)
				case 4:
					a.partition(false)
				case 5:
					a.edit(func() {
						for i := range a.state.Tasks {
							a.state.Tasks[i].State = []agent.TaskState{agent.TaskReady, agent.TaskStarting, agent.TaskWaiting}[random.IntN(3)]
						}
					})
				case 6:
					f.run()
				case 7:
					f.store.broken(func(n int) (bool, bool) { return n == 2, n%2 == 0 })
					time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
				}
			}
			f.store.broken(nil)
			for _, a := range agents {
				a.partition(false)
				for _, task := range a.tasks() {
					a.set(task.ID, agent.TaskReady, "")
				}
			}
			total := 0
			for model, n := range wanted {
				require.NoError(t, f.Apply(ctx, deployment(model, "r", n, 1)))
				total += n
			}
			f.await(func() bool {
				for _, a := range agents { // what was told to start late is ready too
					for _, task := range a.tasks() {
						if task.State != agent.TaskReady {
							a.set(task.ID, agent.TaskReady, "")
						}
					}
				}
				all := f.status()
				return f.states()[mobula.StateReady] == total && len(all) == total && slices.Equal(ids(all), net.running())
			})
			taken := map[string]bool{}
			for _, r := range f.status() {
				at := fmt.Sprint(r.Hosts, r.Devices)
				require.False(t, taken[at], "two replicas on %s", at)
				taken[at] = true
			}
		})
	}
}

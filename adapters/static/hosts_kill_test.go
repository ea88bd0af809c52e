package static_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
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

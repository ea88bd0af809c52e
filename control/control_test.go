package control

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newBench(t)) })
}

func TestApplyPlacesReplicas(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		change := b.apply(fleetFile(simModel("a", "2"), simModel("b", "1")))
		require.Equal(t, []ModelChange{{Name: "a", Action: "create"}, {Name: "b", Action: "create"}}, change.Models)
		b.pass(2 * time.Second)
		require.Len(t, b.placer.Replicas(mobula.StateStarting), 3)
		require.Equal(t, RolloutProgressing, b.model("a").Rollout)
		b.placer.Auto(true)
		b.pass(2 * time.Second)
		a := b.model("a")
		require.Equal(t, RolloutComplete, a.Rollout)
		require.Equal(t, 2, a.Ready)
		require.Equal(t, 2, a.Updated)
		require.Contains(t, b.reasons(), "RolloutComplete")
		require.Contains(t, b.reasons(), "ReplicaReady")
	})
}

func TestAModelWithoutReplicasSaysWhy(t *testing.T) {
	bubble(t, func(b *bench) {
		b.withRouter()
		b.apply(fleetFile(simModel("a", "0-2")))
		b.pass(5 * time.Second)
		require.Zero(b.t, b.model("a").Wanted)
		require.Equal(b.t, "as the fleet says", b.model("a").ScaleReason)
		require.NotContains(b.t, b.reasons(), "Scaled")
	})
}

func TestNothingIsToldTwice(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(5 * time.Second)
		applies := b.placer.Applies()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(10 * time.Minute)
		require.Equal(t, applies, b.placer.Applies())
		version := b.view().Generation
		require.Equal(t, int64(1), version, "the same file is no new generation")
	})
}

func TestRollReplacesOneAfterTheOther(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "3")))
		b.pass(20 * time.Second)
		old := b.model("a").Revision
		change := b.apply(fleetFile(simModel("a", "3", "source: other")))
		require.Equal(t, "roll", change.Models[0].Action)
		require.Equal(t, []string{"source: none → other"}, change.Models[0].Fields)
		for range 100 {
			b.pass(300 * time.Millisecond)
			require.LessOrEqual(t, len(b.placer.Replicas()), 4)
			require.GreaterOrEqual(t, len(b.replicas(mobula.StateReady)), 3)
		}
		a := b.model("a")
		require.Equal(t, RolloutComplete, a.Rollout)
		require.NotEqual(t, old, a.Revision)
		require.Equal(t, old, a.Previous)
		require.Equal(t, 3, a.Updated)
		require.Len(t, b.placer.Replicas(), 3)
	})
}

func TestRollWaitsForRequests(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "1")))
		b.pass(20 * time.Second)
		old := b.replicas(mobula.StateReady)[0]
		r.load(old, 3)
		b.apply(fleetFile(simModel("a", "1", "source: other")))
		b.pass(time.Minute)
		require.Equal(t, []string{old}, b.replicas(mobula.StateDraining))
		require.Len(t, b.placer.Replicas(), 2)
		r.load(old, 0)
		b.pass(3 * time.Second)
		require.Len(t, b.placer.Replicas(), 1)
		require.Contains(t, b.reasons(), "Drained")
	})
}

func TestDrainHasABound(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "1", "rollout: {drain: 1m}")))
		b.pass(20 * time.Second)
		old := b.replicas(mobula.StateReady)[0]
		r.load(old, 3)
		require.NoError(t, b.Restart(t.Context(), "a"))
		b.pass(50 * time.Second)
		require.Contains(t, b.replicas(mobula.StateDraining), old)
		b.pass(30 * time.Second)
		require.Empty(t, b.replicas(mobula.StateDraining))
		require.Contains(t, b.reasons(), "DrainTimeout")
	})
}

func TestFailingRevisionIsRolledBack(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		good, goodOnes := b.model("a").Revision, b.replicas(mobula.StateReady)
		b.placer.Auto(false)
		b.apply(fleetFile(simModel("a", "2", "source: broken")))
		b.pass(5 * time.Second)
		b.placer.Fail(b.placer.Replicas(mobula.StateStarting)[0].ID, "CUDA out of memory")
		b.pass(5 * time.Second)
		a := b.model("a")
		require.Equal(t, RolloutRolledBack, a.Rollout)
		require.Contains(t, a.Reason, "CUDA out of memory")
		require.Equal(t, good, a.Revision)
		require.Equal(t, goodOnes, b.replicas(mobula.StateReady))
		b.pass(time.Hour)
		require.Len(t, b.placer.Replicas(), 2)
		change := b.apply(fleetFile(simModel("a", "2", "source: broken"), simModel("b", "1")))
		require.Contains(t, strings.Join(change.Warnings, "\n"), "mobula restart a")
		b.pass(time.Minute)
		require.Equal(t, RolloutRolledBack, b.model("a").Rollout, "another model's change does not try it again")
		require.Len(t, b.placer.Replicas(), 3)
		b.apply(fleetFile(simModel("a", "3", "source: broken"), simModel("b", "1")))
		b.pass(time.Minute)
		require.Equal(t, RolloutRolledBack, b.model("a").Rollout, "nor does another number of replicas")
		b.apply(fleetFile(simModel("a", "2", "source: mended")))
		b.placer.Auto(true)
		b.pass(time.Minute)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
		require.Equal(t, good, b.model("a").Previous)
	})
}

func TestFailingRollLeavesTheOldOnesWithoutRollback(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "2", "rollout: {rollback: false}")))
		b.pass(20 * time.Second)
		old := b.replicas(mobula.StateReady)
		b.placer.Auto(false)
		b.apply(fleetFile(simModel("a", "2", "rollout: {rollback: false}", "source: slow")))
		b.pass(time.Hour)
		a := b.model("a")
		require.Equal(t, RolloutFailed, a.Rollout)
		require.Contains(t, a.Reason, "not ready after 31m")
		require.Equal(t, old, b.replicas(mobula.StateReady))
		b.placer.Auto(true) // it comes true after all
		b.pass(time.Minute)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
	})
}

func TestRollbackByHand(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		first := b.model("a").Revision
		require.ErrorIs(t, b.Rollback(t.Context(), "a"), ErrConflict)
		b.apply(fleetFile(simModel("a", "2", "source: other")))
		b.pass(time.Minute)
		second := b.model("a").Revision
		require.NoError(t, b.Rollback(t.Context(), "a"))
		b.pass(time.Minute)
		a := b.model("a")
		require.Equal(t, []string{first, second}, []string{a.Revision, a.Previous})
		require.Equal(t, RolloutComplete, a.Rollout)
		require.NoError(t, b.Rollback(t.Context(), "a"))
		b.pass(time.Minute)
		require.Equal(t, second, b.model("a").Revision)
	})
}

func TestScaleDrainsTheIdlest(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "3")))
		b.pass(20 * time.Second)
		ids := b.replicas(mobula.StateReady)
		r.load(ids[0], 2)
		r.load(ids[2], 2)
		b.pass(2 * time.Second)
		require.NoError(t, b.Scale(t.Context(), "a", 2))
		b.pass(10 * time.Second)
		require.Equal(t, []string{ids[0], ids[2]}, b.replicas(mobula.StateReady))
		require.NoError(t, b.Scale(t.Context(), "a", 5))
		b.pass(10 * time.Second)
		require.Equal(t, 5, b.model("a").Ready)
		require.True(t, b.model("a").Scaled)
		require.Equal(t, "by hand", b.model("a").ScaleReason)
		require.NoError(t, b.Scale(t.Context(), "a", -1))
		b.pass(30 * time.Second)
		require.Equal(t, 3, b.model("a").Ready)
		require.ErrorIs(t, b.Scale(t.Context(), "b", 1), ErrNotFound)
		require.ErrorIs(t, b.Scale(t.Context(), "a", 1001), ErrInvalid)
	})
}

func TestDrainedReplicaIsReplaced(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		ids := b.replicas(mobula.StateReady)
		r.load(ids[0], 1)
		require.NoError(t, b.Drain(t.Context(), ids[0], true))
		b.pass(5 * time.Second)
		require.Equal(t, ids[:1], b.replicas(mobula.StateDraining))
		require.Len(t, b.replicas(mobula.StateReady), 2)
		require.NoError(t, b.Drain(t.Context(), ids[0], false))
		b.pass(10 * time.Second)
		require.Contains(t, b.replicas(mobula.StateReady), ids[0], "it was taken back")
		require.Len(t, b.placer.Replicas(), 2, "and its successor goes")
		r.load(ids[0], 0)
		require.NoError(t, b.Drain(t.Context(), ids[0], true))
		b.pass(10 * time.Second)
		require.NotContains(t, b.replicas(mobula.StateReady), ids[0])
		require.Len(t, b.placer.Replicas(), 2)
		require.ErrorIs(t, b.Drain(t.Context(), "nobody", true), ErrNotFound)
	})
}

func TestCordonedHostIsEmptied(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "4")))
		b.pass(20 * time.Second)
		require.NoError(t, b.Cordon(t.Context(), "host-1", true, true))
		for range 60 {
			b.pass(500 * time.Millisecond)
			require.GreaterOrEqual(t, len(b.replicas(mobula.StateReady)), 4)
			require.LessOrEqual(t, len(b.placer.Replicas()), 5)
		}
		for _, r := range b.placer.Replicas() {
			require.Equal(t, []string{"host-2"}, r.Hosts)
		}
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
	})
}

func TestNoRoomBesideTheOldOnes(t *testing.T) {
	for name, tc := range map[string]struct {
		replicas string
		room     int
		more     string
		rolls    bool
	}{
		"several serve":                      {"3", 3, "scaling: {held: 0}", true},
		"one serves, routers hold":           {"1", 1, "scaling: {held: 10}", true},
		"one serves and nobody can hold any": {"1", 1, "scaling: {held: 0}", false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				t := b.t
				b.placer.Auto(true)
				b.placer.Room(tc.room)
				b.withRouter()
				b.apply(fleetFile(simModel("a", tc.replicas, tc.more)))
				b.pass(20 * time.Second)
				b.apply(fleetFile(simModel("a", tc.replicas, tc.more, "source: other")))
				b.pass(time.Minute)
				if tc.rolls {
					require.Equal(t, RolloutComplete, b.model("a").Rollout)
					require.Contains(t, b.reasons(), "NoRoom")
				} else {
					require.Equal(t, RolloutProgressing, b.model("a").Rollout)
					require.Contains(t, b.model("a").Reason, "no room")
				}
				require.Equal(t, tc.room, b.model("a").Ready)
			})
		})
	}
}

func TestUnreachableReplicaIsSuspectThenReplaced(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		r := b.withRouter()
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(20 * time.Second)
		ids := b.replicas(mobula.StateReady)
		r.lose(ids[0], true)
		b.pass(8 * time.Second)
		require.Empty(t, b.replicas(mobula.StateSuspect))
		b.pass(6 * time.Second)
		require.Equal(t, ids[:1], b.replicas(mobula.StateSuspect))
		i := slices.IndexFunc(b.view().Replicas, func(r ReplicaStatus) bool { return r.ID == ids[0] })
		require.Regexp(t, "^routers can't reach it", b.view().Replicas[i].Reason)
		require.Contains(t, b.reasons(), "ReplicaSuspect")
		b.pass(6 * time.Minute)
		require.NotContains(t, b.replicas(mobula.StateReady), ids[0])
		require.Len(t, b.replicas(mobula.StateReady), 2)
	})
}

func TestDeleteAndRemoval(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.withRouter()
		b.apply(fleetFile(simModel("a", "1"), simModel("b", "1")))
		b.pass(20 * time.Second)
		require.NoError(t, b.Delete(t.Context(), "a"))
		b.pass(20 * time.Second)
		require.Len(t, b.placer.Replicas(), 1)
		b.apply(fleetFile(simModel("a", "1"), simModel("b", "1")))
		b.pass(20 * time.Second)
		require.Len(t, b.placer.Replicas(), 2, "an apply takes the deletion back")
		change := b.apply(fleetFile(simModel("b", "1")))
		require.Equal(t, "remove", change.Models[1].Action)
		b.pass(20 * time.Second)
		require.Len(t, b.placer.Replicas(), 1)
		require.Len(t, b.view().Models, 1)
		require.NoError(t, b.Delete(t.Context(), ""))
		b.pass(20 * time.Second)
		require.Empty(t, b.placer.Replicas())
		require.Empty(t, b.view().Fleet)
		deployments, err := b.placer.Deployments(t.Context(), "lab")
		require.NoError(t, err)
		require.Empty(t, deployments)
	})
}

func TestHostsAreShownBeforeTheFirstApply(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.SetHosts(mobula.Host{Name: "h1", Slots: 1}, mobula.Host{Name: "h2", Slots: 1})
		b.pass(5 * time.Second)
		require.Len(t, b.view().Hosts, 2)
	})
}

package adapters_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
)

func TestInMemoryPlacerConforms(t *testing.T) {
	conformance.Placer(t, func(testing.TB) conformance.PlacerSubject {
		p := adapters.NewInMemoryPlacer(nil)
		p.Auto(true)
		return conformance.PlacerSubject{
			Placer:     p,
			Model:      mobula.Model{Name: "Qwen/Qwen2.5-0.5B"},
			Impossible: &mobula.Model{Name: "huge", Resources: mobula.Resources{GPUs: new(9)}},
			Platform:   &mobula.Platform{Static: &mobula.Static{}},
			Refused:    &mobula.Platform{Ray: &mobula.Ray{}},
			Crash:      p.Crash,
			Lose:       p.Down,
			Running: func() []string {
				var ids []string
				for _, r := range p.Replicas() {
					ids = append(ids, r.ID)
				}
				return ids
			},
		}
	})
}

func TestInMemoryPlacerDoesAsItIsTold(t *testing.T) {
	ctx := context.Background()
	p := adapters.NewInMemoryPlacer(nil)
	p.Room(2)
	d := adapters.Deployment{Key: adapters.Key{Fleet: "f", Model: "m", Revision: "0123456789"}, Replicas: 3}
	require.NoError(t, p.Apply(ctx, d))
	starting, pending := p.Replicas(mobula.StateStarting), p.Replicas(mobula.StatePending)
	require.Len(t, starting, 2)
	require.Len(t, pending, 1)
	require.True(t, pending[0].NoRoom)
	require.True(t, strings.HasPrefix(pending[0].ID, "m-012345-"), pending[0].ID)

	p.Ready(starting[0].ID, pending[0].ID, "nobody")
	p.Fail(starting[1].ID, "out of memory")
	require.Len(t, p.Replicas(mobula.StateReady), 1)
	require.Equal(t, "out of memory", p.Replicas(mobula.StateFailed)[0].Reason)
	require.Len(t, p.Replicas(mobula.StatePending), 1, "one without a place can't be ready")

	p.Room(-1)
	require.Empty(t, p.Replicas(mobula.StatePending))
	p.Crash(starting[0].ID)
	require.Equal(t, 1, p.Replicas()[0].Restarts)

	require.NoError(t, p.Forget(ctx, starting[0].Hosts[0]))
	after := p.Replicas()
	require.Len(t, after, 3)
	for _, r := range after {
		require.NotEqual(t, starting[0].ID, r.ID)
		require.NotContains(t, r.Hosts, starting[0].Hosts[0])
	}
}

func TestReplicaIDIsADNSLabel(t *testing.T) {
	for name, tc := range map[string]struct{ model, revision, want string }{
		"organisation":   {"meta-llama/Llama-3.1-8B", "3fa9c1aabb", "llama-3-1-8b-3fa9c1-xk2p4"},
		"starts with 0":  {"01-ai/01", "3fa9c1", "m01-3fa9c1-xk2p4"},
		"nothing usable": {"日本", "3fa9c1", "m-3fa9c1-xk2p4"},
		"short revision": {"m", "a", "m-a-xk2p4"},
		"no revision":    {"m", "", "m-0-xk2p4"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, adapters.ReplicaID(tc.model, tc.revision, "xk2p4"))
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		id := adapters.ReplicaID(rapid.String().Draw(t, "model"), rapid.String().Draw(t, "revision"), "xk2p4")
		require.LessOrEqual(t, len(id), 63)
		require.Regexp(t, `^[a-z]([a-z0-9-]*[a-z0-9])?$`, id)
	})
}

func TestWhoLeaves(t *testing.T) {
	replicas := []mobula.Replica{
		{ID: "old", State: mobula.StateReady},
		{ID: "starting", State: mobula.StateStarting},
		{ID: "failed", State: mobula.StateFailed},
		{ID: "marked", State: mobula.StateReady},
		{ID: "pending", State: mobula.StatePending},
		{ID: "young", State: mobula.StateReady},
	}
	want := []string{"marked", "failed", "pending", "starting", "young", "old"}
	for n := range len(want) + 1 {
		require.Empty(t, cmp.Diff(want[:n], adapters.Leaving(replicas, []string{"marked", "gone"}, n)))
	}
	require.Empty(t, adapters.Leaving(replicas, nil, -1))
	require.Len(t, adapters.Leaving(replicas, nil, 99), len(want))
}

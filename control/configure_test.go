package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

func onRay(file string) string {
	return strings.Replace(file, "static: {}", "ray: {address: \"http://ray:8265\"}", 1)
}

// section gives what the platform was configured with last: "lab ray".
func (b *bench) section() string {
	fleet, p, _ := b.placer.Configured()
	switch {
	case p.Ray != nil:
		return fleet + " ray"
	case p.Static != nil:
		return fleet + " static"
	}
	return fleet
}

// strict is a platform that must be configured before it is asked for anything.
type strict struct {
	*adapters.InMemoryPlacer
	early atomic.Int64 // calls that came before
}

func (s *strict) ask() {
	if _, _, calls := s.Configured(); calls == 0 {
		s.early.Add(1)
	}
}

func (s *strict) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	s.ask()
	return s.InMemoryPlacer.Status(ctx, fleet)
}

func (s *strict) Deployments(ctx context.Context, fleet string) ([]adapters.Deployment, error) {
	s.ask()
	return s.InMemoryPlacer.Deployments(ctx, fleet)
}

func (s *strict) Apply(ctx context.Context, d adapters.Deployment) error {
	s.ask()
	return s.InMemoryPlacer.Apply(ctx, d)
}

func (s *strict) Check(ctx context.Context, d adapters.Deployment) error {
	s.ask()
	return s.InMemoryPlacer.Check(ctx, d)
}

func TestThePlatformIsConfiguredBeforeItIsAsked(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.stop()
		s := &strict{InMemoryPlacer: b.placer}
		b.wrap = s
		b.start()
		b.pass(3 * time.Second)
		b.apply(onRay(fleetFile(simModel("a", "2"))))
		b.pass(5 * time.Second)
		require.Equal(t, "lab ray", b.section())
		require.Equal(t, 2, b.model("a").Ready)

		// Another process of the control plane, over a platform that has forgotten its settings.
		b.stop()
		b.placer = adapters.NewInMemoryPlacer(nil)
		b.placer.Auto(true)
		again := &strict{InMemoryPlacer: b.placer}
		b.wrap = again
		b.start()
		b.pass(5 * time.Second)
		require.Equal(t, "lab ray", b.section())
		require.Equal(t, 2, b.model("a").Ready)
		require.Zero(t, s.early.Load()+again.early.Load())
		_, _, calls := b.placer.Configured()
		require.Equal(t, 1, calls, "it stays configured")
	})
}

func TestARememberedSectionThatIsRefusedIsTriedAgain(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(onRay(fleetFile(simModel("a", "1"))))
		b.pass(5 * time.Second)
		b.stop()
		b.placer = adapters.NewInMemoryPlacer(nil)
		b.placer.Auto(true)
		b.placer.Refuse(errors.New("the cluster denies access"))
		b.start()
		b.pass(10 * time.Second)
		require.Contains(t, b.view().Stale, "the cluster denies access")
		require.Contains(t, b.reasons(), "PlatformUnavailable")
		require.Zero(t, b.placer.Applies())
		_, _, calls := b.placer.Configured()
		require.Greater(t, calls, 5)

		b.placer.Refuse(nil)
		b.pass(5 * time.Second)
		require.Empty(t, b.view().Stale)
		require.Equal(t, 1, b.model("a").Ready)
		require.Contains(t, b.reasons(), "PlatformBack")
	})
}

func TestASectionThatIsRefusedChangesNothing(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "1")))
		b.pass(5 * time.Second)
		for _, dry := range []bool{true, false} {
			_, err := b.Apply(t.Context(), []byte(onRay(fleetFile(simModel("a", "1")))), "test", dry, false)
			require.ErrorIs(t, err, ErrInvalid)
			require.NotErrorIs(t, err, ErrConflict, "no force helps")
			require.ErrorContains(t, err, "platform: 1 replicas are on the former platform: delete the models first")
		}
		b.pass(5 * time.Second)
		require.Equal(t, "lab static", b.section())
		require.Equal(t, int64(1), b.view().Generation)
		require.Equal(t, 1, b.model("a").Ready)

		b.placer.Refuse(errors.New("no such owner"))
		_, err := b.Apply(t.Context(), []byte(fleetFile(simModel("a", "2"))), "test", false, false)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "platform: no such owner")
		b.pass(5 * time.Second)
		require.Equal(t, 1, b.model("a").Ready, "rounds go on with what was in force")
		require.Empty(t, b.view().Stale)
	})
}

func TestAPlatformThatCantBeAskedIsAWarning(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.placer.Down(true)
		for _, dry := range []bool{true, false} {
			change, err := b.Apply(t.Context(), []byte(onRay(fleetFile(simModel("a", "1")))), "test", dry, false)
			require.NoError(t, err)
			require.Equal(t, []string{"platform: in memory: platform unavailable"}, change.Warnings)
		}
		require.Equal(t, "lab ray", b.section())
		b.pass(5 * time.Second)
		require.NotEmpty(t, b.view().Stale)
		b.placer.Down(false)
		b.pass(5 * time.Second)
		require.Equal(t, 1, b.model("a").Ready)
	})
}

func TestAnApplyThatFailsTakesItsSectionBack(t *testing.T) {
	huge := func() string { return onRay(fleetFile(simModel("a", "1", "resources: {gpus: 999}"))) }
	for name, c := range map[string]struct {
		before string
		want   string
	}{
		"to the fleet before": {fleetFile(simModel("a", "0")), "lab static"},
		"to none":             {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				t := b.t
				if c.before != "" {
					b.apply(c.before)
					b.pass(5 * time.Second)
				}
				_, err := b.Apply(t.Context(), []byte(huge()), "test", false, false)
				require.ErrorIs(t, err, adapters.ErrImpossible)
				require.Equal(t, c.want, b.section())
				b.apply(onRay(fleetFile(simModel("a", "0"))))
				require.Equal(t, "lab ray", b.section())
			})
		})
	}
	t.Run("when it can't be remembered", func(t *testing.T) {
		bubble(t, func(b *bench) {
			t := b.t
			b.apply(fleetFile(simModel("a", "0")))
			b.pass(5 * time.Second)
			b.stop()
			b.store = &dyingStore{Store: b.store}
			b.start()
			b.pass(time.Second)
			_, err := b.Apply(t.Context(), []byte(onRay(fleetFile(simModel("a", "0")))), "test", false, false)
			require.ErrorIs(t, err, errDead)
			require.Equal(t, "lab static", b.section())
		})
	})
}

// A diff against another platform can't be checked there: the placer is on the one that it has.
func TestADryRunChecksOnlyThePlatformThatIsThere(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.apply(fleetFile(simModel("a", "0")))
		b.pass(5 * time.Second)
		huge := fleetFile(simModel("a", "1", "resources: {gpus: 999}"))
		_, err := b.Apply(t.Context(), []byte(huge), "test", true, false)
		require.ErrorIs(t, err, adapters.ErrImpossible)
		change, err := b.Apply(t.Context(), []byte(onRay(huge)), "test", true, false)
		require.NoError(t, err)
		require.True(t, change.Settings)
		require.Equal(t, "lab static", b.section())
		b.placer.Refuse(fmt.Errorf("wrong token"))
		_, err = b.Apply(t.Context(), []byte(onRay(huge)), "test", true, false)
		require.ErrorContains(t, err, "wrong token")
	})
}

func TestAFleetMovesToAnotherPlatform(t *testing.T) {
	bubble(t, func(b *bench) {
		t := b.t
		b.placer.Auto(true)
		b.apply(fleetFile(simModel("a", "2")))
		b.pass(5 * time.Second)
		require.NoError(t, b.Delete(t.Context(), "a"))
		b.pass(time.Minute)
		require.Empty(t, b.placer.Replicas())
		b.apply(onRay(fleetFile(simModel("a", "2"))))
		b.pass(5 * time.Second)
		require.Equal(t, "lab ray", b.section())
		require.Equal(t, 2, b.model("a").Ready)
		require.Equal(t, RolloutComplete, b.model("a").Rollout)
	})
}

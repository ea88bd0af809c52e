package adapters_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
)

func TestMergeConforms(t *testing.T) {
	conformance.Discoverer(t, func(testing.TB) conformance.Subject {
		a := adapters.NewInMemory(mobula.Endpoint{ID: "a"})
		b := adapters.NewInMemory(mobula.Endpoint{ID: "b"})
		n := 0
		return conformance.Subject{
			Discoverer: adapters.Merge(a, b),
			Want:       []mobula.Endpoint{{ID: "a"}, {ID: "b"}},
			Change: func(testing.TB) []mobula.Endpoint {
				n++
				if n%2 == 0 {
					a.Set()
					return []mobula.Endpoint{{ID: "b"}, {ID: "c"}}
				}
				a.Set(mobula.Endpoint{ID: "a2"})
				b.Set(mobula.Endpoint{ID: "b"}, mobula.Endpoint{ID: "c"})
				return []mobula.Endpoint{{ID: "a2"}, {ID: "b"}, {ID: "c"}}
			},
		}
	})
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Run(context.Context, chan<- []mobula.Endpoint) error { return errBroken }

func TestMergeEndsWithADiscovererThatCanNeverWork(t *testing.T) {
	m := adapters.Merge(adapters.NewInMemory(), broken{})
	require.ErrorIs(t, m.Run(t.Context(), make(chan []mobula.Endpoint)), errBroken)
}

func TestMergeOfOneIsThatOne(t *testing.T) {
	a := adapters.NewInMemory()
	require.Same(t, a, adapters.Merge(a))
}

type silent struct{}

func (silent) Run(ctx context.Context, _ chan<- []mobula.Endpoint) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestMergeDoesNotWaitForeverForAPlatformThatCannotBeAsked(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan []mobula.Endpoint), make(chan error, 1)
	go func() {
		done <- adapters.Merge(silent{}, adapters.NewInMemory(mobula.Endpoint{ID: "a"})).Run(ctx, up)
	}()
	require.Equal(t, []mobula.Endpoint{{ID: "a"}}, <-up)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

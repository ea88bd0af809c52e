package control

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// troubled is a platform with problems.
type troubled struct {
	*adapters.InMemoryPlacer
	problems []string
}

func (p *troubled) Problems() []string { return p.problems }

func TestProblemsOfThePlatformAreEventsOnceEach(t *testing.T) {
	p := &troubled{InMemoryPlacer: adapters.NewInMemoryPlacer(nil)}
	c, err := New(Options{Store: state.NewInMemory(), Placer: p})
	require.NoError(t, err)
	told := func(problems ...string) (all []string) {
		p.problems = problems
		c.mu.Lock()
		c.hear()
		c.mu.Unlock()
		events, err := c.Events(t.Context(), 0, false)
		require.NoError(t, err)
		for _, e := range events {
			require.True(t, e.Warning)
			require.Equal(t, "fleet", e.Object)
			all = append(all, e.Message)
		}
		return all
	}
	require.Equal(t, []string{"a"}, told("a"))
	require.Equal(t, []string{"a", "b"}, told("a", "b"))
	require.Equal(t, []string{"a", "b"}, told("b"))
	require.Equal(t, []string{"b", "a"}, told("a", "b"), "it came back, and is the newest")
}

package control

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

func TestSettingsChangeWithAppliesAndDeletionsOnly(t *testing.T) {
	c, err := New(Options{Store: state.NewInMemory(), Placer: adapters.NewInMemoryPlacer(nil)})
	require.NoError(t, err)
	first, err := c.Settings(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, first.File)

	file := []byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {static: {}}\nmodels:\n  - {name: a, replicas: 1, engine: {kind: sim}}\n")
	_, err = c.Apply(t.Context(), file, "here", false, false)
	require.NoError(t, err)
	applied, err := c.Settings(t.Context(), first.Version)
	require.NoError(t, err)
	require.Equal(t, string(file), applied.File)
	require.Empty(t, applied.Deleted)

	require.NoError(t, c.Scale(t.Context(), "a", 3)) // nothing for a router
	ended, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	same, err := c.Settings(ended, applied.Version)
	require.NoError(t, err)
	require.Same(t, applied, same)

	require.NoError(t, c.Delete(t.Context(), "a"))
	deleted, err := c.Settings(t.Context(), applied.Version)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, deleted.Deleted)
}

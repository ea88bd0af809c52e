package app

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two `mobula up --model` at once: an engine that does not listen yet has its port too.
func TestClaimedPortsAreNobodyElses(t *testing.T) {
	folder := t.TempDir()
	numbers := func(ports []claimedPort) (all []int) {
		for _, p := range ports {
			all = append(all, p.number)
		}
		return all
	}
	one, err := claimPorts(t.Context(), 2, folder)
	require.NoError(t, err)
	two, err := claimPorts(t.Context(), 2, folder)
	require.NoError(t, err)
	require.Len(t, one, 2)
	require.Len(t, two, 2)
	for _, n := range numbers(one) {
		require.NotContains(t, numbers(two), n)
	}
	releaseAll(one)
	three, err := claimPorts(t.Context(), 4, folder)
	require.NoError(t, err)
	for _, n := range numbers(two) {
		require.NotContains(t, numbers(three), n)
	}
	releaseAll(two)
	releaseAll(three)

	_, err = claimPorts(t.Context(), 1, filepath.Join(folder, "missing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLogsHaveAPlaceWithoutAHome(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, home := range map[string]string{"no home": "", "no folder can be made": file} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("XDG_CACHE_HOME", home)
			t.Setenv("HOME", home)
			t.Setenv("TMPDIR", t.TempDir())
			folder, err := logFolder()
			require.NoError(t, err)
			require.DirExists(t, folder)
			require.Equal(t, os.Getenv("TMPDIR"), filepath.Dir(folder))
		})
	}
	t.Run("in the cache else", func(t *testing.T) {
		cache := t.TempDir()
		t.Setenv("XDG_CACHE_HOME", cache)
		folder, err := logFolder()
		require.NoError(t, err)
		require.Equal(t, filepath.Join(cache, "mobula", "logs"), folder)
	})
}

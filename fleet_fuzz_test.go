package mobula_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

// Nothing panics, problems are bounded, and what loads is the same when it is written and loaded again.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fleet/*.yaml")
	require.NoError(f, err)
	for _, seed := range seeds {
		data, err := os.ReadFile(seed)
		require.NoError(f, err)
		if len(data) < 4096 { // big ones only slow it down
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fleet, err := mobula.Load(data, "fleet.yaml")
		if err != nil {
			var problems *mobula.FileError
			require.ErrorAs(t, err, &problems)
			require.NotEmpty(t, problems.Problems)
			require.LessOrEqual(t, len(problems.Problems), 20)
			for _, p := range problems.Problems {
				require.Positive(t, p.Line)
				require.Positive(t, p.Column)
				require.NotEmpty(t, p.Message)
			}
			return
		}
		written, err := fleet.YAML()
		require.NoError(t, err)
		again, err := mobula.Load(written, "again.yaml")
		require.NoError(t, err, "%s", written)
		require.Empty(t, cmp.Diff(fleet, again))
	})
}

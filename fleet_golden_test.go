package mobula_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each testdata/fleet/NAME.yaml has beside it the text that loading it gives: the error, or
// for good-*.yaml the fleet with its defaults.
func TestLoadGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/fleet/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			var got string
			if fleet, err := mobula.Load(data, "fleet.yaml"); err != nil {
				require.False(t, strings.HasPrefix(name, "good-"), "must load: %v", err)
				var problems *mobula.FileError
				require.ErrorAs(t, err, &problems)
				require.NotEmpty(t, problems.Problems)
				got = err.Error() + "\n"
			} else {
				require.True(t, strings.HasPrefix(name, "good-"), "must not load")
				out, err := fleet.YAML()
				require.NoError(t, err)
				got = string(out)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "run go test . -update")
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

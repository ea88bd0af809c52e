package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What mobula convert makes of values of a vLLM Production Stack installs as it is. After the values a golden file has the remarks.
func TestConvertedValuesInstall(t *testing.T) {
	paths, err := filepath.Glob("../../convert/testdata/*.golden")
	require.NoError(t, err)
	require.Greater(t, len(paths), 8)
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".golden"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			require.NoError(t, err)
			values, _, _ := strings.Cut(string(raw), "\n---\n")
			out, err := render(t, values)
			require.NoError(t, err)
			for _, object := range out.Objects {
				requireKnown(t, object)
			}
			requireSecretsByName(t, out)
			requireFleet(t, values)
		})
	}
}

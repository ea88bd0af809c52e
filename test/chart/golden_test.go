package chart_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
)

// TestRenderings compares all that the chart renders from the values of testdata with what it rendered before.
func TestRenderings(t *testing.T) {
	for _, name := range []string{"minimal", "full"} {
		t.Run(name, func(t *testing.T) {
			values, err := os.ReadFile(filepath.Join("testdata", name+"-values.yaml"))
			require.NoError(t, err)
			out, err := render(t, string(values))
			require.NoError(t, err)
			for _, object := range out.Objects {
				requireKnown(t, object)
			}
			golden := filepath.Join("testdata", name+".golden.yaml")
			got := joined(out)
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644)) //nolint:gosec // a file of the repository
			}
			expected, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(string(expected), got), "go test . -update writes it")
		})
	}
}

// joined gives a rendering as one file, without the dashboards' panels.
func joined(out rendering) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(out.Files)) {
		text := strings.TrimSpace(out.Files[path])
		if text == "" || strings.HasSuffix(path, ".tpl") {
			continue
		}
		if strings.HasSuffix(path, "dashboards.yaml") {
			text = regexp.MustCompile(`(?m)^    .*\n?`).ReplaceAllString(text, "")
		}
		b.WriteString("# " + path + "\n" + trailing.ReplaceAllString(text, "") + "\n")
	}
	return b.String()
}

var trailing = regexp.MustCompile(`(?m)[ \t]+$`)

// A value that the full values leave out would be in no golden file.
func TestFullValuesTurnEverythingOn(t *testing.T) {
	values, err := os.ReadFile(filepath.Join("testdata", "full-values.yaml"))
	require.NoError(t, err)
	out, err := render(t, string(values))
	require.NoError(t, err)
	templates, err := filepath.Glob(filepath.Join(chartPath, "templates", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, templates)
	for _, path := range templates {
		require.NotEmpty(t, strings.TrimSpace(out.Files["mobula/templates/"+filepath.Base(path)]), path)
	}
}

func TestRenderingTwiceIsTheSame(t *testing.T) {
	values, err := os.ReadFile(filepath.Join("testdata", "full-values.yaml"))
	require.NoError(t, err)
	first, err := render(t, string(values))
	require.NoError(t, err)
	second, err := render(t, string(values))
	require.NoError(t, err)
	require.Equal(t, first.Files, second.Files)
}

// As helm lint --strict: a warning is a fault too.
func TestHelmLintFindsNothing(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(examplesPath, "values-*.yaml"))
	require.NoError(t, err)
	paths = append(paths, "", filepath.Join("testdata", "minimal-values.yaml"), filepath.Join("testdata", "full-values.yaml"))
	for _, path := range paths {
		t.Run("values "+filepath.Base(path), func(t *testing.T) {
			var values common.Values
			if path != "" {
				raw, err := os.ReadFile(path)
				require.NoError(t, err)
				values, err = common.ReadValues(raw)
				require.NoError(t, err)
			}
			for _, message := range lint.RunAll(chartPath, values, namespace).Messages {
				if message.Severity > support.InfoSev {
					t.Error(message)
				}
			}
		})
	}
}

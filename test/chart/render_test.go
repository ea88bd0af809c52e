// Package chart_test renders charts/mobula through Helm's own library and looks at what comes out.
package chart_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const (
	chartPath    = "../../charts/mobula"
	examplesPath = "../../examples/kubernetes"
	namespace    = "llm"
)

var update = flag.Bool("update", false, "write the golden files")

// rendering is what a set of values becomes.
type rendering struct {
	Objects map[string]map[string]any // by kind/name
	Files   map[string]string         // as the templates wrote them, by path
	Notes   string
}

// render gives the chart with values (YAML) as release mobula.
func render(t *testing.T, values string) (rendering, error) {
	t.Helper()
	return renderAs(t, "mobula", values)
}

// renderAs is render for a release of another name. With objects that are there it is an upgrade; at an install, before custom resource
// definitions are known, none may be looked up.
func renderAs(t *testing.T, release, values string, there ...runtime.Object) (rendering, error) {
	t.Helper()
	loaded, err := loader.Load(chartPath)
	require.NoError(t, err)
	return renderChart(t, loaded, release, values, there...)
}

// renderChart is renderAs for a chart that is loaded, of whose sub-charts those are left that values turn on.
func renderChart(t *testing.T, loaded *chart.Chart, release, values string, there ...runtime.Object) (rendering, error) {
	t.Helper()
	given, err := common.ReadValues([]byte(values))
	require.NoError(t, err)
	require.NoError(t, chartutil.ProcessDependencies(loaded, given))
	options := common.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: len(there) == 0, IsUpgrade: len(there) > 0}
	all, err := util.ToRenderValues(loaded, given, options, common.DefaultCapabilities)
	if err != nil {
		return rendering{}, err
	}
	files, err := engine.RenderWithClientProvider(loaded, all, cluster(there))
	if err != nil {
		return rendering{}, err
	}
	out := rendering{Objects: map[string]map[string]any{}, Files: files}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(path, "NOTES.txt") {
			out.Notes = files[path]
			continue
		}
		for object := range documents(t, path, files[path]) {
			key := fmt.Sprint(object["kind"], "/", at(object, "metadata name"))
			if ns := at(object, "metadata namespace"); ns != nil && ns != namespace {
				key = fmt.Sprint(key, "@", ns)
			}
			require.NotContains(t, out.Objects, key, "two objects of one name in %s", path)
			out.Objects[key] = object
		}
	}
	return out, nil
}

// documents gives the objects in a file. A key that is there twice is an error.
func documents(t *testing.T, path, text string) func(yield func(map[string]any) bool) {
	t.Helper()
	return func(yield func(map[string]any) bool) {
		for part := range strings.SplitSeq("\n"+text, "\n---") {
			var object map[string]any
			require.NoError(t, yaml.UnmarshalStrict([]byte(part), &object), "%s:\n%s", path, part)
			if len(object) > 0 && !yield(object) {
				return
			}
		}
	}
}

// at gives what is at a path of keys and indices, separated by spaces; nil when there is nothing.
func at(value any, path string) any {
	for key := range strings.FieldsSeq(path) {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

// text gives a value as YAML on one line as far as it is short, for comparisons that people can read.
func text(t *testing.T, value any) string {
	t.Helper()
	if s, is := value.(string); is {
		return s
	}
	raw, err := yaml.Marshal(value)
	require.NoError(t, err)
	return string(bytes.TrimSpace(raw))
}

package chart_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"sigs.k8s.io/yaml"
)

// packed gives the chart as `make chart` packs it; in place of what a sub-chart installs there is a ConfigMap of its values.
func packed(t *testing.T) *chart.Chart {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mobula")
	require.NoError(t, os.CopyFS(dir, os.DirFS(chartPath)))
	about, err := os.ReadFile(filepath.Join(dir, "Chart.yaml"))
	require.NoError(t, err)
	list, err := os.ReadFile("../../charts/subcharts.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Chart.yaml"), append(about, list...), 0o600))

	var subcharts struct {
		Dependencies []*chart.Dependency `json:"dependencies"`
	}
	require.NoError(t, yaml.UnmarshalStrict(list, &subcharts))
	for _, d := range subcharts.Dependencies {
		require.Regexp(t, `^\d+\.\d+\.\d+$`, d.Version, "%s is pinned", d.Name)
		standIn := &chart.Chart{Metadata: &chart.Metadata{APIVersion: "v2", Name: d.Name, Version: d.Version}, Templates: []*common.File{{
			Name: "templates/values.yaml",
			Data: []byte("{apiVersion: v1, kind: ConfigMap, metadata: {name: {{ .Chart.Name }}}, data: {values: {{ .Values | toJson | quote }}}}\n"),
		}}}
		_, err := chartutil.Save(standIn, filepath.Join(dir, "charts"))
		require.NoError(t, err)
	}
	out, err := loader.Load(dir)
	require.NoError(t, err)
	require.Len(t, out.Dependencies(), 2, "the packed files are not among those that .helmignore names")
	return out
}

func TestSubchartsAreOffByDefault(t *testing.T) {
	values, err := os.ReadFile("testdata/full-values.yaml")
	require.NoError(t, err)
	for _, values := range []string{"", string(values), "kube-prometheus-stack: {grafana: {enabled: true}}"} {
		want, err := render(t, values)
		require.NoError(t, err)
		got, err := renderChart(t, packed(t), "mobula", values)
		require.NoError(t, err)
		require.Equal(t, want.Objects, got.Objects)
	}
}

func TestSubchartsGetTheirValues(t *testing.T) {
	r, err := renderChart(t, packed(t), "mobula", `
kube-prometheus-stack: {enabled: true, prometheus: {prometheusSpec: {retention: 3d}}}
prometheus-adapter: {enabled: true, rules: {existing: mobula-prometheus-adapter}}`)
	require.NoError(t, err)
	var stack, adapter map[string]any
	require.NoError(t, json.Unmarshal([]byte(at(r.Objects["ConfigMap/kube-prometheus-stack"], "data values").(string)), &stack))
	require.NoError(t, json.Unmarshal([]byte(at(r.Objects["ConfigMap/prometheus-adapter"], "data values").(string)), &adapter))
	require.Equal(t, map[string]any{
		"retention": "3d",
		"serviceMonitorSelectorNilUsesHelmValues": false,
		"podMonitorSelectorNilUsesHelmValues":     false,
		"ruleSelectorNilUsesHelmValues":           false,
	}, at(stack, "prometheus prometheusSpec"))
	require.Equal(t, "http://prometheus-operated", at(adapter, "prometheus url"))
	require.Equal(t, "mobula-prometheus-adapter", at(adapter, "rules existing"))
}

func TestAnAdapterInTheChartTakesTheRulesInTheChart(t *testing.T) {
	_, err := renderChart(t, packed(t), "mobula", "{prometheus-adapter: {enabled: true}, prometheusAdapter: {enabled: true}}")
	require.ErrorContains(t, err, "prometheus-adapter.rules.existing: required with prometheusAdapter.enabled, whose rules are in the ConfigMap mobula-prometheus-adapter")
}

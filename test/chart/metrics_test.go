package chart_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var (
	metricName  = regexp.MustCompile(`\b(?:mobula_|vllm:|lmcache_|process_|go_)[a-z0-9_]+`)
	ofHistogram = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// knownMetrics are those of docs/metrics.md, of vLLM and LMCache's server as they were captured, and of client_golang.
func knownMetrics(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{"process_resident_memory_bytes": true, "process_cpu_seconds_total": true}
	for path, pattern := range map[string]string{
		"../../docs/metrics.md":             "(?m)^\\| `([a-z_:0-9]+)`",
		"../../engine/testdata/metrics.txt": `(?m)^# TYPE (vllm:[a-z_0-9]+)`,
		"testdata/lmcache-metrics.txt":      `(?m)^# TYPE (lmcache_[a-z_0-9]+)`,
	} {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(raw), -1)
		require.Greater(t, len(found), 30, path)
		for _, match := range found {
			known[match[1]] = true
		}
	}
	return known
}

func requireKnownMetrics(t *testing.T, known map[string]bool, text string) {
	t.Helper()
	names := metricName.FindAllString(text, -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.True(t, known[name] || known[ofHistogram.ReplaceAllString(name, "")], "%s is no metric of Mobula, vLLM or LMCache", name)
	}
}

// grafana are the variables of Grafana: intervals, and labels' values.
var grafana = strings.NewReplacer("$__rate_interval", "5m", "$__interval", "5m", "$__range", "1h", "$", "")

// requireQuery requires that Prometheus' own parser understands it, and that there are the metrics that it asks for.
func requireQuery(t *testing.T, known map[string]bool, query string) {
	t.Helper()
	_, err := parser.NewParser(parser.Options{}).ParseExpr(grafana.Replace(query))
	require.NoError(t, err, query)
	requireKnownMetrics(t, known, query)
}

func TestDashboardsAskForMetricsThatThereAre(t *testing.T) {
	known := knownMetrics(t)
	paths, err := filepath.Glob(filepath.Join(chartPath, "dashboards", "*.json"))
	require.NoError(t, err)
	require.Len(t, paths, 3)
	uids := map[string]bool{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		var board struct {
			UID    string
			Panels []struct {
				ID                       int
				Type, Title, Description string
				GridPos                  struct{ H, W, X, Y int }
				Targets                  []struct{ Expr string }
			}
			Templating struct{ List []struct{ Query any } }
		}
		require.NoError(t, json.Unmarshal(raw, &board))
		require.False(t, uids[board.UID])
		uids[board.UID] = true
		cells := map[[2]int]string{}
		for _, panel := range board.Panels {
			for x := panel.GridPos.X; x < panel.GridPos.X+panel.GridPos.W; x++ {
				for y := panel.GridPos.Y; y < panel.GridPos.Y+panel.GridPos.H; y++ {
					require.Empty(t, cells[[2]int{x, y}], "%s: %s lies on another panel", path, panel.Title)
					cells[[2]int{x, y}] = panel.Title
				}
			}
			require.LessOrEqual(t, panel.GridPos.X+panel.GridPos.W, 24)
			if panel.Type == "row" {
				continue
			}
			require.NotEmpty(t, panel.Description, panel.Title)
			require.NotEmpty(t, panel.Targets, panel.Title)
			for _, target := range panel.Targets {
				requireQuery(t, known, target.Expr)
			}
		}
		for _, variable := range board.Templating.List[1:] {
			requireKnownMetrics(t, known, text(t, variable.Query))
		}
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	known := knownMetrics(t)
	raw, err := os.ReadFile(filepath.Join(chartPath, "alerts", "rules.yaml"))
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.UnmarshalStrict(raw, &file))
	seen := map[string]bool{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			require.False(t, seen[rule.Alert], rule.Alert)
			seen[rule.Alert] = true
			requireQuery(t, known, rule.Expr)
			require.Contains(t, []string{"critical", "warning"}, rule.Labels["severity"], rule.Alert)
			require.Equal(t, []string{"runbook", "summary"}, slices.Sorted(maps.Keys(rule.Annotations)), rule.Alert)
			require.True(t, strings.HasSuffix(strings.TrimSpace(rule.Annotations["runbook"]), "."), rule.Alert)
		}
	}
}

func TestKEDAAndTheAdapterAskForMetricsThatThereAre(t *testing.T) {
	known := knownMetrics(t)
	out, err := render(t, "{models: [{name: a, replicas: 1}], keda: {enabled: true, prometheusAddress: 'http://p', models: [{name: a}]}, prometheusAdapter: {enabled: true}}")
	require.NoError(t, err)
	for i := range 2 {
		requireQuery(t, known, at(out.Objects["ScaledObject/a"], "spec triggers").([]any)[i].(map[string]any)["metadata"].(map[string]any)["query"].(string))
	}
	var config map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(at(out.Objects["ConfigMap/mobula-prometheus-adapter"], "data config.yaml").(string)), &config))
	for _, rule := range config["rules"].([]any) {
		requireQuery(t, known, rule.(map[string]any)["seriesQuery"].(string))
	}
}

// The rules of a ConfigMap are a rule file: Prometheus' own templates in them are as they were.
func TestAlertsKeepTheirTemplates(t *testing.T) {
	out, err := render(t, "alerts: {enabled: true, kind: ConfigMap}")
	require.NoError(t, err)
	require.Contains(t, at(out.Objects["ConfigMap/mobula-alerts"], "data mobula.rules.yaml"), "{{ $labels.model }}")
}

package app

import (
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

var update = flag.Bool("update", false, "write docs/metrics.md") //nolint:gochecknoglobals // a test flag

// TestMetricsAreDocumented: docs/metrics.md lists what a router registers, and nothing else.
func TestMetricsAreDocumented(t *testing.T) {
	fleet := mobula.Default()
	fleet.Platform.Static = &mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://127.0.0.1:1"}}}
	r, err := newRouter(routerOptions{Fleet: &fleet, Logger: slog.New(slog.DiscardHandler), Version: "test"})
	require.NoError(t, err)
	defer r.client.Close()
	defer r.proxy.Close()
	_, err = NewReloader(t.TempDir()+"/fleet.yaml", r.apply, r.logger, r.registry)
	require.NoError(t, err)
	want := metricsDoc(r.registry)
	const path = "../../docs/metrics.md"
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run: go test ./cmd/app -run TestMetricsAreDocumented -update")
}

// metricsDoc writes the page from the descriptions of all metrics that are not Go's own.
func metricsDoc(r *prometheus.Registry) string {
	ch := make(chan *prometheus.Desc)
	go func() {
		r.Describe(ch)
		close(ch)
	}()
	shape := regexp.MustCompile(`fqName: "([^"]+)", help: "((?:[^"\\]|\\.)*)".*variableLabels: \{([^}]*)\}`)
	rows := map[string]string{}
	for d := range ch {
		m := shape.FindStringSubmatch(d.String())
		if m == nil || strings.HasPrefix(m[1], "go_") || strings.HasPrefix(m[1], "process_") {
			continue
		}
		labels := strings.ReplaceAll(m[3], ",", ", ")
		rows[m[1]] = fmt.Sprintf("| `%s` | %s | %s |\n", m[1], labels, m[2])
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\nThe router answers `GET /metrics` in Prometheus' text format. This page is written by a test from what the router registers\n(`go test ./cmd/app -run TestMetricsAreDocumented -update`). Beside these there are client_golang's `go_` and `process_` metrics.\nNo label holds a string of a client's choice: requests for models that the fleet does not know count under `(unknown)`.\n\n| metric | labels | what |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	return b.String()
}

package app

import (
	"context"
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
	"github.com/mobula-serve/mobula/agent/daemon"
	"github.com/mobula-serve/mobula/state"
)

var update = flag.Bool("update", false, "write docs/metrics.md") //nolint:gochecknoglobals // a test flag

// TestMetricsAreDocumented: docs/metrics.md lists what a router, a control plane and an agent register, and nothing else.
func TestMetricsAreDocumented(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	fleet := mobula.Default()
	fleet.Platform.Static = &mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://127.0.0.1:1"}}}
	r, err := newRouter(routerOptions{Fleet: &fleet, Logger: logger, Version: "test"})
	require.NoError(t, err)
	defer r.client.Close()
	defer r.proxy.Close()
	_, err = NewReloader(t.TempDir()+"/fleet.yaml", r.apply, r.logger, r.registry)
	require.NoError(t, err)

	p, err := newPlane(planeOptions{Store: state.NewInMemory(), ID: "test", Logger: logger, Version: "test"})
	require.NoError(t, err)
	defer p.engines.Close()

	agents := prometheus.NewRegistry()
	d, err := daemon.New(daemon.Options{Name: "test", DataDir: t.TempDir(), Registerer: agents})
	require.NoError(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, d.Run(ended)) // it gives the folder back

	want := metricsDoc(r.registry, p.registry, agents)
	const path = "../../docs/metrics.md"
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "run: go test ./cmd/app -run TestMetricsAreDocumented -update")
}

// metricsDoc writes the page.
func metricsDoc(router, control, agent *prometheus.Registry) string {
	const columns = "| metric | labels | what |\n|---|---|---|\n"
	return "# Metrics\n\nIn Prometheus' text format. This page is written by a test from what router, control plane and agent register\n" +
		"(`go test ./cmd/app -run TestMetricsAreDocumented -update`). Beside these there are client_golang's `go_` and `process_` metrics.\n" +
		"No label holds a string of a client's choice: requests for models that the fleet does not know count under `(unknown)`.\n\n" +
		"## Router\n\n`GET /metrics` on the router's port.\n\n" + columns + metricsTable(router) +
		"\n## Control plane\n\n`GET /metrics` on the control plane's port (8100), over TLS, without a token.\n\n" + columns + metricsTable(control) +
		"\n## Agent\n\n`GET /metrics` on the port that `mobula agent --metrics` names, without TLS; none by default.\n\n" + columns + metricsTable(agent)
}

// metricsTable lists all metrics that are not Go's own.
func metricsTable(r *prometheus.Registry) string {
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
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	return b.String()
}

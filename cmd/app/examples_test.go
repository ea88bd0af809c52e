package app

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestTheExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			got := execute(t, "", "validate", "-f", file)
			require.Zero(t, got.code, got.stderr)
		})
	}
}

// TestTheUnitsStartWhatThereIs: each command line of the systemd units parses, flags and all.
func TestTheUnitsStartWhatThereIs(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.service")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			unit, err := os.ReadFile(file)
			require.NoError(t, err)
			lines := 0
			for line := range strings.Lines(string(unit)) {
				command, ok := strings.CutPrefix(line, "ExecStart=/usr/local/bin/mobula ")
				if !ok {
					require.NotContains(t, line, "ExecStart=")
					continue
				}
				lines++
				root := (&app{stdout: io.Discard, stderr: io.Discard}).root()
				cmd, args, err := root.Find(strings.Fields(command))
				require.NoError(t, err)
				require.NotSame(t, root, cmd, "no command of mobula: %s", command)
				require.NoError(t, cmd.ParseFlags(args))
				require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()))
			}
			require.Equal(t, 1, lines)
		})
	}
}

func TestAgentsMetricsAreServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	registry.MustRegister(buildInfo("v1", ""))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveMetrics(ctx, l, registry) }()
	require.Contains(t, get(t, "http://"+l.Addr().String()+"/metrics"), "mobula_build_info")
	cancel()
	require.NoError(t, <-done)
}

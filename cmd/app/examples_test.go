package app

import (
	"context"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func TestTheExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		if base := filepath.Base(file); base == "cluster.yaml" || strings.HasPrefix(base, "values-") {
			continue // Ray's, and the chart's: test/chart tries those
		}
		t.Run(file, func(t *testing.T) {
			got := execute(t, "", "validate", "-f", file)
			require.Zero(t, got.code, got.stderr)
		})
	}
}

// rayCluster is a cluster file of `ray up`, with the fields of Ray's schema that one of plain hosts may have.
type rayCluster struct {
	Name               string `yaml:"cluster_name"`
	MaxWorkers         int    `yaml:"max_workers"`
	IdleTimeoutMinutes int    `yaml:"idle_timeout_minutes"`
	Provider           struct {
		Type      string   `yaml:"type"`
		HeadIP    string   `yaml:"head_ip"`
		WorkerIPs []string `yaml:"worker_ips"`
	} `yaml:"provider"`
	Auth struct {
		User string `yaml:"ssh_user"`
		Key  string `yaml:"ssh_private_key"`
	} `yaml:"auth"`
	FileMounts     map[string]string `yaml:"file_mounts"`
	Init           []string          `yaml:"initialization_commands"`
	Setup          []string          `yaml:"setup_commands"`
	HeadSetup      []string          `yaml:"head_setup_commands"`
	WorkerSetup    []string          `yaml:"worker_setup_commands"`
	HeadCommands   []string          `yaml:"head_start_ray_commands"`
	WorkerCommands []string          `yaml:"worker_start_ray_commands"`
}

func TestTheRayClusterFileIsOneAndFitsTheFleet(t *testing.T) {
	file, err := os.ReadFile("../../examples/ray/cluster.yaml")
	require.NoError(t, err)
	var c rayCluster
	require.NoError(t, yaml.UnmarshalWithOptions(file, &c, yaml.Strict()))
	require.Equal(t, "local", c.Provider.Type)
	require.NotEmpty(t, c.Name)
	require.NotEmpty(t, c.Auth.User)
	require.NotEmpty(t, c.Provider.WorkerIPs)
	require.Contains(t, c.FileMounts, "~/.ray/auth_token")

	fleet, err := mobula.LoadFile("../../examples/ray/fleet.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, fleet.Platform.Ray.TokenFile)
	dashboard, err := url.Parse(fleet.Platform.Ray.Address)
	require.NoError(t, err)
	require.Equal(t, c.Provider.HeadIP, dashboard.Hostname())

	start := func(commands []string) string {
		require.Equal(t, []string{"ray stop"}, commands[:len(commands)-1])
		return commands[len(commands)-1] + " "
	}
	head, worker := start(c.HeadCommands), start(c.WorkerCommands)
	for _, part := range []string{
		"RAY_AUTH_MODE=token ", "ray start --head ", "--dashboard-host=" + dashboard.Hostname() + " ", "--dashboard-port=" + dashboard.Port() + " ",
		"--autoscaling-config=~/ray_bootstrap_config.yaml ",
	} {
		require.Contains(t, head, part)
	}
	require.Contains(t, worker, "RAY_AUTH_MODE=token ")
	require.Contains(t, worker, "--address=$RAY_HEAD_IP:6379 ")
	for i := range fleet.Models {
		for name, value := range fleet.Models[i].Resources.HostLabels {
			require.Contains(t, worker, "--labels="+name+"="+value+" ")
		}
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

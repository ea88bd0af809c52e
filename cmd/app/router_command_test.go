package app

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

const goodFleet = `apiVersion: mobula/v1
kind: Fleet
platform:
  static:
    endpoints:
      - url: http://127.0.0.1:1
      - url: http://127.0.0.1:2
models:
  - name: m
router:
  listen: ":9123"
  log:
    level: error
`

func brokenRouter(context.Context, routerOptions) error { return errors.New("broken") }

func fleetFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func TestRouterSaysWhereItListens(t *testing.T) {
	file := fleetFile(t, goodFleet)
	router := background(t, nil, "router", "-f", file, "--listen", "127.0.0.1:0")
	router.stdout.await(t, "\n")
	m := regexp.MustCompile(`^listening on (http://127\.0\.0\.1:\d+)\n$`).FindStringSubmatch(router.stdout.String())
	require.NotNil(t, m, router.stdout.String())
	require.Contains(t, get(t, m[1]+"/version"), "version")
	router.cancel()
	require.Zero(t, router.wait(t))
}

func TestRouterFailures(t *testing.T) {
	got := execute(t, "", "router", "-f", "no-such.yaml")
	require.Equal(t, exitFailed, got.code)
	require.Equal(t, "error: no-such.yaml: there is no such file\nhint: docs/fleet.md shows a complete one; `mobula up` needs none\n", got.stderr)

	file := fleetFile(t, "apiVersion: mobula/v1\nkind: Fleet\nnope: 1\n")
	got = execute(t, "", "router", "-f", file)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, file+":3:1: nope: ")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	got = execute(t, "", "router", "-f", fleetFile(t, goodFleet), "--listen", l.Addr().String())
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "--listen\n")
}

func TestValidate(t *testing.T) {
	good, bad := fleetFile(t, goodFleet), fleetFile(t, "kind: Fleet\nname: 3\nrouter: {policy: {name: best}}\n")
	const summary = ": ok: 2 endpoints, 1 model, policy cost\n"

	got := execute(t, "", "validate", "-f", good)
	require.Equal(t, result{0, good + summary, ""}, got)

	got = execute(t, goodFleet, "validate", "-f", "-")
	require.Equal(t, result{0, "standard input" + summary, ""}, got)

	got = execute(t, "apiVersion: mobula/v1\nkind: Fleet\nplatform: {ray: {address: http://ray:8265, serve: [{name: llm}]}}\n", "validate", "-f", "-")
	require.Equal(t, result{0, "standard input: ok: Ray cluster at http://ray:8265 with 1 Serve application, 0 models, policy cost\n", ""}, got)

	got = execute(t, "", "validate", "-f", bad, good, "-f", "no-such.yaml")
	require.Equal(t, exitFailed, got.code)
	require.Equal(t, good+summary, got.stdout)
	require.Contains(t, got.stderr, bad+":3:25: router.policy.name: ")
	require.Contains(t, got.stderr, "no-such.yaml: there is no such file\n")
	require.Contains(t, got.stderr, "error: 2 fleet files not valid\n")
}

func TestBaseURL(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:80": "http://127.0.0.1:80",
		"[::]:8000":    "http://127.0.0.1:8000",
		"0.0.0.0:8000": "http://127.0.0.1:8000",
		"[::1]:8000":   "http://[::1]:8000",
	} {
		a, err := net.ResolveTCPAddr("tcp", addr)
		require.NoError(t, err)
		require.Equal(t, want, baseURL(a))
	}
}

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	controlclient "github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/test/fleet"
	"github.com/mobula-serve/mobula/trust"
)

// TestJoinRefused: an agent that may not join says why, and what to do.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	bin := binary(t)
	machines := fleet.Loopback("head", "h1")
	ours := fleet.New(t, fleet.Options{Binary: bin, Head: machines[0], Hosts: machines[1:]})
	theirs := fleet.New(t, fleet.Options{Binary: bin, Head: machines[0]})
	token := strings.TrimSpace(ours.Run("token"))
	other := strings.TrimSpace(theirs.Run("token"))

	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"wrong secret", []string{"--data", t.TempDir(), "--token", token[:len(token)-32] + strings.Repeat("a", 32)}, []string{"wrong join token", "mobula token"}},
		{"token of another control plane", []string{"--data", t.TempDir(), "--token", other}, []string{"wrong join token", "not made by the control plane", "mobula token"}},
		{"no token", []string{"--data", t.TempDir()}, []string{"has not joined", "mobula token"}},
		{"half a token", []string{"--data", t.TempDir(), "--token", token[:50]}, []string{"wrong join token", "copy it whole"}},
		{"certificate of another control plane", []string{"--data", ours.Data("h1"), "--token", other}, []string{"joined the control plane", "token is of another one", "tls"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			args := append([]string{"agent", "--listen", machines[1].IP + ":0", "--join", ours.Control, "--name", "h1"}, c.args...)
			out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
			require.NoError(t, ctx.Err(), "it goes on: %s", out)
			exit := new(exec.ExitError)
			require.ErrorAs(t, err, &exit)
			for _, want := range c.want {
				require.Contains(t, string(out), want)
			}
			require.NotContains(t, string(out), token[len(token)-32:], "the secret")
		})
	}
	t.Run("clock ten minutes off", func(t *testing.T) {
		parsed, err := trust.ParseToken(token)
		require.NoError(t, err)
		csr, _, err := trust.NewRequest()
		require.NoError(t, err)
		join := agent.Join{Name: "late", Address: machines[1].IP + ":1", CSR: string(csr), Clock: time.Now().Add(-10 * time.Minute)}
		_, err = controlclient.Join(t.Context(), ours.Control, trust.PinnedTLS(parsed), mobula.Secret(token), join)
		require.ErrorContains(t, err, "clock")
		require.Len(t, ours.Hosts(), 1)
		t.Log(err)
	})
	t.Run("moved to another control plane", func(t *testing.T) {
		// Its certificate is worth nothing there: the agent goes on with what it runs, and says so.
		ours.Kill("h1")
		log := startAgent(t, bin, ours.Data("h1"), machines[1].IP, "--join", theirs.Control)
		theirs.Await("it says why", func() bool {
			said, err := os.ReadFile(log)
			return err == nil && strings.Contains(string(said), "certificate is of another control plane")
		})
		require.Empty(t, theirs.Hosts())
	})
	t.Run("certificate has expired", func(t *testing.T) {
		ca, err := trust.OpenCA(filepath.Join(ours.Data("control"), "ca"), "")
		require.NoError(t, err)
		expired, err := ca.Credentials(trust.RoleAgent, "h1", []string{machines[1].IP}, time.Nanosecond)
		require.NoError(t, err)
		require.ErrorIs(t, expired.Valid(), trust.ErrExpired)
		require.NoError(t, trust.SaveDir(filepath.Join(ours.Data("h1"), "tls"), expired))
		ours.Await("the host is silent", func() bool { return ours.Hosts()[0].Silent != "" })
		startAgent(t, bin, ours.Data("h1"), machines[1].IP, "--join", ours.Control, "--token", token)
		ours.Await("the host has joined again", func() bool { return ours.Hosts()[0].Silent == "" })
	})
}

// startAgent starts an agent until the test's end, and gives the file of what it says.
func startAgent(t *testing.T, bin, data, ip string, args ...string) (log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	file, err := os.Create(log)
	require.NoError(t, err)
	defer file.Close()
	cmd := exec.Command(bin, append([]string{"agent", "--data", data, "--listen", ip + ":0"}, args...)...)
	cmd.Stderr = file
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return log
}

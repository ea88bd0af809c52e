//go:build linux && kube

package kube

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// deadline bounds what a test waits for: machines that build are slow.
	deadline = 10 * time.Minute
	// stopWait bounds the end of a cluster.
	stopWait = 2 * time.Minute
	// state is where cluster.sh has all that belongs to a cluster.
	state = "/var/tmp/mobula-kube"
)

// Cluster is the Kubernetes of a test. There is one on a machine at a time.
type Cluster struct {
	dir    string // what setup.sh built
	logs   string
	keeper *exec.Cmd
	hold   io.Closer // the keeper's input: while it is open, the cluster is up
	ended  bool
	// operated tells that KubeRay's operator runs.
	operated bool
	// image is what Mobula's image is called in the cluster, once ImportMobula has brought it there.
	image string
	// binary is the mobula of that image, as a file on this machine.
	binary string
}

// Start brings a cluster up; it ends with the test, and also when the test's process is killed. It fails the test where
// that can't be, and says what is missing. With MOBULA_KUBE_UP, a tag for Mobula's image, it is the cluster that
// somebody has brought up by hand, with KubeRay's operator, and it stays: that is quicker while tests are written.
func Start(t *testing.T) *Cluster {
	t.Helper()
	dir := os.Getenv("MOBULA_KUBE_DIR")
	require.NotEmpty(t, dir, "MOBULA_KUBE_DIR is not set: run `make test-kube`, or have it name what test/kube/cluster/setup.sh prints")
	logs, err := os.MkdirTemp("", "mobula-kube-logs-")
	require.NoError(t, err)
	c := &Cluster{dir: dir, logs: logs, image: "localhost/mobula:dev"}
	if tag := os.Getenv("MOBULA_KUBE_UP"); tag != "" {
		c.image, c.operated, c.ended = "localhost/mobula:"+tag, true, true
		return c
	}
	t.Cleanup(func() {
		c.Stop(t)
		if t.Failed() {
			t.Logf("the logs of the cluster are in %s", logs)
		} else {
			require.NoError(t, os.RemoveAll(logs))
		}
	})
	c.start(t)
	return c
}

func (c *Cluster) start(t *testing.T) {
	t.Helper()
	said, err := os.Create(filepath.Join(c.logs, "cluster.log"))
	require.NoError(t, err)
	defer said.Close()
	// No context ends it, and no ^C: it has to clean up, and does so when its input ends.
	keeper := exec.Command(script(), "up")
	keeper.Env = append(c.environment(), "MOBULA_KUBE_LOGS="+c.logs)
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	keeper.Stderr = said
	hold, err := keeper.StdinPipe()
	require.NoError(t, err)
	out, err := keeper.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, keeper.Start())
	c.keeper, c.hold, c.ended, c.operated = keeper, hold, false, false
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		c.Stop(t)
		why, err := os.ReadFile(said.Name())
		require.NoError(t, err)
		require.FailNow(t, "the cluster did not come up", "%s", why)
	}
}

// Stop ends the cluster before the test does.
func (c *Cluster) Stop(t *testing.T) {
	t.Helper()
	if c.keeper == nil || c.ended {
		return
	}
	c.ended = true
	_ = c.hold.Close()
	late := time.AfterFunc(stopWait, func() { _ = c.keeper.Process.Kill() })
	_ = c.keeper.Wait() // how the cluster fared the tests say
	if !late.Stop() {
		t.Errorf("the cluster did not end within %s and was killed", stopWait)
	}
}

// Import gives the node an image: an OCI archive.
func (c *Cluster) Import(t *testing.T, archive string) {
	t.Helper()
	c.script(t, "import", archive)
}

// Enter runs a command in the node's namespaces and gives what it prints.
func (c *Cluster) Enter(t *testing.T, args ...string) string {
	t.Helper()
	return c.script(t, append([]string{"enter"}, args...)...)
}

// StartPart starts a part of the cluster by cluster.sh's name for it: apiserver, kwok, operator.
func (c *Cluster) StartPart(t *testing.T, name string) {
	t.Helper()
	c.script(t, "start", name)
}

// KillPart kills a part of the cluster. It is dead when this returns.
func (c *Cluster) KillPart(t *testing.T, name string) {
	t.Helper()
	c.script(t, "kill", name)
}

// PausePart has a part say nothing until ResumePart, as a machine does that has too much to do.
func (c *Cluster) PausePart(t *testing.T, name string) {
	t.Helper()
	c.script(t, "pause", name)
}

// ResumePart has it go on.
func (c *Cluster) ResumePart(t *testing.T, name string) {
	t.Helper()
	c.script(t, "resume", name)
}

func (c *Cluster) script(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.run(context.WithoutCancel(t.Context()), "", script(), args...) // cleanups use it too
	require.NoError(t, err)
	return out
}

func script() string { return filepath.Join("cluster", "cluster.sh") }

// environment is that of commands which speak to the cluster: its programs, its kubeconfig, no proxy, and caches that go
// with it, for the next cluster has the same address.
func (c *Cluster) environment() []string {
	cache := filepath.Join(state, "cache")
	return append(os.Environ(),
		"MOBULA_KUBE_DIR="+c.dir,
		"PATH="+filepath.Join(c.dir, "bin")+":"+os.Getenv("PATH"),
		"KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+cache,
		"HELM_CACHE_HOME="+cache, "HELM_CONFIG_HOME="+cache, "HELM_DATA_HOME="+cache,
		"NO_PROXY=*", "no_proxy=*",
	)
}

// Kubeconfig is the file with which an administrator reaches the cluster from this machine.
func (c *Cluster) Kubeconfig() string { return filepath.Join(state, "pki", "admin.kubeconfig") }

// run runs a command to its end and gives what it prints. The error has what it prints as errors.
func (c *Cluster) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if !strings.Contains(name, "/") {
		name = filepath.Join(c.dir, "bin", name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = c.environment()
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 10 * time.Second
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}

//go:build real

package real

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/netns"
)

// rayNode is a node of a rayLab.
type rayNode struct {
	c    *rayLab
	name string
	temp string
	host *netns.Host
	ns   string // its network namespace, as /proc names it
}

func newRayNode(t *testing.T, c *rayLab, name string) *rayNode {
	t.Helper()
	n := &rayNode{c: c, name: name, temp: filepath.Join(c.temp, name), host: c.lab.Host(name)}
	var out bytes.Buffer
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	require.NoError(t, n.host.Start(cmd))
	require.NoError(t, cmd.Wait())
	n.ns = strings.TrimSpace(out.String())
	own, err := os.Readlink("/proc/thread-self/ns/net") // the process's first thread may have made a namespace and been left in it
	require.NoError(t, err)
	require.NotEqual(t, own, n.ns, "all that is in it gets killed")
	return n
}

// start starts Ray on the node and waits until the cluster has it. A node that was lost comes back so, too.
func (n *rayNode) start() {
	t := n.c.t
	t.Helper()
	args := []string{
		"start", "--node-ip-address=" + n.host.IP, "--num-cpus=4", "--num-gpus=2", `--labels=zone=` + n.name,
		"--object-store-memory=80000000", "--metrics-export-port=9800", "--disable-usage-stats", "--temp-dir=" + n.temp,
	}
	if n == n.c.head {
		args = append(args, "--head", "--port=6379", "--dashboard-host="+n.host.IP, "--dashboard-port=8265")
	} else {
		args = append(args, "--address="+n.c.head.host.IP+":6379")
	}
	out, err := n.run("", "ray", args...)
	require.NoError(t, err, "ray start on %s: %s", n.name, out)
	n.c.await(n.name+" is a node of the cluster", n.alive)
}

// alive tells whether Ray thinks that the node is.
func (n *rayNode) alive() bool {
	all, ok := n.c.list("nodes")
	return ok && slices.ContainsFunc(all, func(a rayThing) bool { return a.NodeIP == n.host.IP && a.State == "ALIVE" })
}

// run runs a program of Ray's installation on the node and gives what it printed.
func (n *rayNode) run(env, program string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(n.c.bin, program), args...)
	cmd.Env = n.c.env()
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	// A file, for Ray's daemons keep what ray start had open.
	out, err := os.CreateTemp(n.c.t.TempDir(), "out")
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := n.host.Start(cmd); err != nil {
		return "", err
	}
	late := time.AfterFunc(rayPatience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err = cmd.Wait()
	text, _ := os.ReadFile(out.Name())
	return string(text), err
}

// rayProcess is a process on a node.
type rayProcess struct {
	pid       int
	argv, env []string
}

// program tells whether the process runs the program, or a script or command of that name: raylet, dashboard.py, sim.
func program(name string) func(p *rayProcess) bool {
	return func(p *rayProcess) bool {
		return slices.ContainsFunc(p.argv[:min(len(p.argv), 3)], func(arg string) bool { return filepath.Base(arg) == name })
	}
}

// processes are those on the node that are asked for.
func (n *rayNode) processes(want func(p *rayProcess) bool) []rayProcess {
	var all []rayProcess
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		if ns, err := os.Readlink(link); err != nil || ns != n.ns {
			continue
		}
		dir := filepath.Dir(filepath.Dir(link))
		if filepath.Base(dir) == strconv.Itoa(os.Getpid()) {
			continue // only a thread of ours was there
		}
		argv, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(argv) == 0 {
			continue
		}
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		p := rayProcess{argv: zeroEnded(argv), env: zeroEnded(env)}
		p.pid, _ = strconv.Atoi(filepath.Base(dir))
		if want(&p) {
			all = append(all, p)
		}
	}
	return all
}

func zeroEnded(b []byte) []string { return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00") }

// kill ends the node's one process that runs a program at once, and gives what it was.
func (n *rayNode) kill(name string) rayProcess {
	t := n.c.t
	t.Helper()
	found := n.processes(program(name))
	require.Len(t, found, 1, "%s on %s", name, n.name)
	require.NoError(t, syscall.Kill(found[0].pid, syscall.SIGKILL))
	n.c.await(name+" is gone", func() bool { return len(n.processes(program(name))) == 0 })
	return found[0]
}

// wipe ends all that runs on the node, as a power cut does.
func (n *rayNode) wipe() {
	n.c.t.Helper()
	all := func(*rayProcess) bool { return true }
	n.c.await("nothing runs on "+n.name, func() bool {
		left := n.processes(all)
		for _, p := range left {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		return len(left) == 0
	})
	// Ray takes a cluster of this address for running that any process of the machine names, in whatever namespace.
	_ = os.Remove(filepath.Join(n.temp, "ray_current_cluster"))
}

// again starts what was killed as it had been started.
func (n *rayNode) again(p rayProcess) {
	t := n.c.t
	t.Helper()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Env = p.env
	log, err := os.OpenFile(filepath.Join(n.temp, "again.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, n.host.Start(cmd))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
}

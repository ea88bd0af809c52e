//go:build real

package real

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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

	"github.com/mobula-serve/mobula/test/fleet"
	"github.com/mobula-serve/mobula/test/netns"
)

// rayPatience bounds what Ray takes its time for: it starts twenty processes a node.
const rayPatience = 4 * time.Minute

// rayLab is a real Ray cluster whose nodes are network namespaces, for Ray binds all interfaces. Each node has two fake
// GPUs and the label zone=NAME. One more namespace, named control, is for what is not Ray's.
type rayLab struct {
	t      *testing.T
	bin    string // of the Ray installation
	temp   string // a folder for each node below it; its path is short, for sockets are in it
	token  string // file of the cluster's token, empty without authentication
	gcs    string // folder of the GCS's state, empty when it is in memory
	secret string
	lab    *netns.Lab
	client *http.Client
	head   *rayNode
	nodes  []*rayNode // head first
}

// rayOptions set up a rayLab.
type rayOptions struct {
	Version string // default 2.60.0
	Workers int
	Token   bool // token authentication
	Durable bool // the GCS keeps its state on disk (RocksDB), and may end and come back; Ray 2.60 and newer
}

// startRay starts a cluster, which ends with the test; nothing of it outlives the test's process either.
func startRay(t *testing.T, o rayOptions) *rayLab {
	t.Helper()
	version := "2.60.0"
	if o.Version != "" {
		version = o.Version
	}
	c := &rayLab{t: t, bin: filepath.Join(installRay(t, version), "venv/bin")}
	var err error
	c.temp, err = os.MkdirTemp("/tmp", "ray")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(c.temp) })
	names := []string{"head"}
	for i := range o.Workers {
		names = append(names, "w"+strconv.Itoa(i+1))
	}
	c.lab = netns.New(t, append(names, "control")...)
	for _, name := range names {
		c.nodes = append(c.nodes, newRayNode(t, c, name))
	}
	c.head = c.nodes[0]
	guardRay(t, c)
	t.Cleanup(func() {
		if t.Failed() {
			c.keepLogs()
		}
	})
	if o.Token {
		c.secret = strings.Repeat("5ec2e7", 8)
		c.token = filepath.Join(c.temp, "token")
		require.NoError(t, os.WriteFile(c.token, []byte(c.secret), 0o600))
	}
	if o.Durable {
		c.gcs = filepath.Join(c.temp, "gcs")
	}
	c.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: c.head.host.Dial}}
	t.Cleanup(c.client.CloseIdleConnections)
	begun := time.Now()
	for _, n := range c.nodes {
		n.start()
	}
	t.Logf("Ray %s with %d nodes was up after %s", version, len(c.nodes), time.Since(begun).Round(time.Second))
	return c
}

// installRay gives the folder of a Ray version; the first time it is installed there.
func installRay(t *testing.T, version string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "./ray.sh", version)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// guardRay kills all that runs in the cluster's namespaces when the test ends, or its process does.
func guardRay(t *testing.T, c *rayLab) {
	t.Helper()
	const script = `temp=$1 test=/proc/$2; shift 2; read -r _; again=1
while [ $again = 1 ]; do again=0
	for p in /proc/[0-9]*; do
		[ "$p" = "$test" ] && continue
		ns=$(readlink "$p/ns/net") && for mine; do if [ "$ns" = "$mine" ]; then kill -KILL "${p#/proc/}" && again=1; fi; done
	done
done 2>/dev/null
rm -rf "$temp"`
	args := []string{"-c", script, "guard", c.temp, strconv.Itoa(os.Getpid())}
	for _, n := range c.nodes {
		args = append(args, n.ns)
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
}

// address of the dashboard.
func (c *rayLab) address() string { return "http://" + c.head.host.IP + ":8265" }

// machine is one of the namespaces, as test/fleet takes it: a node's name, or control.
func (c *rayLab) machine(name string) fleet.Machine {
	h := c.lab.Host(name)
	return fleet.Machine{Name: name, IP: h.IP, Start: h.Start, Dial: h.Dial, Partition: h.Partition}
}

// ask asks the dashboard. Its answer may be anything, an error too.
func (c *rayLab) ask(method, path, body string) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), time.Minute) // also when the test ends
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.address()+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.secret != "" {
		req.Header.Set("Authorization", "Bearer "+c.secret)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// rayThing is an actor, a placement group, a node or a job, as Ray lists it.
type rayThing struct {
	ID        string `json:"actor_id"`
	Name      string `json:"name"`
	Class     string `json:"class_name"`
	State     string `json:"state"`
	Namespace string `json:"ray_namespace"`
	Repr      string `json:"repr_name"`
	NodeIP    string `json:"node_ip"`
	NodeID    string `json:"node_id"`
	PID       int    `json:"pid"`
	Job       string `json:"submission_id"`
	Status    string `json:"status"`
	Message   string `json:"message"`
}

// list gives what the state API has of a kind: actors, placement_groups, nodes. False when Ray can't be asked.
func (c *rayLab) list(kind string) ([]rayThing, bool) {
	status, body, err := c.ask(http.MethodGet, "/api/v0/"+kind+"?detail=1&limit=10000", "")
	var answer struct {
		Data struct {
			Result struct {
				Result []rayThing `json:"result"`
			} `json:"result"`
		} `json:"data"`
	}
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &answer) != nil {
		return nil, false
	}
	return answer.Data.Result.Result, true
}

// must is list of what is there: actors and placement groups that are gone stay listed for a while.
func (c *rayLab) must(kind string) []rayThing {
	c.t.Helper()
	var all []rayThing
	eventually(c.t, rayPatience, "a list of "+kind, func() (ok bool) {
		all, ok = c.list(kind)
		return ok
	})
	return slices.DeleteFunc(all, func(a rayThing) bool { return a.State == "DEAD" || a.State == "REMOVED" })
}

// jobs are all submitted ones.
func (c *rayLab) jobs() []rayThing {
	c.t.Helper()
	var all []rayThing
	eventually(c.t, rayPatience, "a list of jobs", func() bool {
		status, body, err := c.ask(http.MethodGet, "/api/jobs/", "")
		return err == nil && status == http.StatusOK && json.Unmarshal(body, &all) == nil
	})
	return slices.DeleteFunc(all, func(j rayThing) bool { return j.Job == "" })
}

// env is what all that speaks to the cluster has in its environment: nothing of the user's own Ray.
func (c *rayLab) env() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "RAY_") })
	env = append(env, "HOME="+c.temp, "RAY_USAGE_STATS_ENABLED=0", "RAY_COLOR_PREFIX=0")
	if c.gcs != "" {
		env = append(env, "RAY_gcs_storage=rocksdb", "RAY_gcs_storage_path="+c.gcs)
	}
	if c.token == "" {
		return append(env, "RAY_AUTH_MODE=disabled")
	}
	return append(env, "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH="+c.token)
}

// python runs a program on the head node with Ray's interpreter, connected to the cluster.
func (c *rayLab) python(program string) string {
	c.t.Helper()
	out, err := c.head.run("RAY_ADDRESS="+c.head.host.IP+":6379", "python", "-c", program)
	require.NoError(c.t, err, out)
	return out
}

// keepLogs copies Ray's logs to the test's artifacts, and shows the ends of those that tell of our jobs.
func (c *rayLab) keepLogs() {
	for _, n := range c.nodes {
		kept := filepath.Join(c.t.ArtifactDir(), "ray-"+n.name)
		logs := filepath.Join(n.temp, "session_latest/logs")
		if dir, err := filepath.EvalSymlinks(logs); err != nil {
			c.t.Logf("no logs of %s: %v", n.name, err)
		} else if err := os.CopyFS(kept, os.DirFS(dir)); err != nil {
			c.t.Logf("logs of %s: %v", n.name, err)
		}
		for _, pattern := range []string{"job-driver-mobula*", "gcs_server.err", "dashboard.err"} {
			files, _ := filepath.Glob(filepath.Join(logs, pattern))
			for _, file := range files[:min(len(files), 8)] {
				if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
					c.t.Logf("the end of %s's %s:\n%s", n.name, filepath.Base(file), b[max(0, len(b)-1500):])
				}
			}
		}
	}
}

// await waits for a condition of the cluster.
func (c *rayLab) await(what string, ok func() bool) {
	c.t.Helper()
	eventually(c.t, rayPatience, what, ok)
}

// describe tells what Ray has of ours, for messages of failed tests.
func (c *rayLab) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "left: %q\n", c.left())
	for _, a := range c.must("actors") {
		fmt.Fprintf(&b, "actor %s of %s, %s, node %s, pid %d: %s\n", a.Name, a.Namespace, a.State, a.NodeID, a.PID, a.Repr)
	}
	return b.String()
}

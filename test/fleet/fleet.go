//go:build linux

// Package fleet runs a whole fleet for tests, with the real binary: a control plane, a router, and the agents of
// several machines, which are addresses of the loopback or network namespaces.
package fleet

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// patience bounds every wait unless Options say otherwise. It is generous: the machine is shared.
const patience = 90 * time.Second

// Machine is where a part of the fleet runs.
type Machine struct {
	Name, IP string
	// Start starts a command there. Default: as it is.
	Start func(*exec.Cmd) error
	// Dial connects from there. Default: as the test's process does.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Partition cuts it off from the others; nil where that is not possible.
	Partition func(on bool) error
}

// Loopback gives machines that are addresses of the loopback.
func Loopback(names ...string) []Machine {
	all := make([]Machine, len(names))
	for i, name := range names {
		all[i] = Machine{Name: name, IP: fmt.Sprintf("127.0.0.%d", i+2)}
	}
	return all
}

// Fleet is a running fleet.
type Fleet struct {
	t        testing.TB
	binary   string
	dir      string
	head     Machine
	router   Machine
	hosts    []Machine
	patience time.Duration
	slots    int
	config   string
	token    string
	procs    map[string]*proc
	client   *http.Client
	// URL is the router's, Control the control plane's.
	URL, Control string
}

// Options set up a Fleet.
type Options struct {
	// Binary is mobula's path.
	Binary string
	// Head is where the control plane and the router run, Hosts where agents do.
	Head  Machine
	Hosts []Machine
	// Router is where the router and the clients run. Default: Head.
	Router Machine
	// Patience bounds every wait. Default 90s.
	Patience time.Duration
	// Slots of each host. Default 4.
	Slots int
	// File is the fleet file.
	File string
}

// New starts a fleet, which ends with the test. The fleet file is applied; New does not wait for engines.
func New(tb testing.TB, o Options) *Fleet {
	tb.Helper()
	f := &Fleet{t: tb, binary: o.Binary, dir: tb.TempDir(), head: o.Head, hosts: o.Hosts, slots: o.Slots, procs: map[string]*proc{}, router: o.Router}
	f.patience = cmp.Or(o.Patience, patience)
	if f.router.Name == "" {
		f.router = f.head
	}
	if f.slots == 0 {
		f.slots = 4
	}
	dial := f.router.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	f.client = &http.Client{Timeout: 2 * f.patience, Transport: &http.Transport{MaxIdleConnsPerHost: 256, DialContext: dial}}
	f.guard(tb)
	tb.Cleanup(f.end)
	f.config = filepath.Join(f.dir, "control", "client.json")
	f.StartControl()
	f.token = regexp.MustCompile(`mobula\.\w+\.\w+`).FindString(f.Run("token"))
	require.NotEmpty(tb, f.token)
	for _, h := range o.Hosts {
		f.StartAgent(h.Name)
	}
	if o.File != "" {
		f.Apply(o.File)
		f.StartRouter()
	}
	return f
}

// proc is a process of the fleet.
type proc struct {
	cmd  *exec.Cmd
	log  *log
	done chan struct{}
	err  error // after done
}

type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (f *Fleet) command(args ...string) *exec.Cmd {
	cmd := exec.Command(f.binary, args...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(f.dir, "config"), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// start starts a process on m and gives the first line that it prints.
func (f *Fleet) start(m Machine, name string, args ...string) string {
	f.t.Helper()
	return f.launch(m, name, f.command(args...))
}

func (f *Fleet) launch(m Machine, name string, cmd *exec.Cmd) string {
	f.t.Helper()
	p := &proc{cmd: cmd, log: &log{}, done: make(chan struct{})}
	cmd.Stderr = p.log
	out, err := cmd.StdoutPipe()
	require.NoError(f.t, err)
	start := m.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	require.NoError(f.t, start(cmd))
	f.procs[name] = p
	first := make(chan string, 1)
	go func() {
		defer close(p.done)
		r := bufio.NewReader(out)
		line, _ := r.ReadString('\n')
		first <- strings.TrimSpace(line)
		_, _ = io.Copy(io.Discard, r)
		p.err = cmd.Wait()
	}()
	select {
	case line := <-first:
		require.NotEmpty(f.t, line, "%s ended: %s", name, p.log)
		return line
	case <-time.After(f.patience):
		f.t.Fatalf("%s says nothing: %s", name, p.log)
		return ""
	}
}

// Kill ends a process at once: "control", "router", or a host's name for its agent.
func (f *Fleet) Kill(name string) {
	f.t.Helper()
	p := f.procs[name]
	require.NotNil(f.t, p, name)
	require.NoError(f.t, p.cmd.Process.Kill())
	<-p.done
	delete(f.procs, name)
}

// Stop ends a process in order.
func (f *Fleet) Stop(name string) {
	f.t.Helper()
	p := f.procs[name]
	if p == nil {
		return
	}
	delete(f.procs, name)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.err != nil {
			f.t.Errorf("%s ended with %v\n%s", name, p.err, p.log)
		}
	case <-time.After(f.patience):
		_ = p.cmd.Process.Kill()
		<-p.done
		f.t.Errorf("%s did not stop\n%s", name, p.log)
	}
	if text := p.log.String(); strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic:") {
		f.t.Errorf("%s: a race or a panic\n%s", name, text)
	}
}

// StartControl starts the control plane, again on the same port.
func (f *Fleet) StartControl() {
	f.t.Helper()
	address := f.head.IP + ":0"
	if f.Control != "" {
		address = strings.TrimPrefix(f.Control, "https://")
	}
	line := f.start(f.head, "control", "control", "--listen", address, "--data", filepath.Join(f.dir, "control"))
	f.Control = strings.TrimPrefix(line, "control plane listening on ")
}

// StartAgent starts a host's agent. The first time it joins; its port stays the same.
func (f *Fleet) StartAgent(name string) {
	f.t.Helper()
	i := slices.IndexFunc(f.hosts, func(m Machine) bool { return m.Name == name })
	h := f.hosts[i]
	args := []string{"agent", "--data", f.Data(name), "--slots", strconv.Itoa(f.slots), "--listen"}
	port := filepath.Join(f.dir, name+".address")
	if address, err := os.ReadFile(port); err == nil {
		f.start(h, name, append(args, string(address))...)
		return
	}
	line := f.start(h, name, append(args, h.IP+":0", "--join", f.Control, "--token", f.token, "--name", name)...)
	address := line[strings.LastIndex(line, " ")+1:]
	require.NoError(f.t, os.WriteFile(port, []byte(address), 0o600))
}

// Data is the folder of a host's agent.
func (f *Fleet) Data(name string) string { return filepath.Join(f.dir, name) }

// StartRouter starts the router, again on the same port.
func (f *Fleet) StartRouter() {
	f.t.Helper()
	address := f.router.IP + ":0"
	if f.URL != "" {
		address = strings.TrimPrefix(f.URL, "http://")
	}
	line := f.start(f.router, "router", "router", "--config", f.config, "--listen", address)
	f.URL = strings.TrimPrefix(line, "listening on ")
}

// TryRun runs a command of the fleet's and gives what it printed.
func (f *Fleet) TryRun(args ...string) (string, error) {
	cmd := f.command(append(args, "--config", f.config)...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	start := f.head.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("mobula %s: %w: %s", strings.Join(args, " "), err, problem.String())
	}
	return out.String(), nil
}

// Run is TryRun for commands that must succeed.
func (f *Fleet) Run(args ...string) string {
	f.t.Helper()
	out, err := f.TryRun(args...)
	require.NoError(f.t, err, "%s", f.logs())
	return out
}

// Apply applies a fleet file and does not wait.
func (f *Fleet) Apply(file string) string {
	f.t.Helper()
	path := filepath.Join(f.dir, "fleet.yaml")
	require.NoError(f.t, os.WriteFile(path, []byte(file), 0o600))
	return f.Run("apply", "-f", path, "--wait=false")
}

// Replicas are all there are.
func (f *Fleet) Replicas() []control.ReplicaStatus {
	f.t.Helper()
	var all []control.ReplicaStatus
	require.NoError(f.t, json.Unmarshal([]byte(f.Run("get", "replicas", "-o", "json")), &all))
	return all
}

// Hosts are all that have joined.
func (f *Fleet) Hosts() []mobula.Host {
	f.t.Helper()
	var all []mobula.Host
	require.NoError(f.t, json.Unmarshal([]byte(f.Run("get", "hosts", "-o", "json")), &all))
	return all
}

// Models are all that are placed.
func (f *Fleet) Models() []control.ModelStatus {
	f.t.Helper()
	var all []control.ModelStatus
	require.NoError(f.t, json.Unmarshal([]byte(f.Run("get", "models", "-o", "json")), &all))
	return all
}

// Ready are the replicas of a model that serve.
func (f *Fleet) Ready(model string) []control.ReplicaStatus {
	f.t.Helper()
	return slices.DeleteFunc(f.Replicas(), func(r control.ReplicaStatus) bool {
		return r.Model != model || r.State != mobula.StateReady
	})
}

// Await waits for a condition.
func (f *Fleet) Await(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(f.patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			state, _ := f.TryRun("get", "-o", "wide")
			events, _ := f.TryRun("events")
			f.t.Fatalf("never %s\n%s\n%s\n%s", what, state, events, f.logs())
		}
	}
}

// AwaitReady waits until so many replicas of a model serve, and there are no others of it.
func (f *Fleet) AwaitReady(model string, n int) {
	f.t.Helper()
	f.Await(fmt.Sprintf("%d replicas of %s ready, and no other", n, model), func() bool {
		all := slices.DeleteFunc(f.Replicas(), func(r control.ReplicaStatus) bool { return r.Model != model })
		return len(all) == n && len(f.Ready(model)) == n
	})
}

func (f *Fleet) logs() string {
	var b strings.Builder
	for name, p := range f.procs {
		fmt.Fprintf(&b, "--- %s\n%s\n", name, p.log)
	}
	return b.String()
}

// Processes are the pids of what runs below a host's folder: shims and engines.
func (f *Fleet) Processes(kind string) []int {
	return processes(func(args []string, env string) bool {
		return len(args) > 1 && args[1] == kind && (strings.Contains(strings.Join(args, " "), f.dir) || strings.Contains(env, f.mark()))
	})
}

// Engines are the pids of all that runs of the engines, whatever they have started too.
func (f *Fleet) Engines() []int {
	return processes(func(args []string, env string) bool {
		return (len(args) < 2 || args[1] != "shim") && strings.Contains(env, f.mark()) && strings.Contains(env, "MOBULA_TASK=")
	})
}

// mark is in the environment of all that the fleet starts.
func (f *Fleet) mark() string { return "XDG_CONFIG_HOME=" + filepath.Join(f.dir, "config") }

// Engine gives the pid of the process that listens at a replica's URL.
func (f *Fleet) Engine(r control.ReplicaStatus) int {
	f.t.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(r.URL, "http://"))
	require.NoError(f.t, err)
	found := processes(func(args []string, env string) bool {
		joined := strings.Join(args, " ")
		return strings.Contains(env, f.mark()) && strings.Contains(joined, "--port "+port) && strings.Contains(joined, "--host "+host)
	})
	require.Len(f.t, found, 1, "processes of %s", r.ID)
	return found[0]
}

func processes(want func(args []string, env string) bool) []int {
	var found []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil || len(raw) == 0 {
			continue
		}
		env, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "environ"))
		if want(strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00"), string(env)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			found = append(found, pid)
		}
	}
	return found
}

// end stops all, and makes sure that nothing is left.
func (f *Fleet) end() {
	if f.procs["control"] != nil && !f.t.Failed() {
		if _, err := f.TryRun("delete", "--all", "--yes"); err == nil {
			for end := time.Now().Add(f.patience); len(f.Processes("shim"))+len(f.Engines()) > 0; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					f.t.Errorf("engines are left after delete\n%s", f.logs())
					break
				}
			}
		}
	}
	f.client.CloseIdleConnections()
	f.Stop("router")
	for _, h := range f.hosts {
		f.Stop(h.Name)
	}
	f.Stop("control")
	for _, name := range slices.Sorted(maps.Keys(f.procs)) {
		f.Stop(name)
	}
	left := append(f.Processes("shim"), processes(func(_ []string, env string) bool { return strings.Contains(env, f.mark()) })...)
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

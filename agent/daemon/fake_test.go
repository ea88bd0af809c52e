//go:build unix

package daemon

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
)

// deadline is far more than anything here takes: the machine may be busy.
const deadline = 60 * time.Second

const tick = 5 * time.Millisecond

// TestMain has the test binary be the mobula command too: shims, simulated engines, and a daemon to be killed.
func TestMain(m *testing.M) {
	must(os.Setenv("GORACE", "atexit_sleep_ms=0")) // else each process of ours takes a second to end
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "shim":
			must(shim.Run(context.Background(), os.Args[2]))
			return
		case "sim":
			os.Exit(fakeEngine(untilTerm(), os.Args[2:]))
		case "daemon":
			must(fakeDaemon(untilTerm(), os.Args[2], os.Args[3]))
			return
		}
	}
	goleak.VerifyTestMain(m)
}

// untilTerm gives a process's context, until SIGTERM comes.
func untilTerm() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
	}()
	return ctx
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakeEngine is `mobula sim` with faults.
func fakeEngine(ctx context.Context, args []string) int {
	f := flag.NewFlagSet("sim", flag.ExitOnError)
	f.String("model", "", "")
	host, port := f.String("host", "", ""), f.Int("port", 0, "")
	after := f.Duration("ready-after", 0, "/health says 503 before")
	oom := f.Bool("oom", false, "die at once of a lack of memory")
	taken := f.Int("taken", 0, "this port is taken")
	family := f.Bool("family", false, "leave a process in a session of its own")
	busy := f.Bool("busy", false, "a request runs until /finish")
	headless := f.Bool("headless", false, "serve nothing")
	must(f.Parse(args))
	switch {
	case *oom:
		fmt.Println("torch.OutOfMemoryError: CUDA out of memory.")
		return 1
	case *taken == *port:
		fmt.Println("OSError: [Errno 98] Address already in use")
		return 1
	case *family:
		child := exec.Command("sleep", "600")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		must(child.Start())
	}
	if *headless {
		<-ctx.Done()
		return 0
	}
	fmt.Println("engine", os.Getpid(), "env", os.Getenv("MARK"), os.Getenv("HF_HOME"))
	began, sick, finished := time.Now(), make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-sick:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			if time.Since(began) < *after {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}
	})
	mux.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		running := 0
		select {
		case <-finished:
		default:
			if *busy {
				running = 1
			}
		}
		fmt.Println("asked for metrics")
		_, _ = fmt.Fprintf(w, "vllm:num_requests_running %d\nvllm:num_requests_waiting 0\n", running)
	})
	mux.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { close(sick) })
	mux.HandleFunc("/finish", func(http.ResponseWriter, *http.Request) { close(finished) })
	s := &http.Server{Addr: net.JoinHostPort(*host, strconv.Itoa(*port)), Handler: mux, ReadHeaderTimeout: deadline}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	fmt.Println(s.ListenAndServe())
	select {
	case <-finished:
		fmt.Println("had finished")
	default:
	}
	return 0
}

// fakeDaemon serves a daemon until it is stopped or killed, and writes down where.
func fakeDaemon(ctx context.Context, folder, address string) error {
	o := options(folder)
	d, err := New(o)
	if err != nil {
		return err
	}
	d.pace = testPace()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: d.Handler(), ReadHeaderTimeout: deadline}
	go func() { _ = s.Serve(l) }()
	fmt.Println(l.Addr().String())
	err = d.Run(ctx)
	_ = s.Close()
	return err
}

// testPace has no pauses that matter, and patience for a busy machine.
func testPace() pace {
	p := usualPace()
	p.restarts, p.backoff, p.maxBackoff = 3, 200*time.Millisecond, 200*time.Millisecond
	p.look, p.eager, p.calm, p.probe = 20*time.Millisecond, 10*time.Millisecond, 10*time.Millisecond, 20*time.Millisecond
	p.unwell, p.idle, p.partReady = 100*time.Millisecond, deadline, 50*time.Millisecond
	return p
}

func options(folder string) Options {
	return Options{
		Name: "host-1", DataDir: folder, Exe: os.Args[0], Slots: 8, Version: "test", Ports: [2]int{28701, 29699},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// host is a running daemon in this process.
type host struct {
	*Daemon
	folder string
	epoch  int64
	stop   context.CancelFunc
	done   chan error
}

// newFolder gives a data folder, and has the test fail if anything of its tasks runs at its end.
func newFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	t.Cleanup(func() {
		left := tasksIn(t, folder)
		require.NoError(t, shim.SweepStrays(context.Background(), filepath.Join(folder, "tasks"), func(string) bool { return false }))
		dirs, _ := filepath.Glob(filepath.Join(folder, "tasks", "*"))
		for _, d := range dirs {
			shim.Dir(d).Reap()
			_ = shim.Dir(d).Remove(context.Background()) // and its cgroup
		}
		require.Empty(t, left, "processes are left")
	})
	return folder
}

// tasksIn gives the processes that carry the mark of the folder's tasks, with what they run.
func tasksIn(t *testing.T, folder string) []string {
	t.Helper()
	mark := "@" + shim.MarkOf(filepath.Join(folder, "tasks")) + "\x00"
	var all []string
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), mark) {
			what, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			all = append(all, filepath.Base(filepath.Dir(f))+" "+strings.ReplaceAll(string(what), "\x00", " "))
		}
	}
	return all
}

func run(t *testing.T, o Options, change ...func(*pace)) *host {
	t.Helper()
	d, err := New(o)
	require.NoError(t, err)
	d.pace = testPace()
	for _, c := range change {
		c(&d.pace)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := &host{Daemon: d, folder: o.DataDir, stop: cancel, done: make(chan error, 1), epoch: d.wish.Epoch}
	go func() { h.done <- d.Run(ctx) }()
	t.Cleanup(func() { h.leave(t) })
	return h
}

// leave ends the daemon and lets its tasks be.
func (h *host) leave(t *testing.T) {
	t.Helper()
	h.stop()
	select {
	case err := <-h.done:
		require.NoError(t, err)
		h.done <- nil
	case <-time.After(deadline):
		t.Fatal("Run does not return")
	}
}

func (h *host) tell(t *testing.T, tasks ...agent.Task) agent.State {
	t.Helper()
	h.epoch++
	s, err := h.Tell(t.Context(), agent.Wish{Control: "c", Epoch: h.epoch, Tasks: tasks})
	require.NoError(t, err)
	return s
}

// clear ends all tasks and waits for that.
func (h *host) clear(t *testing.T) {
	t.Helper()
	h.tell(t)
	h.wait(t, "no tasks", func(s agent.State) bool { return len(s.Tasks) == 0 })
	require.Empty(t, tasksIn(t, h.folder))
	entries, err := os.ReadDir(filepath.Join(h.folder, "tasks"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

// wait waits by long polls until the state is as wanted.
func (h *host) wait(t *testing.T, what string, ok func(agent.State) bool) agent.State {
	t.Helper()
	return waitFor(t, h, what, ok)
}

func waitFor(t *testing.T, a agent.API, what string, ok func(agent.State) bool) agent.State {
	t.Helper()
	end := time.Now().Add(deadline)
	s, err := a.State(t.Context(), 0, 0)
	for ; time.Now().Before(end); s, err = a.State(t.Context(), s.Seq, time.Second) {
		require.NoError(t, err)
		if ok(s) {
			return s
		}
	}
	t.Fatalf("not %s: %+v", what, s.Tasks)
	return s
}

// is gives a condition on one task.
func is(id string, state agent.TaskState) func(agent.State) bool {
	return func(s agent.State) bool {
		status, ok := find(s, id)
		return ok && status.State == state
	}
}

func find(s agent.State, id string) (agent.TaskStatus, bool) {
	for _, t := range s.Tasks {
		if t.ID == id {
			return t, true
		}
	}
	return agent.TaskStatus{}, false
}

func (h *host) ready(t *testing.T, id string) agent.TaskStatus {
	t.Helper()
	status, _ := find(h.wait(t, id+" ready", is(id, agent.TaskReady)), id)
	return status
}

func simTask(id string, args ...string) agent.Task {
	return agent.Task{
		ID: id, Replica: id, Fleet: "f", Revision: "r1",
		Model: mobula.Model{Name: "m", Engine: mobula.Engine{
			Kind: "sim", Args: args, StopTimeout: mobula.Duration(deadline), StartTimeout: mobula.Duration(10 * time.Minute),
			Env: map[string]string{"MARK": "marked"},
		}},
	}
}

func get(t *testing.T, url string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
}

func logOf(t *testing.T, a agent.API, id string) string {
	t.Helper()
	r, err := a.Logs(t.Context(), id, 1000, false)
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(b)
}

// outside is a daemon in a process of its own.
type outside struct {
	*agent.Client
	cmd *exec.Cmd
}

func runOutside(t *testing.T, folder string) *outside {
	t.Helper()
	cmd := exec.Command(os.Args[0], "daemon", folder, "127.0.0.1:0")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	address, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	o := &outside{agent.NewClient(strings.TrimSpace(address), nil), cmd}
	t.Cleanup(o.kill)
	return o
}

func (o *outside) kill() {
	o.Close()
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
}

//go:build real

package real

import (
	"context"
	"fmt"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/test/fleet"
)

const (
	rayTimesReady  = 10 // times that an engine gets ready
	rayTimesKilled = 2  // times that each of four engines is killed, and each of four actors
	rayTimesRare   = 3  // times of what takes long
	rayTimesIdle   = 30 * time.Second
)

// rayTimes measures how long things take on a real cluster, and prints it; nothing is asserted about it.
type rayTimes struct {
	c      *rayLab
	binary string // as users get it: without the race detector
	names  []string
	taken  map[string][]time.Duration
}

// TestRayTimes prints "measured: NAME p50 X max Y of N" for each duration, and what idle processes take of a core. Times
// of a machine that does something else meanwhile say little.
func TestRayTimes(t *testing.T) {
	if os.Getenv("MOBULA_RAY_TIMES") == "" {
		t.Log("not run: set MOBULA_RAY_TIMES to have times measured")
		return
	}
	m := &rayTimes{c: startRay(t, rayOptions{Workers: 1}), binary: filepath.Join(t.TempDir(), "mobula"), taken: map[string][]time.Duration{}}
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", m.binary, "github.com/mobula-serve/mobula/cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
	defer m.print(t)
	t.Run("idle", m.idle)
	t.Run("apply", m.apply)
	t.Run("ready", m.ready)
	t.Run("killed", m.killed)
	t.Run("node lost", m.nodeLost)
}

func (m *rayTimes) add(name string, d time.Duration) {
	if m.taken[name] == nil {
		m.names = append(m.names, name)
	}
	m.taken[name] = append(m.taken[name], d)
}

func (m *rayTimes) print(t *testing.T) {
	t.Helper()
	for _, name := range m.names {
		all := slices.Sorted(slices.Values(m.taken[name]))
		round := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
		t.Logf("measured: %s p50 %s max %s of %d", name, round(all[len(all)/2]), round(all[len(all)-1]), len(all))
	}
}

// idle tells what control plane and Ray's own processes take of a core while two replicas do nothing.
func (m *rayTimes) idle(t *testing.T) {
	f := m.c.fleet(t, m.binary, m.c.file("", simModel(m.binary, "2", "")))
	f.AwaitReady(fleet.Model, 2)
	f.AwaitServes("chat", f.Ready(fleet.Model)[0].ID)
	machine := newRayNode(t, m.c, "control")
	ours := func() time.Duration { return cpu(machine.processes(program("control"))) }
	dashboard := func() time.Duration {
		return cpu(m.c.head.processes(func(p *rayProcess) bool {
			return strings.Contains(strings.Join(p.argv, " "), "ray-dashboard-") || program("dashboard.py")(p)
		}))
	}
	gcs := func() time.Duration { return cpu(m.c.head.processes(program("gcs_server"))) }
	watch := func(when string, of map[string]func() time.Duration) {
		before, begun := map[string]time.Duration{}, time.Now()
		for name, taken := range of {
			before[name] = taken()
		}
		time.Sleep(rayTimesIdle)
		for name, taken := range of {
			t.Logf("measured: CPU of %s %s %.1f%% of a core over %s", name, when, 100*float64(taken()-before[name])/float64(time.Since(begun)), rayTimesIdle)
		}
	}
	theirs := map[string]func() time.Duration{"Ray's dashboard": dashboard, "Ray's GCS": gcs}
	f.Stop("control")
	watch("without us", theirs)
	f.StartControl()
	f.AwaitReady(fleet.Model, 2)
	theirs["our control plane"] = ours
	watch("with two idle replicas of ours", theirs)
	f.Deleted()
}

// cpu is what processes have taken so far of all cores.
func cpu(processes []rayProcess) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	var ticks int
	for _, p := range processes {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:13] { // utime, stime
			n, _ := strconv.Atoi(field)
			ticks += n
		}
	}
	return time.Duration(ticks) * tick
}

// apply measures from the command to the first answer, on a cluster that has run our launcher before.
func (m *rayTimes) apply(t *testing.T) {
	file := m.c.file("", simModel(m.binary, "1", ""))
	f := m.c.fleet(t, m.binary, file)
	f.AwaitReady(fleet.Model, 1)
	f.Deleted()
	clients := f.watch(1)
	for range rayTimesRare {
		begun := time.Now()
		f.Apply(file)
		m.add("apply -> first answer", clients.first("an answer", begun, func(string) bool { return true }).ended.Sub(begun))
		f.Deleted()
	}
}

// ready measures from an engine's first good /health to the first request that the router sends it.
func (m *rayTimes) ready(t *testing.T) {
	f := m.c.fleet(t, m.binary, m.c.file("", simModel(m.binary, "1", "")))
	f.AwaitReady(fleet.Model, 1)
	clients := f.watch(2)
	for range rayTimesReady {
		known, engines, begun := ids(f.Replicas()), m.c.pids(), time.Now()
		f.Run("scale", fleet.Model, "2")
		healthy := f.firstHealth(engines)
		m.add("scale up -> engine answers /health", healthy.Sub(begun))
		a := clients.first("the new replica", healthy, func(id string) bool { return !slices.Contains(known, id) })
		m.add("engine answers /health -> first request", a.begun.Sub(healthy))
		f.AwaitReady(fleet.Model, 2)
		f.Run("scale", fleet.Model, "1")
		f.Await("one engine is left", func() bool { return len(m.c.pids()) == 1 })
		f.AwaitReady(fleet.Model, 1)
	}
	clients.end()
	f.Deleted()
}

// firstHealth waits until the one engine that is not among those answers /health.
func (f *rayFleet) firstHealth(known []int) (at time.Time) {
	f.t.Helper()
	port := regexp.MustCompile(`--port (\d+)`)
	f.quickly("a new engine answers /health", func() bool {
		for _, n := range f.c.nodes {
			for _, p := range n.processes(isSim) {
				arg := port.FindStringSubmatch(strings.Join(p.argv, " "))
				if slices.Contains(known, p.pid) || arg == nil {
					continue
				}
				status, err := get(f.t.Context(), f.c.client, "http://"+net.JoinHostPort(n.host.IP, arg[1])+"/health")
				at = time.Now()
				return err == nil && status == http.StatusOK
			}
		}
		return false
	})
	return at
}

// killed measures how soon engines that are killed are out of service, and back; each once, for Ray takes its time with
// those that die again and again. Then the same with actors.
func (m *rayTimes) killed(t *testing.T) {
	f := m.c.fleet(t, m.binary, m.c.file("", simModel(m.binary, "4", "")))
	clients := f.watch(2)
	round := func(kill func(r control.ReplicaStatus)) {
		f.Run("scale", fleet.Model, "4")
		f.AwaitReady(fleet.Model, 4)
		for _, victim := range f.Ready(fleet.Model) {
			clients.first(victim.ID, time.Now(), func(id string) bool { return id == victim.ID })
			kill(victim)
		}
		f.AwaitReady(fleet.Model, 4)
		f.Run("scale", fleet.Model, "0")
		f.Await("no engine is left", func() bool { return len(m.c.pids()) == 0 })
	}
	back := func(what string, victim control.ReplicaStatus, begun, gone time.Time) {
		a := clients.first(victim.ID+" again", gone, func(id string) bool { return id == victim.ID })
		m.add(what+" killed -> serves again", a.begun.Sub(begun))
	}
	for range rayTimesKilled {
		quiet := false
		round(func(victim control.ReplicaStatus) {
			quiet = !quiet
			clients.quiet.Store(quiet)
			pid, begun := f.engine(victim).pid, time.Now()
			require.NoError(f.t, syscall.Kill(pid, syscall.SIGKILL))
			f.quickly("it has ended", func() bool { return ended(pid) })
			gone := time.Now()
			f.quickly(victim.ID+" is out of service", func() bool { return !f.inService(victim.ID) })
			m.add(fmt.Sprintf("engine killed -> out of service, %s", map[bool]string{true: "idle", false: "under load"}[quiet]), time.Since(begun))
			clients.quiet.Store(false)
			back("engine", victim, begun, gone)
		})
	}
	for range rayTimesKilled {
		round(func(victim control.ReplicaStatus) {
			engine, actor, begun := f.engine(victim).pid, f.actor(victim).PID, time.Now()
			require.NoError(f.t, syscall.Kill(actor, syscall.SIGKILL))
			f.quickly("its engine has ended", func() bool { return ended(engine) })
			back("actor", victim, begun, time.Now())
		})
	}
	clients.end()
	f.Deleted()
}

// ended tells whether a process has, reaped or not.
func ended(pid int) bool {
	argv, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err != nil || len(argv) == 0
}

// nodeLost measures how soon a lost node's engine is out of service, and another one there in its place.
func (m *rayTimes) nodeLost(t *testing.T) {
	const filler = "filler"
	worker, chat := m.c.nodes[1], simModel(m.binary, "1", "")
	fills := fmt.Sprintf("  - name: %s\n    replicas: 1\n    resources: {gpus: 2, hostLabels: {zone: head}}\n    engine: {kind: sim, command: [%s]}\n", filler, m.binary)
	f := m.c.fleet(t, m.binary, m.c.file("", fills))
	clients := f.watch(1)
	for range rayTimesRare {
		f.AwaitReady(filler, 1)
		f.Apply(m.c.file("", fills, chat))
		f.AwaitReady(fleet.Model, 1)
		victim := f.Ready(fleet.Model)[0]
		require.Equal(t, worker, f.node(victim))
		f.Run("scale", filler, "0") // there is room on the head now
		f.Await("one engine is left", func() bool { return len(m.c.pids()) == 1 })
		clients.first(victim.ID, time.Now(), func(id string) bool { return id == victim.ID })

		raylet, begun := worker.processes(program("raylet"))[0].pid, time.Now()
		require.NoError(t, syscall.Kill(raylet, syscall.SIGKILL))
		f.quickly("its engine is out of service", func() bool { return !f.inService(victim.ID) })
		gone := time.Now()
		m.add("raylet killed -> out of service", gone.Sub(begun))
		a := clients.first("an engine elsewhere", gone, func(string) bool { return true })
		m.add("raylet killed -> serves elsewhere", a.begun.Sub(begun))
		f.Await("its new place", func() bool {
			now := f.Ready(fleet.Model)
			return len(now) == 1 && f.node(now[0]) == m.c.head && now[0].State == mobula.StateReady
		})

		worker.wipe()
		worker.start()
		f.Run("delete", fleet.Model, "--yes")
		f.Await("no engine is left", func() bool { return len(m.c.pids()) == 0 })
		f.Run("scale", filler, "auto")
	}
	clients.end()
	f.Deleted()
}

// quickly waits for a condition, which it looks at often.
func (f *rayFleet) quickly(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(rayPatience); !ok(); time.Sleep(10 * time.Millisecond) {
		require.False(f.t, time.Now().After(end), "not within %s: %s", rayPatience, what)
	}
}

// inService tells whether the router may send requests to a replica.
func (f *rayFleet) inService(id string) bool {
	f.t.Helper()
	return strings.Contains(f.Get("/metrics"), fmt.Sprintf("mobula_router_endpoint_up{endpoint=%q} 1\n", id))
}

// rayClients are clients that ask all the time and note which replicas answer.
type rayClients struct {
	f       *rayFleet
	quiet   atomic.Bool // they ask nothing for now
	end     func()
	mu      sync.Mutex
	answers []rayAnswer // the last ones
}

// rayAnswer is a good answer to a request.
type rayAnswer struct {
	replica      string
	begun, ended time.Time
}

// watch starts n clients, which end with the test at the latest.
func (f *rayFleet) watch(n int) *rayClients {
	ctx, cancel := context.WithCancel(context.Background())
	w := &rayClients{f: f}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				w.ask(ctx, fmt.Sprintf("%d of client %d", k, i))
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	w.end = func() { cancel(); all.Wait() }
	f.t.Cleanup(w.end)
	return w
}

func (w *rayClients) ask(ctx context.Context, prompt string) {
	if w.quiet.Load() {
		return
	}
	begun := time.Now()
	a, err := w.f.Do(ctx, http.MethodPost, "/v1/chat/completions", fmt.Sprintf(`{"model":"chat","messages":[{"role":"user","content":%q}],"max_tokens":1}`, prompt))
	if err != nil || a.Status != http.StatusOK {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 10_000 {
		w.answers = slices.Delete(w.answers, 0, len(w.answers)/2)
	}
	w.answers = append(w.answers, rayAnswer{a.Header.Get("X-Mobula-Endpoint"), begun, time.Now()})
}

// first waits for the first answer of such a replica to a request that was sent after a time.
func (w *rayClients) first(what string, after time.Time, want func(replica string) bool) (found rayAnswer) {
	w.f.t.Helper()
	w.f.quickly(what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.IndexFunc(w.answers, func(a rayAnswer) bool { return a.begun.After(after) && want(a.replica) })
		if i >= 0 {
			found = w.answers[i]
		}
		return i >= 0
	})
	return found
}

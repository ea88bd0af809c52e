//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// small is a running fleet on one host.
type small struct {
	*options
	model                  string
	control, agent, router *proc
	url, trace             string
	client                 *http.Client
}

// ready measures how soon a new engine is used and how soon a dead one is left, and the memory of the parts.
func (o *options) ready() error {
	f := &small{options: o, model: engineModel, trace: filepath.Join(o.dir, "trace"), client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	defer f.end()
	if err := f.begin(); err != nil {
		return err
	}
	load := f.load(8)
	used, err := f.used()
	if err != nil {
		return err
	}
	load.end()
	o.add("engine listens → the router's first request to it", "≤ 100 ms", "%s of %d; %d failed requests beside %d", spread(used), len(used), load.failed(), len(load.all))
	if err := f.dead(); err != nil {
		return err
	}
	f.idle()
	return nil
}

func (f *small) begin() (err error) {
	if f.control, err = f.start("control", "--listen", "127.0.0.1:0", "--data", filepath.Join(f.dir, "control")); err != nil {
		return err
	}
	line, err := f.ctl("token")
	if err != nil {
		return err
	}
	token := ""
	for word := range strings.FieldsSeq(line) {
		if strings.HasPrefix(word, "mobula.") {
			token = word
		}
	}
	f.agent, err = f.start("agent", "--listen", "127.0.0.1:0", "--data", filepath.Join(f.dir, "agent"), "--slots", "64",
		"--name", "bench", "--join", f.control.address(), "--token", token)
	if err != nil {
		return err
	}
	file := filepath.Join(f.dir, "fleet.yaml")
	text := fmt.Sprintf(`apiVersion: mobula/v1
kind: Fleet
platform: {static: {}}
models:
  - name: %s
    replicas: 1
    engine: {command: [%q, engine, %q]}
    resources: {gpus: 0}
`, engineModel, f.self, f.trace)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := f.ctl("apply", "-f", file); err != nil {
		return err
	}
	f.router, err = f.start("router", "--config", filepath.Join(f.dir, "control", "client.json"), "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	f.url = f.router.address()
	return await("an answer", func() bool { return f.ask(context.Background()) == nil })
}

// end stops the fleet with its engines.
func (f *small) end() {
	f.client.CloseIdleConnections()
	if f.agent != nil {
		_, _ = f.ctl("delete", "--all", "--yes")
		_ = await("all engines stopped", func() bool { return len(f.shims()) == 0 })
	}
	f.router.stop()
	f.agent.stop()
	f.control.stop()
}

func (f *small) ask(ctx context.Context) error {
	body := `{"model":"` + f.model + `","messages":[{"role":"user","content":"Are you there?"}],"max_tokens":1}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

// load is clients that ask one after the other.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	all    []asked
}

// asked is one request.
type asked struct {
	at   time.Time
	took time.Duration
	err  error
	cut  bool // it still waited when the load ended
}

func (f *small) load(clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	for range clients {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				a := asked{at: time.Now()}
				a.err = f.ask(ctx)
				a.took = time.Since(a.at)
				if ctx.Err() != nil {
					a.cut, a.err = true, nil
				}
				l.mu.Lock()
				l.all = append(l.all, a)
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) end() {
	l.cancel()
	l.wg.Wait()
}

func (l *load) failed() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.all {
		if a.err != nil {
			n++
		}
	}
	return n
}

// used adds engines one after the other, and gives the times from listening to the first request.
func (f *small) used() ([]time.Duration, error) {
	for n := 2; n <= f.samples+1; n++ {
		if _, err := f.ctl("scale", engineModel, strconv.Itoa(n)); err != nil {
			return nil, err
		}
		if err := await(fmt.Sprintf("a request to engine %d", n), func() bool { return len(f.times()) == n }); err != nil {
			return nil, err
		}
	}
	times := f.times()
	return times[1:], nil // the first engine waited for the router
}

// times reads the trace of the engines, those that have had a request.
func (f *small) times() (all []time.Duration) {
	raw, _ := os.ReadFile(f.trace)
	ready := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue
		}
		at, _ := strconv.ParseInt(words[2], 10, 64)
		if words[0] == "ready" {
			ready[words[1]] = at
		} else {
			all = append(all, time.Duration(at-ready[words[1]]))
		}
	}
	return all
}

// dead kills an engine under load, then stops another one, which stays silent.
func (f *small) dead() error {
	if _, err := f.ctl("scale", engineModel, "4"); err != nil {
		return err
	}
	var ready []control.ReplicaStatus
	err := await("4 replicas", func() bool {
		ready = f.replicas()
		return len(ready) == 4 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.State != mobula.StateReady })
	})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		what, goal string
		signal     syscall.Signal
		watch      time.Duration
	}{
		{"engine killed", "at once", syscall.SIGKILL, 5 * time.Second},
		{"engine silent (SIGSTOP)", "≤ 1 s", syscall.SIGSTOP, 20 * time.Second},
	} {
		victim := ready[0]
		ready = ready[1:]
		pid := engineAt(victim.URL)
		if pid == 0 {
			return fmt.Errorf("no engine at %s", victim.URL)
		}
		load := f.load(8)
		time.Sleep(2 * time.Second)
		at := time.Now()
		if err := syscall.Kill(pid, c.signal); err != nil {
			return err
		}
		out := f.takenOut(victim.ID, at)
		time.Sleep(time.Until(at.Add(c.watch)))
		if c.signal == syscall.SIGSTOP {
			defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
		}
		load.end()
		f.told(load, c.what, c.goal, at)
		f.add(c.what+" → out of service in the router", "", "%s", ms(out))
	}
	return nil
}

// takenOut waits until the router says that an endpoint is not up, and gives the time since then.
func (f *small) takenOut(id string, since time.Time) time.Duration {
	up := fmt.Sprintf("mobula_router_endpoint_up{endpoint=%q} 1\n", id)
	_ = await(id+" out of service", func() bool {
		resp, err := f.client.Get(f.url + "/metrics")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK && !strings.Contains(string(text), up)
	})
	return time.Since(since)
}

// told says what clients saw of an engine's end: the requests that took long were sent to it, so the last one to begin
// tells how long it was asked.
func (f *small) told(l *load, what, goal string, at time.Time) {
	var late, longest time.Duration
	slow, cut := 0, 0
	for _, a := range l.all {
		if a.took < 10*think || a.at.Add(a.took).Before(at) {
			continue
		}
		slow++
		late, longest = max(late, a.at.Sub(at)), max(longest, a.took)
		if a.cut {
			cut++
		}
	}
	f.add(what+" → last request that waited for it", goal, "%s after it; %d waited, at most %s, %d of them for longer than we looked; %d failed, %d were answered",
		ms(max(late, 0)), slow, ms(longest), cut, l.failed(), len(l.all)-cut-l.failed())
}

func (f *small) replicas() (all []control.ReplicaStatus) {
	text, err := f.ctl("get", "replicas", "-o", "json")
	if err == nil {
		_ = json.Unmarshal([]byte(text), &all)
	}
	return all
}

// engineAt finds the process that was told to listen at a URL.
func engineAt(url string) int {
	_, port, err := net.SplitHostPort(strings.TrimPrefix(url, "http://"))
	if err != nil {
		return 0
	}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, _ := os.ReadFile(file)
		args := strings.Split(string(raw), "\x00")
		if i := slices.Index(args, "--port"); i > 1 && i+1 < len(args) && args[i+1] == port && args[1] == "engine" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	return 0
}

// idle tells the memory and the CPU of each part when nobody asks.
func (f *small) idle() {
	parts := []struct {
		name string
		pid  int
	}{{"control plane", f.control.cmd.Process.Pid}, {"agent", f.agent.cmd.Process.Pid}, {"router", f.router.cmd.Process.Pid}}
	if shims := f.shims(); len(shims) > 0 {
		parts = append(parts, struct {
			name string
			pid  int
		}{"shim (one an engine)", shims[0]})
	}
	before := make([]float64, len(parts))
	for i, p := range parts {
		before[i] = cpu(p.pid)
	}
	const watch = 10 * time.Second
	time.Sleep(watch)
	for i, p := range parts {
		f.add("memory and CPU of an idle "+p.name, "", "%s; %.1f %% of a core", mib(p.pid), (cpu(p.pid)-before[i])/watch.Seconds()*100)
	}
}

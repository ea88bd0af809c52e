package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
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
	"time"
)

// workload is what engines and load are started with.
type workload struct {
	name, what string
	mock, load []string
}

func workloads() []workload {
	qaMock := []string{"-n", "4", "-kv-blocks", "4000", "-ttft", "20ms", "-per-token", "50us", "-itl", "5ms", "-slots", "64"}
	qa := []string{"-mode", "qa", "-users", "48", "-rounds", "6", "-sys", "1000", "-hist", "3000", "-tokens", "40", "-rate", "16", "-warm", "9s", "-dur", "24s"}
	return []workload{
		{"short", "200 B chats, not streamed, 32 connections", nil, []string{"-mode", "closed", "-c", "32", "-body", "200", "-tokens", "16", "-warm", "1s", "-dur", "5s"}},
		{"calm", "the same at 100 requests/s: added latency", nil, []string{"-mode", "open", "-rate", "100", "-body", "200", "-tokens", "16", "-warm", "1s", "-dur", "6s"}},
		{"stream", "128-event streams without pauses, 16 connections", nil, []string{"-mode", "closed", "-c", "16", "-body", "200", "-tokens", "128", "-stream", "-warm", "1s", "-dur", "5s"}},
		{"single", "one stream at a time, 32 events 10 ms apart: first chunk", []string{"-itl", "10ms"}, []string{"-mode", "open", "-rate", "2", "-body", "200", "-tokens", "32", "-stream", "-warm", "1s", "-dur", "8s"}},
		{"slow", "1,000 streams at once, an event every 50 ms", []string{"-itl", "50ms"}, []string{"-mode", "closed", "-c", "1000", "-body", "200", "-tokens", "100", "-stream", "-gaps", "-warm", "5500ms", "-dur", "4s"}},
		{"32k", "32 KB prompts, the same one", nil, []string{"-mode", "closed", "-c", "16", "-body", "32768", "-tokens", "16", "-warm", "1s", "-dur", "5s"}},
		{"32k-unique", "32 KB prompts, each unique: cost and memory of a prefix index", nil, []string{"-mode", "closed", "-c", "8", "-body", "32768", "-tokens", "16", "-unique", "-warm", "1s", "-dur", "5s"}},
		{"220k", "220 KB prompts", nil, []string{"-mode", "closed", "-c", "8", "-body", "225280", "-tokens", "16", "-warm", "1s", "-dur", "5s"}},
		{"1m", "1 MB prompts", nil, []string{"-mode", "closed", "-c", "4", "-body", "1048576", "-tokens", "16", "-warm", "1s", "-dur", "5s"}},
		{"qa", "multi-round chats with sessions: prefix hits", qaMock, qa},
		{"qa-anon", "the same without session ids", qaMock, append(slices.Clone(qa), "-anon")},
		{"million", "memory over about a million unique 4 KB prompts, after as many that filled the index", nil, []string{"-mode", "closed", "-c", "32", "-body", "4096", "-tokens", "4", "-unique", "-warm", "45s", "-dur", "45s"}},
	}
}

const everyday = "short,calm,stream,single,slow,32k,32k-unique,220k,1m"

type benchOptions struct {
	peers, workloads, lab, out, mobula string
	reps, base, engines                int
	dur, quietWait                     time.Duration
	pin                                bool
	quiet                              float64
}

func runBench(args []string) error {
	fs := flag.NewFlagSet("bench", flag.ExitOnError)
	var o benchOptions
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	fs.StringVar(&o.peers, "p", "", "peers, comma separated (default: all that are installed, but session and qa-only ones where they say nothing)")
	fs.StringVar(&o.workloads, "w", everyday, "workloads, comma separated, or all")
	fs.StringVar(&o.lab, "lab", filepath.Join(cache, "mobula", "peers"), "folder that test/bench/peers.sh filled")
	fs.StringVar(&o.out, "out", "", "results as JSON lines (default: a temporary file)")
	fs.StringVar(&o.mobula, "mobula", "bin/mobula", "binary under test")
	fs.IntVar(&o.reps, "reps", 1, "repetitions; medians are printed")
	fs.BoolVar(&o.pin, "pin", true, "router on cpu 0, load and engines on cpu 1")
	fs.IntVar(&o.base, "base", 21000, "engine ports start here; routers use base-900")
	fs.IntVar(&o.engines, "engines", 4, "engines")
	fs.DurationVar(&o.dur, "dur", 0, "override the measured time")
	fs.Float64Var(&o.quiet, "quiet", 0.3, "before each run wait until others use fewer cores than this")
	fs.DurationVar(&o.quietWait, "quiet-wait", 10*time.Second, "wait at most this long")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.out == "" {
		o.out = filepath.Join(os.TempDir(), fmt.Sprintf("mobula-bench-%d.jsonl", time.Now().Unix()))
	}
	if o.mobula, err = filepath.Abs(o.mobula); err != nil {
		return err
	}
	if err := o.run(); err != nil {
		return err
	}
	fmt.Println("results:", o.out)
	return runReport([]string{"-in", o.out})
}

func (o *benchOptions) run() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(o.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	v := run{port: o.base - 900, metrics: o.base - 899, self: self, mobula: o.mobula, lab: o.lab}
	for i := range o.engines {
		v.engines = append(v.engines, "127.0.0.1:"+itoa(o.base+i))
	}
	var chosen []peer
	for _, p := range peers() {
		if o.peers != "" && !slices.Contains(strings.Split(o.peers, ","), p.name) {
			continue
		}
		if why := p.absent(v); why != "" {
			fmt.Printf("left out: %s: %s\n", p.name, why)
			continue
		}
		chosen = append(chosen, p)
	}
	for rep := range o.reps {
		for _, w := range workloads() {
			if o.workloads != "all" && !slices.Contains(strings.Split(o.workloads, ","), w.name) {
				continue
			}
			for _, p := range chosen {
				r, err := o.once(p, w, v, rep+1)
				if err != nil {
					fmt.Printf("%-14s %-10s %v\n", p.name, w.name, err)
					continue
				}
				line, err := json.Marshal(r)
				if err != nil {
					return err
				}
				if _, err := f.Write(append(line, '\n')); err != nil {
					return err
				}
				fmt.Printf("%-14s %-10s %7.0f req/s  %.4f ms/req  %5.1f µs/chunk  p50 %.2f p99 %.2f  first %.2f  rss %.0f  err %d %s\n",
					p.name, w.name, r.RPS, r.CPUms, r.CPUusChunk, r.LatP50, r.LatP99, r.FirstP50, r.RSS, r.Errors, r.FirstErr)
			}
		}
	}
	return nil
}

func (o *benchOptions) cpu(c string, argv ...string) []string {
	if o.pin {
		return append([]string{"taskset", "-c", c}, argv...)
	}
	return argv
}

// once measures one peer under one workload.
func (o *benchOptions) once(p peer, w workload, v run, rep int) (*Report, error) {
	dir, err := os.MkdirTemp("", "bench-"+p.name+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	v.dir = dir
	mock, err := start(append(o.cpu("1", v.self, "mock", "-port", itoa(o.base), "-n", itoa(o.engines)), w.mock...), dir, "mock.log")
	if err != nil {
		return nil, err
	}
	defer stop(mock)
	addr, pid := v.engines[0], 0
	if p.command != nil {
		if p.files != nil {
			for name, text := range p.files(v) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					return nil, err
				}
			}
		}
		router, err := start(o.cpu("0", p.command(v)...), dir, "router.log")
		if err != nil {
			return nil, err
		}
		defer stop(router)
		addr, pid = v.addr(), router.Process.Pid
	}
	if !ready(addr) {
		tail, _ := os.ReadFile(filepath.Join(dir, "router.log"))
		return nil, fmt.Errorf("not ready: %s", tail[max(0, len(tail)-400):])
	}
	o.waitQuiet()
	args := append(o.cpu("1", v.self, "load"), w.load...)
	args = append(args, "-addr", addr, "-router-pid", itoa(pid), "-mock-pid", itoa(mock.Process.Pid), "-engines", strings.Join(v.engines, ","), "-seed", itoa(rep))
	if o.dur > 0 {
		args = append(args, "-dur", o.dur.String())
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, err
	}
	r.Peer, r.Workload, r.Rep = p.name, w.name, rep
	return &r, nil
}

// waitQuiet waits, for a while, until others leave the machine alone.
func (o *benchOptions) waitQuiet() {
	const look = 500 * time.Millisecond
	for t := time.Now(); o.quiet > 0 && time.Since(t) < o.quietWait; {
		before := busySeconds()
		time.Sleep(look)
		if (busySeconds()-before)/look.Seconds() < o.quiet {
			return
		}
	}
}

func start(argv []string, dir, logName string) (*exec.Cmd, error) {
	c := exec.Command(argv[0], argv[1:]...)
	lf, err := os.Create(filepath.Join(dir, logName))
	if err != nil {
		return nil, err
	}
	c.Stdout, c.Stderr, c.Dir = lf, lf, dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return c, c.Start()
}

// stop ends the process group that start made.
func stop(c *exec.Cmd) {
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGTERM)
	t := time.AfterFunc(2*time.Second, func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	_ = c.Wait()
	t.Stop()
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
}

func ready(addr string) bool {
	cl := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 240 {
		resp, err := cl.Post("http://"+addr+"/v1/chat/completions", "application/json", bytes.NewReader(chatBody("mock-model", []message{{"user", "hi"}}, false, 1)))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				time.Sleep(500 * time.Millisecond)
				return true
			}
		}
		time.Sleep(250 * time.Millisecond)
	}
	return false
}

// runReport prints medians and ratios as markdown, one table a workload.
func runReport(args []string) error {
	fs := flag.NewFlagSet("report", flag.ExitOnError)
	in := fs.String("in", "results.jsonl", "result file")
	if err := fs.Parse(args); err != nil {
		return err
	}
	b, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	by := map[string]map[string][]Report{}
	var order []string
	d := json.NewDecoder(bytes.NewReader(b))
	for {
		var r Report
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if by[r.Workload] == nil {
			by[r.Workload] = map[string][]Report{}
		}
		by[r.Workload][r.Peer] = append(by[r.Workload][r.Peer], r)
		if !slices.Contains(order, r.Peer) {
			order = append(order, r.Peer)
		}
	}
	for _, w := range workloads() {
		if rows := by[w.name]; rows != nil {
			table(w, rows, order)
		}
	}
	return nil
}

func median(rs []Report, of func(Report) float64) float64 {
	if len(rs) == 0 {
		return 0
	}
	var x []float64
	for _, r := range rs {
		x = append(x, of(r))
	}
	slices.Sort(x)
	return x[len(x)/2]
}

func table(w workload, rows map[string][]Report, order []string) {
	stream := slices.Contains(w.load, "-stream")
	cost := func(r Report) float64 { return r.CPUms * 1000 }
	unit := "CPU µs/request"
	if stream {
		cost, unit = func(r Report) float64 { return r.CPUusChunk }, "CPU µs/chunk"
	}
	fmt.Printf("\n### %s: %s\n\n| peer | %s | ÷ vllm-rr | ÷ haproxy | ÷ nginx | req/s | p50 / p99 ms | first p50 / p99 ms | gap p99 ms | peak MiB | before → after MiB | hit | largest share | errors |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n", w.name, w.what, unit)
	for _, p := range order {
		rs := rows[p]
		if len(rs) == 0 {
			continue
		}
		m := func(of func(Report) float64) float64 { return median(rs, of) }
		ratio := func(peer string) string {
			base := median(rows[peer], cost)
			if base == 0 || p == "direct" {
				return "-"
			}
			return strconv.FormatFloat(m(cost)/base, 'f', 2, 64)
		}
		fmt.Printf("| %s | %.1f | %s | %s | %s | %.0f | %.2f / %.2f | %.2f / %.2f | %.1f | %.0f | %.0f → %.0f | %.3f | %.2f | %.0f |\n", p, m(cost), ratio("vllm-rr"), ratio("haproxy"), ratio("nginx"),
			m(func(r Report) float64 { return r.RPS }), m(func(r Report) float64 { return r.LatP50 }), m(func(r Report) float64 { return r.LatP99 }),
			m(func(r Report) float64 { return r.FirstP50 }), m(func(r Report) float64 { return r.FirstP99 }), m(func(r Report) float64 { return r.GapP99 }),
			m(func(r Report) float64 { return r.RSS }), m(func(r Report) float64 { return r.RSSBefore }), m(func(r Report) float64 { return r.RSSAfter }),
			m(func(r Report) float64 { return r.Hit }), m(func(r Report) float64 {
				if len(r.Share) == 0 {
					return 0
				}
				return slices.Max(r.Share)
			}), m(func(r Report) float64 { return float64(r.Errors) }))
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

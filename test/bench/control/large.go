//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

// large measures a control plane with many hosts and replicas. Hosts are agents in this process that run nothing, each with
// a port and a certificate of its own; the control plane is the real one.
func (o *options) large() error {
	dir := filepath.Join(o.dir, "large")
	p, err := o.start("control", "--listen", "127.0.0.1:0", "--data", dir)
	if err != nil {
		return err
	}
	defer p.stop()
	pid := p.cmd.Process.Pid
	config, err := client.LoadConfig(filepath.Join(dir, "client.json"))
	if err != nil {
		return err
	}
	secure, err := trust.VerifyTLS([]byte(config.CA), trust.RoleControl)
	if err != nil {
		return err
	}
	c := client.New(client.Options{URL: config.URL, Token: config.Token, TLS: secure})
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	began := time.Now()
	token, err := c.Token(ctx)
	if err != nil {
		return err
	}
	hosts, err := joinHosts(ctx, o.hosts, config.URL, token)
	defer func() {
		for _, h := range hosts {
			h.close()
		}
	}()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%d hosts: ", o.hosts)
	o.add(name+"all have joined", "", "%.1f s, %s", time.Since(began).Seconds(), mib(pid))

	all := o.models * o.each
	name = fmt.Sprintf("%d hosts, %d replicas: ", o.hosts, all)
	began, used := time.Now(), cpu(pid)
	if _, err := c.Apply(ctx, []byte(manyModels(o.models, o.each)), "bench", false, false); err != nil {
		return err
	}
	if err := allReady(ctx, c, all); err != nil {
		return err
	}
	o.add(name+"apply → all Ready", "", "%.1f s, %.1f s of CPU, %s", time.Since(began).Seconds(), cpu(pid)-used, mib(pid))

	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var reports atomic.Int64
	if o.reports {
		wg.Go(func() { actAsRouter(ctx, c, &reports) })
	}
	time.Sleep(5 * time.Second)
	used, sent, before := cpu(pid), reports.Load(), rounds(ctx, config.URL, secure)
	time.Sleep(o.steady)
	after := rounds(ctx, config.URL, secure)
	share := (cpu(pid) - used) / o.steady.Seconds() * 100
	o.add(name+"CPU when nothing happens", "< 5 % of a core", "%.1f %% over %s, with %d reports of a router", share, o.steady, reports.Load()-sent)
	if n := after.count - before.count; n > 0 {
		o.add(name+"one round: look, plan, calls", "< 100 ms", "mean %.1f ms of %.0f", (after.sum-before.sum)/n*1000, n)
	}
	o.add(name+"memory", "stated", "%s", mib(pid))

	began = time.Now()
	if err := c.Scale(ctx, modelName(0), o.each+1); err != nil {
		return err
	}
	if err := allReady(ctx, c, all+1); err != nil {
		return err
	}
	o.add(name+"one more → Ready", "", "%s", ms(time.Since(began)))
	return nil
}

func modelName(i int) string { return fmt.Sprintf("org/model-%03d", i) }

func manyModels(models, each int) string {
	var b strings.Builder
	b.WriteString("apiVersion: mobula/v1\nkind: Fleet\nplatform: {static: {}}\nmodels:\n")
	for i := range models {
		fmt.Fprintf(&b, "  - {name: %s, replicas: %d, engine: {kind: sim}}\n", modelName(i), each)
	}
	return b.String()
}

// allReady waits until so many replicas are Ready.
func allReady(ctx context.Context, c *client.Client, n int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for after := int64(0); ; {
		v, err := c.View(ctx, after)
		if err != nil {
			return fmt.Errorf("%d replicas are not ready: %w", n, err)
		}
		after = v.Version
		ready := 0
		for i := range v.Replicas {
			if v.Replicas[i].State == mobula.StateReady {
				ready++
			}
		}
		if ready == n {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // a large view is not to be read all the time
	}
}

// reportEvery is a router's pace with so many endpoints (cmd/app has it).
func reportEvery(endpoints int) time.Duration {
	return min(max(time.Duration(endpoints)*400*time.Microsecond, time.Second), 4*time.Second)
}

// actAsRouter follows the endpoints and reports on them.
func actAsRouter(ctx context.Context, c *client.Client, sent *atomic.Int64) {
	up := make(chan []mobula.Endpoint)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = c.Discoverer().Run(ctx, up) })
	var report mobula.Report
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case all := <-up:
			report = mobula.Report{Router: "bench"}
			models := map[string]bool{}
			for i := range all {
				e := mobula.EndpointReport{ID: all[i].ID, State: "up", InFlight: i % 7, Running: i % 7, KVUsage: .5, PrefillRate: 10_000}
				report.Endpoints = append(report.Endpoints, e)
				for _, m := range all[i].Models {
					models[m] = true
				}
			}
			tick.Reset(reportEvery(len(all)))
			for m := range models {
				report.Models = append(report.Models, mobula.ModelReport{Model: m, Requests: 100, Answered: 100, TTFT50: .1, TTFT90: .2})
			}
		case <-tick.C:
			report.At = time.Now()
			if c.Report(ctx, report) == nil {
				sent.Add(1)
			}
		}
	}
}

// roundsSeen is what the control plane tells of its rounds.
type roundsSeen struct{ count, sum float64 }

func rounds(ctx context.Context, url string, secure *tls.Config) (r roundsSeen) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: secure}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", http.NoBody)
	if err != nil {
		return r
	}
	resp, err := c.Do(req)
	if err != nil {
		return r
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 2 {
			continue
		}
		v, _ := strconv.ParseFloat(words[1], 64)
		switch words[0] {
		case "mobula_control_reconcile_seconds_count":
			r.count = v
		case "mobula_control_reconcile_seconds_sum":
			r.sum = v
		}
	}
	return r
}

package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
)

const (
	engineLogSize = 32 << 20               // bytes, and as much for the older half
	healthPause   = 500 * time.Millisecond // between two looks at starting engines
	healthTimeout = 2 * time.Second
	plainProgress = 30 * time.Second // between two lines of progress where there is no terminal
	engineStop    = 45 * time.Second // vLLM has been seen to need 37 s to go
	restarts      = 5
)

// vllmEngine is one `vllm serve` process of ours.
type vllmEngine struct {
	url     string
	process *engine.Process
	log     *engine.Log
	ready   atomic.Bool // it has been healthy once
}

// plan says which engines to start: with GPUs one for each group of `each` of them, without
// one for each model; n > 0 asks for another number. Models take turns.
func plan(models, gpus []string, each, n int) ([]engine.Serve, error) {
	room := len(models)
	if len(gpus) > 0 {
		if room = len(gpus) / each; room == 0 {
			return nil, fmt.Errorf("an engine with these arguments takes %s, this machine has %d", count(each, "GPU"), len(gpus))
		}
		if n > room {
			return nil, hinted(fmt.Errorf("%s for %s", count(n, "engine"), count(len(gpus), "GPU")), "at most --engines %d", room)
		}
	}
	n = cmp.Or(n, room)
	if n < len(models) {
		return nil, fmt.Errorf("%s need as many engines, there is room for %d", count(len(models), "model"), n)
	}
	all := make([]engine.Serve, n)
	for i := range all {
		all[i].Model = models[i%len(models)]
		if len(gpus) > 0 {
			all[i].Devices = gpus[i*each : (i+1)*each]
		}
	}
	return all, nil
}

// findVLLM gives the path of the vllm command.
func findVLLM(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err == nil {
		return found, nil
	}
	if path != "vllm" {
		return "", fmt.Errorf("--vllm %s: %w", path, err)
	}
	return "", hinted(errors.New("--model needs vLLM, and there is no vllm command on PATH"),
		"install it with `pip install vllm` (or point to it with --vllm PATH); `mobula up` without --model runs simulated engines")
}

// checkEngineArgs refuses arguments that would put an engine where the router does not look.
func checkEngineArgs(args []string) error {
	for _, a := range args {
		flag, _, _ := strings.Cut(a, "=")
		switch strings.ReplaceAll(flag, "_", "-") {
		case "--host", "--port", "--uds":
			return usagef("%s is not for the engine: mobula up chooses where it listens", flag)
		case "--api-key":
			return usagef("%s is not for the engine: put the key into the environment variable VLLM_API_KEY, which the router reads too", flag)
		}
	}
	return nil
}

// startVLLM starts vLLM engines and waits until all are healthy.
func (a *app) startVLLM(ctx context.Context, o upOptions, c *console, logger *slog.Logger) (*engines, error) {
	path, err := findVLLM(o.vllm)
	if err != nil {
		return nil, err
	}
	gpus := gpuList(ctx, "/dev", os.Environ())
	all, err := plan(o.models, gpus, engine.Devices(o.args), o.engines)
	if err != nil {
		return nil, err
	}
	if len(gpus) == 0 {
		c.line("no GPU found: %s on the CPU", count(len(all), "engine"))
	}
	logs, err := logFolder()
	if err != nil {
		return nil, err
	}
	ports, err := claimPorts(ctx, len(all), logs)
	if err != nil {
		return nil, err
	}
	set := newEngines(ctx, "vLLM engine")
	var starting []*vllmEngine
	died := make(chan error, 1)
	for i, s := range all {
		s.Path, s.Host, s.Port, s.Args = path, loopback, ports[i].number, o.args
		e, err := newVLLMEngine(s, logs, c, logger, forced(ctx), died)
		if err != nil {
			set.stop()
			releaseAll(ports[i:])
			return nil, err
		}
		starting = append(starting, e)
		set.add(endpointOf(e.url), func(ctx context.Context) error {
			defer ports[i].release()
			defer func() { _ = e.log.Close() }()
			return e.process.Run(ctx)
		})
		where := "CPU"
		if s.Devices != nil {
			where = "GPU " + strings.Join(s.Devices, ",")
		}
		c.line("%s: vllm serve %s on %s, log %s", e.url, s.Model, where, e.log.Path())
	}
	if err := waitHealthy(ctx, starting, c, died, o.startTimeout); err != nil {
		if ctx.Err() != nil {
			c.line("stopping %s", count(len(all), set.kind))
		}
		set.stop()
		return nil, err
	}
	return set, nil
}

// newVLLMEngine prepares an engine. One that ends before it has ever been healthy is
// reported on died: what is wrong then is mostly an argument, which no restart mends.
func newVLLMEngine(s engine.Serve, logs string, c *console, logger *slog.Logger, kill <-chan struct{}, died chan<- error) (*vllmEngine, error) {
	log, err := engine.OpenLog(filepath.Join(logs, "vllm-"+strconv.Itoa(s.Port)+".log"), engineLogSize)
	if err != nil {
		return nil, err
	}
	e := &vllmEngine{url: "http://" + s.Addr(), log: log}
	argv, env := s.Command(os.Environ())
	e.process = engine.NewProcess(engine.ProcessOptions{
		Name: s.Addr(), Argv: argv, Env: env, Output: log,
		StopTimeout: engineStop, Restarts: restarts, Kill: kill, Logger: logger,
		Exited: func(exit engine.Exit) {
			for _, l := range exit.Tail[max(0, len(exit.Tail)-15):] {
				c.line("  %s %s", c.dim("|"), printable(l, 500))
			}
			c.line("%s ended: %v (log %s)", e.url, exit.Err, log.Path())
			switch {
			case !e.ready.Load():
				select {
				case died <- fmt.Errorf("the engine at %s ended before it was ready: %w", e.url, exit.Err):
				default: // another one was first
				}
			case exit.Restart:
				c.line("%s starts again in %s", e.url, exit.Backoff)
			default:
				c.line("%s has died too often and stays down", e.url)
			}
		},
	})
	return e, nil
}

// waitHealthy waits until all engines answer on /health.
func waitHealthy(ctx context.Context, all []*vllmEngine, c *console, died <-chan error, timeout time.Duration) error {
	client := &http.Client{Timeout: healthTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	began, said := time.Now(), time.Now()
	tick := time.NewTicker(healthPause)
	defer tick.Stop()
	for waiting := slices.Clone(all); ; {
		waiting = slices.DeleteFunc(waiting, func(e *vllmEngine) bool {
			if !healthy(ctx, client, e.url) {
				return false
			}
			e.ready.Store(true)
			c.line("%s is ready after %s", e.url, time.Since(began).Round(time.Second))
			return true
		})
		if len(waiting) == 0 {
			return nil
		}
		elapsed := time.Since(began)
		if elapsed > timeout {
			return hinted(fmt.Errorf("%s not ready after %s", count(len(waiting), "engine"), timeout), "see %s, or wait longer with --start-timeout", waiting[0].log.Path())
		}
		state := fmt.Sprintf("waiting for %s, %s", count(len(waiting), "engine"), elapsed.Round(time.Second))
		if last := waiting[0].process.Tail(); len(last) > 0 {
			state += ": " + last[len(last)-1]
		}
		c.progress(state)
		if !c.terminal && time.Since(said) > plainProgress {
			said = time.Now()
			c.line("%s", printable(state, 200))
		}
		select {
		case <-tick.C:
		case err := <-died:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func healthy(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/health", http.NoBody)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	return resp.StatusCode == http.StatusOK
}

// endpointOf describes an engine of ours. vLLM takes its key from VLLM_API_KEY, and so does the router.
func endpointOf(url string) mobula.StaticEndpoint {
	const key = "VLLM_API_KEY"
	e := mobula.StaticEndpoint{URL: url}
	if os.Getenv(key) != "" {
		e.APIKeyEnv = key
	}
	return e
}

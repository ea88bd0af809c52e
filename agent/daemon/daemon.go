//go:build unix

// Package daemon is the agent of a host: it runs the tasks that a control plane wishes, each under a shim
// (agent/shim) that outlives it, and tells how they fare.
//
// Its folder:
//
//	lock        held while a daemon runs
//	wish.json   the last Wish
//	tasks/ID/   a task's folder, as agent/shim has it
//	models/     what engines download (HF_HOME)
package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
	"github.com/mobula-serve/mobula/engine"
)

// ErrTaken is returned when another agent has the folder.
var ErrTaken = errors.New("another agent runs there")

// Ports that engines get unless Options say otherwise.
const (
	firstPort = 8701
	lastPort  = 9699
)

// stopAllMargin is what a stop of all tasks may take beyond the longest StopTimeout.
const stopAllMargin = 30 * time.Second

// Options set up a Daemon.
type Options struct {
	// Name of the host in the fleet. Required.
	Name string
	// DataDir is the agent's folder, made if needed. Required.
	DataDir string
	// Exe is the mobula command, which runs shims and simulated engines. Default: this executable.
	Exe string
	// Control is the control plane that the host has joined; wishes of others are refused. Default: that of the first wish.
	Control string
	// GPUs finds the host's devices; asked every ten seconds. Default: none.
	GPUs func(context.Context) ([]mobula.Device, error)
	// Slots is how many engines without a GPU the host may run.
	Slots int
	// Labels of the host.
	Labels map[string]string
	// Host is the address where engines listen and are reached. Default 127.0.0.1.
	Host string
	// Ports is the first and the last port for engines. Default 8701 to 9699.
	Ports [2]int
	// Fetch brings files to the host and gives their path. Default: none can be brought.
	Fetch func(ctx context.Context, source string) (string, error)
	// Lifeline has all tasks end with Run, or with this process. Default: they run on, and the next daemon adopts them.
	Lifeline bool
	// Environ is what shims and engines inherit, as os.Environ gives it. Default: this process's.
	Environ []string
	// Version of mobula, shown with the host.
	Version string
	// Logger. Default: none.
	Logger *slog.Logger
	// Registerer of metrics. Default: none.
	Registerer prometheus.Registerer
}

func (o *Options) complete() error {
	if o.Name == "" || o.DataDir == "" {
		return errors.New("an agent needs a name and a data folder")
	}
	var err error
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return err
	}
	if o.Exe == "" {
		if o.Exe, err = os.Executable(); err != nil {
			return fmt.Errorf("find the mobula command: %w", err)
		}
	}
	o.Host = cmp.Or(o.Host, "127.0.0.1")
	if o.Ports == [2]int{} {
		o.Ports = [2]int{firstPort, lastPort}
	}
	if o.Ports[0] < 1 || o.Ports[1] > 65535 || o.Ports[0] > o.Ports[1] {
		return fmt.Errorf("engines' ports %d to %d: want a range within 1 to 65535", o.Ports[0], o.Ports[1])
	}
	if o.GPUs == nil {
		o.GPUs = func(context.Context) ([]mobula.Device, error) { return nil, nil }
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Daemon is the agent of one host. It is an agent.API for control planes in the same process, and Handler is one over HTTP.
type Daemon struct {
	o        Options
	pace     pace
	instance string
	client   *engine.Client
	metrics  *metrics
	lock     *os.File
	// The lifeline's reading end goes to shims; it ends when the writing end, ours alone, is closed.
	lifeline, cut *os.File
	wake          chan struct{} // for Run: there are new tasks

	telling sync.Mutex // one Wish at a time

	mu      sync.Mutex
	wish    agent.Wish
	tasks   map[string]*task
	devices []mobula.Device
	seq     int64
	changed chan struct{}
}

// New takes the agent's folder and reads what is wished. Run must be called then: it gives the folder back.
// It fails with ErrTaken when another agent has the folder.
func New(o Options) (*Daemon, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	d := &Daemon{
		o: o, pace: usualPace(),
		instance: strconv.FormatInt(time.Now().UnixNano(), 36),
		client:   engine.NewClient(engine.Options{Timeout: healthTimeout}),
		metrics:  newMetrics(o.Registerer),
		wake:     make(chan struct{}, 1),
		tasks:    map[string]*task{},
		changed:  make(chan struct{}),
		seq:      1,
	}
	if err := os.MkdirAll(d.tasksFolder(), 0o700); err != nil {
		return nil, fmt.Errorf("the agent's folder: %w", err)
	}
	var err error
	d.lock, err = shim.Lock(filepath.Join(o.DataDir, "lock"))
	if errors.Is(err, shim.ErrRunning) {
		return nil, fmt.Errorf("%s: %w", o.DataDir, ErrTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("the agent's lock: %w", err)
	}
	if o.Lifeline {
		if d.lifeline, d.cut, err = os.Pipe(); err != nil {
			d.release()
			return nil, fmt.Errorf("lifeline: %w", err)
		}
	}
	if err := d.load(); err != nil {
		d.release()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) release() {
	for _, f := range []*os.File{d.cut, d.lifeline, d.lock} {
		if f != nil {
			_ = f.Close()
		}
	}
	d.mu.Lock()
	for _, t := range d.tasks {
		t.claim.release()
	}
	d.mu.Unlock()
	d.client.Close()
}

func (d *Daemon) tasksFolder() string { return filepath.Join(d.o.DataDir, "tasks") }
func (d *Daemon) wishPath() string    { return filepath.Join(d.o.DataDir, "wish.json") }

// load makes the tasks of the last wish, and those that have a folder, for which nothing is wished any more.
func (d *Daemon) load() error {
	b, err := os.ReadFile(d.wishPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("what was wished last: %w", err)
	default:
		err := json.Unmarshal(b, &d.wish)
		if err == nil {
			err = d.wish.Check()
		}
		if err != nil {
			return fmt.Errorf("what was wished last: %s: %w (without the file the agent starts, stops all engines and waits for a wish)", d.wishPath(), err)
		}
	}
	if d.o.Control != "" && d.wish.Control != "" && d.wish.Control != d.o.Control {
		d.o.Logger.Warn("host has joined another control plane, the tasks of the former one are stopped",
			"former", d.wish.Control, "control", d.o.Control)
		d.wish = agent.Wish{}
	}
	folders, err := os.ReadDir(d.tasksFolder())
	if err != nil {
		return fmt.Errorf("the tasks' folders: %w", err)
	}
	for _, f := range folders {
		if f.IsDir() {
			t := newTask(d, f.Name())
			t.adopt()
			d.tasks[t.id] = t
		}
	}
	d.converge()
	return nil
}

// converge tells each task whether it is wished; unknown ones begin. Its caller holds mu, or is alone.
func (d *Daemon) converge() {
	for _, t := range d.tasks {
		t.want = nil
	}
	for i := range d.wish.Tasks {
		want := &d.wish.Tasks[i]
		t := d.tasks[want.ID]
		if t == nil {
			t = newTask(d, want.ID)
			d.tasks[want.ID] = t
		}
		t.want, t.draining = want, want.Draining
	}
	for _, t := range d.tasks {
		t.poke()
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run keeps the tasks as wished until ctx ends. With a lifeline it then stops them all; without, they run on. It returns
// when all that it started has ended, nil unless the devices or tasks of the host can't be handled at all.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.release()
	if err := shim.SweepStrays(ctx, d.tasksFolder(), d.hasFolder); err != nil && ctx.Err() == nil {
		d.o.Logger.Warn("processes of tasks without a folder are left", "cause", err)
	}
	var running sync.WaitGroup
	running.Go(func() { d.watchDevices(ctx) })
	for ctx.Err() == nil {
		for _, t := range d.unstarted() {
			running.Go(func() { t.run(ctx) })
		}
		select {
		case <-ctx.Done():
		case <-d.wake:
		}
	}
	running.Wait()
	if d.o.Lifeline {
		d.stopAll(context.WithoutCancel(ctx))
	}
	return nil
}

func (d *Daemon) hasFolder(task string) bool {
	_, err := os.Stat(filepath.Join(d.tasksFolder(), task))
	return err == nil
}

// unstarted gives the tasks that nobody runs yet, once each.
func (d *Daemon) unstarted() []*task {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*task
	for _, t := range d.tasks {
		if !t.started {
			t.started = true
			all = append(all, t)
		}
	}
	return all
}

// stopAll ends all tasks at once: those with a lifeline end with this daemon.
func (d *Daemon) stopAll(ctx context.Context) {
	d.mu.Lock()
	all := make([]*task, 0, len(d.tasks))
	longest := time.Duration(0)
	for _, t := range d.tasks {
		all = append(all, t)
		longest = max(longest, t.stopTimeout())
	}
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, longest+stopAllMargin)
	defer cancel()
	var stopping sync.WaitGroup
	for _, t := range all {
		stopping.Go(func() { t.end(ctx, false) })
	}
	stopping.Wait()
}

// forget ends the life of a task that is gone, unless it is wished again meanwhile.
func (d *Daemon) forget(t *task) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.want != nil {
		return false
	}
	t.claim.release()
	delete(d.tasks, t.id)
	d.bump()
	return true
}

var _ agent.API = (*Daemon)(nil)

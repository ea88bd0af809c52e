//go:build unix

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
	"github.com/mobula-serve/mobula/engine"
)

const (
	healthTimeout = 2 * time.Second
	stopMargin    = 15 * time.Second // beyond the stop timeout, for a shim that hangs
	reasonLines   = 40
)

// pace holds the times of a task's life; tests have shorter ones.
type pace struct {
	restarts            int           // in a row, then the task has failed
	newRestarts         int           // the same for an engine that has never been ready
	backoff, maxBackoff time.Duration // before restarts, and between attempts to start a shim
	stable              time.Duration // a run of this length ends the row
	look                time.Duration // between looks at a shim
	eager, calm         time.Duration // between probes of an engine that starts: at first, later
	eagerFor            time.Duration
	probe               time.Duration // between probes of an engine that is ready
	unwell              time.Duration // /health may say 503 for so long
	idle                time.Duration // an engine that was not drained is given so long to finish
	partReady           time.Duration // a part that does not serve is ready after so long
}

func usualPace() pace {
	return pace{
		restarts: 5, newRestarts: 2, backoff: time.Second, maxBackoff: 30 * time.Second, stable: 10 * time.Minute,
		look: 200 * time.Millisecond, eager: 25 * time.Millisecond, calm: 50 * time.Millisecond, eagerFor: 10 * time.Second,
		probe: time.Second, unwell: 15 * time.Second, idle: 5 * time.Second, partReady: time.Second,
	}
}

// task is one task and what runs of it. One goroutine, run, has it; others see only what mu guards.
type task struct {
	d      *Daemon
	id     string
	dir    shim.Dir
	logger *slog.Logger
	wake   chan struct{}

	// Guarded by d.mu.
	want     *agent.Task // nil when it is not wished
	draining bool        // as it was wished last
	port     int
	claim    claim // of port
	status   agent.TaskStatus
	started  bool // its goroutine

	// The goroutine's own.
	as       *agent.Task // what was started last, nil for nothing
	pid      int         // of the engine that was looked at last
	probed   time.Time
	sick     time.Time // since when /health says 503
	attempts int       // to start a shim, in a row
	lost     int       // shims
	ports    int       // that were taken, in a row
	restarts int       // of the shim that was looked at last
}

func newTask(d *Daemon, id string) *task {
	return &task{
		d: d, id: id, dir: shim.Dir(filepath.Join(d.tasksFolder(), id)),
		logger: d.o.Logger.With("task", id), wake: make(chan struct{}, 1),
		status: agent.TaskStatus{ID: id, State: agent.TaskStarting, Since: time.Now()},
	}
}

// poke has run look at the wish.
func (t *task) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// sleep waits, or until the wish may have changed.
func (t *task) sleep(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-t.wake:
	case <-timer.C:
	}
}

// wanted gives the wish for the task, nil for none.
func (t *task) wanted() *agent.Task {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	return t.want
}

// stopTimeout needs d.mu.
func (t *task) stopTimeout() time.Duration {
	if t.want == nil {
		return stopTimeout
	}
	return stopTimeoutOf(t.want)
}

// run keeps the task as wished until it is gone or ctx ends.
func (t *task) run(ctx context.Context) {
	for ctx.Err() == nil {
		want, pause := t.wanted(), time.Duration(0)
		switch {
		case want == nil:
			if t.end(ctx, true) && t.d.forget(t) {
				return
			}
			pause = t.d.pace.look
		case t.as == nil:
			pause = t.start(ctx, want)
		case !same(t.as, want):
			if !t.end(ctx, false) {
				pause = t.d.pace.look
			}
		default:
			t.as = want
			pause = t.look(ctx)
		}
		if pause > 0 {
			t.sleep(ctx, pause)
		}
	}
}

// adopt takes over what runs in the folder, or has failed there for good. It only reads, before anybody else
// knows the task. What it can't read is as good as nothing: start and end kill it.
func (t *task) adopt() {
	r, err := readRecord(t.dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.logger.Warn("task's folder can't be read", "cause", err)
		}
		return
	}
	t.port = r.Port
	t.claim, _ = claimPort(context.Background(), t.d.o.Host, r.Port)
	alive := t.dir.Alive()
	st, err := t.dir.Status()
	if !alive && (err != nil || st.State != shim.Failed) {
		return
	}
	t.as, t.draining = &r.Task, r.Task.Draining
	t.status = t.described(t.status, t.as)
	t.status.Restarts, t.restarts = st.Restarts, st.Restarts
	if alive && t.wasReady(st) {
		t.pid = st.PID
		t.status.State, t.status.PID, t.status.Since = agent.TaskReady, st.PID, time.Now()
	}
	t.logger.Info("task adopted", "running", alive)
}

// readiness is kept beside the shim's files: an engine that was ready is so for the next daemon at once.
type readiness struct {
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
}

func (t *task) readyPath() string { return filepath.Join(string(t.dir), "ready.json") }

func (t *task) wasReady(st shim.Status) bool {
	var r readiness
	b, err := os.ReadFile(t.readyPath())
	return err == nil && json.Unmarshal(b, &r) == nil && st.State == shim.Running && st.PID > 0 && r.PID == st.PID && r.Started.Equal(st.Started)
}

// everReady tells whether an engine of this start of the task has been ready.
func (t *task) everReady() bool {
	_, err := os.Stat(t.readyPath())
	return !errors.Is(err, fs.ErrNotExist)
}

// start starts a shim. It gives the pause until the next look.
func (t *task) start(ctx context.Context, want *agent.Task) time.Duration {
	port, err := t.d.choosePort(ctx, t, false)
	if err == nil {
		err = t.startShim(ctx, want, port)
	}
	if errors.Is(err, shim.ErrRunning) {
		err = errors.Join(err, t.dir.Kill(ctx)) // nobody knows what it runs
	}
	if ctx.Err() != nil {
		return 0
	}
	t.describe(want)
	if err != nil {
		err = diskError(err)
		t.logger.Warn("task can't be started", "cause", err)
		t.publish(func(s *agent.TaskStatus) { s.State, s.Reason, s.PID = agent.TaskWaiting, err.Error(), 0 })
		t.attempts++
		return t.backoff(t.attempts)
	}
	t.logger.Info("task started", "model", want.Model.Name, "revision", want.Revision, "port", port, "devices", want.Devices)
	t.attempts, t.as, t.pid, t.restarts, t.ports = 0, want, 0, 0, 0
	t.sick, t.probed = time.Time{}, time.Time{}
	t.publish(func(s *agent.TaskStatus) { s.State, s.Reason = agent.TaskStarting, "" })
	return t.d.pace.eager
}

func (t *task) startShim(ctx context.Context, want *agent.Task, port int) error {
	st, err := t.d.shimTask(want, port)
	if err != nil {
		return err
	}
	if err := os.Remove(t.readyPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.dir.Start(ctx, st, shim.StartOptions{Exe: t.d.o.Exe, Environ: t.d.o.Environ, Lifeline: t.d.lifeline})
}

func (t *task) backoff(attempts int) time.Duration {
	return min(t.d.pace.backoff<<min(attempts-1, 16), t.d.pace.maxBackoff)
}

// describe fills in what the status says of the task itself.
func (t *task) describe(as *agent.Task) {
	t.publish(func(s *agent.TaskStatus) { *s = t.described(*s, as) })
}

// described needs d.mu, but for adopt.
func (t *task) described(s agent.TaskStatus, as *agent.Task) agent.TaskStatus {
	if s.Revision != as.Revision || s.Round != as.Round {
		s.State, s.Reason, s.Restarts = agent.TaskStarting, "", 0
	}
	s.Replica, s.Fleet, s.Model, s.Revision, s.Round = as.Replica, as.Fleet, as.Model.Name, as.Revision, as.Round
	s.Devices, s.URL = slices.Clone(as.Devices), ""
	if as.Rank == 0 && t.port != 0 {
		s.URL = t.url()
	}
	return s
}

// url needs d.mu.
func (t *task) url() string {
	return "http://" + net.JoinHostPort(t.d.o.Host, strconv.Itoa(t.port))
}

func (t *task) endpoint() mobula.Endpoint {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	return mobula.Endpoint{ID: t.id, URL: t.url()}
}

// publish changes the status and tells those who wait, if it is another one then.
func (t *task) publish(change func(*agent.TaskStatus)) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	before := t.status
	change(&t.status)
	if t.status.State != before.State {
		t.status.Since = time.Now()
	}
	t.d.metrics.restarts.Add(float64(max(0, t.status.Restarts-before.Restarts)))
	if !equal(before, t.status) {
		t.d.bump()
	}
}

func equal(a, b agent.TaskStatus) bool {
	devices := slices.Equal(a.Devices, b.Devices)
	return devices && a.ID == b.ID && a.Replica == b.Replica && a.Fleet == b.Fleet && a.Model == b.Model && a.Revision == b.Revision &&
		a.Round == b.Round && a.State == b.State && a.Reason == b.Reason && a.URL == b.URL && a.Restarts == b.Restarts && a.PID == b.PID
}

// late fails a task whose engine does not get ready in time.
func (t *task) late(ctx context.Context) time.Duration {
	reason := "not ready after " + startTimeoutOf(t.as).String()
	if line := engine.FailureReason(lastLines(t.dir.LogPath(), reasonLines)); line != "" {
		reason += ": " + line
	}
	return t.fail(ctx, reason)
}

// fail stops the engine for good.
func (t *task) fail(ctx context.Context, reason string) time.Duration {
	t.logger.Warn("task has failed", "cause", reason)
	if !t.stopShim(ctx, t.as) {
		return t.d.pace.look
	}
	if err := t.dir.Fail(reason); err != nil {
		t.logger.Warn("failure of the task is not kept", "cause", err)
	}
	st, _ := t.dir.Status()
	return t.ended(shim.Status{State: shim.Failed, Reason: reason, Restarts: st.Restarts})
}

// end stops what runs of the task, and with remove takes its folder away. It tells whether nothing is left.
func (t *task) end(ctx context.Context, remove bool) bool {
	as := t.as
	if as == nil {
		as = &agent.Task{ID: t.id}
	}
	serving := t.isServing()
	if t.dir.Alive() {
		t.publish(func(s *agent.TaskStatus) { s.State, s.Reason = agent.TaskStopping, "" })
		if serving && as.Rank == 0 {
			t.waitIdle(ctx)
		}
	}
	if !t.stopShim(ctx, as) {
		return false
	}
	if remove {
		if err := t.dir.Remove(ctx); err != nil {
			t.logger.Warn("task's folder is not removed", "cause", err)
			return false
		}
	}
	if t.as != nil {
		t.logger.Info("task stopped")
	}
	t.as, t.lost = nil, 0
	return true
}

// waitIdle waits a while until the engine has no request any more.
func (t *task) waitIdle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, t.d.pace.idle)
	defer cancel()
	for {
		m, err := t.d.client.Metrics(ctx, t.endpoint())
		if err != nil || m.Running+m.Waiting == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(t.d.pace.eager):
		}
	}
}

// stopShim stops the shim and waits for it; one that hangs is killed. It tells whether nothing is left.
func (t *task) stopShim(ctx context.Context, as *agent.Task) bool {
	deadline := time.NewTimer(stopTimeoutOf(as) + stopMargin)
	defer deadline.Stop()
	for told := false; t.dir.Alive(); {
		// A second signal would kill, and a daemon before this one may have sent the first.
		if st, err := t.dir.Status(); !told && (err != nil || st.State == shim.Running || st.State == shim.Waiting) {
			if err != nil || t.dir.Stop() != nil {
				return t.killShim(ctx)
			}
			told = true
		}
		select {
		case <-ctx.Done():
			return false
		case <-deadline.C:
			t.logger.Warn("shim did not stop in time, it is killed")
			return t.killShim(ctx)
		case <-time.After(t.d.pace.eager / 4):
		}
	}
	t.dir.Reap()
	return true
}

func (t *task) killShim(ctx context.Context) bool {
	err := t.dir.Kill(ctx)
	if err != nil {
		t.logger.Warn("task is not killed", "cause", fmt.Errorf("%s: %w", t.id, err))
	}
	return err == nil
}

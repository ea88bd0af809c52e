//go:build unix

package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
	"github.com/mobula-serve/mobula/engine"
)

// coreDead is what vLLM's /health says when its engine core is.
const coreDead = http.StatusServiceUnavailable

// maxPorts is how many other ports in a row an engine gets whose port is taken.
const maxPorts = 10

// look sees how the shim and the engine fare, and gives the pause until the next look.
func (t *task) look(ctx context.Context) time.Duration {
	alive := t.dir.Alive() // before the status: that of a dead shim is final
	st, err := t.dir.Status()
	switch {
	case !alive:
		return t.ended(st)
	case err != nil:
		return t.d.pace.eager // it is being written for the first time
	}
	if st.Restarts != t.restarts || st.State == shim.Waiting {
		t.pid = 0
	}
	switch st.State {
	case shim.Running:
		if st.PID == 0 {
			return t.d.pace.eager
		}
		return t.watch(ctx, st)
	case shim.Waiting:
		t.publish(func(s *agent.TaskStatus) {
			s.State, s.Reason, s.Restarts, s.PID = agent.TaskWaiting, st.Reason, t.lost+st.Restarts, 0
		})
		if st.Restarts != t.restarts && engine.AddressInUse(st.Reason) {
			t.movePort(ctx)
		}
		t.restarts = st.Restarts
		if t.hopeless(&st) {
			return t.fail(ctx, st.Reason)
		}
		return t.d.pace.eager
	default: // it is about to end
		return t.d.pace.eager
	}
}

// hopeless tells whether an engine has died so early and so often that its next start would do the same: what is wrong with
// a new revision should be known in seconds. The parts of an engine of several die of each other, and a port
// that was taken is not the engine's fault.
func (t *task) hopeless(st *shim.Status) bool {
	return st.Restarts > t.d.pace.newRestarts && t.as.Parts <= 1 && !engine.AddressInUse(st.Reason) && !t.everReady()
}

// ended handles a shim that is no more, although its task is wished.
func (t *task) ended(st shim.Status) time.Duration {
	t.dir.Reap()
	if st.State == shim.Failed {
		t.publish(func(s *agent.TaskStatus) {
			s.State, s.Reason, s.Restarts, s.PID = agent.TaskFailed, st.Reason, t.lost+st.Restarts, 0
		})
		return time.Hour // until the wish changes
	}
	reason := "its supervisor was killed"
	if st.State == shim.Ended || st.State == shim.Stopping {
		reason = "it was stopped by somebody else"
	}
	t.logger.Warn("task has lost its shim and starts again", "cause", reason)
	t.lost += st.Restarts + 1
	t.as = nil
	t.publish(func(s *agent.TaskStatus) { s.State, s.Reason, s.Restarts, s.PID = agent.TaskWaiting, reason, t.lost, 0 })
	return t.backoff(1)
}

// movePort has the next start of the engine use another port, for this one is taken. Where all ports fail
// the bound on restarts ends it.
func (t *task) movePort(ctx context.Context) {
	if t.ports++; t.ports > maxPorts {
		return
	}
	port, err := t.d.choosePort(ctx, t, true)
	if err != nil {
		t.logger.Warn("engine's port is taken, and there is no other", "cause", err)
		return
	}
	st, err := t.d.shimTask(t.as, port)
	if err == nil {
		err = t.dir.SetTask(st)
	}
	if err != nil {
		t.logger.Warn("engine's port is taken, another one can't be set", "cause", err)
		return
	}
	t.logger.Info("engine's port was taken, it gets another one", "port", port)
	t.describe(t.as)
}

// watch looks at an engine whose process runs.
func (t *task) watch(ctx context.Context, st shim.Status) time.Duration {
	if t.pid != st.PID {
		t.pid, t.sick, t.probed = st.PID, time.Time{}, time.Time{}
		t.restarts = st.Restarts
		t.publish(func(s *agent.TaskStatus) {
			s.State, s.Reason, s.Restarts, s.PID = agent.TaskStarting, "", t.lost+st.Restarts, st.PID
		})
	}
	age := time.Since(st.Started)
	ready := t.isReady()
	switch {
	case ready && (t.as.Rank > 0 || time.Since(t.probed) < t.d.pace.probe):
		return t.d.pace.look
	case t.as.Rank > 0:
		if age < t.d.pace.partReady {
			return t.d.pace.eager
		}
		t.ready(st)
		return t.d.pace.look
	}
	t.probed = time.Now()
	err := t.d.client.Health(ctx, t.endpoint())
	switch {
	case ctx.Err() != nil:
		return 0
	case ready:
		t.tend(err)
		return t.d.pace.look
	case err == nil:
		t.ready(st)
		return t.d.pace.look
	case age > startTimeoutOf(t.as):
		return t.late(ctx)
	case age > t.d.pace.eagerFor:
		return t.d.pace.calm
	}
	return t.d.pace.eager
}

func (t *task) isReady() bool {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	return t.status.State == agent.TaskReady
}

// isServing tells whether the engine may have requests.
func (t *task) isServing() bool {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	return t.status.State == agent.TaskReady && !t.draining
}

func (t *task) ready(st shim.Status) {
	t.ports = 0
	if b, err := json.Marshal(readiness{st.PID, st.Started}); err == nil {
		if err := shim.WriteFile(t.readyPath(), b, false); err != nil {
			t.logger.Warn("readiness is not kept", "cause", err)
		}
	}
	t.publish(func(s *agent.TaskStatus) { s.State, s.Reason = agent.TaskReady, "" })
	t.logger.Info("task is ready")
}

// tend decides about a ready engine by its last probe. One that does not answer is for routers to judge: it may
// be busy. One that says that its core is dead and does not go is killed, so that its shim starts it again.
func (t *task) tend(err error) {
	if engine.Status(err) != coreDead {
		t.sick = time.Time{}
		return
	}
	if t.sick.IsZero() {
		t.sick = time.Now()
	}
	if time.Since(t.sick) < t.d.pace.unwell {
		return
	}
	t.logger.Warn("engine says that its core is dead, and does not end; it is killed", "cause", err)
	if _, err := t.dir.KillEngine(); err != nil {
		t.logger.Warn("engine is not killed", "cause", err)
	}
	t.sick = time.Time{}
}

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
)

// errLost is what a lost InMemory answers.
var errLost = errors.New("host is lost")

// InMemory is an agent that runs nothing: its tasks are what Set makes of them. A lost one, see Lose, keeps
// its tasks and answers nobody.
type InMemory struct {
	mu      sync.Mutex
	lost    bool
	control string
	state   State
	logs    map[string]string
	changed chan struct{}
}

// NewInMemory makes an agent of a host without tasks.
func NewInMemory(name string, slots int, devices ...mobula.Device) *InMemory {
	return &InMemory{
		state:   State{Name: name, Instance: "1", Version: "inmem", Slots: slots, Devices: devices},
		logs:    map[string]string{},
		changed: make(chan struct{}),
	}
}

// Tell is API.Tell. New tasks are TaskStarting; those of another revision or round, too.
func (m *InMemory) Tell(_ context.Context, w Wish) (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		return State{}, errLost
	}
	if err := w.Check(); err != nil {
		return State{}, err
	}
	if m.control != "" && m.control != w.Control {
		return State{}, ErrOtherControl
	}
	if w.Epoch <= m.state.Epoch {
		return State{}, fmt.Errorf("%w: epoch %d after %d", ErrOldWish, w.Epoch, m.state.Epoch)
	}
	m.control, m.state.Epoch = w.Control, w.Epoch
	tasks := make([]TaskStatus, 0, len(w.Tasks))
	for i, t := range w.Tasks {
		tasks = append(tasks, m.status(t, 8701+i))
	}
	slices.SortFunc(tasks, func(a, b TaskStatus) int { return cmp.Compare(a.ID, b.ID) })
	m.state.Tasks = tasks
	m.bump()
	return m.copy(), nil
}

// status is that of the same task before, or a new one.
func (m *InMemory) status(t Task, port int) TaskStatus {
	for _, s := range m.state.Tasks {
		if s.ID == t.ID && s.Revision == t.Revision && s.Round == t.Round {
			return s
		}
	}
	s := TaskStatus{
		ID: t.ID, Replica: t.Replica, Fleet: t.Fleet, Model: t.Model.Name, Revision: t.Revision, Round: t.Round,
		State: TaskStarting, Since: time.Now(), Devices: t.Devices,
	}
	if t.Rank == 0 {
		s.URL = "http://" + m.state.Name + ":" + strconv.Itoa(port)
	}
	return s
}

// State is API.State.
func (m *InMemory) State(ctx context.Context, after int64, wait time.Duration) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		m.mu.Lock()
		changed, lost, s := m.changed, m.lost, m.copy()
		m.mu.Unlock()
		if lost {
			return State{}, errLost
		}
		if s.Seq != after || ctx.Err() != nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// Logs is API.Logs; it does not follow.
func (m *InMemory) Logs(_ context.Context, task string, tail int, _ bool) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		return nil, errLost
	}
	if !slices.ContainsFunc(m.state.Tasks, func(s TaskStatus) bool { return s.ID == task }) {
		return nil, fmt.Errorf("%w: %s", ErrUnknownTask, task)
	}
	lines := slices.Collect(strings.Lines(m.logs[task]))
	return io.NopCloser(strings.NewReader(strings.Join(lines[max(0, len(lines)-max(tail, 0)):], ""))), nil
}

// Fetch is API.Fetch: all is there already.
func (m *InMemory) Fetch(_ context.Context, source string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		return "", errLost
	}
	return source, nil
}

// Set changes a task, if the host has it. Its reason may be empty.
func (m *InMemory) Set(task string, state TaskState, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.state.Tasks {
		if s := &m.state.Tasks[i]; s.ID == task {
			s.State, s.Reason, s.Since = state, reason, time.Now()
			m.bump()
		}
	}
}

// Print adds to what a task has printed.
func (m *InMemory) Print(task, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logs[task] += text
}

// Lose has the agent answer nobody, or answer again.
func (m *InMemory) Lose(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = on
	m.bump()
}

func (m *InMemory) bump() {
	m.state.Seq++
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *InMemory) copy() State {
	s := m.state
	s.Tasks, s.Devices, s.Clock = slices.Clone(s.Tasks), slices.Clone(s.Devices), time.Now()
	return s
}

var _ API = (*InMemory)(nil)

package static_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/state"
)

var (
	errRefused = errors.New("connection refused")
	errEpoch   = errors.New("409: an older wish")
)

// network has the agents of all hosts, in memory.
type network struct {
	mu     sync.Mutex
	agents map[string]*fakeAgent // by address
	manual bool                  // tasks get ready only when told to
}

func newNetwork() *network { return &network{agents: map[string]*fakeAgent{}} }

// fakeAgent does what a wish says at once. Its tasks outlive partitions, and it has a memory.
type fakeAgent struct {
	net     *network
	name    string
	address string
	state   agent.State
	changed chan struct{}
	away    bool
	refuses error
	tells   int
	slow    bool // what is no longer wished goes on stopping until the agent is told to be quick
}

// add makes a host with so many GPUs of 80 GB, all in one NVLink group, and so many slots.
func (n *network) add(name string, gpus, slots int) *fakeAgent {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := &fakeAgent{net: n, name: name, address: name + ".example:8200", changed: make(chan struct{})}
	a.state = agent.State{Seq: 1, Instance: "first", Name: name, Slots: slots}
	for i := range gpus {
		a.state.Devices = append(a.state.Devices, mobula.Device{ID: strconv.Itoa(i), Memory: 80e9, Group: "nvlink"})
	}
	n.agents[a.address] = a
	return a
}

func (n *network) Dial(_, address string) static.AgentClient { return &fakeClient{n, address} }

// edit changes an agent.
func (a *fakeAgent) edit(f func()) {
	a.net.mu.Lock()
	defer a.net.mu.Unlock()
	f()
	a.bump()
}

func (a *fakeAgent) bump() {
	a.state.Seq++
	close(a.changed)
	a.changed = make(chan struct{})
}

// partition cuts the host off, or not.
func (a *fakeAgent) partition(on bool) { a.edit(func() { a.away = on }) }

// set changes the state of a task.
func (a *fakeAgent) set(task string, s agent.TaskState, reason string) {
	a.edit(func() {
		for i := range a.state.Tasks {
			if t := &a.state.Tasks[i]; t.ID == task {
				t.State, t.Reason, t.Since = s, reason, time.Now()
			}
		}
	})
}

func (a *fakeAgent) tasks() []agent.TaskStatus {
	a.net.mu.Lock()
	defer a.net.mu.Unlock()
	return slices.Clone(a.state.Tasks)
}

func (a *fakeAgent) told() int {
	a.net.mu.Lock()
	defer a.net.mu.Unlock()
	return a.tells
}

// running gives the replica of each engine that runs.
func (n *network) running() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := []string{}
	for _, a := range n.agents {
		for _, t := range a.state.Tasks {
			ids = append(ids, t.Replica)
		}
	}
	slices.Sort(ids)
	return ids
}

// crash has the process of a replica die and start again.
func (n *network) crash(id string) {
	for _, a := range n.agents {
		a.edit(func() {
			for i := range a.state.Tasks {
				if t := &a.state.Tasks[i]; t.ID == id {
					t.Restarts++
					t.Since = time.Now()
				}
			}
		})
	}
}

type fakeClient struct {
	net     *network
	address string
}

// lock gives the agent with the network locked, or an error.
func (c *fakeClient) lock() (*fakeAgent, error) {
	c.net.mu.Lock()
	if a := c.net.agents[c.address]; a != nil && !a.away {
		return a, nil
	}
	c.net.mu.Unlock()
	return nil, errRefused
}

func (c *fakeClient) Tell(_ context.Context, w agent.Wish) (agent.State, error) {
	a, err := c.lock()
	if err != nil {
		return agent.State{}, err
	}
	defer c.net.mu.Unlock()
	a.tells++
	switch {
	case a.refuses != nil:
		return agent.State{}, a.refuses
	case w.Epoch <= a.state.Epoch:
		return agent.State{}, errEpoch
	}
	tasks := []agent.TaskStatus{}
	for i, t := range w.Tasks {
		at := slices.IndexFunc(a.state.Tasks, func(s agent.TaskStatus) bool { return s.ID == t.ID && s.Round == t.Round })
		if at >= 0 {
			tasks = append(tasks, a.state.Tasks[at])
			continue
		}
		s := agent.TaskStatus{
			ID: t.ID, Replica: t.Replica, Fleet: t.Fleet, Model: t.Model.Name, Revision: t.Revision, Round: t.Round,
			State: agent.TaskReady, Since: time.Now(), Devices: t.Devices, PID: 100 + i,
		}
		if c.net.manual {
			s.State = agent.TaskStarting
		}
		if t.Rank == 0 {
			s.URL = "http://" + a.name + "/" + t.ID
		}
		tasks = append(tasks, s)
	}
	for _, s := range a.state.Tasks {
		if a.slow && !slices.ContainsFunc(tasks, func(t agent.TaskStatus) bool { return t.ID == s.ID }) {
			s.State = agent.TaskStopping
			tasks = append(tasks, s)
		}
	}
	a.state.Tasks, a.state.Epoch = tasks, w.Epoch
	a.bump()
	return a.answer(), nil
}

func (a *fakeAgent) answer() agent.State {
	s := a.state
	s.Tasks, s.Devices, s.Clock = slices.Clone(s.Tasks), slices.Clone(s.Devices), time.Now()
	return s
}

func (c *fakeClient) State(ctx context.Context, after int64, wait time.Duration) (agent.State, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		a, err := c.lock()
		if err != nil {
			return agent.State{}, err
		}
		answer, changed := a.answer(), a.changed
		c.net.mu.Unlock()
		if answer.Seq > after {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return agent.State{}, ctx.Err()
		case <-timer.C:
			return answer, nil
		case <-changed:
		}
	}
}

func (c *fakeClient) Logs(ctx context.Context, task string, _ int, follow bool) (io.ReadCloser, error) {
	a, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer c.net.mu.Unlock()
	if !slices.ContainsFunc(a.state.Tasks, func(s agent.TaskStatus) bool { return s.ID == task }) {
		return nil, errors.New("404: no such task")
	}
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.Close() })
	go func() {
		_, _ = io.Copy(w, strings.NewReader("log of "+task+"\n"))
		if !follow {
			w.Close()
		}
	}()
	return r, nil
}

func (c *fakeClient) Fetch(_ context.Context, source string) (string, error) {
	_, err := c.lock()
	if err != nil {
		return "", err
	}
	defer c.net.mu.Unlock()
	return source, nil
}

// fleet is a control plane's end: Hosts over a store and a network, that can be killed and started again.
type fleet struct {
	*static.Hosts
	t       testing.TB
	net     *network
	store   *faultyStore
	timeout time.Duration
	stop    func()
}

func newFleet(tb testing.TB, net *network) *fleet {
	tb.Helper()
	f := &fleet{t: tb, net: net, store: &faultyStore{Store: state.NewInMemory()}, timeout: time.Hour, stop: func() {}}
	tb.Cleanup(func() { f.stop() })
	return f
}

// run starts it, anew if it runs.
func (f *fleet) run() *fleet {
	f.t.Helper()
	f.stop()
	hosts, err := static.NewHosts(static.HostsOptions{
		Store: f.store, Control: "control", Dial: f.net.Dial, HostTimeout: f.timeout,
	})
	require.NoError(f.t, err)
	f.Hosts = hosts
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- hosts.Run(ctx) }()
	f.stop = func() {
		cancel()
		require.ErrorIs(f.t, <-done, context.Canceled)
		f.stop = func() {}
	}
	return f
}

// join has all hosts join, and waits until they have answered.
func (f *fleet) join(agents ...*fakeAgent) *fleet {
	f.t.Helper()
	for _, a := range agents {
		require.NoError(f.t, f.Join(context.Background(), a.name, a.address))
	}
	f.await(func() bool {
		hosts, err := f.Hosts.Hosts(context.Background())
		return err == nil && !slices.ContainsFunc(hosts, func(h mobula.Host) bool { return h.Silent != "" })
	})
	return f
}

func (f *fleet) await(ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			all, err := f.Status(context.Background(), "f")
			f.t.Fatalf("it did not come; status (error %v):\n%+v\nrunning: %v", err, all, f.net.running())
		}
	}
}

func (f *fleet) status() []mobula.Replica {
	f.t.Helper()
	all, err := f.Status(context.Background(), "f")
	if err != nil {
		require.ErrorIs(f.t, err, adapters.ErrUnavailable)
	}
	return all
}

// states gives the number of replicas by state.
func (f *fleet) states() map[mobula.State]int {
	states := map[mobula.State]int{}
	for _, r := range f.status() {
		states[r.State]++
	}
	return states
}

func (f *fleet) apply(d adapters.Deployment) {
	f.t.Helper()
	require.NoError(f.t, f.Apply(context.Background(), d))
}

// faultyStore is a Store whose writes can fail, before or after they have come true.
type faultyStore struct {
	state.Store
	mu     sync.Mutex
	writes int
	// deaf has reads fail too.
	deaf bool
	// fail decides on a write by its number, from 1: failed tells that it fails, kept that it came true nevertheless.
	fail func(n int) (failed, kept bool)
}

var errDisk = errors.New("no space left on device")

func (s *faultyStore) Write(changes ...state.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.fail != nil {
		if failed, kept := s.fail(s.writes); failed {
			if kept {
				if err := s.Store.Write(changes...); err != nil {
					return err
				}
			}
			return errDisk
		}
	}
	return s.Store.Write(changes...)
}

func (s *faultyStore) Each(bucket string, f func(key string, value []byte) error) error {
	s.mu.Lock()
	deaf := s.deaf
	s.mu.Unlock()
	if deaf {
		return errDisk
	}
	return s.Store.Each(bucket, f)
}

// down has everything fail, or nothing.
func (s *faultyStore) down(on bool) {
	s.broken(func(int) (bool, bool) { return on, false })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = on
}

func (s *faultyStore) broken(f func(n int) (failed, kept bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.writes = f, 0
}

func deployment(model, revision string, replicas int, gpus int, drain ...string) adapters.Deployment {
	return adapters.Deployment{
		Key:      adapters.Key{Fleet: "f", Model: model, Revision: revision},
		Model:    mobula.Model{Name: model, Resources: mobula.Resources{GPUs: &gpus}},
		Replicas: replicas, Drain: drain,
	}
}

func ids(replicas []mobula.Replica) []string {
	all := make([]string, len(replicas))
	for i, r := range replicas {
		all[i] = r.ID
	}
	return all
}

func (f *fleet) find(id string) mobula.Replica {
	f.t.Helper()
	for _, r := range f.status() {
		if r.ID == id {
			return r
		}
	}
	return mobula.Replica{}
}

// endpoints gives what a router would learn now.
func (f *fleet) endpoints() []mobula.Endpoint {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan []mobula.Endpoint), make(chan error, 1)
	go func() { done <- f.Discoverer().Run(ctx, up) }()
	all := <-up
	cancel()
	require.ErrorIs(f.t, <-done, context.Canceled)
	return all
}

func (f *fleet) endpoint(id string) *mobula.Endpoint {
	f.t.Helper()
	for _, e := range f.endpoints() {
		if e.ID == id {
			return &e
		}
	}
	return nil
}

//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

const (
	hostSlots = 16
	hostGPUs  = 8
	startTime = 50 * time.Millisecond // of its engines, which are nothing
)

// fakeHost is an agent that runs nothing: what it is to run is ready a moment later.
type fakeHost struct {
	srv *http.Server

	mu      sync.Mutex
	state   agent.State
	changed chan struct{}
	timer   *time.Timer
}

// joinHosts starts hosts and has them join, some at once.
func joinHosts(ctx context.Context, n int, url, token string) ([]*fakeHost, error) {
	t, err := trust.ParseToken(token)
	if err != nil {
		return nil, err
	}
	hosts := make([]*fakeHost, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range hosts {
		h := newFakeHost(fmt.Sprintf("host-%04d", i))
		hosts[i] = h
		g.Go(func() error { return h.join(ctx, url, t) })
	}
	return hosts, g.Wait()
}

func newFakeHost(name string) *fakeHost {
	h := &fakeHost{changed: make(chan struct{}), state: agent.State{Instance: "1", Name: name, Version: "bench", Slots: hostSlots, Seq: 1}}
	for i := range hostGPUs {
		h.state.Devices = append(h.state.Devices, mobula.Device{
			ID: strconv.Itoa(i), UUID: fmt.Sprintf("GPU-%s-%d", name, i), Name: "NVIDIA H200", Memory: 141 << 30, Group: "nvlink-0",
		})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/tasks", h.putTasks)
	mux.HandleFunc("GET /v1/state", h.getState)
	h.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	return h
}

func (h *fakeHost) join(ctx context.Context, url string, token trust.Token) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	csr, key, err := trust.NewRequest()
	if err != nil {
		return err
	}
	joined, err := client.Join(ctx, url, trust.PinnedTLS(token), mobula.Secret(token.String()),
		agent.Join{Name: h.state.Name, Address: l.Addr().String(), CSR: string(csr), Clock: time.Now()})
	if err != nil {
		return err
	}
	creds, err := trust.NewCredentials([]byte(joined.CA), []byte(joined.Certificate), key)
	if err != nil {
		return err
	}
	go func() { _ = h.srv.Serve(tls.NewListener(l, creds.ServerTLS(trust.RoleControl))) }()
	return nil
}

func (h *fakeHost) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	if h.timer != nil {
		h.timer.Stop()
	}
	h.mu.Unlock()
	_ = h.srv.Close()
}

// bump wakes who waits. h.mu is held.
func (h *fakeHost) bump() {
	h.state.Seq++
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *fakeHost) putTasks(w http.ResponseWriter, r *http.Request) {
	var wish agent.Wish
	if err := json.NewDecoder(r.Body).Decode(&wish); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := map[string]agent.TaskStatus{}
	for _, t := range h.state.Tasks {
		before[t.ID] = t
	}
	tasks := make([]agent.TaskStatus, 0, len(wish.Tasks))
	for i := range wish.Tasks {
		t := &wish.Tasks[i]
		s, known := before[t.ID]
		if !known {
			s = agent.TaskStatus{
				ID: t.ID, Replica: t.Replica, Fleet: t.Fleet, Model: t.Model.Name, Revision: t.Revision, Devices: t.Devices,
				State: agent.TaskStarting, Since: time.Now(), URL: "http://127.0.0.1:" + strconv.Itoa(8701+i), PID: 1000 + i,
			}
		}
		tasks = append(tasks, s)
	}
	h.state.Epoch, h.state.Tasks = wish.Epoch, tasks
	h.bump()
	if h.timer == nil {
		h.timer = time.AfterFunc(startTime, h.started)
	} else {
		h.timer.Reset(startTime)
	}
	reply(w, &h.state)
}

// started makes all engines ready.
func (h *fakeHost) started() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.state.Tasks {
		if t := &h.state.Tasks[i]; t.State == agent.TaskStarting {
			t.State, t.Since = agent.TaskReady, time.Now()
		}
	}
	h.bump()
}

func (h *fakeHost) getState(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.ParseInt(r.FormValue("after"), 10, 64)
	wait, _ := time.ParseDuration(r.FormValue("wait"))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.state.Seq == after && ctx.Err() == nil {
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-changed:
		}
		h.mu.Lock()
	}
	reply(w, &h.state)
}

// reply sends a state. Its host's mu is held.
func reply(w http.ResponseWriter, s *agent.State) {
	s.Clock = time.Now()
	b, err := json.Marshal(s)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// fleetPause is between two tries to learn the fleet from a backend that fails.
const fleetPause = time.Second

// latest is a body that many wait for: encoded once for all of them.
type latest struct {
	mu      sync.Mutex
	body    []byte // a JSON object whose first field is its version; never written to again
	content []byte // the rest of body
	version int64  // 0 before the first content
	changed chan struct{}
}

func newLatest() *latest { return &latest{changed: make(chan struct{})} }

// set gives all who wait another object, which has fields and no version yet, unless it is the same.
func (l *latest) set(object []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	content := object[1:]
	if l.version != 0 && bytes.Equal(content, l.content) {
		return
	}
	// From the clock, so that a new process never has a version that a client took from an older one.
	l.version = max(l.version+1, time.Now().UnixMilli())
	head := fmt.Appendf(make([]byte, 0, 40+len(content)), `{"version":%d,`, l.version)
	l.body = append(head, content...)
	l.content = l.body[len(head):]
	close(l.changed)
	l.changed = make(chan struct{})
}

// get gives what is there: a nil body before the first set. changed is closed at the next one.
func (l *latest) get() (body []byte, version int64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.body, l.version, l.changed
}

func (l *latest) known() bool {
	body, _, _ := l.get()
	return body != nil
}

// wait returns when there is something of another version than after, or ctx ends.
func (l *latest) wait(ctx context.Context, after int64) {
	for {
		_, version, changed := l.get()
		if version != 0 && version != after {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// endpointBody is an EndpointList without its version.
func endpointBody(endpoints []mobula.Endpoint) []byte {
	wire := make([]client.Endpoint, len(endpoints))
	for i := range endpoints {
		wire[i] = client.EncodeEndpoint(&endpoints[i])
	}
	return object("endpoints", wire)
}

// object is a JSON object with one field, of types that always can be encoded.
func object(name string, value any) []byte {
	b, err := json.Marshal(map[string]any{name: value})
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", name, err))
	}
	return b
}

// watchFleet keeps the settings for routers up to date until ctx ends.
func (s *Server) watchFleet(ctx context.Context) {
	var version int64
	failed := false
	for ctx.Err() == nil {
		settings, err := s.backend.Settings(ctx, version)
		switch {
		case err == nil:
			version, failed = settings.Version, false
			s.settings.set(settingsBody(*settings))
		case ctx.Err() != nil:
		default:
			if !failed {
				s.logger.Error("routers get no new settings: the fleet can't be read", "error", err)
			}
			failed = true
			select {
			case <-time.After(fleetPause):
			case <-ctx.Done():
			}
		}
	}
}

// settingsBody is a control.Settings without its version.
func settingsBody(s control.Settings) []byte {
	b, err := json.Marshal(struct {
		File    string   `json:"file"`
		Deleted []string `json:"deleted,omitempty"`
	}{s.File, s.Deleted})
	if err != nil {
		panic(fmt.Sprintf("encode settings: %v", err))
	}
	return b
}

// notKnown is the answer to routers before the first state has come.
func notKnown(what string) error {
	return fmt.Errorf("%w: %s are not known yet: the control plane has just started", adapters.ErrUnavailable, what)
}

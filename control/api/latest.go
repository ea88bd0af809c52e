package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
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
	content []byte // a JSON object without its version
	version int64  // 0 before the first content
	changed chan struct{}
}

func newLatest() *latest { return &latest{changed: make(chan struct{})} }

// set gives all who wait another content, unless it is the same.
func (l *latest) set(content []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.version != 0 && bytes.Equal(content, l.content) {
		return
	}
	// From the clock, so that a new process never has a version that a client took from an older one.
	l.content, l.version = content, max(l.version+1, time.Now().UnixMilli())
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *latest) get() (content []byte, version int64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content, l.version, l.changed
}

// wait returns when there is content of another version than after, or ctx ends.
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

// body gives what is there with its version, nil before the first content.
func (l *latest) body() []byte {
	content, version, _ := l.get()
	if version == 0 {
		return nil
	}
	b := strconv.AppendInt([]byte(`{"version":`), version, 10)
	b = append(b, ',')
	return append(b, content[1:]...)
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
		file, seen, err := s.nextFleet(ctx, version)
		switch {
		case err == nil:
			version, failed = seen, false
			s.settings.set(object("file", string(file)))
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

// nextFleet gives the fleet file at the next View. There is none before the first apply.
func (s *Server) nextFleet(ctx context.Context, after int64) (file []byte, version int64, err error) {
	v, err := s.backend.View(ctx, after)
	if err != nil {
		return nil, 0, err
	}
	file, err = s.backend.Fleet(ctx)
	if errors.Is(err, control.ErrNotFound) {
		file, err = nil, nil
	}
	return file, v.Version, err
}

// notKnown is the answer to routers before the first state has come.
func notKnown(what string) error {
	return fmt.Errorf("%w: %s are not known yet: the control plane has just started", adapters.ErrUnavailable, what)
}

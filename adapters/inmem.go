package adapters

import (
	"context"
	"slices"
	"sync"

	"github.com/mobula-serve/mobula"
)

// InMemory is a Discoverer whose endpoints are set by hand: for tests, for a single host,
// and for platforms that only need to say what is there.
type InMemory struct {
	mu        sync.Mutex
	endpoints []mobula.Endpoint
	changed   chan struct{} // closed by Set
}

// NewInMemory makes an InMemory that starts with these endpoints.
func NewInMemory(endpoints ...mobula.Endpoint) *InMemory {
	return &InMemory{endpoints: slices.Clone(endpoints), changed: make(chan struct{})}
}

// Set replaces all endpoints. It never blocks; a slow consumer gets the latest state only.
func (m *InMemory) Set(endpoints ...mobula.Endpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endpoints = slices.Clone(endpoints)
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *InMemory) get() (endpoints []mobula.Endpoint, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.endpoints), m.changed
}

// Run sends the state and each change of it. Any number of Runs may go on at once.
func (m *InMemory) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	for {
		endpoints, changed := m.get()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed: // nobody took this state yet: send the newer one
			continue
		case up <- endpoints:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

var _ Discoverer = (*InMemory)(nil)

package state

import (
	"maps"
	"slices"
	"sync"
)

// InMemory is a Store that forgets all when the process ends.
type InMemory struct {
	mu      sync.RWMutex
	closed  bool
	buckets map[string]map[string][]byte
}

// NewInMemory gives an empty store.
func NewInMemory() *InMemory {
	return &InMemory{buckets: map[string]map[string][]byte{}}
}

// Get gives a value.
func (s *InMemory) Get(bucket, key string) ([]byte, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, false, ErrClosed
	}
	value, ok := s.buckets[bucket][key]
	return slices.Clone(value), ok, nil
}

// Each calls f for all of a bucket.
func (s *InMemory) Each(bucket string, f func(key string, value []byte) error) error {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return ErrClosed
	}
	var entries []entry
	for _, key := range slices.Sorted(maps.Keys(s.buckets[bucket])) {
		entries = append(entries, entry{key, slices.Clone(s.buckets[bucket][key])})
	}
	s.mu.RUnlock()
	return each(entries, f)
}

// Write makes all the changes or none of them.
func (s *InMemory) Write(changes ...Change) error {
	if err := check(changes); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	for _, c := range changes {
		if c.Value == nil {
			delete(s.buckets[c.Bucket], c.Key)
			continue
		}
		if s.buckets[c.Bucket] == nil {
			s.buckets[c.Bucket] = map[string][]byte{}
		}
		s.buckets[c.Bucket][c.Key] = slices.Clone(c.Value)
	}
	return nil
}

// Close ends the store; a second call does nothing.
func (s *InMemory) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.buckets = true, nil
	return nil
}

var _ Store = (*InMemory)(nil)

package sim

import (
	"container/list"
	"context"
	"sync"
)

// stored is an answer of /v1/responses that can be asked for again.
type stored struct {
	id string

	mu     sync.Mutex
	status string             // queued, in_progress, completed, incomplete, failed or cancelled
	body   []byte             // as it is now
	cancel context.CancelFunc // of one in the background, else nil
	talk   []message          // the conversation, its answer included
}

// update sets a status and body, unless the answer was cancelled meanwhile.
func (v *stored) update(status string, body []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.status != "cancelled" {
		v.status, v.body = status, body
	}
}

// store keeps the answers that were used last, a bounded number of them.
type store struct {
	size int

	mu   sync.Mutex
	byID map[string]*list.Element
	used list.List // of *stored, the last used in front
}

func newStore(size int) *store { return &store{size: size, byID: map[string]*list.Element{}} }

// get is nil for an answer that is not kept.
func (s *store) get(id string) *stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.byID[id]
	if at == nil {
		return nil
	}
	s.used.MoveToFront(at)
	return at.Value.(*stored)
}

// put keeps an answer; its id must be new.
func (s *store) put(v *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[v.id] = s.used.PushFront(v)
	if s.used.Len() > s.size {
		oldest := s.used.Remove(s.used.Back()).(*stored)
		delete(s.byID, oldest.id)
	}
}

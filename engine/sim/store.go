package sim

import (
	"context"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// stored is an answer of /v1/responses that can be asked for again.
type stored struct {
	mu     sync.Mutex
	status string             // queued, in_progress, completed, incomplete or cancelled
	body   []byte             // as it is now
	cancel context.CancelFunc // of one in the background, else nil
	talk   []message          // the conversation, its answer included
}

// store keeps the latest answers, a bounded number of them.
type store struct{ byID *lru.Cache[string, *stored] }

func newStore(size int) *store {
	c, err := lru.New[string, *stored](size)
	if err != nil {
		panic(err) // the size was checked
	}
	return &store{byID: c}
}

func (s *store) get(id string) *stored {
	v, _ := s.byID.Get(id)
	return v
}

func (s *store) put(id string, v *stored) { s.byID.Add(id, v) }

// update sets a status and body, unless the answer was cancelled meanwhile.
func (v *stored) update(status string, body []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.status != "cancelled" {
		v.status, v.body = status, body
	}
}

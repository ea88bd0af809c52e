package proxy

import (
	"sync/atomic"
	"time"
)

const (
	budgetWindow = 10 // seconds that a request counts for
	budgetFree   = 10 // retries allowed in a window whatever the number of requests
)

// budget bounds retries to a share of recent requests. It counts by the second in a ring of
// atomics; two goroutines that meet on a second's turn may lose a count, which is harmless.
type budget struct {
	start time.Time
	slots [budgetWindow + 1]struct {
		second            atomic.Int64
		requests, retries atomic.Int64
	}
}

func newBudget(start time.Time) *budget {
	b := &budget{start: start}
	for i := range b.slots {
		b.slots[i].second.Store(-budgetWindow - 1)
	}
	return b
}

func (b *budget) slot(now time.Time) (int64, int) {
	second := int64(now.Sub(b.start) / time.Second)
	i := int(second % int64(len(b.slots)))
	s := &b.slots[i]
	if old := s.second.Load(); old != second && s.second.CompareAndSwap(old, second) {
		s.requests.Store(0)
		s.retries.Store(0)
	}
	return second, i
}

// request counts a request.
func (b *budget) request(now time.Time) {
	_, i := b.slot(now)
	b.slots[i].requests.Add(1)
}

// retry takes one retry out of the budget, or reports that it is used up.
func (b *budget) retry(now time.Time, share float64) bool {
	second, i := b.slot(now)
	var requests, retries int64
	for j := range b.slots {
		s := &b.slots[j]
		if s.second.Load() > second-budgetWindow {
			requests += s.requests.Load()
			retries += s.retries.Load()
		}
	}
	if float64(retries) >= budgetFree+share*float64(requests) {
		return false
	}
	b.slots[i].retries.Add(1)
	return true
}

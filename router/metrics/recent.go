package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// recentSeconds is the window that a report looks back over, the running second included.
const recentSeconds = 10

// recent is how a model has fared lately: a slot for each second, in a ring of atomics. Two
// goroutines that meet on a slot's turn may lose a count, which is harmless.
type recent struct {
	slots [recentSeconds]slot
	last  atomic.Int64 // when the last request began, Unix nanoseconds, 0 for never
}

type slot struct {
	second                     atomic.Int64
	requests, answered, failed atomic.Uint32
	prompt                     atomic.Uint64 // tokens
	ttft, itl                  durations
}

func newRecent() *recent { return &recent{} }

// at gives the slot of now, emptied if it is that of an earlier second.
func (r *recent) at(now time.Time) *slot {
	second := now.Unix()
	s := &r.slots[uint64(second)%recentSeconds]
	if old := s.second.Load(); old != second && s.second.CompareAndSwap(old, second) {
		s.requests.Store(0)
		s.answered.Store(0)
		s.failed.Store(0)
		s.prompt.Store(0)
		s.ttft.reset()
		s.itl.reset()
	}
	return s
}

func (r *recent) request(now time.Time) {
	r.last.Store(now.UnixNano())
	r.at(now).requests.Add(1)
}

// sum adds up the slots of the window that ends now.
func (r *recent) sum(now time.Time, t *totals) {
	if last := r.last.Load(); last > t.last {
		t.last = last
	}
	for i := range r.slots {
		s := &r.slots[i]
		if age := now.Unix() - s.second.Load(); age < 0 || age >= recentSeconds {
			continue
		}
		t.requests += int(s.requests.Load())
		t.answered += int(s.answered.Load())
		t.failed += int(s.failed.Load())
		t.prompt += int(s.prompt.Load())
		s.ttft.addTo(&t.ttft)
		s.itl.addTo(&t.itl)
	}
}

// totals are the counts of a window.
type totals struct {
	requests, answered, failed int
	prompt                     int // tokens
	last                       int64
	ttft, itl                  counts
}

// durations is a histogram with four buckets for each power of two of microseconds, from 128 µs
// to half an hour: a quantile is at most a tenth off.
type durations [durationBuckets]atomic.Uint32

type counts [durationBuckets]uint64

const (
	lowestPower     = 7  // 2^7 µs
	highestPower    = 31 // 2^31 µs
	durationBuckets = (highestPower - lowestPower) * 4
)

func bucketOf(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 1<<lowestPower))
	power := bits.Len64(us) - 1
	return min((power-lowestPower)*4+int(us>>(power-2)&3), durationBuckets-1)
}

// edge is the lower bound of a bucket, in seconds.
func edge(bucket int) float64 {
	return float64(uint64(4+bucket%4)<<(bucket/4+lowestPower-2)) / 1e6
}

func (h *durations) observe(d time.Duration, n int) { h[bucketOf(d)].Add(uint32(n)) }

func (h *durations) reset() {
	for i := range h {
		if h[i].Load() != 0 {
			h[i].Store(0)
		}
	}
}

func (h *durations) addTo(c *counts) {
	for i := range h {
		c[i] += uint64(h[i].Load())
	}
}

// quantile gives the q-th quantile in seconds, 0 without any; the middle of its bucket.
func (c *counts) quantile(q float64) float64 {
	total := uint64(0)
	for _, n := range c {
		total += n
	}
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total-1))
	for i, n := range c {
		if rank < n {
			return (edge(i) + edge(i+1)) / 2
		}
		rank -= n
	}
	return edge(durationBuckets)
}

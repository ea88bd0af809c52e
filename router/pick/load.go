package pick

import (
	"math"
	"time"
)

// load is what cost knows of the work that an engine has, by its own tickets.
type load struct {
	queue  chain         // attempts without a first byte, as sent
	queued float64       // seconds of them
	headAt time.Duration // when the engine took up the first of them
	plain  chain         // attempts whose answer comes in one piece, as sent
	active int           // attempts sent and not done
	turn   uint64        // of the latest attempt, over all engines

	arrivals float64 // attempts sent, decayed over loadSpan
	service  float64 // seconds of them, decayed likewise
	at       time.Duration

	speed   float64 // its seconds over the learner's
	speedAt time.Duration

	refusals  int     // in a row
	penalty   float64 // seconds, for refusals
	penaltyAt time.Duration

	strikes int // predicted hits in a row of which nothing was there
}

const (
	loadSpan  = 10 * time.Second // of arrivals and service (docs/performance.md)
	speedSpan = 30 * time.Second // in which speed is drawn to 1 (docs/performance.md)
	speedGain = 0.1              // weight of the latest sample
	speedMin  = 0.25
	speedMax  = 8.0
	maxRho    = 0.95 // utilisation above which a queue's length says no more (docs/performance.md)

	// A refusal makes its engine dearer for a second or so, twice as much each time in a row:
	// one that refuses at once would else look idle and draw everything. Health ejects it for
	// failures, but not for a 429.
	firstPenalty = 0.1 // s
	maxPenalty   = 5.0 // s
	penaltySpan  = time.Second
)

// attempt is cost's record of a ticket. Records live in one slice and are linked by index.
type attempt struct {
	engine   *engine
	seconds  float64 // predicted, from its turn to the first token
	gap      float64 // observed, 0 for none
	active   float64 // attempts of the engine when it was sent
	uncached float64 // tokens
	held     int     // blocks
	sentAt   time.Duration
	queued   bool
	plain    bool
	alone    bool // nothing was before it in the queue
	seq      uint32
	links    [2]link // in load.queue, in load.plain
}

type link struct{ prev, next uint32 }

const (
	queueLink = iota
	plainLink
)

// chain is a list of attempts.
type chain struct{ first, last uint32 }

// attempts are all of cost's records; 0 is none. It grows to the most that were ever in
// flight at once.
type attempts struct {
	list []attempt
	free []uint32
}

func (a *attempts) take() uint32 {
	if n := len(a.free); n > 0 {
		i := a.free[n-1]
		a.free = a.free[:n-1]
		return i
	}
	if len(a.list) == 0 {
		a.list = make([]attempt, 1, 64)
	}
	a.list = append(a.list, attempt{})
	return uint32(len(a.list) - 1)
}

// drop frees a record and makes tickets that still name it void.
func (a *attempts) drop(i uint32) {
	a.list[i] = attempt{seq: a.list[i].seq + 1}
	a.free = append(a.free, i)
}

// ticket gives the number that finds record i again.
func (a *attempts) ticket(i uint32) uint64 { return uint64(a.list[i].seq)<<32 | uint64(i) }

// find gives the record of a ticket's number, 0 when there is none.
func (a *attempts) find(seq uint64) uint32 {
	i := uint32(seq)
	if int(i) >= len(a.list) || i == 0 || a.list[i].seq != uint32(seq>>32) || a.list[i].engine == nil {
		return 0
	}
	return i
}

func (a *attempts) push(c *chain, which int, i uint32) {
	a.list[i].links[which] = link{prev: c.last}
	if c.last != 0 {
		a.list[c.last].links[which].next = i
	} else {
		c.first = i
	}
	c.last = i
}

func (a *attempts) remove(c *chain, which int, i uint32) {
	l := a.list[i].links[which]
	if l.prev != 0 {
		a.list[l.prev].links[which].next = l.next
	} else {
		c.first = l.next
	}
	if l.next != 0 {
		a.list[l.next].links[which].prev = l.prev
	} else {
		c.last = l.prev
	}
	a.list[i].links[which] = link{}
}

// leave takes a record out of its engine's queue. began is when the engine took up the next.
func (a *attempts) leave(i uint32, began time.Duration) {
	t := &a.list[i]
	if !t.queued {
		return
	}
	n := &t.engine.load
	a.remove(&n.queue, queueLink, i)
	t.queued = false
	n.headAt = began
	n.queued -= t.seconds
	if n.queue.first == 0 {
		n.queued = 0 // exactly: rounding must not add up over days
	}
}

// advance takes prompts out of the queue that must have been computed by now. Only those of
// plain answers need it, of which nothing is heard until all is generated.
func (a *attempts) advance(n *load, now time.Duration) {
	for i := n.queue.first; i != 0 && a.list[i].plain; i = n.queue.first {
		end := n.headAt + duration(a.list[i].seconds)
		if end > now {
			return
		}
		a.leave(i, end)
	}
}

// wait is the seconds until the engine takes up a new prompt. One that is late is expected to
// be as late again: an engine that hangs is left at once.
func (a *attempts) wait(n *load, now time.Duration, plainLate float64) float64 {
	a.advance(n, now)
	w := n.queued
	if i := n.queue.first; i != 0 {
		s := a.list[i].seconds
		w += math.Abs((now-n.headAt).Seconds()-s) - s // less its progress, or its lateness instead of itself
	}
	if i := n.plain.first; i != 0 {
		w += max(0, (now-a.list[i].sentAt).Seconds()-plainLate)
	}
	return w
}

// arrive counts an attempt of s seconds.
func (n *load) arrive(s float64, now time.Duration) {
	f := fade(now-n.at, loadSpan)
	n.arrivals = n.arrivals*f + 1
	n.service = n.service*f + s
	n.at = now
}

// rates gives arrivals per second and utilisation.
func (n *load) rates(now time.Duration) (lambda, rho float64) {
	f := fade(now-n.at, loadSpan) / loadSpan.Seconds()
	return n.arrivals * f, min(n.service*f, maxRho)
}

func (n *load) speedNow(now time.Duration) float64 {
	return 1 + (n.speed-1)*fade(now-n.speedAt, speedSpan)
}

// observe takes a sample of the engine's seconds over the learner's.
func (n *load) observe(ratio float64, now time.Duration) {
	s := n.speedNow(now)
	n.speed = s + speedGain*(min(max(ratio, speedMin), speedMax)-s)
	n.speedAt = now
}

func (n *load) refused(now time.Duration) {
	n.penalty = min(firstPenalty*math.Pow(2, float64(n.refusals)), maxPenalty)
	n.refusals = min(n.refusals+1, 10)
	n.penaltyAt = now
}

func (n *load) served() { n.refusals, n.penalty = 0, 0 }

func (n *load) penaltyNow(now time.Duration) float64 {
	if n.penalty == 0 {
		return 0
	}
	return n.penalty * fade(now-n.penaltyAt, penaltySpan)
}

func duration(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

package flow

import (
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula/router/pick"
)

// line is who waits for one model. Those who come back are served before the others.
type line struct {
	model, base  string
	again, fresh list
	out          int // passes that are not done
}

// waiter is one request in a line.
type waiter struct {
	request    *Request
	line       *line
	pass       *Pass         // set before released is closed
	released   chan struct{} // closed when it is let go
	gone       chan struct{} // closed when its client leaves
	place      int64         // in its list
	prev, next *waiter
	in         *list // nil when it is in none
}

// Cancel implements proxy.Canceler: the client left.
func (w *waiter) Cancel() { close(w.gone) }

// list is a queue from whose middle waiters can leave.
type list struct {
	first, last *waiter
	n           int
	places      int64 // given out so far
}

func (l *list) push(w *waiter) {
	l.places++
	w.place, w.in, w.prev = l.places, l, l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.n++
}

func (l *list) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.prev, w.next, w.in = nil, nil, nil
	l.n--
}

// before is how many are before w, at most: who left between them counts until those before w are gone.
func (l *list) before(w *waiter) int { return min(int(w.place-l.first.place), l.n-1) }

func (l *line) len() int { return l.again.n + l.fresh.n }

func (l *line) head() *waiter {
	if l.again.first != nil {
		return l.again.first
	}
	return l.fresh.first
}

// Pass is the leave to go to an engine. It counts against what the engines get at once.
type Pass struct {
	holder *Holder
	line   *line
}

// Done tells that the request has been taken, or is over. Only the first call counts; a nil Pass has none.
// It is not for two goroutines at once.
func (p *Pass) Done() {
	if p == nil || p.line == nil {
		return
	}
	h, l := p.holder, p.line
	p.line = nil
	h.mu.Lock()
	defer h.mu.Unlock()
	l.out--
	h.pump(l)
}

// join puts w in its line, and lets it go at once when nothing keeps it.
func (h *Holder) join(w *waiter) error {
	r := w.request
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.draining:
		if !time.Now().Before(h.drainAt) {
			return ErrDraining
		}
	default:
	}
	l := h.lines[r.Group.Model]
	if l == nil {
		l = &line{model: r.Group.Model, base: r.Group.Base}
		h.lines[l.model] = l
	}
	w.line = l
	g := h.options.Snapshot().Lookup(l.model)
	switch {
	case g == nil || !g.Placed || l.len() == 0 && g.Engines() > 0 || g.Provided(r.Kinds):
		// Nobody waits before it, or it keeps no engine from anybody.
		h.forget(l)
		close(w.released)
		return nil
	case h.byBase[l.base] >= r.Group.Held:
		h.forget(l)
		return ErrFull
	case !r.Until.After(time.Now()):
		h.forget(l)
		return ErrTimeout
	}
	if r.Again {
		l.again.push(w)
	} else {
		l.fresh.push(w)
	}
	h.byBase[l.base]++
	h.held.Add(1)
	return nil
}

// leave takes w out of its line; it reports true when w has been let go already.
func (h *Holder) leave(w *waiter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.in == nil {
		return true
	}
	h.remove(w)
	h.pump(w.line) // who is first now may be one whom a provider takes
	return false
}

func (h *Holder) remove(w *waiter) {
	l := w.line
	w.in.remove(w)
	h.held.Add(-1)
	if h.byBase[l.base]--; h.byBase[l.base] == 0 {
		delete(h.byBase, l.base)
	}
}

// release lets w go. It is in no list.
func (h *Holder) release(w *waiter) {
	w.line.out++
	w.pass = &Pass{holder: h, line: w.line}
	close(w.released)
}

// pump lets go, in turn, whom there is room for.
func (h *Holder) pump(l *line) {
	g := h.options.Snapshot().Lookup(l.model)
	for w := l.head(); w != nil && h.room(l, g, w.request); w = l.head() {
		h.remove(w)
		h.release(w)
	}
	h.forget(l)
}

func (h *Holder) forget(l *line) {
	if l.len() == 0 && l.out == 0 && h.lines[l.model] == l {
		delete(h.lines, l.model)
	}
}

// room tells whether r may go. One of a model that is not placed any more may: nothing will come.
func (h *Holder) room(l *line, g *pick.Group, r *Request) bool {
	return g == nil || !g.Placed || l.out < g.Engines()*h.options.PerEngine+g.Spare(r.Kinds)
}

// ahead is how many go before w, at most.
func (h *Holder) ahead(w *waiter) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch w.in {
	case nil:
		return 0
	case &w.line.fresh:
		return w.line.again.n + w.in.before(w)
	}
	return w.in.before(w)
}

// Line is who waits for one model.
type Line struct {
	Model, Base string
	Held        int
	Tokens      int       // of their prompts
	Oldest      time.Time // when the one who waits longest began to
}

// Lines are all in which somebody waits, sorted by model.
func (h *Holder) Lines() []Line {
	if h.held.Load() == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Line
	for _, l := range h.lines {
		s := Line{Model: l.model, Base: l.base, Held: l.len()}
		for _, first := range []*waiter{l.again.first, l.fresh.first} {
			for w := first; w != nil; w = w.next {
				s.Tokens += w.request.Tokens
				if s.Oldest.IsZero() || w.request.Since.Before(s.Oldest) {
					s.Oldest = w.request.Since
				}
			}
		}
		if s.Held > 0 {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Line) int { return strings.Compare(a.Model, b.Model) })
	return all
}

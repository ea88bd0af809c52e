package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// looking is one Run in progress. Its methods but told are for the goroutine of that Run.
type looking struct {
	ctx     context.Context // Run's own, for the watches that it starts
	log     *slog.Logger
	dirty   chan struct{} // holds one: something was found or lost
	wg      sync.WaitGroup
	finders []*finder
	former  []*finder // of settings before, until those of now have answered
	known   bool      // a state was complete
	first   time.Time // when the first of finders had answered
	count   int       // of the endpoints of the last state

	mu      sync.Mutex
	notices map[string]notice
}

// notice is something to tell people, by what it is about.
type notice struct {
	text    string
	problem bool // that somebody should look after
}

// found is what a watched object comes to.
type found struct {
	endpoint mobula.Endpoint
	// leftOut says why it is no endpoint, for people; empty for one that is.
	leftOut string
	// fine tells that it is left out because it should be.
	fine bool
}

// finder looks for what one query asks for.
type finder struct {
	query      query
	connection *Connection
	cancel     context.CancelFunc
	watches    []*watched
	// each gives what there is, in the same order each time.
	each func(yield func(object string, f *found) bool)
}

// newLooking's clock is the one of the machine. ctx ends all that it starts.
func newLooking(ctx context.Context, log *slog.Logger) *looking {
	// client-go would write to stderr on its own.
	return &looking{ctx: klog.NewContext(ctx, klog.Logger{}), log: log, dirty: make(chan struct{}, 1), notices: map[string]notice{}}
}

func (l *looking) mark() {
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// follow looks for what s asks for from now on. Watches for what s asks for too go on; the others too until all of s have answered, so
// that nothing is lost in between.
func (l *looking) follow(s *source) {
	rest := slices.Concat(l.finders, l.former)
	l.finders, l.former = make([]*finder, 0, len(s.queries)), nil
	for _, q := range s.queries {
		i := slices.IndexFunc(rest, func(f *finder) bool { return f.connection == s.connection && f.query.same(q) })
		if i >= 0 {
			l.finders = append(l.finders, rest[i])
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		l.finders = append(l.finders, l.start(s.connection, q))
	}
	for _, f := range rest {
		if f.synced() && len(l.former) < maxFormer {
			l.former = append(l.former, f)
		} else {
			f.cancel()
		}
	}
	l.mark()
}

func (l *looking) start(c *Connection, q query) *finder {
	ctx, cancel := context.WithCancel(l.ctx)
	f := &finder{query: q, connection: c, cancel: cancel}
	if q.entry.By == byServices {
		f.findServices(l.mark)
	} else {
		f.findPods(l.mark)
	}
	for _, w := range f.watches {
		l.wg.Go(func() { w.run(ctx) })
	}
	return f
}

// stop ends what follow has started.
func (l *looking) stop() {
	for _, f := range slices.Concat(l.finders, l.former) {
		f.cancel()
	}
	l.wg.Wait()
}

// synced tells whether all is there that the finder looks for.
func (f *finder) synced() bool {
	return !slices.ContainsFunc(f.watches, func(w *watched) bool { return !w.items.synced() })
}

// answered tells whether there is nothing to wait for.
func (f *finder) answered() bool {
	return !slices.ContainsFunc(f.watches, func(w *watched) bool { return !w.items.synced() && !w.refused() })
}

// look gives the endpoints that there are. They are known when all watches have answered, or a second after the first of them
// has: one namespace that can't be asked does not keep the others' engines from serving.
func (l *looking) look(now time.Time) (state []mobula.Endpoint, known bool) {
	answered, synced := 0, 0
	for _, f := range l.finders {
		if f.answered() {
			answered++
		}
		if f.synced() {
			synced++
		}
	}
	if synced > 0 && l.first.IsZero() {
		l.first = now
	}
	complete := answered == len(l.finders)
	if synced > 0 && complete {
		for _, f := range l.former {
			f.cancel()
		}
		l.former = nil
	}
	l.known = l.known || synced > 0 && (complete || now.Sub(l.first) >= grace)
	notices := map[string]notice{}
	state = make([]mobula.Endpoint, 0, l.count+l.count/8)
	places := make(map[string]int, l.count) // in state, by ID
	for _, f := range slices.Concat(l.finders, l.former) {
		from := len(state)
		left := map[string]*leftOut{}
		for object, e := range f.each {
			i, twice := places[e.endpoint.ID]
			switch {
			case e.leftOut != "":
				left[e.leftOut] = left[e.leftOut].and(object, e.fine)
			case !twice:
				places[e.endpoint.ID] = len(state)
				state = append(state, e.endpoint)
			case i >= from && state[i].Draining: // the successor of a pod that goes bears the same replica
				state[i] = e.endpoint
			}
		}
		f.notices(left, notices)
	}
	l.count = len(state)
	l.tell(notices)
	return state, l.known
}

// leftOut is some objects that are no endpoints for the same reason.
type leftOut struct {
	first string
	count int
	fine  bool
}

func (o *leftOut) and(object string, fine bool) *leftOut {
	if o == nil {
		return &leftOut{object, 1, fine}
	}
	o.count++
	return o
}

// notices adds what is to be told of f.
func (f *finder) notices(left map[string]*leftOut, all map[string]notice) {
	kind := "pod"
	if f.query.entry.By == byServices {
		kind = "service"
	}
	for reason, o := range left {
		others := ""
		if o.count > 1 {
			others = fmt.Sprintf(" (and %d more)", o.count-1)
		}
		all[f.query.String()+reason] = notice{fmt.Sprintf("%s: %s %s%s %s", f.query, kind, o.first, others, reason), !o.fine}
	}
	for _, w := range f.watches {
		err, since := w.failing()
		switch {
		case err == nil:
		case errors.Is(err, adapters.ErrUnavailable): // all watches at once, most likely: one line for them
			key := "away " + f.connection.host()
			text := fmt.Sprintf("Kubernetes%s can't be asked since %s, what was known stays: %s of %s: %v",
				f.connection.host(), since.UTC().Format(time.RFC3339), w.what, f.query, err)
			if _, told := all[key]; !told {
				all[key] = notice{text, true}
			}
		default:
			all[f.query.String()+w.what] = notice{fmt.Sprintf("%s of %s: %v", w.what, f.query, err), true}
		}
	}
}

// host is " at " and where the API server is, empty when that is not known.
func (c *Connection) host() string {
	if c.Config == nil {
		return ""
	}
	return " at " + c.Config.Host
}

// tell logs what has changed of what there is to tell.
func (l *looking) tell(notices map[string]notice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(notices)) {
		n := notices[key]
		before, told := l.notices[key]
		switch {
		case told:
			notices[key] = notice{before.text, n.problem} // as it was said: addresses and counts in it may differ
		case n.problem:
			l.log.Warn("cannot look for engines as asked, going on with the rest", "problem", n.text)
		default:
			l.log.Info("left out, for it is no engine", "what", n.text)
		}
	}
	for key, n := range l.notices {
		if _, still := notices[key]; !still && n.problem {
			l.log.Info("a problem with looking for engines is over", "problem", n.text)
		}
	}
	l.notices = notices
}

// told gives what there is to tell.
func (l *looking) told() []notice {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.notices))
}

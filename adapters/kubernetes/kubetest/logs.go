package kubetest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// maxLog bounds the bytes that are kept of a run's log.
	maxLog = 1 << 20
	// stampFormat is how kubelets write times before lines: all of one length.
	stampFormat = "2006-01-02T15:04:05.000000000Z07:00"
)

// podLog is what the containers of one pod wrote.
type podLog struct{ now, before *run }

// run is the log of a container from its start to its end.
type run struct {
	lines   []logLine
	dropped int    // lines that are no longer kept
	size    int    // bytes of those that are
	rest    string // what was written since the last newline: kubelets get whole lines
	ended   bool
	changed chan struct{} // closed when there is more, and at the end
}

type logLine struct {
	at   time.Time
	text string
}

func newRun() *run { return &run{changed: make(chan struct{})} }

func (p *play) logOf(at key) *podLog {
	if p.logged[at] == nil {
		p.logged[at] = &podLog{now: newRun(), before: newRun()}
	}
	return p.logged[at]
}

// next has what is written from now on be of another run.
func (l *podLog) next(now time.Time) {
	l.now.end(now)
	l.before, l.now = l.now, newRun()
}

// Log appends to the log of a pod. Lines of the container that ran before a crash are kept apart, as previous. What comes after the last
// newline is held back until its line, or the container, ends.
func (c *Cluster) Log(namespace, pod, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, now := c.logOf(key{namespace, pod}).now, c.store.now()
	for line := range strings.SplitAfterSeq(r.rest+text, "\n") {
		if r.rest = line; strings.HasSuffix(line, "\n") {
			r.add(now, line)
			r.rest = ""
		}
	}
	r.wake()
}

func (r *run) add(at time.Time, line string) {
	r.lines = append(r.lines, logLine{at, line})
	for r.size += len(line); r.size > maxLog; r.dropped++ {
		r.size -= len(r.lines[0].text)
		r.lines = r.lines[1:]
	}
}

func (r *run) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// end ends the log: who follows it has read all of it then.
func (r *run) end(now time.Time) {
	if r.rest != "" {
		r.add(now, r.rest)
		r.rest = ""
	}
	r.ended = true
	r.wake()
}

// from gives the lines after the first n that were ever written, as they are sent.
func (r *run) from(n int, stamps bool) []byte {
	var out []byte
	for _, l := range r.lines[min(max(0, n-r.dropped), len(r.lines)):] {
		if stamps {
			out = append(l.at.AppendFormat(out, stampFormat), ' ')
		}
		out = append(out, l.text...)
	}
	return out
}

// begin gives how many lines are left out at first: those before a time, and all but the last ones.
func (r *run) begin(since time.Time, tail string) int {
	n := r.dropped + slices.IndexFunc(append(slices.Clone(r.lines), logLine{at: since}), func(l logLine) bool { return !l.at.Before(since) })
	if last, err := strconv.Atoi(tail); err == nil {
		n = max(n, r.dropped+len(r.lines)-last)
	}
	return n
}

// logs answers with a pod's log, and follows it if asked to.
func (c *Cluster) logs(w http.ResponseWriter, r *http.Request, q *call) error {
	since := time.Time{}
	if text := q.query.Get("sinceTime"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, text); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
	}
	c.mu.Lock()
	log, err := c.run(q)
	if err != nil {
		c.mu.Unlock()
		return err
	}
	seen, stamps := log.begin(since, q.query.Get("tailLines")), q.query.Get("timestamps") == "true"
	cut, broken, most := c.cut, c.cutLogs, -1
	if len(c.logCuts) > 0 {
		most, c.logCuts = c.logCuts[0], c.logCuts[1:]
	}
	c.mu.Unlock()
	limit, err := strconv.Atoi(q.query.Get("limitBytes"))
	if err != nil {
		limit = -1
	}
	w.Header().Set("Content-Type", "text/plain")
	flusher := http.NewResponseController(w)
	for {
		c.mu.Lock()
		text, ended, changed := log.from(seen, stamps), log.ended, log.changed
		seen = log.dropped + len(log.lines)
		c.mu.Unlock()
		if limit >= 0 {
			text = text[:min(limit, len(text))]
			limit -= len(text)
		}
		if most >= 0 {
			if len(text) >= most {
				_, _ = w.Write(text[:most]) // the client is gone
				_ = flusher.Flush()
				panic(http.ErrAbortHandler)
			}
			most -= len(text)
		}
		_, _ = w.Write(text) // the client is gone
		if q.query.Get("follow") != "true" || ended || limit == 0 || flusher.Flush() != nil {
			return nil
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-cut:
			return nil
		case <-broken:
			panic(http.ErrAbortHandler)
		case <-changed:
		}
	}
}

// run finds the log that is asked for. Of a container that waits to start again it is that of the run that ended last, as kubelets have it.
func (c *Cluster) run(q *call) (*run, error) {
	pod, err := c.get(q)
	if err != nil {
		return nil, err
	}
	container, previous := q.query.Get("container"), q.query.Get("previous") == "true"
	named := containers(sub(pod.tree, "spec"))
	if container == "" && len(list(pod.tree, "spec", "containers")) == 1 {
		container = text(named[0], "name")
	}
	if !slices.ContainsFunc(named, func(c tree) bool { return text(c, "name") == container }) {
		return nil, apierrors.NewBadRequest("container " + container + " is not valid for pod " + pod.name)
	}
	reason := "ContainerCreating"
	for _, s := range trees(list(pod.tree, "status", "containerStatuses")) {
		if text(s, "name") != container {
			continue
		}
		former := sub(s, "lastState", "terminated") != nil
		reason = text(s, "state", "waiting", "reason")
		switch {
		case previous && !former:
			return nil, apierrors.NewBadRequest("previous terminated container \"" + container + "\" in pod \"" + pod.name + "\" not found")
		case previous, former && reason != "":
			return c.logOf(q.key).before, nil
		case reason == "":
			return c.logOf(q.key).now, nil
		}
	}
	if reason == "ErrImagePull" || reason == "ImagePullBackOff" {
		return nil, apierrors.NewBadRequest("container \"" + container + "\" in pod \"" + pod.name + "\" is waiting to start: trying and failing to pull image")
	}
	return nil, apierrors.NewBadRequest("container \"" + container + "\" in pod \"" + pod.name + "\" is waiting to start: " + reason)
}

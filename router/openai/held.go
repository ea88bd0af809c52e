package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula/router/flow"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

const (
	// maxRounds bounds how often a request starts over because engines left between pick and attempt.
	maxRounds = 5
	// maxBroken bounds how often it does after an engine took it and died: it may be the reason.
	maxBroken = 2
	// brokenPause lets the router notice meanwhile, doubled by each.
	brokenPause = 100 * time.Millisecond
	// maxMissing bounds how often it does because no engine that was to have its LoRA had it, with a pause doubled by
	// each: the router reads again meanwhile who has it.
	maxMissing   = 5
	missingPause = 50 * time.Millisecond
)

// errGivenUp tells that the fleet is not to serve the model any more.
var errGivenUp = errors.New("given up")

// wait is what a call that may be held remembers.
type wait struct {
	since   time.Time // held first, zero for never
	rounds  int
	broken  int
	missing int
	again   bool // it has been let go before
	client  waitingClient
}

// place has a request wait until something serves its model, and carries it there. One whose engine is
// lost before the first byte, with no other left, waits again.
func (c *call) place(s *pick.Snapshot, client proxy.Client) error {
	defer func() { c.pass.Done() }() // a hook may panic
	c.wait = wait{client: waitingClient{Client: client, call: c}}
	x := &c.exchange
	x.MayMiss = c.group.Model != c.group.Base && len(c.fields.previous) == 0
	x.Client, x.Limit = &c.wait.client, c.started.Add(time.Duration(c.settings.router.Timeouts.Total))
	for {
		if c.edge.flow.Held() > 0 || !c.group.Serves(c.route.kinds) {
			if err := c.hold(); err != nil {
				return c.held(err)
			}
			s = c.edge.fleet.Snapshot()
			g := s.Lookup(c.group.Model)
			if g == nil || !g.Offered() {
				return c.held(errGivenUp)
			}
			c.group = g
		}
		c.choose(s)
		if len(x.List) == 0 { // a provider that had room is full
			c.pass.Done()
			c.wait.again = true
			continue
		}
		r := c.edge.proxy.Do(x)
		c.pass.Done()
		if !c.another(r) {
			return c.finish(&c.wait.client, r)
		}
		s = c.edge.fleet.Snapshot()
		if g := s.Lookup(c.group.Model); g != nil {
			c.group = g
		}
	}
}

// hold waits in line.
func (c *call) hold() error {
	w := &c.wait
	if w.since.IsZero() {
		w.since = time.Now()
	}
	r := flow.Request{
		Group: c.group, Tokens: c.request.Tokens, Kinds: c.route.kinds, Since: w.since, Again: w.again,
		Until: w.since.Add(c.group.HeldFor), Client: w.client.Client,
	}
	if c.exchange.Limit.Before(r.Until) {
		r.Until = c.exchange.Limit
	}
	if c.fields.stream && c.route.streams() {
		r.Beat = w.client.beat
	}
	var err error
	c.pass, err = c.edge.flow.Hold(&r)
	w.again = true
	return err
}

// held answers a request that waited in vain.
func (c *call) held(err error) error {
	f := &failure{status: http.StatusServiceUnavailable, param: "model", retryAfter: 10 * time.Second}
	switch {
	case errors.Is(err, flow.ErrGone):
		c.series.Answered(clientGone, time.Since(c.started))
		return err
	case errors.Is(err, flow.ErrFull):
		f.message = "no engine serves the model `" + c.group.Model + "` now, and as many requests wait for one as scaling.held allows"
	case errors.Is(err, flow.ErrDraining):
		f.message, f.retryAfter = "the router stops, and no engine serves the model `"+c.group.Model+"` yet", time.Second
	case errors.Is(err, errGivenUp):
		f.message = "the model `" + c.group.Model + "` is not in the fleet any more"
	default:
		f.message = "no engine served the model `" + c.group.Model + "` in the time that scaling.heldFor allows"
	}
	c.edge.metrics.Rejected("held")
	c.series.Failed(time.Now())
	c.series.Answered(f.status, time.Since(c.started))
	return c.wait.client.fail(f)
}

// another tells whether a request that came to nothing, with nothing of an answer sent, starts over.
func (c *call) another(r proxy.Result) bool {
	var p *proxy.Error
	if r.Err == nil || r.Status != 0 || !errors.As(r.Err, &p) || !time.Now().Before(c.exchange.Limit) {
		return false
	}
	w := &c.wait
	switch {
	case p.Cause == proxy.CauseConnect, r.Attempts == 0 && p.Cause != proxy.CauseClientGone: // nobody has seen it
		serves := c.edge.fleet.Snapshot().Lookup(c.group.Model)
		if serves != nil && serves.Serves(c.route.kinds) {
			w.rounds++
		}
		w.again = true
		return w.rounds <= maxRounds
	case p.Cause == proxy.CauseMissing:
		w.missing++
		w.again = true
		return w.missing <= maxMissing && flow.Pause(w.client.Client, missingPause<<w.missing)
	case p.Cause == proxy.CauseReset, p.Cause == proxy.CauseTruncated:
		w.broken++
		w.again = true
		return w.broken <= maxBroken && flow.Pause(w.client.Client, brokenPause<<w.broken)
	}
	return false
}

// waitingClient is a client whose answer may have begun with comments.
type waitingClient struct {
	proxy.Client
	call   *call
	begun  bool   // status 200 and comments have been sent
	other  int    // the status of an answer that is no stream, which can't be passed on any more
	answer []byte // of it
}

// maxOther bounds what is kept of such an answer.
const maxOther = 64 << 10

// beat tells the client that it waits.
func (w *waitingClient) beat(ahead int) error {
	if !w.begun {
		fields := []byte("Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n" + anyOrigin + ": *\r\n")
		if err := w.Client.Head(http.StatusOK, w.call.answerFields(fields, nil), -1); err != nil {
			return err
		}
		w.begun = true
	}
	return w.Client.Write([]byte(": waiting for an engine (" + strconv.Itoa(ahead) + " ahead)\n\n"))
}

// Head implements proxy.Client.
func (w *waitingClient) Head(status int, fields []byte, length int64) error {
	if !w.begun {
		return w.Client.Head(status, fields, length)
	}
	if status != http.StatusOK || !isEventStream(fields) {
		w.other = status
	}
	return nil
}

// Write implements proxy.Client.
func (w *waitingClient) Write(p []byte) error {
	if w.other == 0 {
		return w.Client.Write(p)
	}
	if len(w.answer)+len(p) <= maxOther {
		w.answer = append(w.answer, p...)
	}
	return nil
}

// Flush implements proxy.Client.
func (w *waitingClient) Flush() error {
	if w.other == 0 {
		return w.Client.Flush()
	}
	return nil
}

// end sends an answer that was no stream as an event.
func (w *waitingClient) end() error {
	if w.other == 0 {
		return nil
	}
	body := w.answer
	var line bytes.Buffer
	if json.Compact(&line, body) == nil {
		return w.event(line.Bytes())
	}
	f := failure{status: w.other, message: "the engine answered with status " + strconv.Itoa(w.other)}
	return w.event(f.body(w.call.route.format))
}

// fail answers with f, or tells of it in the stream that has begun.
func (w *waitingClient) fail(f *failure) error {
	if !w.begun {
		return f.send(w.Client, w.call.route.format, w.call.answerFields(nil, nil))
	}
	return w.event(f.body(w.call.route.format))
}

// event sends a body, which is one line, as an event of an error.
func (w *waitingClient) event(body []byte) error {
	start := "data: "
	if w.call.route.format == formatAnthropic {
		start = "event: error\ndata: "
	}
	return w.Client.Write(append(append([]byte(start), body...), "\n\n"...))
}

// isEventStream tells whether header lines say so.
func isEventStream(fields []byte) bool {
	for line := range bytes.Lines(fields) {
		name, value, _ := bytes.Cut(line, []byte{':'})
		if bytes.EqualFold(name, []byte("content-type")) {
			return bytes.HasPrefix(bytes.ToLower(bytes.TrimSpace(value)), []byte("text/event-stream"))
		}
	}
	return false
}

var _ proxy.Client = (*waitingClient)(nil)

package openai

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// Sent implements proxy.Hooks.
func (c *call) Sent(ep *pick.Endpoint) {
	c.sent, c.first, c.last, c.predicted = time.Now(), time.Time{}, time.Time{}, -1
	c.edge.metrics.Sent(ep.ID)
	c.ticket = pick.Ticket{}
	if o := c.settings.observer; o != nil && ep.Provider == nil { // a provider's pace teaches nothing of engines
		c.request.Now = c.sent.Sub(c.edge.start)
		o.Sent(&c.request, ep, &c.ticket)
		if c.request.Blocks != nil {
			c.predicted = c.ticket.Cached
		}
	}
	if !c.counted { // another attempt is no more demand
		c.counted = true
		c.series.Prompt(c.sent, c.request.Tokens-max(c.predicted, 0))
	}
}

// First implements proxy.Hooks.
func (c *call) First(ep *pick.Endpoint, status int, p []byte, now time.Time) {
	c.first, c.last = now, now
	c.pass.Done()
	if status != 200 {
		return
	}
	c.series.First(now, now.Sub(c.started), c.fields.stream)
	if c.fields.stream && c.settings.gauge == nil {
		ep.Live.Observe(now.Sub(c.sent))
	}
	if o := c.settings.observer; o != nil && c.fields.stream {
		o.First(&c.ticket, now.Sub(c.edge.start))
	}
	if c.route.owned {
		if id := responseID(p); id != nil {
			c.edge.owners.Add(string(id), ep.ID)
		}
	}
}

// Overdue implements proxy.Hooks.
func (c *call) Overdue(ep *pick.Endpoint) { c.edge.fleet.Overdue(ep) }

// Events implements proxy.Hooks.
func (c *call) Events(n int, now time.Time) {
	if n > 0 && !c.last.IsZero() && now.After(c.last) {
		c.series.Events(now, n, now.Sub(c.last))
	}
	c.last = now
}

// Ended implements proxy.Hooks.
func (c *call) Ended(ep *pick.Endpoint, o proxy.Outcome) {
	now := time.Now()
	c.edge.fleet.Report(ep, o)
	a := metrics.Attempt{
		Endpoint: ep.ID, Model: c.group.Model, Cause: o.Cause.String(), Failed: o.Cause.Failed(), Retried: o.Retried,
		Took: now.Sub(c.sent), Events: o.Events, Counted: o.Usage.Seen,
		Prompt: o.Usage.Prompt, Cached: o.Usage.Cached, Completion: o.Usage.Completion, Predicted: c.predicted,
	}
	if !c.first.IsZero() {
		a.Decode = now.Sub(c.first)
	}
	c.edge.metrics.Ended(c.series, &a)
	if ep.Provider != nil {
		c.edge.flow.Changed() // it takes one more
		return
	}
	if c.settings.observer == nil {
		return
	}
	out := pick.Outcome{
		Now: now.Sub(c.edge.start), OK: o.Cause == proxy.CauseOK && o.Status < 400, Refused: o.Cause.Failed() || o.Cause == proxy.CauseBusy,
		Prompt: o.Usage.Prompt, Cached: o.Usage.Cached, Completion: o.Usage.Completion,
	}
	if !o.Usage.Seen {
		out.Cached, out.Completion = -1, o.Events
	}
	c.settings.observer.Done(&c.ticket, out)
}

// responseID finds the id of a Responses answer in its first bytes: {"id":"resp_...} or, in
// a stream, the response.created event.
func responseID(p []byte) []byte {
	_, rest, ok := bytes.Cut(p[:min(len(p), 1024)], []byte(`"id":"resp_`))
	if !ok {
		if _, rest, ok = bytes.Cut(p[:min(len(p), 1024)], []byte(`"id": "resp_`)); !ok {
			return nil
		}
	}
	end := bytes.IndexByte(rest, '"')
	if end < 0 || end > 128 {
		return nil
	}
	return append([]byte("resp_"), rest[:end]...)
}

// appendDecision writes the debug header: why the pick came out as it did.
func appendDecision(dst []byte, q *pick.Request, x *pick.Explanation) []byte {
	type score struct {
		Endpoint string  `json:"endpoint"`
		Cost     float64 `json:"cost"`
		Hit      float64 `json:"predicted_hit"`
		Load     int64   `json:"in_flight"`
	}
	const most = 32 // a header has to stay a header
	scores := make([]score, 0, min(len(x.Scores), most))
	for _, s := range x.Scores[:min(len(x.Scores), most)] {
		scores = append(scores, score(s))
	}
	b, err := json.Marshal(struct {
		Policy  string  `json:"policy"`
		Reason  string  `json:"reason"`
		Tokens  int     `json:"prompt_tokens_estimate"`
		Session string  `json:"session,omitempty"`
		Scores  []score `json:"scores"`
	}{x.Policy, q.Reason, q.Tokens, clip(q.Session), scores})
	if err != nil {
		return dst // a cost that is not a number
	}
	dst = append(dst, "X-Mobula-Decision: "...)
	dst = append(dst, b...)
	return append(dst, "\r\n"...)
}

var _ proxy.Hooks = (*call)(nil)

// reportOnly are the hooks of requests that no policy chose for.
type reportOnly struct{ fleet Fleet }

func (reportOnly) Sent(*pick.Endpoint)                          {}
func (reportOnly) First(*pick.Endpoint, int, []byte, time.Time) {}
func (r reportOnly) Overdue(ep *pick.Endpoint)                  { r.fleet.Overdue(ep) }
func (reportOnly) Events(int, time.Time)                        {}
func (r reportOnly) Ended(ep *pick.Endpoint, o proxy.Outcome)   { r.fleet.Report(ep, o) }

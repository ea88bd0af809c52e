package openai

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/mobula-serve/mobula/kv"
	"github.com/mobula-serve/mobula/router/flow"
	"github.com/mobula-serve/mobula/router/metrics"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// call is one proxied request from its head to the end of its answer. Calls are pooled.
type call struct {
	edge     *Edge
	settings *settings
	route    *route
	group    *pick.Group
	series   *metrics.Model
	started  time.Time
	header   header
	fields   fields
	request  pick.Request
	blocks   []uint64
	list     [maxDepth]*pick.Endpoint
	exchange proxy.Exchange
	outside  func(*pick.Endpoint) (string, []byte, []byte) // Outside, made once
	fieldsOf func([]byte, *pick.Endpoint) []byte           // answerFields, likewise
	body     []byte                                        // the client's
	patched  []byte                                        // the body under another model name
	wait     wait
	pass     *flow.Pass // of a request that was held, nil else
	counted  bool       // its prompt tokens, when it was sent first

	// of the attempt under way
	ticket    pick.Ticket
	sent      time.Time
	first     time.Time // zero before the first byte
	last      time.Time // of the last event
	predicted int
}

// maxDepth is the longest pick: the first attempt and Retries.Attempts at its bound.
const maxDepth = 11

// tokenBytes is the first guess at the bytes of a token, of English text in byte-level BPE
// vocabularies.
const tokenBytes = 4

// clientGone is the status that stands in metrics for a client that left, as nginx has it.
const clientGone = 499

// serve answers one request whose body has been read. The error says that the answer was
// cut: then the connection must not look as if it had ended well.
func (e *Edge) serve(r *route, target string, raw, body []byte, client proxy.Client) error {
	c, ok := e.calls.Get().(*call)
	if !ok {
		return errors.New("not a call")
	}
	defer e.release(c)
	c.started, c.settings, c.route = time.Now(), e.settings.Load(), r
	c.header.scan(raw, c.settings.sessionHeader)
	snapshot := e.fleet.Snapshot()
	if f := c.prepare(snapshot, body); f != nil {
		return c.refuse(client, f)
	}
	if n := e.inFlight.Add(1); n > int64(c.settings.router.Limits.InFlight) {
		e.inFlight.Add(-1)
		e.metrics.Rejected("in_flight")
		return c.refuse(client, &failure{status: http.StatusServiceUnavailable, message: "the router has as many requests in flight as router.limits.inFlight allows", retryAfter: time.Second})
	}
	defer e.inFlight.Add(-1)
	c.measure()
	x := &c.exchange
	x.Method, x.Target, x.Fields, x.Stream, x.Tokens = http.MethodPost, target, c.header.fields, c.fields.stream, c.request.Tokens
	x.Client, x.Hooks, x.Outside, x.AnswerFields = client, c, c.outside, c.fieldsOf
	if c.group.Placed {
		return c.place(snapshot, client)
	}
	return c.finish(client, c.do(snapshot))
}

// do carries a request to what serves its model now.
func (c *call) do(s *pick.Snapshot) proxy.Result {
	for rounds := 0; ; rounds++ {
		c.choose(s)
		if len(c.exchange.List) == 0 {
			return proxy.Result{Err: errNobody}
		}
		r := c.edge.proxy.Do(&c.exchange)
		var p *proxy.Error
		if r.Err == nil || rounds == maxRounds || !errors.As(r.Err, &p) || p.Cause != proxy.CauseDraining {
			return r
		}
		s = c.edge.fleet.Snapshot() // all that it had began to drain just now
		if g := s.Lookup(c.group.Model); g != nil {
			c.group = g
		}
	}
}

// errNobody tells that neither an engine nor a provider takes a request now.
var errNobody = errors.New("nobody takes it")

// release clears what a call points to and gives it back.
func (e *Edge) release(c *call) {
	const keep = 64 << 10 // larger buffers go, so that one big request does not stay in memory
	if cap(c.patched) > keep {
		c.patched = nil
	}
	if cap(c.blocks) > keep/8 {
		c.blocks = nil
	}
	clear(c.list[:])
	c.settings, c.route, c.group, c.series = nil, nil, nil, nil
	c.fields = fields{}
	c.request = pick.Request{}
	c.exchange = proxy.Exchange{}
	c.ticket = pick.Ticket{}
	c.body, c.wait, c.pass, c.counted = nil, wait{}, nil, false
	e.calls.Put(c)
}

// prepare reads the body's fields and finds the group of endpoints.
func (c *call) prepare(s *pick.Snapshot, body []byte) *failure {
	if c.header.encoded {
		return &failure{status: http.StatusUnsupportedMediaType, message: "a request body with Content-Encoding is not supported; send it plain"}
	}
	var err error
	if c.route.body == bodyMultipart {
		err = scanMultipart(body, string(c.header.contentType), &c.fields)
	} else {
		err = scanBody(body, min(c.settings.router.Limits.Depth, maxDepthLimit), c.settings.sessionField, &c.fields)
	}
	if err != nil {
		return badRequest("", err)
	}
	c.body, c.exchange.Body = body, body
	if c.fields.name == nil {
		// vLLM takes a request without a model when it serves one; so does a fleet of one model
		c.group = onlyModel(s)
		if c.group == nil {
			return badRequest("model", errors.New("\"model\" is missing; GET /v1/models lists what this fleet serves"))
		}
		return nil
	}
	c.group = s.LookupBytes(c.fields.name)
	if c.group == nil {
		return &failure{status: http.StatusNotFound, param: "model", message: unknownModel(s, c.fields.name)}
	}
	if !c.group.Offered() {
		return &failure{status: http.StatusServiceUnavailable, param: "model", message: "no engine serves the model `" + c.group.Model + "` now", retryAfter: 5 * time.Second}
	}
	if string(c.fields.name) != c.group.Model { // an alias: the engine knows the model by its own name only
		m := c.fields.model
		c.patched = append(append(append(c.patched[:0], body[:m.from]...), c.route.spell(c.group.Model)...), body[m.to:]...)
		c.exchange.Body = c.patched
	}
	return nil
}

// measure fills in what a pick goes by and does not change while the request waits.
func (c *call) measure() {
	e, set, f, body := c.edge, c.settings, &c.fields, c.body
	c.series = e.metrics.Model(c.group.Model, c.route.name)
	c.series.Incoming(c.started)
	prompt := len(f.tools.of(body)) + len(f.system.of(body)) + len(f.prompt.of(body)) + len(f.more.of(body))
	q := &c.request
	q.Model, q.Tokens, q.Output, q.Stream, q.Kinds = c.group.Model, prompt/tokenBytes+1, f.output, f.stream, c.route.kinds
	q.Depth = min(set.depth, maxDepth)
	if set.needs.Blocks && c.route.cached {
		c.blocks = kv.Blocks(c.blocks[:0], kv.Seed(c.group.Model), pick.BlockBytes, f.tools.of(body), f.system.of(body), f.prompt.of(body), f.more.of(body))
		q.Blocks = c.blocks
	}
	if set.needs.Session {
		q.Session = string(c.header.session)
		if q.Session == "" {
			q.Session = string(f.session)
		}
	}
	if c.header.debug {
		q.Explain = &pick.Explanation{}
	}
}

// choose makes the pick, which may be empty when the group has no engine.
func (c *call) choose(s *pick.Snapshot) {
	e, set, q := c.edge, c.settings, &c.request
	q.Now, q.Rand = e.now(), rand.Uint64()
	if owner := e.owner(s, c.fields.previous); owner != nil && !owner.Draining { // only that engine knows the earlier turn
		c.list[0], q.Reason = owner, "owner"
		c.exchange.List = c.list[:1]
	} else {
		c.exchange.List = pick.Order(set.policy, q, c.group, c.list[:0])
	}
	if len(c.exchange.List) > 0 {
		e.metrics.Picked(set.router.Policy.Name, q.Reason)
	}
}

// finish counts the request and answers it when nothing was sent yet. Its error has the
// client's connection cut.
func (c *call) finish(client proxy.Client, r proxy.Result) error {
	took := time.Since(c.started)
	status, f := r.Status, (*failure)(nil)
	var p *proxy.Error
	switch {
	case r.Err == nil:
	case errors.As(r.Err, &p) && p.Cause == proxy.CauseClientGone:
		status = clientGone
	case errors.Is(r.Err, errNobody):
		f = &failure{status: http.StatusServiceUnavailable, param: "model", message: "no engine serves the model `" + c.group.Model + "` now, and no provider takes this request", retryAfter: time.Second}
	case r.Status == 0:
		f = failureOf(r.Err)
	}
	if f != nil {
		status = f.status
	}
	c.series.Answered(status, took)
	if status >= http.StatusInternalServerError || r.Err != nil && status != clientGone {
		c.series.Failed(time.Now())
	}
	c.log(r, status, took)
	switch {
	case f != nil && c.wait.client.begun:
		return c.wait.client.fail(f)
	case f != nil:
		return f.send(client, c.route.format, c.answerFields(nil, r.Endpoint))
	case r.Cut || status == clientGone:
		return r.Err
	case c.wait.client.begun:
		return c.wait.client.end()
	}
	return nil // whole, or the stream itself told the client of its failure
}

// refuse answers without an engine.
func (c *call) refuse(client proxy.Client, f *failure) error {
	model := metrics.Unknown
	if c.group != nil {
		model = c.group.Model
	}
	c.edge.metrics.Model(model, c.route.name).Answered(f.status, time.Since(c.started))
	return f.send(client, c.route.format, c.answerFields(nil, nil))
}

// log tells of a request at debug; nothing is logged per request above it.
func (c *call) log(r proxy.Result, status int, took time.Duration) {
	if !c.edge.debug {
		return
	}
	endpoint := ""
	if r.Endpoint != nil {
		endpoint = r.Endpoint.ID
	}
	c.edge.logger.Debug("request", "request_id", string(c.header.id), "route", c.route.name, "model", c.group.Model,
		"endpoint", endpoint, "status", status, "attempts", r.Attempts, "seconds", took.Seconds(), "error", r.Err)
}

// answerFields adds the router's own header lines; ep is nil when no engine was reached.
func (c *call) answerFields(dst []byte, ep *pick.Endpoint) []byte {
	dst = append(dst, "X-Request-Id: "...)
	dst = append(dst, c.header.id...)
	dst = append(dst, "\r\n"...)
	if ep != nil {
		dst = append(dst, "X-Mobula-Endpoint: "...)
		dst = append(dst, ep.ID...)
		dst = append(dst, "\r\n"...)
	}
	if x := c.request.Explain; x != nil {
		dst = appendDecision(dst, &c.request, x)
	}
	return dst
}

package sim

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
)

// responseRequest is a checked request of the responses API.
type responseRequest struct {
	chatRequest
	item       string // id of the message
	params     *params
	talk       []message
	background bool
	keep       bool
}

// responses serves /v1/responses.
func (c *call) responses() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	q, err := c.responseRequest(p)
	if err != nil {
		c.fail(err)
		return
	}
	s := c.e.newSeq(&q.in, q.sampling, 0, q.answer)
	v := &stored{id: q.id}
	if q.keep {
		v.update("in_progress", q.appendResponse(nil, s, "in_progress"))
		c.e.store.put(v)
	}
	switch {
	case q.background:
		c.respondLater(q, s, v)
	case q.sampling.stream:
		c.responseStream(q, s, v)
	default:
		if err := c.e.generateAll(c, []*seq{s}, func(*seq, *step) error { return nil }); err != nil {
			c.fail(err)
			return
		}
		body := q.finishResponse(s, v)
		c.json(http.StatusOK, body)
	}
}

// responseRequest reads and checks a body.
func (c *call) responseRequest(p *params) (*responseRequest, *apiError) {
	in, given := p.get("input")
	if !given {
		p.missing("input")
	} else if in.Type != gjson.String && !in.IsArray() {
		p.wrong("string_type", "input.str", "Input should be a valid string", in)
	}
	instructions, previous := p.string("instructions"), p.string("previous_response_id")
	salt := p.string("cache_salt")
	background, keep := p.bool("background", false), p.bool("store", true)
	sp, err := c.sampling(p, apiResponses)
	if err != nil {
		return nil, err
	}
	q := &responseRequest{params: p, background: background, keep: keep || background, item: "msg_" + newID()}
	q.sampling, q.created, q.id = sp, time.Now().Unix(), "resp_"+newID()
	if q.name, q.in.lora, err = c.model(p); err != nil {
		return nil, err
	}
	if instructions != "" {
		q.talk = append(q.talk, message{"system", instructions})
	}
	if previous != "" {
		v := c.e.store.get(previous)
		if v == nil {
			return nil, noResponse(previous)
		}
		v.mu.Lock()
		q.talk = append(q.talk, v.talk...)
		v.mu.Unlock()
	}
	if in.Type == gjson.String {
		q.talk = append(q.talk, message{"user", in.Str})
	} else if err := c.inputItems(q, in); err != nil {
		return nil, err
	}
	q.in.ids, q.in.salt = c.e.template(q.talk, true, false), salt
	text, _ := p.get("text")
	return q, c.finishRequest(&q.chatRequest, text.Get("format"))
}

// inputItems reads input given as a list.
func (c *call) inputItems(q *responseRequest, list gjson.Result) *apiError {
	var err *apiError
	list.ForEach(func(_, item gjson.Result) bool {
		var text string
		if content := item.Get("content"); content.Exists() {
			text, err = c.content(content)
		} else {
			text = item.Raw // function calls, their outputs and the like
		}
		role := item.Get("role").Str
		if role == "" {
			role = "user"
		}
		q.talk = append(q.talk, message{role, text})
		return err == nil
	})
	if len(q.talk) == 0 && err == nil {
		err = badRequest("", "Cannot apply chat template to an empty conversation. Provide at least one message.")
	}
	return err
}

// status of a response that has ended.
func (q *responseRequest) status(s *seq) string {
	switch s.finish {
	case "length":
		return "incomplete"
	case "abort":
		return "cancelled"
	}
	return "completed"
}

// finishResponse keeps a response that has ended and gives its body.
func (q *responseRequest) finishResponse(s *seq, v *stored) []byte {
	status := q.status(s)
	body := q.appendResponse(nil, s, status)
	v.mu.Lock()
	v.talk = append(slices.Clip(q.talk), message{"assistant", string(s.text)})
	v.mu.Unlock()
	v.update(status, body)
	return body
}

// respondLater answers at once and goes on generating. The connection is closed behind the
// answer, since its goroutine is the one that goes on; the server waits for it.
func (c *call) respondLater(q *responseRequest, s *seq, v *stored) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.context()))
	defer cancel()
	v.mu.Lock()
	v.cancel = cancel
	v.mu.Unlock()
	v.update("queued", q.appendResponse(nil, s, "queued"))
	c.w.Header().Set("Connection", "close")
	c.json(http.StatusOK, q.appendResponse(nil, s, "queued"))
	_ = c.flush()
	c.ctx = ctx
	v.update("in_progress", q.appendResponse(nil, s, "in_progress"))
	err := c.e.generateAll(c, []*seq{s}, func(*seq, *step) error { return nil })
	switch {
	case err == nil:
		q.finishResponse(s, v)
	case errors.Is(err, context.Canceled):
		v.update("cancelled", q.appendResponse(nil, s, "cancelled"))
	default:
		v.update("failed", q.appendResponse(nil, s, "failed"))
	}
}

// responseStream answers in named events.
func (c *call) responseStream(q *responseRequest, s *seq, v *stored) {
	out := c.begin()
	n := 0
	send := func(name string, fields func(dst []byte) []byte, more ...byte) error {
		dst := fields(append(out.event(name), '{'))
		dst = appendInt(append(dst, `,"sequence_number":`...), n)
		dst = append(dst, more...)
		n++
		return out.send(append(append(append(dst, `,"type":"`...), name...), `"}`...))
	}
	whole := func(status string) func([]byte) []byte {
		return func(dst []byte) []byte { return q.appendResponse(append(dst, `"response":`...), s, status) }
	}
	item := func(status string, text []byte) func([]byte) []byte {
		return func(dst []byte) []byte {
			return append(q.appendItem(append(dst, `"item":`...), status, text), `,"output_index":0`...)
		}
	}
	at := func(dst []byte) []byte {
		return appendString(append(dst, `"content_index":0,"item_id":`...), q.item)
	}
	opened := false
	open := func() error {
		opened = true
		return errors.Join(
			send("response.output_item.added", item("in_progress", nil)),
			send("response.content_part.added", func(dst []byte) []byte {
				return append(at(dst), `,"output_index":0,"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]}`...)
			}))
	}
	err := errors.Join(send("response.created", whole("in_progress")), send("response.in_progress", whole("in_progress")))
	if err == nil {
		err = c.e.generateAll(c, []*seq{s}, func(_ *seq, st *step) error {
			if !opened {
				if err := open(); err != nil {
					return err
				}
			}
			if len(st.text) == 0 {
				return nil
			}
			return send("response.output_text.delta", func(dst []byte) []byte {
				dst = append(append(dst, `"content_index":0,"delta":`...), appendString(nil, st.text)...)
				dst = appendString(append(dst, `,"item_id":`...), q.item)
				return append(dst, `,"logprobs":[],"output_index":0`...)
			})
		})
	}
	if err != nil {
		if !errors.Is(err, errCut) && !errors.Is(err, errGone) && c.context().Err() == nil {
			_ = out.send(toAPIError(err).appendTo(out.data(), true))
		}
		return
	}
	body := q.finishResponse(s, v)
	_ = send("response.output_text.done", func(dst []byte) []byte {
		return append(at(dst), `,"logprobs":[],"output_index":0`...)
	}, appendString([]byte(`,"text":`), s.text)...)
	_ = send("response.content_part.done", func(dst []byte) []byte {
		return appendPart(append(at(dst), `,"output_index":0,"part":`...), s.text)
	})
	_ = send("response.output_item.done", item("completed", s.text))
	_ = send("response.completed", func(dst []byte) []byte { return append(append(dst, `"response":`...), body...) })
}

// appendItem writes the message of a response; it has no content while text is nil.
func (q *responseRequest) appendItem(dst []byte, status string, text []byte) []byte {
	dst = appendString(append(dst, `{"id":`...), q.item)
	dst = append(dst, `,"content":[`...)
	if text != nil {
		dst = appendPart(dst, text)
	}
	return append(appendString(append(dst, `],"role":"assistant","status":`...), status), `,"type":"message","phase":null}`...)
}

func appendPart(dst, text []byte) []byte {
	return append(appendString(append(dst, `{"annotations":[],"text":`...), text), `,"type":"output_text","logprobs":null}`...)
}

// appendResponse writes the whole response object. What it says is there only when it ended.
func (q *responseRequest) appendResponse(dst []byte, s *seq, status string) []byte {
	ended := status == "completed" || status == "incomplete"
	dst = appendString(append(dst, `{"id":`...), q.id)
	dst = appendInt(append(dst, `,"created_at":`...), q.created)
	dst = append(dst, `,"incomplete_details":`...)
	if status == "incomplete" {
		dst = append(dst, `{"reason":"max_output_tokens"}`...)
	} else {
		dst = append(dst, "null"...)
	}
	dst = q.appendGiven(append(dst, `,"instructions":`...), "instructions", "null")
	dst = q.appendGiven(append(dst, `,"metadata":`...), "metadata", "null")
	dst = appendString(append(dst, `,"model":`...), q.name)
	dst = append(dst, `,"object":"response","output":[`...)
	if ended {
		text := s.text
		if text == nil {
			text = []byte{}
		}
		dst = q.appendItem(dst, "completed", text)
	}
	dst = q.appendGiven(append(dst, `],"parallel_tool_calls":`...), "parallel_tool_calls", "true")
	dst = appendFloat(append(dst, `,"temperature":`...), q.sampling.temperature)
	choice := "\"none\""
	if _, ok := q.params.get("tools"); ok {
		choice = "\"auto\""
	}
	dst = q.appendGiven(append(dst, `,"tool_choice":`...), "tool_choice", choice)
	dst = q.appendGiven(append(dst, `,"tools":`...), "tools", "[]")
	dst = appendFloat(append(dst, `,"top_p":`...), q.sampling.topP)
	dst = strconv.AppendBool(append(dst, `,"background":`...), q.background)
	dst = append(dst, `,"max_output_tokens":`...)
	if q.sampling.max != unset {
		dst = appendInt(dst, q.sampling.max)
	} else {
		dst = appendInt(dst, s.limit)
	}
	dst = q.appendGiven(append(dst, `,"max_tool_calls":`...), "max_tool_calls", "null")
	dst = q.appendGiven(append(dst, `,"previous_response_id":`...), "previous_response_id", "null")
	dst = append(dst, `,"prompt":null`...)
	dst = q.appendGiven(append(dst, `,"reasoning":`...), "reasoning", "null")
	dst = q.appendGiven(append(dst, `,"service_tier":`...), "service_tier", `"auto"`)
	dst = appendString(append(dst, `,"status":`...), status)
	dst = q.appendGiven(append(dst, `,"text":`...), "text", "null")
	dst = q.appendGiven(append(dst, `,"top_logprobs":`...), "top_logprobs", "null")
	dst = q.appendGiven(append(dst, `,"truncation":`...), "truncation", `"disabled"`)
	dst = append(dst, `,"usage":`...)
	if ended {
		dst = appendResponseUsage(dst, s)
	} else {
		dst = append(dst, "null"...)
	}
	dst = q.appendGiven(append(dst, `,"user":`...), "user", "null")
	dst = appendFloat(append(dst, `,"presence_penalty":`...), q.sampling.presence)
	dst = appendFloat(append(dst, `,"frequency_penalty":`...), q.sampling.frequency)
	return append(dst, `,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}`...)
}

// appendGiven repeats a field of the request.
func (q *responseRequest) appendGiven(dst []byte, name, def string) []byte {
	if v, ok := q.params.get(name); ok {
		return append(dst, v.Raw...)
	}
	return append(dst, def...)
}

func appendResponseUsage(dst []byte, s *seq) []byte {
	dst = appendInt(append(dst, `{"input_tokens":`...), len(s.prompt))
	dst = appendInt(append(dst, `,"input_tokens_details":{"cached_tokens":`...), s.cached)
	dst = append(dst, `,"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]},"output_tokens":`...)
	dst = appendInt(dst, len(s.out))
	dst = append(dst, `,"output_tokens_details":{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]},"total_tokens":`...)
	return append(appendInt(dst, len(s.prompt)+len(s.out)), '}')
}

func noResponse(id string) *apiError {
	return &apiError{
		status: http.StatusNotFound, kind: "invalid_request_error", param: "response_id",
		message: "Response with id '" + id + "' not found.",
	}
}

// getResponse serves GET /v1/responses/{id}.
func (c *call) getResponse() {
	id := c.r.PathValue("id")
	v := c.e.store.get(id)
	if v == nil {
		c.fail(noResponse(id))
		return
	}
	v.mu.Lock()
	body := v.body
	v.mu.Unlock()
	c.json(http.StatusOK, body)
}

// cancelResponse serves POST /v1/responses/{id}/cancel.
func (c *call) cancelResponse() {
	id := c.r.PathValue("id")
	v := c.e.store.get(id)
	if v == nil {
		c.fail(noResponse(id))
		return
	}
	v.mu.Lock()
	running := v.cancel != nil && (v.status == "queued" || v.status == "in_progress")
	if running {
		body := gjson.GetBytes(v.body, "status")
		v.body = append(append(append([]byte(nil), v.body[:body.Index]...), `"cancelled"`...), v.body[body.Index+len(body.Raw):]...)
		v.status = "cancelled"
		v.cancel()
	}
	body := v.body
	v.mu.Unlock()
	if !running {
		c.fail(&apiError{status: http.StatusBadRequest, kind: "invalid_request_error", message: "Cannot cancel a synchronous response."})
		return
	}
	c.json(http.StatusOK, body)
}

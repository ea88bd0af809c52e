package sim

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// messages serves /v1/messages, Anthropic's API.
func (c *call) messages() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	q, err := c.messagesRequest(p, true)
	if err != nil {
		c.fail(err)
		return
	}
	s := c.e.newSeq(&q.in, q.sampling, 0, q.answer)
	if q.sampling.stream {
		c.messagesStream(q, s)
		return
	}
	if err := c.e.generateAll(c, []*seq{s}, func(*seq, *step) error { return nil }); err != nil {
		c.fail(err)
		return
	}
	dst := appendString([]byte(`{"id":`), q.id)
	dst = append(dst, `,"type":"message","role":"assistant","content":[`...)
	if q.tool.Exists() {
		dst = q.appendToolUse(dst, s, string(s.text))
	} else {
		dst = append(appendString(append(dst, `{"type":"text","text":`...), s.text), '}')
	}
	dst = appendString(append(dst, `],"model":`...), q.name)
	reason, sequence := q.stopReason(s)
	dst = appendOptional(append(dst, `,"stop_reason":`...), reason)
	if sequence != "null" {
		dst = append(append(dst, `,"stop_sequence":`...), sequence...)
	}
	dst = append(appendMessageUsage(append(dst, `,"usage":`...), s), '}')
	c.json(http.StatusOK, dst)
}

// countTokens serves /v1/messages/count_tokens.
func (c *call) countTokens() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	q, err := c.messagesRequest(p, false)
	if err != nil {
		c.fail(err)
		return
	}
	dst := appendInt([]byte(`{"input_tokens":`), len(q.in.ids))
	dst = appendInt(append(dst, `,"context_management":{"original_input_tokens":`...), len(q.in.ids))
	c.json(http.StatusOK, append(dst, "}}"...))
}

// messagesRequest reads and checks a body of Anthropic's API. answered is not set for a
// request whose tokens are only to be counted.
func (c *call) messagesRequest(p *params, answered bool) (*chatRequest, *apiError) {
	list, ok := p.list("messages")
	if _, given := p.get("messages"); !given {
		p.missing("messages")
	}
	tools, hasTools := p.list("tools")
	choice, _ := p.get("tool_choice")
	sp, err := &sampling{n: 1, max: unset}, p.bad.err()
	if answered {
		sp, err = c.sampling(p, apiMessages)
	}
	if err != nil {
		return nil, err
	}
	q := &chatRequest{sampling: sp, created: time.Now().Unix()}
	if q.name, q.in.lora, err = c.model(p); err != nil {
		return nil, err
	}
	if !ok || count(list) == 0 {
		return nil, badRequest("", "Cannot apply chat template to an empty conversation. Provide at least one message.")
	}
	talk, err := c.conversation(list)
	if err != nil {
		return nil, err
	}
	if system, given := p.get("system"); given {
		text, err := c.content(system)
		if err != nil {
			return nil, err
		}
		talk = append([]message{{"system", text}}, talk...)
	}
	if hasTools {
		talk = append([]message{{"system", tools.Raw}}, talk...)
		kind, name := choice.Get("type").Str, choice.Get("name").Str
		tools.ForEach(func(_, t gjson.Result) bool {
			if kind == "any" || kind == "tool" && t.Get("name").Str == name {
				q.tool = t
			}
			return !q.tool.Exists()
		})
	}
	q.in.ids = c.e.template(talk, true, false)
	if q.tool.Exists() {
		schema := q.tool.Get("input_schema")
		rnd := chain(hashString(schema.Raw), uint64(len(q.in.ids)))
		q.answer = c.e.tok.encode(nil, string(appendSample(nil, schema, &rnd, 0)), c.e.opts.MaxModelLen)
	}
	q.id = c.id("chatcmpl-")
	if !answered {
		return q, c.e.checkLength(&q.in, true)
	}
	return q, c.e.check(&q.in, sp)
}

// stopReason gives Anthropic's words for why an answer ended, "" for an abort, and the stop
// sequence as JSON.
func (q *chatRequest) stopReason(s *seq) (reason, sequence string) {
	switch {
	case s.finish == "length":
		return "max_tokens", "null"
	case s.finish == "abort":
		return "", "null"
	case q.tool.Exists() && gjson.ValidBytes(s.text):
		return "tool_use", "null"
	case strings.HasPrefix(s.stop, `"`):
		return "stop_sequence", s.stop
	case q.tool.Exists():
		return "tool_use", "null"
	}
	return "end_turn", "null"
}

// appendToolUse writes a call of the tool; input is JSON, "" for what is yet to come.
func (q *chatRequest) appendToolUse(dst []byte, s *seq, input string) []byte {
	dst = appendString(append(dst, `{"type":"tool_use","id":`...), q.toolID(s))
	dst = appendString(append(dst, `,"name":`...), q.tool.Get("name").Str)
	if !gjson.Valid(input) || input == "" {
		input = "{}" // cut short by max_tokens
	}
	return append(append(append(dst, `,"input":`...), input...), '}')
}

// appendMessageUsage counts as Anthropic does: what was read from the cache and what was
// written to it is not input.
func appendMessageUsage(dst []byte, s *seq) []byte {
	dst = appendInt(append(dst, `{"input_tokens":`...), len(s.prompt)-s.cached-s.created)
	dst = appendInt(append(dst, `,"output_tokens":`...), len(s.out))
	dst = appendInt(append(dst, `,"cache_creation_input_tokens":`...), s.created)
	dst = append(dst, `,"cache_read_input_tokens":`...)
	return append(appendInt(dst, s.cached), '}')
}

// messagesStream answers in Anthropic's events.
func (c *call) messagesStream(q *chatRequest, s *seq) {
	out := c.begin()
	open := func() error {
		dst := append(out.event("message_start"), `{"type":"message_start","message":{"id":`...)
		dst = appendString(dst, q.id)
		dst = append(dst, `,"type":"message","role":"assistant","content":[],"model":`...)
		dst = appendString(dst, q.name)
		dst = append(dst, `,"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":`...)
		dst = append(appendInt(dst, len(s.prompt)), `,"output_tokens":0}}}`...)
		if err := out.send(dst); err != nil {
			return err
		}
		dst = append(out.event("content_block_start"), `{"type":"content_block_start","content_block":`...)
		if q.tool.Exists() {
			dst = q.appendToolUse(dst, s, "")
		} else {
			dst = append(dst, `{"type":"text","text":""}`...)
		}
		return out.send(append(dst, `,"index":0}`...))
	}
	opened := false
	err := c.e.generateAll(c, []*seq{s}, func(_ *seq, st *step) error {
		if !opened {
			opened = true
			if err := open(); err != nil {
				return err
			}
		}
		if len(st.text) == 0 {
			return nil
		}
		dst := append(out.event("content_block_delta"), `{"type":"content_block_delta","delta":`...)
		if q.tool.Exists() {
			dst = append(dst, `{"type":"input_json_delta","partial_json":`...)
		} else {
			dst = append(dst, `{"type":"text_delta","text":`...)
		}
		return out.send(append(appendString(dst, st.text), `},"index":0}`...))
	})
	if err != nil {
		if !errors.Is(err, errCut) && !errors.Is(err, errGone) && c.context().Err() == nil {
			_ = out.send(toAPIError(err).appendAnthropic(out.event("error")))
		}
		return
	}
	_ = out.send(append(out.event("content_block_stop"), `{"type":"content_block_stop","index":0}`...))
	reason, sequence := q.stopReason(s)
	dst := append(out.event("message_delta"), `{"type":"message_delta","delta":{"stop_reason":`...)
	dst = appendOptional(dst, reason)
	dst = append(append(append(dst, `,"stop_sequence":`...), sequence...), `},"usage":`...)
	_ = out.send(append(appendMessageUsage(dst, s), '}'))
	_ = out.send(append(out.event("message_stop"), `{"type":"message_stop"}`...))
}

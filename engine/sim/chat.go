package sim

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// message is one of a conversation.
type message struct{ role, text string }

// chatRequest is a checked request for an answer in a conversation, from whichever API.
type chatRequest struct {
	id, name string
	created  int64
	in       input
	sampling *sampling
	tool     gjson.Result // the tool that must be called, if any
	required bool         // it was asked for by tool_choice "required"
	answer   []int32      // what will be said, nil to make it up
	details  bool         // the answer's usage has details
}

// chat serves /v1/chat/completions.
func (c *call) chat() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	q, err := c.chatRequest(p)
	if err != nil {
		c.fail(err)
		return
	}
	seqs := make([]*seq, q.sampling.n)
	for i := range seqs {
		seqs[i] = c.e.newSeq(&q.in, q.sampling, i, q.answer)
	}
	if q.sampling.stream {
		c.chatStream(q, seqs)
		return
	}
	steps := make([][]byte, len(seqs)) // logprobs, one element a token
	if err := c.e.generateAll(c, seqs, func(s *seq, st *step) error {
		if q.sampling.logprobs >= 0 && st.id >= 0 {
			steps[s.index] = appendChatLogprob(steps[s.index], s, st.id)
		}
		return nil
	}); err != nil {
		c.fail(err)
		return
	}
	c.json(http.StatusOK, q.appendAnswer(nil, seqs, steps))
}

// chatRequest reads and checks a body of the chat API.
func (c *call) chatRequest(p *params) (*chatRequest, *apiError) {
	messages, ok := p.list("messages")
	if _, given := p.get("messages"); !given {
		p.missing("messages")
	}
	sp, err := c.sampling(p, apiChat)
	if err != nil {
		return nil, err
	}
	tools, hasTools := p.list("tools")
	choice, hasChoice := p.get("tool_choice")
	generation, open := p.bool("add_generation_prompt", true), p.bool("continue_final_message", false)
	salt := p.string("cache_salt")
	q := &chatRequest{sampling: sp, created: time.Now().Unix()}
	if q.name, q.in.lora, err = c.model(p); err != nil {
		return nil, err
	}
	switch {
	case !ok || count(messages) == 0:
		return nil, badRequest("", "Cannot apply chat template to an empty conversation. Provide at least one message.")
	case open && generation:
		return nil, badRequest("", "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
	}
	if err := q.chooseTool(c.e, tools, hasTools, choice, hasChoice); err != nil {
		return nil, err
	}
	talk, err := c.conversation(messages)
	if err != nil {
		return nil, err
	}
	if hasTools && choice.Str != "none" {
		talk = append([]message{{"system", tools.Raw}}, talk...)
	}
	q.in.ids, q.in.salt = c.e.template(talk, generation, open), salt
	format, _ := p.get("response_format")
	return q, c.finishRequest(q, format)
}

// finishRequest is what all chat APIs check last, and the answer that is known beforehand.
func (c *call) finishRequest(q *chatRequest, format gjson.Result) *apiError {
	if q.id == "" {
		q.id = c.id("chatcmpl-")
	}
	q.details = true
	if c.e.opts.ForceUsage {
		q.sampling.usage, q.sampling.allUsage = true, true
	}
	if err := c.e.check(&q.in, q.sampling); err != nil {
		return err
	}
	if schema := answerSchema(q.tool, format); schema.Exists() {
		rnd := chain(hashString(schema.Raw), uint64(len(q.in.ids)))
		q.answer = c.e.tok.encode(nil, string(appendSample(nil, schema, &rnd, 0)), c.e.opts.MaxModelLen)
	}
	return nil
}

// chooseTool finds the tool that must be called.
func (q *chatRequest) chooseTool(e *Engine, tools gjson.Result, hasTools bool, choice gjson.Result, hasChoice bool) *apiError {
	name := choice.Get("function.name").Str
	q.required = choice.Str == "required"
	switch {
	case !hasTools && (name != "" || q.required):
		return badRequest("", "When using `tool_choice`, `tools` must be set.")
	case name == "" && !q.required:
		if hasTools && e.opts.NoAutoTools && (!hasChoice || choice.Str == "auto") {
			return badRequest("", `"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set`)
		}
		return nil
	}
	tools.ForEach(func(_, t gjson.Result) bool {
		if f := t.Get("function"); q.required || f.Get("name").Str == name {
			q.tool = f
		}
		return !q.tool.Exists()
	})
	if !q.tool.Exists() {
		return badRequest("", "The tool specified in `tool_choice` does not match any of the specified `tools`")
	}
	return nil
}

// conversation reads messages as OpenAI's APIs give them.
func (c *call) conversation(list gjson.Result) ([]message, *apiError) {
	var talk []message
	var err *apiError
	list.ForEach(func(_, m gjson.Result) bool {
		if !m.IsObject() {
			var v validation
			v.add("dict_type", "body.messages."+strconv.Itoa(len(talk)), "Input should be a valid dictionary", describe(m), "")
			err = v.err()
			return false
		}
		var text string
		text, err = c.content(m.Get("content"))
		if calls := m.Get("tool_calls"); calls.Exists() && calls.Type != gjson.Null {
			text += calls.Raw
		}
		talk = append(talk, message{m.Get("role").String(), text})
		return err == nil
	})
	return talk, err
}

// content reads a message's content: a string, or parts of which only text is understood.
func (c *call) content(v gjson.Result) (string, *apiError) {
	if !v.IsArray() {
		return v.String(), nil
	}
	var parts []string
	var err *apiError
	v.ForEach(func(_, part gjson.Result) bool {
		switch kind := part.Get("type").Str; {
		case part.Type == gjson.String:
			parts = append(parts, part.Str)
		case strings.HasPrefix(kind, "image"), strings.HasPrefix(kind, "audio"), strings.HasPrefix(kind, "video"), strings.HasPrefix(kind, "input_image"), strings.HasPrefix(kind, "input_audio"):
			err = badRequest("", "%s is not a multimodal model", c.e.opts.Model)
		case part.Get("text").Exists():
			parts = append(parts, part.Get("text").String())
		default:
			parts = append(parts, part.Raw) // tool results and the like
		}
		return err == nil
	})
	return strings.Join(parts, "\n"), err
}

// template writes a conversation as the model reads it. generation opens the assistant's
// turn; open leaves the last message's turn open, to be continued.
func (e *Engine) template(talk []message, generation, open bool) []int32 {
	limit := e.opts.MaxModelLen + 1
	var ids []int32
	turn := func(role, text string) {
		ids = append(ids, idTurn)
		ids = e.tok.encode(ids, role, limit)
		ids = append(ids, firstByte+'\n')
		ids = e.tok.encode(ids, text, limit)
	}
	for i, m := range talk {
		turn(m.role, m.text)
		if open && i == len(talk)-1 {
			break
		}
		ids = append(ids, idTurnEnd, firstByte+'\n')
	}
	if generation {
		turn("assistant", "")
	}
	return ids
}

// check tells whether a conversation can be answered, in the order in which vLLM looks.
func (e *Engine) check(in *input, sp *sampling) *apiError {
	if err := sp.fits(e.opts.MaxModelLen); err != nil {
		return err
	}
	if err := e.checkLength(in, true); err != nil {
		return err
	}
	if err := sp.inRange(len(in.ids), e.opts.MaxModelLen); err != nil {
		return err
	}
	return sp.checkChoices(1)
}

// checkLength tells whether a prompt fits the context. text tells that the prompt was not
// given as ids: it was only read as far as it could fit.
func (e *Engine) checkLength(in *input, text bool) *apiError {
	n, limit := len(in.ids), e.opts.MaxModelLen
	if text {
		n = min(n, limit+1)
	}
	if n <= limit {
		return nil
	}
	atLeast := ""
	if n == limit+1 {
		atLeast = "at least " // vLLM can't tell either
	}
	return badRequest("input_tokens", "This model's maximum context length is %d tokens. However, your prompt contains %s%d input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=%d)", limit, atLeast, n, n)
}

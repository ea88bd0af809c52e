package sim

import (
	"net/http"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
)

// completionRequest is a checked request of the completions API.
type completionRequest struct {
	id, name string
	created  int64
	inputs   []input
	sampling *sampling
}

// completions serves /v1/completions.
func (c *call) completions() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	q, err := c.completionRequest(p)
	if err != nil {
		c.fail(err)
		return
	}
	var seqs []*seq
	for i := range q.inputs {
		for n := range q.sampling.n {
			seqs = append(seqs, c.e.newSeq(&q.inputs[i], q.sampling, n, nil))
		}
	}
	if q.sampling.stream {
		c.completionStream(q, seqs)
		return
	}
	probs := make([]tokenProbs, len(seqs))
	if err := c.completeAll(q, seqs, func(s *seq, st *step) error {
		if q.sampling.logprobs >= 0 && st.id >= 0 {
			probs[s.index].add(s, st)
		}
		return nil
	}); err != nil {
		c.fail(err)
		return
	}
	c.json(http.StatusOK, q.appendAnswer(nil, seqs, probs))
}

// completeAll generates, unless nothing but an echo was asked for.
func (c *call) completeAll(q *completionRequest, seqs []*seq, emit func(*seq, *step) error) error {
	if !q.sampling.onlyEcho {
		return c.e.generateAll(c, seqs, emit)
	}
	if err := q.sampling.accepted(c.e.tok.size()); err != nil {
		return err
	}
	for i, s := range seqs {
		s.index, s.finish = i, "length"
		if err := emit(s, &step{id: -1, finish: s.finish, stop: s.stop}); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) completionRequest(p *params) (*completionRequest, *apiError) {
	sp, err := c.sampling(p, apiCompletions)
	if err != nil {
		return nil, err
	}
	salt := p.string("cache_salt")
	q := &completionRequest{id: c.id("cmpl-"), created: time.Now().Unix(), sampling: sp}
	name, lora, err := c.model(p)
	if err != nil {
		return nil, err
	}
	q.name = name
	if c.e.opts.ForceUsage {
		sp.usage, sp.allUsage = true, true
	}
	if err := sp.fits(c.e.opts.MaxModelLen); err != nil {
		return nil, err
	}
	prompts, exact, err := c.e.prompts(p, "prompt")
	if err != nil {
		return nil, err
	}
	for _, ids := range prompts {
		in := input{ids: ids, lora: lora, salt: salt}
		if err := c.e.checkLength(&in, !exact); err != nil {
			return nil, err
		}
		q.inputs = append(q.inputs, in)
	}
	for _, ids := range prompts {
		if err := sp.inRange(len(ids), c.e.opts.MaxModelLen); err != nil {
			return nil, err
		}
	}
	return q, sp.checkChoices(len(prompts))
}

// prompts reads a field that is a string, a list of strings, token ids or a list of lists
// of them. exact tells that ids were given.
func (e *Engine) prompts(p *params, field string) (out [][]int32, exact bool, err *apiError) {
	v, ok := p.get(field)
	if !ok {
		return nil, false, errNoPrompt()
	}
	limit := e.opts.MaxModelLen + 1
	first := v.Get("0")
	switch {
	case v.Type == gjson.String:
		out = [][]int32{e.tok.encode(nil, v.Str, limit)}
	case v.IsArray() && first.Type == gjson.Number:
		exact = true
		var ids []int32
		ids, err = e.tokenIDs(v)
		out = [][]int32{ids}
	case v.IsArray() && (first.Type == gjson.String || first.IsArray()):
		exact = first.IsArray()
		v.ForEach(func(_, part gjson.Result) bool {
			var ids []int32
			switch {
			case part.IsArray():
				ids, err = e.tokenIDs(part)
			case part.Type == gjson.String:
				ids = e.tok.encode(nil, part.Str, limit)
			default:
				err = wrongPrompt(field, part)
			}
			out = append(out, ids)
			if len(out) > maxChoices {
				err = badRequest(field, "More than %d prompts in one request.", maxChoices)
			}
			return err == nil
		})
	case v.IsArray() && !first.Exists():
		err = errNoPrompt()
	default:
		err = wrongPrompt(field, v)
	}
	for _, ids := range out {
		if len(ids) == 0 && err == nil {
			err = badRequest("", "The decoder prompt cannot be empty")
		}
	}
	return out, exact, err
}

func errNoPrompt() *apiError {
	return badRequest("prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)")
}

func wrongPrompt(field string, v gjson.Result) *apiError {
	var bad validation
	bad.add("string_type", "body."+field+".str", "Input should be a valid string", describe(v), "")
	return bad.err()
}

// tokenIDs reads and checks a list of token ids.
func (e *Engine) tokenIDs(v gjson.Result) ([]int32, *apiError) {
	var ids []int32
	var err *apiError
	v.ForEach(func(_, id gjson.Result) bool {
		switch n := id.Num; {
		case id.Type != gjson.Number || n != float64(int64(n)):
			var bad validation
			bad.add("int_type", "body.prompt.list[int]."+strconv.Itoa(len(ids)), "Input should be a valid integer", describe(id), "")
			err = bad.err()
		case n < 0 || n >= float64(e.tok.size()):
			err = badRequest("", "Token id %s is out of vocabulary", id.Raw)
		default:
			ids = append(ids, int32(n))
		}
		return err == nil
	})
	return ids, err
}

func (q *completionRequest) appendHead(dst []byte) []byte {
	dst = appendString(append(dst, `{"id":`...), q.id)
	dst = appendInt(append(dst, `,"object":"text_completion","created":`...), q.created)
	dst = appendString(append(dst, `,"model":`...), q.name)
	return append(dst, `,"choices":[`...)
}

// text is the answer of a choice, behind the prompt when that was asked for.
func (q *completionRequest) text(s *seq) string {
	if q.sampling.echo {
		return s.gen.tok.decode(s.prompt, false) + string(s.text)
	}
	return string(s.text)
}

func (q *completionRequest) usage(seqs []*seq) *usage {
	u := &usage{}
	for i, s := range seqs {
		u.add(s, i%q.sampling.n == 0)
	}
	return u
}

// appendAnswer writes a plain answer.
func (q *completionRequest) appendAnswer(dst []byte, seqs []*seq, probs []tokenProbs) []byte {
	dst = q.appendHead(dst)
	for i, s := range seqs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = appendString(append(dst, `,"text":`...), q.text(s))
		dst = append(dst, `,"logprobs":`...)
		dst = q.appendLogprobs(dst, s, &probs[i])
		dst = appendString(append(dst, `,"finish_reason":`...), s.finish)
		dst = append(append(dst, `,"stop_reason":`...), s.stop...)
		dst = q.appendTokenIDs(append(dst, `,"token_ids":`...), s.out)
		dst = append(dst, `,"prompt_logprobs":`...)
		if q.sampling.echo && q.sampling.logprobs >= 0 {
			dst = appendPromptLogprobs(dst, s)
		} else {
			dst = append(dst, "null"...)
		}
		dst = q.appendTokenIDs(append(dst, `,"prompt_token_ids":`...), s.prompt)
		dst = append(dst, `,"routed_experts":null}`...)
	}
	dst = append(dst, `],"service_tier":null,"system_fingerprint":"`+fingerprint+`","usage":`...)
	dst = q.usage(seqs).appendFull(dst, false)
	return append(dst, `,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}`...)
}

func (q *completionRequest) appendTokenIDs(dst []byte, ids []int32) []byte {
	if !q.sampling.ids {
		return append(dst, "null"...)
	}
	return appendIDs(dst, ids)
}

// completionStream answers in events.
func (c *call) completionStream(q *completionRequest, seqs []*seq) {
	out := c.begin()
	begun := make([]bool, len(seqs))
	err := c.completeAll(q, seqs, func(s *seq, st *step) error {
		text, ids := string(st.text), []byte("null")
		if !begun[s.index] {
			begun[s.index] = true
			ids = q.appendTokenIDs(nil, s.prompt)
			if q.sampling.echo {
				text = s.gen.tok.decode(s.prompt, false) + text
			}
		}
		dst := q.appendHead(out.data())
		dst = appendInt(append(dst, `{"index":`...), s.index)
		dst = appendString(append(dst, `,"text":`...), text)
		dst = append(dst, `,"logprobs":`...)
		var probs tokenProbs
		if q.sampling.logprobs >= 0 && st.id >= 0 {
			probs.add(s, st)
		}
		dst = probs.append(dst)
		dst = append(dst, `,"finish_reason":`...)
		dst = appendOptional(dst, st.finish)
		stop := "null"
		if st.finish != "" {
			stop = st.stop
		}
		dst = append(append(dst, `,"stop_reason":`...), stop...)
		dst = append(append(dst, `,"prompt_token_ids":`...), ids...)
		dst = append(q.appendTokenIDs(append(dst, `,"token_ids":`...), s.justSaid(st)), "}]"...)
		if q.sampling.allUsage {
			u := usage{prompt: len(s.prompt), completion: len(s.out)}
			dst = append(u.appendCounts(append(dst, `,"usage":`...)), '}')
		}
		return out.send(append(q.sampling.appendFingerprint(dst, st), '}'))
	})
	if err == nil && q.sampling.usage {
		u := q.usage(seqs)
		dst := append(q.appendHead(out.data()), `],"usage":`...)
		dst = appendInt(append(u.appendCounts(dst), `,"prompt_tokens_details":{"cached_tokens":`...), u.cached)
		err = out.send(append(dst, `}},"system_fingerprint":"`+fingerprint+`"}`...))
	}
	out.end(err)
}

// tokenProbs are the four lists of a completion's logprobs.
type tokenProbs struct {
	n                          int
	offsets, probs, texts, top []byte
}

// add takes up the token that s said last.
func (t *tokenProbs) add(s *seq, st *step) {
	offset := st.before
	if s.sampling.echo {
		offset += len(s.gen.tok.decode(s.prompt, false))
	}
	t.put(s, st.id, offset, s.sampling.logprobs, false)
}

// put adds a token; the first of a prompt has no probability.
func (t *tokenProbs) put(s *seq, id int32, offset, top int, first bool) {
	if t.n++; t.n > 1 {
		t.offsets, t.probs, t.texts, t.top = append(t.offsets, ','), append(t.probs, ','), append(t.texts, ','), append(t.top, ',')
	}
	t.offsets = appendInt(t.offsets, offset)
	t.texts = appendString(t.texts, s.gen.tok.append(nil, id, true))
	if first {
		t.probs, t.top = append(t.probs, "null"...), append(t.top, "null"...)
		return
	}
	t.probs = appendFloat(t.probs, logprob(s.gen.h, id))
	t.top = append(t.top, '{')
	for i := range max(1, top) {
		if i > 0 {
			t.top = append(t.top, ',')
		}
		alt := s.alternative(id, i)
		t.top = append(appendString(t.top, s.gen.tok.append(nil, alt, true)), ':')
		t.top = appendFloat(t.top, logprob(s.gen.h, alt))
	}
	t.top = append(t.top, '}')
}

// append writes the lists, or null when there is nothing in them.
func (t *tokenProbs) append(dst []byte) []byte {
	if t.n == 0 {
		return append(dst, "null"...)
	}
	dst = append(append(dst, `{"text_offset":[`...), t.offsets...)
	dst = append(append(dst, `],"token_logprobs":[`...), t.probs...)
	dst = append(append(dst, `],"tokens":[`...), t.texts...)
	return append(append(append(dst, `],"top_logprobs":[`...), t.top...), "]}"...)
}

// appendLogprobs writes a choice's logprobs, with the prompt's before them when it is echoed.
func (q *completionRequest) appendLogprobs(dst []byte, s *seq, said *tokenProbs) []byte {
	if q.sampling.logprobs < 0 {
		return append(dst, "null"...)
	}
	if !q.sampling.echo {
		return said.append(dst)
	}
	var all tokenProbs
	offset := 0
	for i, id := range s.prompt {
		all.put(s, id, offset, 2, i == 0)
		offset += len(s.gen.tok.append(nil, id, false))
	}
	if said.n > 0 {
		all.n += said.n
		all.offsets = append(append(all.offsets, ','), said.offsets...)
		all.probs = append(append(all.probs, ','), said.probs...)
		all.texts = append(append(all.texts, ','), said.texts...)
		all.top = append(append(all.top, ','), said.top...)
	}
	return all.append(dst)
}

// appendPromptLogprobs writes the prompt's own form: null, then a map from id for each token.
func appendPromptLogprobs(dst []byte, s *seq) []byte {
	dst = append(dst, '[')
	for i, id := range s.prompt {
		if i == 0 {
			dst = append(dst, "null"...)
			continue
		}
		dst = append(dst, `,{"`...)
		dst = appendInt(dst, id)
		dst = append(dst, `":{"logprob":`...)
		dst = appendFloat(dst, logprob(s.gen.h, id))
		dst = append(dst, `,"rank":1,"decoded_token":`...)
		dst = append(appendString(dst, s.gen.tok.append(nil, id, true)), "}}"...)
	}
	return append(dst, ']')
}

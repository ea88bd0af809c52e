package sim

import (
	"slices"
	"strconv"
	"strings"
)

// answerSize is what a short answer takes.
const answerSize = 1536

// usage counts a request's tokens.
type usage struct{ prompt, completion, cached, created int }

// add counts one choice of a prompt; the prompt itself counts once, with its first choice.
func (u *usage) add(s *seq, prompt bool) {
	u.completion += len(s.out)
	if prompt {
		u.prompt += len(s.prompt)
		u.cached += s.cached
		u.created += s.created
	}
}

// appendCounts writes the fields that every usage has.
func (u *usage) appendCounts(dst []byte) []byte {
	dst = appendInt(append(dst, `{"prompt_tokens":`...), u.prompt)
	dst = appendInt(append(dst, `,"total_tokens":`...), u.prompt+u.completion)
	return appendInt(append(dst, `,"completion_tokens":`...), u.completion)
}

// appendFull writes the usage of a plain answer. created is null on /v1/completions.
func (u *usage) appendFull(dst []byte, created bool) []byte {
	dst = u.appendCounts(dst)
	dst = appendInt(append(dst, `,"prompt_tokens_details":{"cached_tokens":`...), u.cached)
	dst = append(dst, `,"created_cache_tokens":`...)
	if created {
		dst = appendInt(dst, u.created)
	} else {
		dst = append(dst, "null"...)
	}
	return append(dst, `,"multimodal_tokens":null},"completion_tokens_details":null}`...)
}

// appendAnswer writes a plain answer of the chat API.
func (q *chatRequest) appendAnswer(dst []byte, seqs []*seq, logprobs [][]byte) []byte {
	dst = q.appendHead(slices.Grow(dst, answerSize), "chat.completion")
	var u usage
	for i, s := range seqs {
		if i > 0 {
			dst = append(dst, ',')
		}
		u.add(s, i == 0)
		dst = appendInt(append(dst, `{"index":`...), i)
		dst = append(dst, `,"message":{"role":"assistant","content":`...)
		calls := q.tool.Exists()
		if calls {
			dst = append(dst, `""`...)
		} else {
			dst = appendString(dst, q.echoed(s)+string(s.text))
		}
		dst = append(dst, `,"refusal":null,"annotations":null,"audio":null,"function_call":null`...)
		if calls {
			dst = append(dst, `,"tool_calls":[`...)
			dst = append(q.appendToolCall(dst, q.toolID(s), string(s.text)), ']')
		}
		dst = append(dst, `,"reasoning":null},"logprobs":`...)
		dst = appendChatLogprobs(dst, logprobs[i])
		dst = appendString(append(dst, `,"finish_reason":`...), q.finish(s))
		dst = append(append(dst, `,"stop_reason":`...), s.stop...)
		dst = append(dst, `,"token_ids":`...)
		dst = q.appendTokenIDs(dst, s.out)
		dst = append(dst, `,"routed_experts":null}`...)
	}
	dst = append(dst, `],"service_tier":null,"system_fingerprint":"`+fingerprint+`","usage":`...)
	dst = u.appendFull(dst, true)
	dst = append(dst, `,"prompt_logprobs":null,"prompt_token_ids":`...)
	dst = q.appendTokenIDs(dst, q.in.ids)
	return append(dst, `,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}`...)
}

func (q *chatRequest) appendHead(dst []byte, object string) []byte {
	dst = appendString(append(dst, `{"id":`...), q.id)
	dst = append(append(append(dst, `,"object":"`...), object...), `","created":`...)
	dst = appendInt(dst, q.created)
	dst = appendString(append(dst, `,"model":`...), q.name)
	return append(dst, `,"choices":[`...)
}

// echoed is the last message's text when the request wants it repeated.
func (q *chatRequest) echoed(s *seq) string {
	if !q.sampling.echo {
		return ""
	}
	text := s.gen.tok.decode(s.prompt, true)
	text = text[strings.LastIndex(text, "<|im_start|>")+len("<|im_start|>"):]
	_, text, _ = strings.Cut(text, "\n")
	return text
}

// finish is the finish reason as the chat API gives it.
func (q *chatRequest) finish(s *seq) string {
	if q.required && s.finish == "stop" {
		return "tool_calls"
	}
	return s.finish
}

func (q *chatRequest) appendTokenIDs(dst []byte, ids []int32) []byte {
	if !q.sampling.ids {
		return append(dst, "null"...)
	}
	return appendIDs(dst, ids)
}

func (q *chatRequest) toolID(s *seq) string {
	return "chatcmpl-tool-" + strconv.FormatUint(scramble(chain(hashString(q.id), uint64(s.index))), 16)
}

func (q *chatRequest) appendToolCall(dst []byte, id, arguments string) []byte {
	dst = appendString(append(dst, `{"id":`...), id)
	dst = appendString(append(dst, `,"type":"function","function":{"name":`...), q.tool.Get("name").Str)
	return append(appendString(append(dst, `,"arguments":`...), arguments), "}}"...)
}

// chatStream answers in events: the role, each token, the usage, the end.
func (c *call) chatStream(q *chatRequest, seqs []*seq) {
	out := c.begin()
	opened := false
	err := c.e.generateAll(c, seqs, func(s *seq, st *step) error {
		if !opened {
			opened = true
			for _, s := range seqs {
				if err := out.send(q.appendOpening(out.data(), s)); err != nil {
					return err
				}
			}
		}
		return out.send(q.appendChunk(out.data(), s, st))
	})
	if err == nil && q.sampling.usage {
		err = out.send(q.appendLast(out.data(), seqs))
	}
	out.end(err)
}

// appendOpening writes the first chunk of a choice.
func (q *chatRequest) appendOpening(dst []byte, s *seq) []byte {
	dst = q.appendHead(dst, "chat.completion.chunk")
	dst = appendInt(append(dst, `{"index":`...), s.index)
	dst = append(dst, `,"delta":{"role":"assistant","content":`...)
	dst = appendString(dst, q.echoed(s))
	dst = append(dst, `},"logprobs":null,"finish_reason":null}]`...)
	dst = q.appendChunkUsage(dst, s, 0)
	dst = append(dst, `,"prompt_token_ids":`...)
	return append(q.appendTokenIDs(dst, q.in.ids), `,"prompt_text":null}`...)
}

// appendChunk writes the chunk of one token.
func (q *chatRequest) appendChunk(dst []byte, s *seq, st *step) []byte {
	dst = q.appendHead(dst, "chat.completion.chunk")
	dst = appendInt(append(dst, `{"index":`...), s.index)
	dst = append(dst, `,"delta":{`...)
	if q.tool.Exists() {
		dst = append(dst, `"tool_calls":[{`...)
		if len(s.out) == 1 {
			dst = appendString(append(dst, `"id":`...), q.toolID(s))
			dst = append(dst, `,"type":"function",`...)
		}
		dst = append(dst, `"index":0,"function":{`...)
		if len(s.out) == 1 {
			dst = append(appendString(append(dst, `"name":`...), q.tool.Get("name").Str), ',')
		}
		dst = append(appendString(append(dst, `"arguments":`...), st.text), "}}]"...)
	} else {
		dst = appendString(append(dst, `"content":`...), st.text)
	}
	dst = append(dst, `},"logprobs":`...)
	if q.sampling.logprobs >= 0 && st.id >= 0 {
		dst = appendChatLogprobs(dst, appendChatLogprob(nil, s, st.id))
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"finish_reason":`...)
	if st.finish != "" {
		dst = appendString(dst, q.finish(s))
		dst = append(append(dst, `,"stop_reason":`...), st.stop...)
	} else {
		dst = append(dst, "null"...)
	}
	dst = append(dst, `,"token_ids":`...)
	dst = append(q.appendTokenIDs(dst, s.justSaid(st)), "}]"...)
	return append(q.sampling.appendFingerprint(q.appendChunkUsage(dst, s, len(s.out)), st), '}')
}

// appendFingerprint ends a stream's last chunk; a usage chunk, if one follows, has it instead.
func (s *sampling) appendFingerprint(dst []byte, st *step) []byte {
	if st.finish == "" || s.usage {
		return dst
	}
	return append(dst, `,"system_fingerprint":"`+fingerprint+`"`...)
}

func (q *chatRequest) appendChunkUsage(dst []byte, s *seq, said int) []byte {
	if !q.sampling.allUsage {
		return dst
	}
	u := usage{prompt: len(s.prompt), completion: said}
	return append(u.appendCounts(append(dst, `,"usage":`...)), `,"completion_tokens_details":null}`...)
}

// appendLast writes the chunk that has only the usage.
func (q *chatRequest) appendLast(dst []byte, seqs []*seq) []byte {
	var u usage
	for i, s := range seqs {
		u.add(s, i == 0)
	}
	dst = append(q.appendHead(dst, "chat.completion.chunk"), `],"usage":`...)
	dst = u.appendCounts(dst)
	dst = appendInt(append(dst, `,"prompt_tokens_details":{"cached_tokens":`...), u.cached)
	dst = appendInt(append(dst, `,"created_cache_tokens":`...), u.created)
	return append(dst, `}},"system_fingerprint":"`+fingerprint+`"}`...)
}

// justSaid is the token that st adds, none for an abort.
func (s *seq) justSaid(st *step) []int32 {
	if st.id < 0 {
		return nil
	}
	return s.out[len(s.out)-1:]
}

// appendChatLogprobs closes a list of logprobs, null for none.
func appendChatLogprobs(dst, list []byte) []byte {
	if list == nil {
		return append(dst, "null"...)
	}
	return append(append(append(dst, `{"content":[`...), list...), "]}"...)
}

// appendChatLogprob adds the last token's logprob to a list of them.
func appendChatLogprob(dst []byte, s *seq, id int32) []byte {
	if len(dst) > 0 {
		dst = append(dst, ',')
	}
	dst = append(s.appendTokenProb(append(dst, '{'), id), `,"top_logprobs":[`...)
	for i := range s.sampling.logprobs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(s.appendTokenProb(append(dst, '{'), s.alternative(id, i)), '}')
	}
	return append(dst, "]}"...)
}

func (s *seq) appendTokenProb(dst []byte, id int32) []byte {
	text := s.gen.tok.append(nil, id, true)
	dst = appendString(append(dst, `"token":`...), text)
	dst = appendFloat(append(dst, `,"logprob":`...), logprob(s.gen.h, id))
	return appendIDs(append(dst, `,"bytes":`...), text)
}

// alternative is the i-th best token instead of id, which is the best itself.
func (s *seq) alternative(id int32, i int) int32 {
	if i == 0 {
		return id
	}
	return s.gen.tok.word(formInner, int32(scramble(chain(s.gen.h, uint64(i)))%uint64(s.gen.tok.words)))
}

package sim

import (
	"net/http"
	"strings"
)

// tokenize serves /tokenize, for a text or a conversation.
func (c *call) tokenize() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	if _, _, err := c.model(p); err != nil {
		c.fail(err)
		return
	}
	const limit = 1 << 24 // more than a body can hold in words; the context does not bound it
	var ids []int32
	if list, ok := p.list("messages"); ok {
		talk, err := c.conversation(list)
		if err != nil {
			c.fail(err)
			return
		}
		ids = c.e.template(talk, p.bool("add_generation_prompt", true), p.bool("continue_final_message", false))
	} else {
		if _, ok := p.get("prompt"); !ok {
			p.missing("prompt")
		}
		ids = c.e.tok.encode(nil, p.string("prompt"), limit)
	}
	strs := p.bool("return_token_strs", false)
	if err := p.bad.err(); err != nil {
		c.fail(err)
		return
	}
	dst := appendInt([]byte(`{"count":`), len(ids))
	dst = appendInt(append(dst, `,"max_model_len":`...), c.e.opts.MaxModelLen)
	dst = appendIDs(append(dst, `,"tokens":`...), ids)
	dst = append(dst, `,"token_strs":`...)
	if !strs {
		c.json(http.StatusOK, append(dst, "null}"...))
		return
	}
	dst = append(dst, '[')
	for i, id := range ids {
		if i > 0 {
			dst = append(dst, ',')
		}
		text := string(c.e.tok.append(nil, id, true))
		dst = appendString(dst, strings.NewReplacer(" ", "Ġ", "\n", "Ċ").Replace(text))
	}
	c.json(http.StatusOK, append(dst, "]}"...))
}

// detokenize serves /detokenize.
func (c *call) detokenize() {
	p, err := c.params()
	if err != nil {
		c.fail(err)
		return
	}
	if _, _, err := c.model(p); err != nil {
		c.fail(err)
		return
	}
	list, ok := p.list("tokens")
	if _, given := p.get("tokens"); !given {
		p.missing("tokens")
	}
	if err := p.bad.err(); err != nil || !ok {
		c.fail(err)
		return
	}
	ids, err := c.e.tokenIDs(list)
	if err != nil {
		c.fail(err)
		return
	}
	dst := appendString([]byte(`{"prompt":`), c.e.tok.decode(ids, true))
	c.json(http.StatusOK, append(dst, '}'))
}

package proxy

import "bytes"

// tail keeps the last of a body that passes by; that is where a plain answer has its usage.
type tail struct {
	from *buffers
	last *smallArray
	n    int
}

func (t *tail) add(p []byte, from *buffers) {
	if t.last == nil {
		t.from, t.last = from, from.small.Get().(*smallArray)
	}
	p = p[max(len(p)-smallSize, 0):]
	if over := t.n + len(p) - smallSize; over > 0 {
		t.n = copy(t.last[:], t.last[over:t.n])
	}
	t.n += copy(t.last[t.n:], p)
}

func (t *tail) bytes() []byte {
	if t.last == nil {
		return nil
	}
	return t.last[:t.n]
}

func (t *tail) release() {
	if t.last != nil {
		t.from.small.Put(t.last)
	}
	*t = tail{}
}

// noUsage is a Usage before any is seen.
func noUsage() Usage { return Usage{Cached: -1} }

// last merges the last usage object in p, which is the end of a JSON body.
func (u *Usage) last(p []byte) {
	if i := bytes.LastIndex(p, []byte(`"usage"`)); i >= 0 {
		u.merge(p[i+len(`"usage"`):])
	}
}

// merge reads a usage object out of p, which follows a "usage" key, and takes over the counts
// that it has. Nothing happens when the object is null or not all there. The names are
// OpenAI's of chat and of responses, and Anthropic's.
func (u *Usage) merge(p []byte) {
	p = trimSpace(p)
	if len(p) == 0 || p[0] != ':' {
		return
	}
	if p = trimSpace(p[1:]); len(p) == 0 || p[0] != '{' {
		return
	}
	got := Usage{Prompt: -1, Completion: -1, Cached: -1}
	var key []byte
	for depth := 0; len(p) > 0; {
		switch c := p[0]; {
		case c == '{' || c == '[':
			depth++
			key = nil
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				u.take(got)
				return
			}
		case c == ',':
			key = nil
		case c == '"':
			end := stringEnd(p)
			if end < 0 {
				return
			}
			key, p = p[1:end], p[end+1:]
			continue
		case '0' <= c && c <= '9':
			n := 0
			for len(p) > 0 && '0' <= p[0] && p[0] <= '9' {
				if n < 1<<40 {
					n = n*10 + int(p[0]-'0')
				}
				p = p[1:]
			}
			got.set(key, n)
			continue
		}
		p = p[1:]
	}
}

func (u *Usage) set(key []byte, n int) {
	switch string(key) {
	case "prompt_tokens", "input_tokens":
		u.Prompt = n
	case "completion_tokens", "output_tokens":
		u.Completion = n
	case "cached_tokens", "cache_read_input_tokens":
		u.Cached = n
	}
}

func (u *Usage) take(got Usage) {
	u.Seen = true
	if got.Prompt >= 0 {
		u.Prompt = got.Prompt
	}
	if got.Completion >= 0 {
		u.Completion = got.Completion
	}
	if got.Cached >= 0 {
		u.Cached = got.Cached
	}
}

// stringEnd gives the index of the quote that ends the JSON string at the start of p, or -1.
func stringEnd(p []byte) int {
	for i := 1; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

func trimSpace(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t' || p[0] == '\n' || p[0] == '\r') {
		p = p[1:]
	}
	return p
}

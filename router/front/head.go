package front

import (
	"bytes"
	"encoding/binary"
)

// verdict is what the scanner makes of the bytes so far.
type verdict uint8

const (
	verdictMore  verdict = iota // the head is not complete
	verdictFast                 // a request that we read as net/http does
	verdictOther                // anything else: net/http decides
	verdictDead                 // the connection is done for
)

// head is a request's head; its slices are parts of the scanned bytes.
type head struct {
	method, path, target, fields, host []byte
	length                             int64 // Content-Length
	close                              bool  // Connection: close
	size                               int   // bytes up to the body
}

// maxLength keeps Content-Length within what int64 holds; limits are far below it.
const maxLength = 1 << 50

// scan reads a head from the start of p. It looks at nothing behind the head's empty line, so
// that the verdict does not depend on how the bytes were split into reads.
func (h *head) scan(p []byte) verdict {
	const start = "POST /"
	if n := min(len(p), len(start)); string(p[:n]) != start[:n] {
		return verdictOther
	}
	end := bytes.IndexByte(p, '\n') + 1
	if end == 0 {
		return verdictMore
	}
	*h = head{method: p[:4], length: -1}
	if !h.requestLine(p[:end]) {
		return verdictOther
	}
	rest := p[end:]
	for {
		i := bytes.IndexByte(rest, '\n') + 1
		if i == 0 {
			return verdictMore
		}
		if i == 2 && rest[0] == '\r' {
			break
		}
		if !h.field(rest[:i]) {
			return verdictOther
		}
		rest = rest[i:]
	}
	if h.host == nil || h.length < 0 {
		return verdictOther
	}
	h.fields = p[end : len(p)-len(rest)]
	h.size = end + len(h.fields) + 2
	return verdictFast
}

// requestLine reads a line that starts with "POST /" and ends in "\n".
func (h *head) requestLine(line []byte) bool {
	target, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1\r\n"))
	if !ok {
		return false
	}
	h.target = target[len("POST "):]
	path, query, _ := bytes.Cut(h.target, []byte("?"))
	h.path = path
	var prev byte
	for _, c := range path {
		// No "%", "//" or "..": nobody behind us can read such a path in another way.
		if !pathByte(c) || prev == c && (c == '/' || c == '.') {
			return false
		}
		prev = c
	}
	for _, c := range query {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return true
}

// field reads one header line that ends in "\n".
func (h *head) field(line []byte) bool {
	n := 0
	for c := line[0]; c|0x20-'a' < 26 || c == '-' || tokenByte(c); c = line[n] { // ends at "\n" at the latest
		n++
	}
	if n == 0 || line[n] != ':' || line[len(line)-2] != '\r' {
		return false
	}
	value := line[n+1 : len(line)-2]
	if !clean(value) {
		return false
	}
	name := line[:n]
	switch n {
	case len("host"):
		if fold(name, "host") {
			return h.setHost(trim(value))
		}
	case len("connection"):
		if fold(name, "connection") {
			v := trim(value)
			h.close = h.close || fold(v, "close")
			return fold(v, "close") || fold(v, "keep-alive")
		}
	case len("content-length"):
		if fold(name, "content-length") {
			return h.setLength(trim(value))
		}
	case len("expect"):
		return !fold(name, "expect")
	case len("upgrade"):
		return !fold(name, "upgrade") && !fold(name, "trailer")
	case len("transfer-encoding"):
		return !fold(name, "transfer-encoding")
	}
	return true
}

func (h *head) setHost(v []byte) bool {
	if h.host != nil || len(v) == 0 {
		return false
	}
	for _, c := range v {
		if !hostByte(c) {
			return false
		}
	}
	h.host = v
	return true
}

func (h *head) setLength(v []byte) bool {
	if h.length >= 0 || len(v) == 0 {
		return false
	}
	n := int64(0)
	for _, c := range v {
		if c < '0' || c > '9' || n > maxLength {
			return false
		}
		n = 10*n + int64(c-'0')
	}
	h.length = n
	return true
}

// clean tells whether a value has no control bytes but tabs. It looks at eight bytes at once.
func clean(v []byte) bool {
	const ones = 0x0101010101010101
	for len(v) >= 8 {
		x := binary.LittleEndian.Uint64(v)
		del := x ^ 0x7f*ones
		if ((x-' '*ones)&^x|(del-ones)&^del)&(0x80*ones) != 0 && !cleanBytes(v[:8]) {
			return false
		}
		v = v[8:]
	}
	return cleanBytes(v)
}

func cleanBytes(v []byte) bool {
	for _, c := range v {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func trim(v []byte) []byte { return bytes.Trim(v, " \t") }

// fold compares without regard to ASCII case; lower is lower-case. b holds no control bytes,
// so that setting the case bit makes a letter or "-" of nothing else.
func fold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c|0x20 != lower[i] {
			return false
		}
	}
	return true
}

// A set of ASCII bytes is two words of bits: a table without memory.
const (
	digits  = (1<<10 - 1) << '0'
	letters = (1<<26-1)<<('a'-64) | (1<<26-1)<<('A'-64)
)

func in(c byte, low, high uint64) bool {
	// A shift by 64 or more gives 0: one of the two words is out of the way, both for c ≥ 128.
	return uint64(1)<<c&low|uint64(1)<<(c-64)&high != 0
}

// tokenByte: RFC 9110 tchar.
func tokenByte(c byte) bool {
	return in(c, digits|1<<'!'|1<<'#'|1<<'$'|1<<'%'|1<<'&'|1<<'\''|1<<'*'|1<<'+'|1<<'-'|1<<'.',
		letters|1<<('^'-64)|1<<('_'-64)|1<<('`'-64)|1<<('|'-64)|1<<('~'-64))
}

// pathByte: the unreserved characters and the slash.
func pathByte(c byte) bool {
	return in(c, digits|1<<'-'|1<<'.'|1<<'/', letters|1<<('_'-64)|1<<('~'-64))
}

// hostByte: names, addresses and ports, and no sub-delimiters or escapes.
func hostByte(c byte) bool {
	return in(c, digits|1<<'-'|1<<'.'|1<<':', letters|1<<('['-64)|1<<(']'-64)|1<<('_'-64))
}

package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"time"
)

// errProtocol is under every complaint about what an engine sent.
var errProtocol = errors.New("not HTTP/1.1 as we read it")

func protocolError(what string) error { return fmt.Errorf("%w: %s", errProtocol, what) }

// head is what the head of an answer says about its body and about the connection.
type head struct {
	status        int
	length        int64 // Content-Length, -1 without one
	chunked       bool
	close         bool // the connection can't be used again
	sse, json     bool // Content-Type
	encoded       bool // there is a Content-Encoding
	retryAfter    time.Duration
	hasRetryAfter bool
	named         [][]byte // fields that Connection names
}

// headEnd gives the length of the head at the start of p, 0 when it is not whole. seen bytes
// of p have been looked at before. What can't become a head is an error at once.
func headEnd(p []byte, seen int) (int, error) {
	const start = "HTTP/1."
	if n := min(len(p), len(start)); string(p[:n]) != start[:n] {
		return 0, protocolError("no status line")
	}
	if i := bytes.IndexByte(p, '\n'); i == 0 || (i > 0 && p[i-1] != '\r') {
		return 0, protocolError("bare line feed") // its empty line would be waited for in vain
	}
	from := max(seen-3, 0)
	if i := bytes.Index(p[from:], []byte("\r\n\r\n")); i >= 0 && from+i+4 <= maxHead {
		return from + i + 4, nil
	}
	if len(p) >= maxHead {
		return 0, protocolError("head too long")
	}
	return 0, nil
}

// parse reads a whole head, the empty line included, and appends to fields the lines that go
// to the client: all but framing and hop-by-hop ones, byte for byte. It is stricter than
// net/http: lines end in CRLF, nothing is folded, values hold no control characters, framing
// fields that contradict each other are refused.
func (h *head) parse(p, fields []byte, now time.Time) ([]byte, error) {
	*h = head{length: -1, named: h.named[:0]}
	i := bytes.IndexByte(p, '\r')
	if i < 0 || p[i+1] != '\n' {
		return fields, protocolError("bad line end")
	}
	http10, err := h.statusLine(p[:i])
	if err != nil {
		return fields, err
	}
	h.close = http10
	for p = p[i+2:]; len(p) > 2; p = p[i+2:] {
		if i = bytes.IndexByte(p, '\r'); i < 0 || p[i+1] != '\n' {
			return fields, protocolError("bad line end")
		}
		line := p[:i]
		name, value, err := splitField(line)
		if err != nil {
			return fields, err
		}
		drop, err := h.field(name, value, now)
		if err != nil {
			return fields, err
		}
		if !drop {
			fields = append(append(fields, line...), '\r', '\n')
		}
	}
	if h.chunked {
		if http10 {
			return fields, protocolError("Transfer-Encoding in HTTP/1.0")
		}
		h.close = h.close || h.length >= 0 // the two together smell of smuggling
		h.length = -1
	}
	if len(h.named) > 0 {
		fields = dropNamed(fields, h.named)
	}
	return fields, nil
}

func (h *head) statusLine(l []byte) (http10 bool, err error) {
	if len(l) < 12 || l[8] != ' ' || (len(l) > 12 && l[12] != ' ') {
		return false, protocolError("bad status line")
	}
	switch string(l[:8]) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		http10 = true
	default:
		return false, protocolError("bad version")
	}
	for _, c := range l[9:12] {
		if c < '0' || c > '9' {
			return false, protocolError("bad status")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 || h.status > 599 || !isText(l[12:]) {
		return false, protocolError("bad status line")
	}
	return http10, nil
}

// splitField splits a line at its colon and refuses bytes that have no place in a field.
func splitField(line []byte) (name, value []byte, err error) {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return nil, nil, protocolError("bad field")
	}
	for _, c := range line[:colon] {
		if !isToken(c) {
			return nil, nil, protocolError("bad field name")
		}
	}
	if value = line[colon+1:]; !isText(value) {
		return nil, nil, protocolError("bad field value")
	}
	return line[:colon], trim(value), nil
}

// field notes what a field says and tells whether the client does not get it.
func (h *head) field(name, value []byte, now time.Time) (drop bool, err error) {
	switch len(name) {
	case 2:
		return fold(name, "te"), nil
	case 7:
		return fold(name, "trailer") || fold(name, "upgrade"), nil
	case 10:
		if fold(name, "connection") {
			h.connection(value)
			return true, nil
		}
		return fold(name, "keep-alive"), nil
	case 11:
		if fold(name, "retry-after") {
			h.retryAfter, h.hasRetryAfter = parseRetryAfter(value, now)
		}
	case 12:
		if fold(name, "x-request-id") {
			return true, nil // AnswerFields has it: twice it would read as "a, a"
		}
		if fold(name, "content-type") {
			h.sse = hasFold(value, "text/event-stream")
			h.json = hasFold(value, "application/json")
		}
	case 14:
		if fold(name, "content-length") {
			n, ok := parseLength(value)
			if !ok || (h.length >= 0 && h.length != n) {
				return true, protocolError("bad Content-Length")
			}
			h.length = n
			return true, nil
		}
	case 16:
		if fold(name, "content-encoding") && !fold(value, "identity") {
			h.encoded = true
		}
	case 17:
		if fold(name, "transfer-encoding") {
			if h.chunked || !fold(value, "chunked") {
				return true, protocolError("bad Transfer-Encoding")
			}
			h.chunked = true
			return true, nil
		}
	}
	return hasFold(name, "proxy-") || hasFold(name, "x-mobula-"), nil
}

func (h *head) connection(value []byte) {
	for len(value) > 0 {
		var token []byte
		token, value, _ = bytes.Cut(value, []byte{','})
		switch token = trim(token); {
		case fold(token, "close"):
			h.close = true
		case len(token) > 0 && !fold(token, "keep-alive"):
			h.named = append(h.named, token)
		}
	}
}

// dropNamed takes the named fields out, in place.
func dropNamed(fields []byte, named [][]byte) []byte {
	out := fields[:0]
next:
	for line := range bytes.Lines(fields) {
		name, _, _ := bytes.Cut(line, []byte{':'})
		for _, n := range named {
			if bytes.EqualFold(name, n) {
				continue next
			}
		}
		out = append(out, line...)
	}
	return out
}

func parseLength(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 18 { // 18 digits don't overflow
		return 0, false
	}
	n := int64(0)
	for _, c := range p {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// parseRetryAfter reads seconds or a date.
func parseRetryAfter(p []byte, now time.Time) (time.Duration, bool) {
	if n, ok := parseLength(p); ok {
		return time.Duration(min(n, math.MaxInt32)) * time.Second, true
	}
	t, err := time.Parse(time.RFC1123, string(p))
	if err != nil {
		return 0, false
	}
	return max(t.Sub(now), 0), true
}

// isToken tells whether a field name may hold c (RFC 9110 §5.6.2).
func isToken(c byte) bool {
	const (
		low  = 1<<'!' | 1<<'#' | 1<<'$' | 1<<'%' | 1<<'&' | 1<<'\'' | 1<<'*' | 1<<'+' | 1<<'-' | 1<<'.' | (1<<10-1)<<'0'
		high = (1<<26-1)<<('A'-64) | (1<<26-1)<<('a'-64) | 1<<('^'-64) | 1<<('_'-64) | 1<<('`'-64) | 1<<('|'-64) | 1<<('~'-64)
	)
	switch c >> 6 {
	case 0:
		return uint64(low)>>c&1 != 0
	case 1:
		return uint64(high)>>(c-64)&1 != 0
	}
	return false
}

// isText tells whether p is free of control characters but tabs.
func isText(p []byte) bool {
	for _, c := range p {
		if (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// fold tells whether p is s, which is in lower case, whatever the case of p.
func fold(p []byte, s string) bool { return len(p) == len(s) && hasFold(p, s) }

// hasFold tells whether p begins with s, which is in lower case, whatever the case of p.
func hasFold(p []byte, s string) bool {
	if len(p) < len(s) {
		return false
	}
	for i := range len(s) {
		c := p[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// trim cuts spaces and tabs off both ends.
func trim(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

package openai

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"strconv"
)

// header is what the router takes from a request's header lines.
type header struct {
	fields      []byte // lines for the engine, each ending in \r\n
	id          []byte // request id, the client's or a new one
	session     []byte
	contentType []byte
	encoded     bool // the body has a Content-Encoding
	debug       bool
}

// headerNames are the lower-case names that header.scan treats apart.
const (
	nameRequestID = "x-request-id"
	nameDebug     = "x-mobula-debug"
)

// scan copies raw header lines for the engine, leaving out what belongs to one connection
// (RFC 9110 section 7.6.1), the framing, and the Host, which the proxy writes itself.
// session is the lower-case name of the session header.
func (h *header) scan(raw []byte, session string) {
	h.fields, h.id, h.session, h.contentType, h.encoded, h.debug = h.fields[:0], h.id[:0], nil, nil, false, false
	var lower [64]byte
	for len(raw) > 0 {
		end := bytes.IndexByte(raw, '\n') + 1
		if end == 0 {
			break
		}
		line := raw[:end]
		raw = raw[end:]
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			continue
		}
		if colon > len(lower) {
			h.fields = append(h.fields, line...)
			continue
		}
		name := lower[:colon]
		for i, c := range line[:colon] {
			if c >= 'A' && c <= 'Z' {
				c |= 0x20
			}
			name[i] = c
		}
		if h.take(name, bytes.TrimSpace(line[colon+1:]), session) {
			h.fields = append(h.fields, line...)
		}
	}
	if len(h.id) == 0 {
		h.id = strconv.AppendUint(h.id, rand.Uint64()|1<<63, 16)
		h.id = strconv.AppendUint(h.id, rand.Uint64()|1<<63, 16)
	}
	h.fields = append(h.fields, "X-Request-Id: "...)
	h.fields = append(h.fields, h.id...)
	h.fields = append(h.fields, "\r\n"...)
}

// take notes a field and tells whether it goes to the engine.
func (h *header) take(name, value []byte, session string) bool {
	if string(name) == session {
		h.session = value
	}
	switch string(name) {
	case "host", "content-length", "connection", "keep-alive", "proxy-connection", "proxy-authorization",
		"te", "trailer", "transfer-encoding", "upgrade", "expect":
		return false
	case nameRequestID:
		if validID(value) {
			h.id = append(h.id[:0], value...)
		}
		return false
	case nameDebug:
		h.debug = len(value) > 0 && string(value) != "0"
		return false
	case "content-type":
		h.contentType = value
	case "content-encoding":
		h.encoded = len(value) > 0 && string(value) != "identity"
	}
	return true
}

// validID tells whether a client's request id may stand in headers, logs and the engine's
// own ids.
func validID(id []byte) bool {
	if len(id) == 0 || len(id) > 128 {
		return false
	}
	for _, c := range id {
		if !literal(c) && c != '_' && c != ':' && c != '/' {
			return false
		}
	}
	return true
}

// appendHeader writes a net/http header as lines. Fields that the Connection header names
// are left out.
func appendHeader(dst []byte, h http.Header) []byte {
	drop := map[string]bool{}
	for _, v := range h["Connection"] {
		for name := range bytes.SplitSeq([]byte(v), []byte(",")) {
			drop[http.CanonicalHeaderKey(string(bytes.TrimSpace(name)))] = true
		}
	}
	for name, values := range h {
		if drop[name] {
			continue
		}
		for _, v := range values {
			dst = append(dst, name...)
			dst = append(dst, ": "...)
			dst = append(dst, v...)
			dst = append(dst, "\r\n"...)
		}
	}
	return dst
}

package proxy

import "bytes"

// scanner watches an SSE stream go by: it counts events and finds what tells how the stream
// fares. It works on pieces cut anywhere and holds at most a window of an unfinished line,
// however long that is. Lines end in LF or CRLF; a lone CR, which SSE allows, is not an end.
type scanner struct {
	events int  // events with data, [DONE] not counted
	done   bool // the stream said that it is complete
	abort  bool // a choice ended with "abort": the engine was told to stop
	failed bool // the engine sent an error event that is its own fault
	usage  Usage

	clear   bool // it is known that the stream does not begin with an error event
	counted bool // this event's data has been counted
	blank   bool // the last line was empty, so an event has ended
	inError bool // an "event: error" line came, its data not yet
	client  bool // the error line at hand has a 4xx code
	kind    lineKind
	long    bool // the unfinished line is longer than the window, kind says what it is
	n       int  // bytes of an unfinished line in window
	window  [windowSize]byte
}

// windowSize is how much of an unfinished line is kept. A usage object has about 350 bytes.
const windowSize = 1 << 10

type lineKind uint8

const (
	lineOther lineKind = iota
	lineData
	lineError // data with an error
	lineDone
)

func (s *scanner) reset() {
	*s = scanner{usage: noUsage(), blank: true, window: s.window}
}

// undecided tells that what came so far may yet turn out to begin with an error event.
func (s *scanner) undecided() bool { return !s.clear && !s.failed && !s.done }

// failedFirst tells that the stream began with an error of the engine's.
func (s *scanner) failedFirst() bool { return s.failed && !s.clear }

// feed looks at the next bytes of the stream.
func (s *scanner) feed(p []byte) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.part(p)
			break
		}
		switch {
		case s.n == 0 && !s.long:
			s.line(p[:i])
		case !s.long && s.n+i <= windowSize:
			s.n += copy(s.window[s.n:], p[:i])
			s.line(s.window[:s.n])
		default:
			s.part(p[:i])
			s.endLine(s.kind)
		}
		s.n, s.long = 0, false
		p = p[i+1:]
	}
	if s.undecided() && s.n > 0 && !s.inError {
		s.clear = !mayBegin(s.window[:s.n])
	}
}

// mayBegin tells whether the line that p begins can become an error.
func mayBegin(p []byte) bool {
	for _, s := range [...]struct{ name, value string }{{"event:", "error"}, {"data:", `{"error"`}} {
		n := min(len(p), len(s.name))
		if string(p[:n]) != s.name[:n] {
			continue
		}
		v := bytes.TrimLeft(p[n:], " \t")
		k := min(len(v), len(s.value))
		return string(v[:k]) == s.value[:k]
	}
	return false
}

// part takes a piece of a line that does not end yet.
func (s *scanner) part(p []byte) {
	if !s.long {
		n := copy(s.window[s.n:], p)
		s.n += n
		if p = p[n:]; len(p) == 0 {
			return
		}
		s.long = true
		s.kind, _ = s.classify(s.window[:s.n])
		s.client = false
		s.search(s.kind, s.window[:s.n])
	}
	// The window slides by half, so that what lies across a seam is seen whole.
	const half = windowSize / 2
	for len(p) > 0 {
		if s.n == windowSize {
			s.n = copy(s.window[:], s.window[half:])
		}
		n := copy(s.window[s.n:], p)
		s.n += n
		p = p[n:]
		s.search(s.kind, s.window[:s.n])
	}
}

// line takes a whole line.
func (s *scanner) line(l []byte) {
	if n := len(l); n > 0 && l[n-1] == '\r' {
		l = l[:n-1]
	}
	if len(l) == 0 {
		s.blank, s.counted, s.inError = true, false, false
		return
	}
	kind, payload := s.classify(l)
	s.client = false
	s.search(kind, payload)
	s.endLine(kind)
}

// classify tells what the line that begins with l is, and notes event names.
func (s *scanner) classify(l []byte) (lineKind, []byte) {
	switch {
	case len(l) > 5 && string(l[:5]) == "data:":
		l = l[5:]
		if l[0] == ' ' {
			l = l[1:]
		}
		switch {
		case s.inError:
			return lineError, l
		case len(l) > 8 && string(l[:8]) == `{"error"`:
			if v := trimSpace(l[8:]); len(v) > 1 && v[0] == ':' && !bytes.HasPrefix(trimSpace(v[1:]), []byte("null")) {
				return lineError, l
			}
		case string(l) == "[DONE]":
			return lineDone, l
		}
		return lineData, l
	case len(l) > 6 && string(l[:6]) == "event:":
		s.event(trimSpace(l[6:]))
	}
	return lineOther, nil
}

// event notes what an event's name says. The names are Anthropic's and those of responses.
func (s *scanner) event(name []byte) {
	switch string(name) {
	case "error":
		s.inError = true
	case "response.failed":
		s.failed, s.done = true, true
	case "message_stop", "response.completed", "response.incomplete", "response.cancelled":
		s.done = true
	}
}

// search looks at the payload of a data line, or at a window of it.
func (s *scanner) search(kind lineKind, p []byte) {
	switch kind {
	case lineData:
		if i := index(p, `"usage":`, 4); i >= 0 {
			s.usage.merge(p[i+len(`"usage"`):])
		}
		for {
			i := index(p, `"abort"`, 2)
			if i < 0 {
				break
			}
			if bytes.HasSuffix(bytes.TrimRight(p[:i], " "), []byte(`"finish_reason":`)) {
				s.abort = true
			}
			p = p[i+len(`"abort"`):]
		}
	case lineError:
		if i := bytes.LastIndex(p, []byte(`"code":`)); i >= 0 {
			v := trimSpace(p[i+len(`"code":`):])
			s.client = len(v) > 3 && v[0] == '4' && isDigit(v[1]) && isDigit(v[2]) && !isDigit(v[3])
		}
	}
}

// endLine counts a line that has ended.
func (s *scanner) endLine(kind lineKind) {
	s.blank = false
	switch kind {
	case lineDone:
		s.done = true
		return
	case lineData, lineError:
		if !s.counted {
			s.events++
			s.counted = true
		}
	}
	if kind == lineError {
		// One without a code, as Anthropic's are, or with one in words is the engine's fault.
		s.failed = s.failed || !s.client
		s.inError = false
	}
	if !s.inError && !s.failed {
		s.clear = true
	}
}

// index is bytes.Index, quick when the byte at rare of s is one that p has few of.
func index(p []byte, s string, rare int) int {
	const tries = 16
	from := 0
	for range tries {
		i := bytes.IndexByte(p[min(from+rare, len(p)):], s[rare])
		if i < 0 {
			return -1
		}
		from += i
		if from+len(s) <= len(p) && string(p[from:from+len(s)]) == s {
			return from
		}
		from++
	}
	if i := bytes.Index(p[from:], []byte(s)); i >= 0 {
		return from + i
	}
	return -1
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

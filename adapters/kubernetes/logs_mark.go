package kubernetes

import (
	"bytes"
	"math"
	"time"
)

// mark is how far a log with times has been read, so that reading can begin again anywhere before without giving anything twice.
// The zero mark is the beginning.
type mark struct {
	at    time.Time // of the last line
	lines int       // that were given of those with this time
	part  int       // bytes that were given of one after them that was cut off

	twice  bool // what is read may have been given
	passed int  // lines of the time of the mark that were
	inside bool // of a line
	skip   int  // bytes of it that were given
	pos    int  // bytes of it that were read
}

// again tells that reading begins again, at the mark or before.
func (m *mark) again() {
	m.twice, m.passed, m.inside = !m.at.IsZero(), 0, false
}

// take gives what is new of a piece of the log: a line, or a part of one. Times are left out.
func (m *mark) take(piece []byte) []byte {
	ends := bytes.HasSuffix(piece, []byte("\n"))
	broken := false
	if !m.inside {
		stamp, text, ok := bytes.Cut(piece, []byte(" "))
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		switch {
		case ok && err == nil:
			piece, broken = text, m.begin(at)
		case !ends: // the time itself was cut off
			return nil
		default:
			broken = m.begin(m.at)
		}
	}
	m.inside = !ends
	if m.skip == math.MaxInt {
		return nil
	}
	given := min(m.skip, len(piece))
	m.skip -= given
	m.pos += len(piece)
	if ends {
		m.lines, m.part = m.lines+1, 0
	} else {
		m.part = max(m.part, m.pos)
	}
	if broken {
		return append([]byte{'\n'}, piece[given:]...)
	}
	return piece[given:]
}

// begin takes a line's time. It tells whether the line follows on one that was cut off and did not come again.
func (m *mark) begin(at time.Time) (broken bool) {
	m.skip, m.pos = 0, 0
	switch {
	case m.twice && at.Before(m.at):
		m.skip = math.MaxInt
		return false
	case m.twice && at.Equal(m.at) && m.passed < m.lines:
		m.passed++
		m.skip = math.MaxInt
		return false
	case m.twice && at.Equal(m.at) && m.part > 0:
		m.skip, m.twice = m.part, false
		return false
	}
	broken = m.part > 0
	m.twice, m.part = false, 0
	if !at.Equal(m.at) {
		m.at, m.lines = at, 0
	}
	return broken
}

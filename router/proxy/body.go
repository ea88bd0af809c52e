package proxy

import (
	"math"
	"net/http"
)

// body takes the framing off an answer's body, whatever the pieces it comes in.
type body struct {
	chunked bool
	toEOF   bool  // it ends with the connection
	ended   bool  // which has ended
	whole   int64 // its length, -1 when it is not known beforehand
	left    int64
	chunks  chunks
}

// start sets b up for the answer h to a request with method.
func (b *body) start(h *head, method string) {
	*b = body{}
	switch {
	case method == http.MethodHead || h.status == http.StatusNoContent || h.status == http.StatusNotModified:
	case h.chunked:
		b.chunked, b.whole = true, -1
	case h.length >= 0:
		b.whole, b.left = h.length, h.length
	default:
		b.toEOF, b.whole, b.left = true, -1, math.MaxInt64
		h.close = true
	}
}

// decode moves the payload in p to the front of it, and gives its length and how much of p
// was used. All is, unless the body is done: then used is len(p) only when the engine has
// sent the whole of this answer and no more, so that its connection can be used again.
func (b *body) decode(p []byte) (n, used int, done bool, err error) {
	if b.chunked {
		return b.chunks.decode(p)
	}
	n = int(min(int64(len(p)), b.left))
	b.left -= int64(n)
	return n, n, b.left == 0 || b.ended, nil
}

// chunks undoes the chunked transfer coding.
type chunks struct {
	state  chunkState
	digits int8  // of the size
	left   int64 // of the chunk
	excess int   // bytes of framing beyond a fair share
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkCR
	chunkLF
)

// maxExcess bounds framing around little data, an eighth of what net/http allows.
const maxExcess = 2 << 10

// decode is body.decode. Fields after the last chunk are not read.
func (c *chunks) decode(p []byte) (n, used int, done bool, err error) {
	for i := 0; i < len(p); {
		switch b := p[i]; c.state {
		case chunkData:
			k := int(min(int64(len(p)-i), c.left))
			if n != i {
				copy(p[n:], p[i:i+k])
			}
			n, i = n+k, i+k
			if c.left -= int64(k); c.left == 0 {
				c.state = chunkCR
			}
			continue
		case chunkSize:
			v := hex(b)
			switch {
			case v >= 0:
				if c.digits++; c.digits > 15 {
					return n, i, false, protocolError("chunk too large")
				}
				c.left = c.left<<4 | int64(v)
			case c.digits == 0:
				return n, i, false, protocolError("bad chunk size")
			case b == ';':
				c.state = chunkExt
			case b == '\r':
				c.state = chunkSizeLF
			default:
				return n, i, false, protocolError("bad chunk size")
			}
		case chunkExt:
			if b == '\r' {
				c.state = chunkSizeLF
			} else if (b < ' ' && b != '\t') || b == 0x7f {
				return n, i, false, protocolError("bad chunk extension")
			}
		case chunkSizeLF:
			if b != '\n' {
				return n, i, false, protocolError("bad chunk size line")
			}
			if c.left == 0 {
				return n, lastChunk(p, i+1), true, nil
			}
			c.excess = max(c.excess-16-int(min(2*c.left, maxExcess)), 0)
			c.digits, c.state = 0, chunkData
		case chunkCR:
			if b != '\r' {
				return n, i, false, protocolError("bad chunk end")
			}
			c.state = chunkLF
		case chunkLF:
			if b != '\n' {
				return n, i, false, protocolError("bad chunk end")
			}
			c.state = chunkSize
		}
		i++
		if c.excess++; c.excess > maxExcess {
			return n, i, false, protocolError("chunks of framing only")
		}
	}
	return n, len(p), false, nil
}

// lastChunk gives what is used of p when the last chunk's line ends at i. Without the empty
// line it is more than p, so never all: what follows, if anything, is nobody's answer.
func lastChunk(p []byte, i int) int {
	if len(p) >= i+2 && p[i] == '\r' && p[i+1] == '\n' {
		return i + 2
	}
	return len(p) + 1
}

func hex(b byte) int {
	switch {
	case '0' <= b && b <= '9':
		return int(b - '0')
	case 'a' <= b && b <= 'f':
		return int(b-'a') + 10
	case 'A' <= b && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

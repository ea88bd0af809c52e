package front

import (
	"math/bits"
	"sync"
)

const (
	// headSize is the buffer for a head; a larger head goes to net/http.
	headSize = 4 << 10
	// Classes of pooled buffers: powers of two from 4 KiB to 4 MiB. Larger ones are made and dropped.
	minClass, maxClass = 12, 22
)

// buffer is a pooled array of bytes. The pools hold pointers to it, for which no Put allocates.
type buffer struct{ b []byte }

// pools hold buffers by class.
type pools [maxClass - minClass + 1]sync.Pool

// get gives a buffer of at least n bytes, with anything in it.
func (p *pools) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), minClass)
	if class > maxClass {
		return &buffer{b: make([]byte, n)}
	}
	if b, ok := p[class-minClass].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<class)}
}

// put takes a buffer back. nil is fine.
func (p *pools) put(b *buffer) {
	if b == nil || len(b.b) > 1<<maxClass {
		return
	}
	p[bits.Len(uint(len(b.b)-1))-minClass].Put(b)
}

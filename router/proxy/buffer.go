package proxy

import "sync"

const (
	smallSize = 4 << 10  // for heads and streams
	bigSize   = 32 << 10 // for bodies; also the largest plain answer that is collected before it is passed on
	maxHead   = 64 << 10 // an answer's status line and fields
)

type (
	smallArray = [smallSize]byte
	bigArray   = [bigSize]byte
)

// buffers hands out the arrays behind the read buffers.
type buffers struct{ small, big sync.Pool }

func newBuffers() *buffers {
	b := &buffers{}
	b.small.New = func() any { return new(smallArray) }
	b.big.New = func() any { return new(bigArray) }
	return b
}

// buffer is a read buffer that grows to the size of what comes.
type buffer struct {
	b     []byte
	from  *buffers
	small *smallArray
	big   *bigArray
}

// take starts with a small buffer.
func (b *buffer) take(from *buffers) {
	b.from = from
	b.small = from.small.Get().(*smallArray)
	b.b = b.small[:]
}

// grow makes the buffer the next size larger and keeps its first n bytes.
func (b *buffer) grow(n int) {
	old := b.b[:n]
	if len(b.b) < bigSize {
		big := b.from.big.Get().(*bigArray)
		copy(big[:], old)
		b.release()
		b.big, b.b = big, big[:]
		return
	}
	next := make([]byte, 2*len(b.b))
	copy(next, old)
	b.release()
	b.b = next
}

func (b *buffer) release() {
	if b.small != nil {
		b.from.small.Put(b.small)
	}
	if b.big != nil {
		b.from.big.Put(b.big)
	}
	b.small, b.big, b.b = nil, nil, nil
}

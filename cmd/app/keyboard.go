package app

import (
	"bytes"
	"io"
	"sync"
)

const (
	ctrlC     = 0x03
	typeAhead = 256 // reads kept while nobody reads
)

// keyboard reads a terminal in raw mode all the time, so that Ctrl-C is noticed while an
// answer runs. What is typed meanwhile is kept for the next prompt, within a bound.
type keyboard struct {
	typed chan []byte
	gone  chan struct{} // closed by close, or at the end of the input
	once  sync.Once
	rest  []byte // typed, and not read yet

	mu        sync.Mutex
	interrupt func() // what Ctrl-C does, nil for passing it on
}

// newKeyboard starts to read in. The reading goroutine ends with the input: a blocked read
// of a terminal can't be taken back, so it may outlive close until the process ends.
func newKeyboard(in io.Reader) *keyboard {
	k := &keyboard{typed: make(chan []byte, typeAhead), gone: make(chan struct{})}
	go k.listen(in)
	return k
}

func (k *keyboard) listen(in io.Reader) {
	defer close(k.typed)
	buf := make([]byte, 256)
	for {
		n, err := in.Read(buf)
		if p := k.intercept(buf[:n]); len(p) > 0 {
			select {
			case k.typed <- bytes.Clone(p):
			case <-k.gone:
				return
			default: // a bound on what is typed ahead
			}
		}
		if err != nil {
			return
		}
	}
}

// intercept takes a Ctrl-C, and what was typed before it, out of p when one is wanted.
func (k *keyboard) intercept(p []byte) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if i := bytes.LastIndexByte(p, ctrlC); i >= 0 && k.interrupt != nil {
		k.interrupt()
		k.interrupt = nil // a second one leaves
		return p[i+1:]
	}
	return p
}

// interrupts has Ctrl-C call f once; with nil it is read like any other key.
func (k *keyboard) interrupts(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.interrupt = f
}

// Read waits for what is typed, until close.
func (k *keyboard) Read(p []byte) (int, error) {
	if len(k.rest) == 0 {
		select {
		case <-k.gone:
			return 0, io.EOF
		case typed, ok := <-k.typed:
			if !ok {
				return 0, io.EOF
			}
			k.rest = typed
		}
	}
	n := copy(p, k.rest)
	k.rest = k.rest[n:]
	return n, nil
}

// close ends all reads.
func (k *keyboard) close() { k.once.Do(func() { close(k.gone) }) }

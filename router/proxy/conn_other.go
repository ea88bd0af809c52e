//go:build !unix

package proxy

import "time"

// start sends a request, out and then body, and waits for the first bytes of the answer.
func (c *conn) start(out, body, in []byte, until time.Time) (int, error) {
	return c.startPlainly(out, body, in, until)
}

// await is read into a small buffer.
func (c *conn) await(b *buffer, until time.Time) (int, error) {
	b.release()
	b.take(b.from)
	return c.read(b.b, until)
}

func (c *conn) readReady(uintptr) bool { return true }

func (c *conn) exchange(uintptr) bool { return true }

// alive can't be told here.
func (c *conn) alive() bool { return true }

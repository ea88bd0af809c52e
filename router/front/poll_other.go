//go:build !linux

package front

import "log/slog"

// newWatcher makes the best watcher that the system has.
func newWatcher(*slog.Logger) watcher { return reader{} }

// open prepares for fill.
func (c *conn) open() error { return nil }

// fill waits for bytes.
func (c *conn) fill() error {
	c.in = c.s.pools.get(headSize)
	n, err := c.nc.Read(c.in.b)
	c.r, c.w = 0, n
	if n > 0 {
		return nil
	}
	return err
}

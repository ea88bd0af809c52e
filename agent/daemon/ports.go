//go:build unix

package daemon

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// claim is a port that other agents on this machine leave alone: an engine takes minutes before it listens.
// It is a name in Linux' abstract namespace, which ends with our process at the latest.
type claim struct{ net.Listener }

// claimPort claims a port of an address; false when another agent has it. Where there are no abstract
// names nothing is claimed.
func claimPort(ctx context.Context, host string, port int) (claim, bool) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", "@mobula/port/"+net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return claim{}, !abstractNames
	}
	return claim{l}, true
}

func (c claim) release() {
	if c.Listener != nil {
		_ = c.Close()
	}
}

// setPort gives t a port that has been claimed, and gives up the one that it had. The caller holds d.mu.
func (d *Daemon) setPort(t *task, port int, c claim) {
	t.claim.release()
	t.port, t.claim = port, c
}

// choosePort gives t a port that no other task has and that nobody listens on: the one it has, unless
// that is to be another one.
func (d *Daemon) choosePort(ctx context.Context, t *task, another bool) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var taken []int
	for _, other := range d.tasks {
		if other != t {
			taken = append(taken, other.port)
		}
	}
	if another {
		taken = append(taken, t.port)
	} else if t.port != 0 && !slices.Contains(taken, t.port) && d.free(ctx, t.port) {
		if t.claim.Listener != nil {
			return t.port, nil
		}
		if c, ok := claimPort(ctx, d.o.Host, t.port); ok {
			d.setPort(t, t.port, c)
			return t.port, nil
		}
	}
	for port := d.o.Ports[0]; port <= d.o.Ports[1]; port++ {
		if slices.Contains(taken, port) {
			continue
		}
		c, ok := claimPort(ctx, d.o.Host, port)
		if !ok {
			continue
		}
		if d.free(ctx, port) {
			d.setPort(t, port, c)
			return port, nil
		}
		c.release()
	}
	return 0, fmt.Errorf("no free port from %d to %d on %s", d.o.Ports[0], d.o.Ports[1], d.o.Host)
}

// free tells whether an engine could listen there.
func (d *Daemon) free(ctx context.Context, port int) bool {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(d.o.Host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

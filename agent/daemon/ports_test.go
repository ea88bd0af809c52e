//go:build linux

package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// An engine takes minutes before it listens: until then the claim keeps other agents from its port.
func TestTwoAgentsOnOneAddressNeverChooseTheSamePort(t *testing.T) {
	agentOf := func() *Daemon {
		return &Daemon{o: Options{Host: "127.0.0.1", Ports: [2]int{19301, 19304}}, tasks: map[string]*task{}}
	}
	one, two := agentOf(), agentOf()
	choose := func(d *Daemon, tk *task) int {
		port, err := d.choosePort(t.Context(), tk, false)
		require.NoError(t, err)
		return port
	}
	a, b, c := &task{d: one}, &task{d: two}, &task{d: two}
	defer func() { a.claim.release(); b.claim.release(); c.claim.release() }()
	first := choose(one, a)
	require.NotEqual(t, first, choose(two, b))
	require.Equal(t, first, choose(one, a), "it keeps what it has")
	a.claim.release()
	a.claim = claim{}
	require.Equal(t, first, choose(two, c), "what has been given up is free")
	other := &Daemon{o: Options{Host: "127.0.0.2", Ports: [2]int{first, first}}, tasks: map[string]*task{}}
	d := &task{d: other}
	defer func() { d.claim.release() }()
	require.Equal(t, first, choose(other, d), "of another address too")
}

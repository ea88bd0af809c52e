//go:build linux && real

package netns

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHostsReachEachOtherUnlessPartitioned(t *testing.T) {
	lab := New(t, "a", "b", "c")
	a, b := lab.Host("a"), lab.Host("b")
	var l net.Listener
	require.NoError(t, in(b.ns, func() (err error) {
		l, err = net.Listen("tcp", b.IP+":80")
		return err
	}))
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "b")
			_ = c.Close()
		}
	}()
	dial := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		c, err := a.Dial(ctx, "tcp", b.IP+":80")
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	require.Eventually(t, func() bool { return dial(time.Second) == nil }, time.Minute, 10*time.Millisecond)
	for _, cut := range []func(on bool) error{
		b.Partition,
		func(on bool) error { return lab.Cut("a", "b", on) },
	} {
		require.NoError(t, cut(true))
		require.Error(t, dial(200*time.Millisecond))
		require.NoError(t, cut(false))
		require.Eventually(t, func() bool { return dial(time.Second) == nil }, time.Minute, 10*time.Millisecond)
	}
	require.NoError(t, lab.Cut("c", "b", true))
	require.NoError(t, dial(time.Minute), "the others still reach each other")
}

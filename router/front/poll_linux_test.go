package front

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/router/proxy"
)

func TestEpollReusesItsSlots(t *testing.T) {
	s := start(t, Options{Handler: handlerFunc(func(r *Request, c proxy.Client) error {
		c.Watch(make(signal))
		return echo(r, c)
	})})
	for range 50 {
		p := s.dial()
		p.send("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		_, _ = p.answer()
		require.Empty(t, p.rest())
	}
	e := s.watcher.(*epoll)
	e.mu.Lock()
	defer e.mu.Unlock()
	require.Less(t, len(e.slots), 50)
}

func TestEpollCloseIsFinal(t *testing.T) {
	e, err := newEpoll(slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	e.close()
	e.close()
	c := &conn{}
	e.watch(c)
	require.False(t, c.watch.registered)
	e.forget(c, true)
}

package proxy

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/router/pick"
)

func TestAnswersThatAreRefused(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
	for _, c := range []struct{ name, answer string }{
		{"garbage", strings.Repeat("\xde\xad\xbe\xef", 99)},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"},
		{"lengths that differ", ok + "Content-Length: 3\r\n\r\nhi!"},
		{"list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi"},
		{"signed length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nhi"},
		{"huge length", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhi"},
		{"unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		{"coding twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"folded field", ok + "A: b\r\n c\r\n\r\nhi"},
		{"bare LF in a field", ok + "A: b\nSet-Cookie: x=y\r\n\r\nhi"},
		{"bare CR in a field", ok + "A: b\rSet-Cookie: x=y\r\n\r\nhi"},
		{"NUL in a field", ok + "A: b\x00c\r\n\r\nhi"},
		{"NUL in a name", ok + "A\x00: b\r\n\r\nhi"},
		{"space before the colon", ok + "A : b\r\n\r\nhi"},
		{"no colon", ok + "nonsense\r\n\r\nhi"},
		{"empty name", ok + ": b\r\n\r\nhi"},
		{"two-digit status", "HTTP/1.1 20 OK\r\n\r\n"},
		{"status 000", "HTTP/1.1 000 OK\r\n\r\n"},
		{"status 600", "HTTP/1.1 600 OK\r\n\r\n"},
		{"lines of LF only", "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi\r\n\r\n"},
		{"huge head", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHead) + "\r\n\r\n"},
		{"endless head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxHead)},
		{"chunk size of letters", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"},
		{"chunk size too large", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"},
		{"chunk without size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhi\r\n"},
		{"chunk extensions only", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 1<<20) + "\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, func(r *request) bool { r.say(c.answer); return hang(r) })
			p := newProxy(t, Options{})
			got := do(t, p, exchange(f.Endpoint), &MemoryClient{})
			require.Equal(t, CauseProtocol, cause(t, got.Err))
			require.Zero(t, got.Status)
			require.Equal(t, []Stat{{Endpoint: f.ID}}, p.Stats(), "the connection is not used again")
		})
	}
}

func TestLengthsThatLie(t *testing.T) {
	t.Run("too long a body is cut", func(t *testing.T) {
		f := newFake(t, always("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more"))
		p := newProxy(t, Options{})
		for range 3 {
			got := do(t, p, exchange(f.Endpoint), &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, "hello", got.body)
		}
		require.EqualValues(t, 3, f.conns.Load())
	})
	t.Run("too short a body is an error", func(t *testing.T) {
		f := newFake(t, func(r *request) bool { r.say("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"); return false })
		got := do(t, newProxy(t, Options{}), exchange(f.Endpoint), &MemoryClient{})
		require.Equal(t, CauseTruncated, cause(t, got.Err))
		require.Zero(t, got.status, "nothing that could look whole was sent")
	})
}

func TestALineOf100MBTakesNoMemory(t *testing.T) {
	const pieces = 3200
	piece := strings.Repeat(`"x",`, 8<<10)
	f := newFake(t, func(r *request) bool {
		r.say(streamHead + chunk("data: ["))
		for range pieces {
			r.say(chunk(piece))
		}
		r.say(chunk("1]\n\n") + chunk(event("[DONE]")) + lastChunk0)
		return true
	})
	client := &countClient{}
	x := exchange(f.Endpoint)
	x.Client, x.Hooks = client, &log{}
	p := newProxy(t, Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := p.Do(x)
	runtime.ReadMemStats(&after)
	require.NoError(t, r.Err)
	require.Equal(t, pieces*len(piece)+len("data: [1]\n\ndata: [DONE]\n\n"), client.n)
	// The fake engine's pieces are in the count too, which is what most of it is.
	require.Less(t, int64(after.HeapSys)-int64(before.HeapSys), int64(32<<20))
}

// countClient counts bytes and keeps none.
type countClient struct{ n int }

func (c *countClient) Head(int, []byte, int64) error { return nil }
func (c *countClient) Write(p []byte) error          { c.n += len(p); return nil }
func (c *countClient) Flush() error                  { return nil }
func (c *countClient) Watch(Canceler) bool           { return true }
func (c *countClient) Unwatch()                      {}

func TestAPanicInAHookLeavesNothingBehind(t *testing.T) {
	f := newFake(t, always(plain(200, "hi")))
	x := exchange(f.Endpoint)
	x.Client, x.Hooks = &MemoryClient{}, &panicky{}
	p := newProxy(t, Options{})
	require.PanicsWithValue(t, "first", func() { p.Do(x) })
	requireIdle(t, f.Endpoint)
	require.Equal(t, 1, x.Hooks.(*panicky).count)
	require.NoError(t, do(t, p, exchange(f.Endpoint), &MemoryClient{}).Err)
}

// panicky panics with the first byte.
type panicky struct {
	log
	count int
}

func (p *panicky) First(*pick.Endpoint, int, []byte, time.Time) { panic("first") }
func (p *panicky) Ended(*pick.Endpoint, Outcome)                { p.count++ }

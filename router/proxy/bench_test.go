package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/router/pick"
)

// null is Client and Hooks that do as little as can be.
type null struct{ countClient }

func (*null) Overdue(*pick.Endpoint) {}

func (*null) Sent(*pick.Endpoint)                          {}
func (*null) First(*pick.Endpoint, int, []byte, time.Time) {}
func (*null) Events(int, time.Time)                        {}
func (*null) Ended(*pick.Endpoint, Outcome)                {}

// quick is an engine that costs little: it reads requests of a known size and says answer.
func quick(b *testing.B, answer []byte) *pick.Endpoint {
	b.Helper()
	l := listen(b, "127.0.0.1:0")
	done := make(chan struct{})
	conns := make(chan net.Conn, 64)
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
			go func() {
				br := bufio.NewReaderSize(c, 64<<10)
				for {
					length := 0
					for {
						line, err := br.ReadSlice('\n')
						if err != nil {
							return
						}
						if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
							length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
						}
						if len(line) == 2 {
							break
						}
					}
					if _, err := br.Discard(length); err != nil {
						return
					}
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	b.Cleanup(func() {
		_ = l.Close()
		<-done
		for close(conns); ; {
			c, ok := <-conns
			if !ok {
				return
			}
			_ = c.Close()
		}
	})
	return endpoint("quick", "http://"+l.Addr().String())
}

func BenchmarkDo(b *testing.B) {
	short := []byte(plain(200, `{"id":"chatcmpl-1","choices":[{"message":{"content":"`+strings.Repeat("x", 500)+`"}}],"usage":{"prompt_tokens":3,"completion_tokens":16}}`))
	for _, c := range []struct {
		name   string
		body   int
		answer []byte
	}{
		{"short", 200, short},
		{"stream of 128", 200, []byte(stream(128))},
		{"body of 32 KiB", 32 << 10, short},
		{"body of 1 MiB", 1 << 20, short},
		{"answer of 1 MiB", 200, []byte(plain(200, strings.Repeat("x", 1<<20)))},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := newProxy(b, Options{})
			x := exchange(quick(b, c.answer))
			n := &null{}
			x.Client, x.Hooks, x.Body = n, n, make([]byte, c.body)
			require.NoError(b, p.Do(x).Err)
			b.ReportAllocs()
			for b.Loop() {
				if r := p.Do(x); r.Err != nil {
					b.Fatal(r.Err)
				}
			}
		})
	}
}

// BenchmarkBare is what the same round trip costs without any of ours: a write and a read.
func BenchmarkBare(b *testing.B) {
	answer := []byte(plain(200, strings.Repeat("x", 600)))
	e := quick(b, answer)
	c, err := net.Dial("tcp", strings.TrimPrefix(e.URL, "http://"))
	require.NoError(b, err)
	defer c.Close()
	ask := []byte("POST / HTTP/1.1\r\nContent-Length: 200\r\n\r\n" + strings.Repeat("x", 200))
	buf := make([]byte, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Write(ask)
		if _, err := io.ReadAtLeast(c, buf, len(answer)); err != nil {
			b.Fatal(err)
		}
	}
}

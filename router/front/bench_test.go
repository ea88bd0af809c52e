package front

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/mobula-serve/mobula/router/proxy"
)

// server is what a benchmark loads: the front, or net/http as a yardstick.
type server struct {
	name  string
	start func(l net.Listener) (stop func() error)
}

// benchServers answer with the given chunks: with a length if there is one, as a stream if more.
func benchServers(chunks [][]byte) []server {
	length := int64(-1)
	if len(chunks) == 1 {
		length = int64(len(chunks[0]))
	}
	never := make(signal)
	fields := []byte("Content-Type: application/json\r\n")
	fast := handlerFunc(func(_ *Request, c proxy.Client) error {
		if !c.Watch(never) {
			return io.ErrClosedPipe
		}
		if err := c.Head(http.StatusOK, fields, length); err != nil {
			return err
		}
		for _, p := range chunks {
			if err := c.Write(p); err != nil {
				return err
			}
		}
		c.Unwatch()
		return nil
	})
	plain := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		if length >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
		}
		for _, p := range chunks {
			_, _ = w.Write(p)
			if length < 0 {
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	return []server{
		{"front", func(l net.Listener) func() error {
			s := New(Options{Accepts: func(_, _ []byte) bool { return true }, Handler: fast})
			go func() { _ = s.Serve(l) }()
			return s.Close
		}},
		{"net-http", func(l net.Listener) func() error {
			s := &http.Server{Handler: plain}
			go func() { _ = s.Serve(l) }()
			return s.Close
		}},
	}
}

// load sends request on 16 kept connections a core and reads answers up to their last bytes.
func load(b *testing.B, s server, request, last []byte) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	stop := s.start(l)
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = nc.Close() }()
		r := bufio.NewReaderSize(nc, 64<<10)
		for pb.Next() {
			if _, err := nc.Write(request); err != nil {
				b.Error(err)
				return
			}
			for {
				if _, err := r.Peek(1); err != nil {
					b.Error(err)
					return
				}
				p, _ := r.Peek(r.Buffered())
				_, _ = r.Discard(len(p))
				if bytes.HasSuffix(p, last) {
					break
				}
			}
		}
	})
	b.StopTimer()
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkShort(b *testing.B) {
	body := bytes.Repeat([]byte("a"), 500)
	body = append(body, "END"...)
	for _, s := range benchServers([][]byte{body}) {
		b.Run(s.name, func(b *testing.B) {
			load(b, s, []byte(post("/v1/chat/completions", strings.Repeat("b", 300))), []byte("END"))
		})
	}
}

func BenchmarkBody32K(b *testing.B) {
	for _, s := range benchServers([][]byte{[]byte("END")}) {
		b.Run(s.name, func(b *testing.B) {
			load(b, s, []byte(post("/v1/chat/completions", strings.Repeat("b", 32<<10))), []byte("END"))
		})
	}
}

func BenchmarkStream128(b *testing.B) {
	chunks := make([][]byte, 128)
	for i := range chunks {
		chunks[i] = bytes.Repeat([]byte("c"), 250)
	}
	for _, s := range benchServers(chunks) {
		b.Run(s.name, func(b *testing.B) {
			load(b, s, []byte(post("/v1/chat/completions", strings.Repeat("b", 300))), []byte("0\r\n\r\n"))
		})
	}
}

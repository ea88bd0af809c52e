package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// reading is what our parser makes of bytes that come in pieces.
type reading struct {
	head
	fields, body, rest string
	done               bool // the body ended before the bytes did
	reusable           bool
}

// readPieces reads one final answer out of data, which comes in pieces of size.
func readPieces(data []byte, size int, method string) (reading, error) {
	var r reading
	seen, got := 0, 0
	for {
		end, err := headEnd(data[:got], seen)
		if err != nil {
			return r, err
		}
		if end > 0 {
			fields, err := r.parse(data[:end], nil, time.Time{})
			if err != nil {
				return r, err
			}
			r.fields = string(fields)
			data, got = data[end:], got-end
			break
		}
		if got == len(data) {
			return r, io.ErrUnexpectedEOF
		}
		seen, got = got, min(got+size, len(data))
	}
	var b body
	b.start(&r.head, method)
	piece := bytes.Clone(data[:got])
	for {
		n, used, done, err := b.decode(piece)
		if err != nil {
			return r, err
		}
		r.body += string(piece[:n])
		if done {
			r.done = true
			r.reusable = used == len(piece) && !r.close
			r.rest = string(piece[min(used, len(piece)):]) + string(data[got:])
			return r, nil
		}
		if got == len(data) {
			if b.toEOF {
				return r, nil
			}
			return r, io.ErrUnexpectedEOF
		}
		piece = bytes.Clone(data[got:min(got+size, len(data))])
		got += len(piece)
	}
}

// FuzzAnswer checks that what we accept, net/http reads with the same status, fields and body.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		plain(200, "hi"), plain(500, "") + "junk", stream(3),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\nrest",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nbody",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\nConnection: x, close\r\nX: y\r\n\r\nhi",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "HTTP/1.1 200 OK\nA: b\n\n",
	} {
		f.Add([]byte(s), uint8(5), false)
		f.Add([]byte(s), uint8(255), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8, isHead bool) {
		method := "POST"
		if isHead {
			method = "HEAD"
		}
		whole, wholeErr := readPieces(bytes.Clone(data), max(len(data), 1), method)
		pieces, err := readPieces(bytes.Clone(data), int(size)+1, method)
		require.Equal(t, wholeErr == nil, err == nil, "%v, %v", wholeErr, err)
		if err != nil || whole.status < 200 {
			return
		}
		require.Equal(t, []any{whole.status, whole.fields, whole.body}, []any{pieces.status, pieces.fields, pieces.body})

		br := bufio.NewReader(bytes.NewReader(data))
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		require.NoError(t, err, "we accepted what net/http refuses")
		require.Equal(t, resp.StatusCode, whole.status)
		body, err := io.ReadAll(resp.Body)
		require.Equal(t, string(body), whole.body)
		if err != nil { // only for the fields after the last chunk, which we don't read
			require.True(t, whole.chunked && !whole.reusable, "%v", err)
		}
		if whole.reusable {
			rest, err := io.ReadAll(br)
			require.NoError(t, err)
			require.Equal(t, string(rest), whole.rest)
		}
		checkFields(t, resp, whole)
	})
}

// checkFields wants each field that we pass on to be one that net/http read, and the other way round.
func checkFields(t *testing.T, resp *http.Response, r reading) {
	t.Helper()
	ours, err := http.ReadResponse(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\n"+r.fields+"\r\n")), nil)
	require.NoError(t, err)
	theirs := resp.Header.Clone()
	drop := []string{"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length"}
	for _, n := range r.named {
		drop = append(drop, http.CanonicalHeaderKey(string(n)))
	}
	for name := range theirs {
		if strings.HasPrefix(name, "Proxy-") {
			drop = append(drop, name)
		}
	}
	for _, name := range drop {
		theirs.Del(name)
	}
	require.Empty(t, cmp.Diff(theirs, ours.Header))
}

func TestPiecesOfAnySizeReadTheSame(t *testing.T) {
	for _, answer := range []string{plain(200, "hello"), stream(5), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n"} {
		want, err := readPieces([]byte(answer), len(answer), "POST")
		require.NoError(t, err)
		require.True(t, want.reusable)
		for size := 1; size < len(answer); size++ {
			got, err := readPieces([]byte(answer), size, "POST")
			require.NoError(t, err)
			require.Equal(t, []string{want.fields, want.body}, []string{got.fields, got.body}, "size %d", size)
		}
	}
}

func TestRetryAfterForms(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value string
		want  time.Duration
		ok    bool
	}{
		{"0", 0, true},
		{"120", 2 * time.Minute, true},
		{"999999999999", 2147483647 * time.Second, true},
		{"Sun, 22 Nov 2026 12:00:05 GMT", 5 * time.Second, true},
		{"Sun, 22 Nov 2026 11:00:05 GMT", 0, true},
		{"-1", 0, false},
		{"soon", 0, false},
		{"", 0, false},
	} {
		d, ok := parseRetryAfter([]byte(c.value), now)
		require.Equal(t, []any{c.want, c.ok}, []any{d, ok}, c.value)
	}
}

func TestTokens(t *testing.T) {
	for c := range 256 {
		want := strings.ContainsRune("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", rune(c)) && c < 128
		require.Equal(t, want, isToken(byte(c)), "%q", c)
	}
}

func TestProtocolErrorsAreOne(t *testing.T) {
	_, err := readPieces([]byte("no"), 2, "POST")
	require.ErrorIs(t, err, errProtocol)
}

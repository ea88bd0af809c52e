package front

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// heads are whole requests; want is the scanner's verdict on them.
var heads = []struct {
	name string
	text string
	want verdict
}{
	{"plain", "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", verdictFast},
	{"openai client", "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8000\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 2.1.0\r\nX-Stainless-Lang: python\r\nAuthorization: Bearer sk\r\nContent-Length: 2\r\n\r\n{}", verdictFast},
	{"names in any case", "POST / HTTP/1.1\r\nhOST:a\r\ncONTENT-lENGTH:0\r\n\r\n", verdictFast},
	{"spaces around values", "POST / HTTP/1.1\r\nHost: \t a \t\r\nContent-Length: \t 1 \r\n\r\nx", verdictFast},
	{"leading zeros", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 002\r\n\r\n{}", verdictFast},
	{"query", "POST /a?b=%20c&d=/..//?e HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictFast},
	{"close", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", verdictFast},
	{"close and keep-alive lines", "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", verdictFast},
	{"obs-text in a value", "POST / HTTP/1.1\r\nHost: a\r\nX: caf\xe9\r\nContent-Length: 0\r\n\r\n", verdictFast},
	{"empty value", "POST / HTTP/1.1\r\nHost: a\r\nX:\r\nContent-Length: 0\r\n\r\n", verdictFast},
	{"ipv6 host", "POST / HTTP/1.1\r\nHost: [::1]:8000\r\nContent-Length: 0\r\n\r\n", verdictFast},

	{"get", "GET /health HTTP/1.1\r\nHost: a\r\n\r\n", verdictOther},
	{"lower-case method", "post / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"http/1.0", "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"http/1.10", "POST / HTTP/1.10\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"http/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", verdictOther},
	{"tls hello", "\x16\x03\x01\x02\x00\x01\x00", verdictOther},
	{"absolute form", "POST http://b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"asterisk form", "POST * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"no version", "POST /\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"two spaces", "POST /  HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"space in target", "POST /a b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"tab after method", "POST\t/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"leading empty line", "\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"escaped path", "POST /v1%2fchat HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"double slash", "POST //v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"dot-dot", "POST /v1/../x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"fragment", "POST /a?b#c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"backslash", "POST /a\\b HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"non-ascii path", "POST /\xc3\xa9 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},

	{"no length", "POST / HTTP/1.1\r\nHost: a\r\n\r\n", verdictOther},
	{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", verdictOther},
	{"two equal lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", verdictOther},
	{"length with plus", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", verdictOther},
	{"negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", verdictOther},
	{"length list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", verdictOther},
	{"length with a space inside", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\nx", verdictOther},
	{"hex length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", verdictOther},
	{"empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", verdictOther},
	{"underscored length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n", verdictOther},
	{"length beyond int64", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", verdictOther},
	{"length that wraps to 1", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n", verdictOther},

	{"cl.te", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"te.cl", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", verdictOther},
	{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"chunked in another case", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\ntRANSFER-eNCODING: Chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"coding with space before colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"coding after tab", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"coding after bare lf", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"coding after bare cr", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", verdictOther},
	{"vertical tab before coding", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", verdictOther},

	{"bare lf", "POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n", verdictOther},
	{"bare lf in the end", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\n", verdictOther},
	{"cr cr lf", "POST / HTTP/1.1\r\nHost: a\r\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"folded", "POST / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"folded first line", "POST / HTTP/1.1\r\n Host: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"space before colon", "POST / HTTP/1.1\r\nHost : a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"no colon", "POST / HTTP/1.1\r\nHost: a\r\nX\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"no name", "POST / HTTP/1.1\r\nHost: a\r\n: x\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"nul in a name", "POST / HTTP/1.1\r\nHost: a\r\nX\x00: x\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"nul in a value", "POST / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"delete in a value", "POST / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"non-ascii name", "POST / HTTP/1.1\r\nHost: a\r\nX\xe9: a\r\nContent-Length: 0\r\n\r\n", verdictOther},

	{"no host", "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"two hosts", "POST / HTTP/1.1\r\nHost: a\r\nHost: a\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"empty host", "POST / HTTP/1.1\r\nHost:\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"host with a path", "POST / HTTP/1.1\r\nHost: a/b\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"host with user", "POST / HTTP/1.1\r\nHost: u@a\r\nContent-Length: 0\r\n\r\n", verdictOther},

	{"expect", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", verdictOther},
	{"upgrade", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"trailer", "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"connection names a field", "POST / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X\r\nContent-Length: 0\r\n\r\n", verdictOther},
	{"kelvin sign in keep-alive", "POST / HTTP/1.1\r\nHost: a\r\nConnection: \u212aeep-alive\r\nContent-Length: 0\r\n\r\n", verdictOther},

	{"cut in the method", "PO", verdictMore},
	{"cut in the target", "POST /v1", verdictMore},
	{"cut in a field", "POST / HTTP/1.1\r\nHost: a\r\nConte", verdictMore},
	{"cut before the last lf", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r", verdictMore},
	{"nothing", "", verdictMore},
}

func TestScanTellsWhatIsOurs(t *testing.T) {
	for _, tt := range heads {
		t.Run(tt.name, func(t *testing.T) {
			var h head
			require.Equal(t, tt.want, h.scan([]byte(tt.text)))
			if tt.want == verdictFast {
				agree(t, []byte(tt.text))
			}
		})
	}
}

func TestScanReadsTheHead(t *testing.T) {
	text := "POST /v1/x?y=1 HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabcPOST /"
	var h head
	require.Equal(t, verdictFast, h.scan([]byte(text)))
	require.Equal(t, "POST", string(h.method))
	require.Equal(t, "/v1/x", string(h.path))
	require.Equal(t, "/v1/x?y=1", string(h.target))
	require.Equal(t, "Host: h:1\r\nA: b\r\nContent-Length: 3\r\nConnection: close\r\n", string(h.fields))
	require.Equal(t, "h:1", string(h.host))
	require.Equal(t, int64(3), h.length)
	require.True(t, h.close)
	require.Equal(t, "abcPOST /", text[h.size:])
}

// agree fails unless the scanner hands p over or reads it as net/http does.
func agree(t require.TestingT, p []byte) (accepted bool) {
	var h head
	if h.scan(p) != verdictFast {
		return false
	}
	for i := range h.size {
		var part head
		require.Equal(t, verdictMore, part.scan(p[:i]), "after %d bytes", i)
	}

	r := bufio.NewReader(bytes.NewReader(p))
	req, err := http.ReadRequest(r)
	require.NoError(t, err)
	require.Equal(t, req.Method, string(h.method))
	require.Equal(t, req.URL.Path, string(h.path))
	require.Equal(t, req.RequestURI, string(h.target))
	require.Empty(t, req.URL.Host)
	require.Equal(t, req.Host, string(h.host))
	require.Equal(t, req.ContentLength, h.length)
	require.Empty(t, req.TransferEncoding)
	require.Empty(t, req.Trailer)
	require.Equal(t, req.Close, h.close)
	require.Equal(t, 1, req.ProtoMajor)
	require.Equal(t, 1, req.ProtoMinor)
	_, query, _ := bytes.Cut(h.target, []byte("?"))
	require.Equal(t, req.URL.RawQuery, string(query))

	fields := http.Header{}
	for line := range strings.Lines(string(h.fields)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\r\n"), ":")
		require.True(t, ok)
		fields.Add(name, strings.Trim(value, " \t"))
	}
	require.Len(t, fields["Host"], 1)
	delete(req.Header, "Host")
	delete(fields, "Host")
	if fields.Get("Pragma") != "" { // ReadRequest makes a Cache-Control of it
		delete(req.Header, "Cache-Control")
		delete(fields, "Cache-Control")
	}
	require.Empty(t, cmp.Diff(req.Header, fields))

	body, err := io.ReadAll(req.Body)
	rest := p[h.size:]
	n := min(int64(len(rest)), h.length)
	require.Equal(t, n < h.length, err != nil)
	require.True(t, bytes.Equal(rest[:n], body))
	after, _ := io.ReadAll(r)
	require.True(t, bytes.Equal(rest[n:], after), "the next request starts elsewhere")
	return true
}

func FuzzHead(f *testing.F) {
	for _, h := range heads {
		f.Add([]byte(h.text))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) <= headSize {
			agree(t, p)
		}
	})
}

// Requests made of plausible and nasty parts get further than random bytes.
func TestScanAgreesWithNetHTTP(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(r *rapid.T) {
		var b strings.Builder
		// part writes good most of the time, and now and then one of bad.
		part := func(good string, bad ...string) {
			if rapid.IntRange(0, 24).Draw(r, "bad") == 0 {
				good = rapid.SampledFrom(bad).Draw(r, "part")
			}
			b.WriteString(good)
		}
		eol := func() { part("\r\n", "\n", "\r", "\r\r\n", " \r\n", "\r\n ", "") }
		part("POST ", "GET ", "post ", "POST  ", "\r\nPOST ", "POST\t")
		b.WriteString(rapid.SampledFrom([]string{"/", "/v1/chat/completions", "/a?b=c", "/?", "/a?b?"}).Draw(r, "target"))
		part(" HTTP/1.1", " HTTP/1.0", "  HTTP/1.1", "", " HTTP/1.1 ", "#", "%20 HTTP/1.1", "/../ HTTP/1.1", "//")
		eol()
		fields := []string{"Host: a", "Content-Length: 3"}
		for range rapid.IntRange(0, 3).Draw(r, "more") {
			name := rapid.SampledFrom([]string{"X-A", "Connection", "Pragma", "Content_Length", "Accept"}).Draw(r, "name")
			value := rapid.SampledFrom([]string{":", ": close", ":keep-alive", ": no-cache", ": caf\xc3\xa9 ", ":\ta b"}).Draw(r, "value")
			fields = append(fields, name+value)
		}
		for _, f := range rapid.Permutation(fields).Draw(r, "order") {
			b.WriteString(f)
			part("", ", close", "0", "+", "\x00", "\x7f", " ", "\t", ":", "chunked")
			eol()
			part("", "Transfer-Encoding: chunked\r\n", "Content-Length: 4\r\n", "Host: b\r\n", "Host : b\r\n", " x\r\n", "\t\r\n", ": \r\n", "Expect: 100-continue\r\n", "\r\n", "\n")
		}
		eol()
		b.WriteString(rapid.SampledFrom([]string{"", "abc", "abcdef", "3\r\nabc\r\n0\r\n\r\n"}).Draw(r, "body"))
		if agree(r, []byte(b.String())) {
			accepted++
		}
	})
	require.NotZero(t, accepted)
}

func TestCleanSeesEveryControlByteAnywhere(t *testing.T) {
	for n := 1; n <= 20; n++ {
		for i := range n {
			for c := range 256 {
				v := bytes.Repeat([]byte("\xe9"), n)
				v[i] = byte(c)
				require.Equal(t, c >= ' ' && c != 0x7f || c == '\t', clean(v), "%q", v)
			}
		}
	}
}

func BenchmarkScan(b *testing.B) {
	p := []byte(heads[1].text)
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	var h head
	for b.Loop() {
		if h.scan(p) != verdictFast {
			b.Fatal("not ours")
		}
	}
}

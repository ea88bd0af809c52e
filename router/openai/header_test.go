package openai

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHeaderScan(t *testing.T) {
	raw := "Host: a\r\nContent-Length: 3\r\nConnection: keep-alive\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\n" +
		"Authorization: Bearer k\r\nX-Session-ID: s1 \r\ncontent-type: application/json\r\nX-Request-Id: abc-1\r\nX-Mobula-Debug: 1\r\n" +
		"traceparent: 00-1\r\n"
	var h header
	h.scan([]byte(raw), "x-session-id")
	require.Equal(t, "Authorization: Bearer k\r\nX-Session-ID: s1 \r\ncontent-type: application/json\r\ntraceparent: 00-1\r\nX-Request-Id: abc-1\r\n", string(h.fields))
	require.Equal(t, "s1", string(h.session))
	require.Equal(t, "abc-1", string(h.id))
	require.Equal(t, "application/json", string(h.contentType))
	require.True(t, h.debug)
	require.False(t, h.encoded)

	h.scan([]byte("Content-Encoding: gzip\r\nX-Request-Id: a b\r\n"), "")
	require.True(t, h.encoded)
	require.Len(t, h.id, 32, "an id that could not stand in a header line is replaced")
	require.Nil(t, h.session)

	h.scan([]byte("X-Request-Id: "+strings.Repeat("a", 200)+"\r\n"+strings.Repeat("n", 100)+": v\r\n"), "")
	require.Len(t, h.id, 32)
	require.Contains(t, string(h.fields), strings.Repeat("n", 100)+": v\r\n")
}

func TestAppendHeaderLeavesOutConnectionFields(t *testing.T) {
	got := string(appendHeader(nil, http.Header{"Connection": {"close, X-Hop"}, "X-Hop": {"1"}, "X-Keep": {"a", "b"}}))
	require.NotContains(t, got, "X-Hop: 1")
	require.Contains(t, got, "X-Keep: a\r\nX-Keep: b\r\n")
}

func FuzzHeaderScan(f *testing.F) {
	f.Add([]byte("Host: a\r\nX: y\r\n"))
	f.Add([]byte(":\r\n\n\nx"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h header
		h.scan(raw, "x-session-id")
		require.True(t, validID(h.id))
		require.True(t, strings.HasSuffix(string(h.fields), "\r\n"))
	})
}

package sim

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func benchmark(b *testing.B, path, body string) {
	b.Helper()
	e, err := New(Options{})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, path, strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		w := newWriter()
		e.Handler().ServeHTTP(w, req)
		if w.status != http.StatusOK {
			b.Fatal(w.body.String())
		}
	}
}

func BenchmarkShortChat(b *testing.B) {
	benchmark(b, "/v1/chat/completions", chatBody("hello there", `,"max_tokens":16`))
}

func BenchmarkStreamOf128(b *testing.B) {
	benchmark(b, "/v1/chat/completions", chatBody("hello there", `,"max_tokens":128,"ignore_eos":true,"stream":true`))
}

func BenchmarkPromptOf32KB(b *testing.B) {
	benchmark(b, "/v1/chat/completions", chatBody(strings.Repeat("hello there ", 2800), `,"max_tokens":1`))
}

// BenchmarkShortChatOverHTTP has the client's work in it too.
func BenchmarkShortChatOverHTTP(b *testing.B) {
	e, err := New(Options{})
	require.NoError(b, err)
	srv := newLoopback(b, e)
	body := chatBody("hello there", `,"max_tokens":16`)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			res, err := client.Post(srv+"/v1/chat/completions", "application/json", strings.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	})
}

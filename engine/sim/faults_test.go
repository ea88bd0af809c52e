package sim

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

func readAll(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(b)
}

// wire sends a request over a connection of its own and gives all bytes that come back.
func (s *server) wire(body string) (string, error) {
	conn, err := net.Dial("tcp", s.addr) //nolint:noctx // with a deadline below
	require.NoError(s.t, err)
	defer conn.Close()
	require.NoError(s.t, conn.SetDeadline(time.Now().Add(patience)))
	req, err := http.NewRequest(http.MethodPost, s.url+"/v1/chat/completions", strings.NewReader(body)) //nolint:noctx // as above
	require.NoError(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "close")
	require.NoError(s.t, req.Write(conn))
	b, err := io.ReadAll(conn)
	return string(b), err
}

const streaming = `,"stream":true,"max_tokens":30,"ignore_eos":true`

func TestFaultsOnTheWire(t *testing.T) {
	s := serve(t, Options{})
	tests := []struct {
		name  string
		fault Fault
		more  string
		check func(t *testing.T, got string, err error)
	}{
		{"status", Fault{Kind: FaultStatus, Status: 429, RetryAfter: "7"}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(got, "HTTP/1.1 429 "))
			require.Contains(t, got, "Retry-After: 7\r\n")
			require.Contains(t, got, `"code":429`)
		}},
		{"reset before headers", Fault{Kind: FaultResetBeforeHeaders}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.Empty(t, got)
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}},
		{"reset midstream", Fault{Kind: FaultResetMidstream, AfterTokens: 4}, streaming, func(t *testing.T, got string, err error) {
			t.Helper()
			require.NotContains(t, got, "[DONE]")
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}},
		{"reset of a plain answer", Fault{Kind: FaultResetMidstream, AfterTokens: 4}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.Empty(t, got)
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}},
		{"eof midstream", Fault{Kind: FaultEOFMidstream, AfterTokens: 4}, streaming, func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			require.Equal(t, 5, strings.Count(got, "data: "), "the role and four tokens")
			require.False(t, strings.HasSuffix(got, "0\r\n\r\n"), "no end of chunks")
		}},
		{"garbage", Fault{Kind: FaultGarbage}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			_, err = http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil) //nolint:bodyclose // there is none
			require.Error(t, err)
		}},
		{"length too long", Fault{Kind: FaultWrongLength}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
			require.NoError(t, err)
			defer res.Body.Close()
			_, err = io.ReadAll(res.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}},
		{"length too short", Fault{Kind: FaultWrongLength, Size: -10}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
			require.NoError(t, err)
			defer res.Body.Close()
			require.False(t, gjson.Valid(readAll(t, res)))
		}},
		{"trailing junk", Fault{Kind: FaultTrailingJunk}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
			require.NoError(t, err)
			defer res.Body.Close()
			require.True(t, gjson.Valid(readAll(t, res)))
			require.Contains(t, got, "junk")
		}},
		{"early hints", Fault{Kind: FaultEarlyHints}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(got, "HTTP/1.1 103 "))
			require.Contains(t, got, "HTTP/1.1 200 OK")
		}},
		{"gzip", Fault{Kind: FaultGzip}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			require.Contains(t, got, "Content-Encoding: gzip")
			require.NotContains(t, got, "chat.completion")
		}},
		{"long line", Fault{Kind: FaultLongLine, Size: 1 << 20}, "", func(t *testing.T, got string, err error) {
			t.Helper()
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(got)), nil)
			require.NoError(t, err)
			defer res.Body.Close()
			require.Equal(t, "data: "+strings.Repeat("a", 1<<20)+"\n\ndata: [DONE]\n\n", readAll(t, res))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.fault.Count = 1
			require.NoError(t, s.SetFault(tt.fault))
			got, err := s.wire(chatBody("hello", tt.more))
			tt.check(t, got, err)
			got, err = s.wire(chatBody("hello", tt.more))
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(got, "HTTP/1.1 200 OK"), "the next one is answered")
		})
	}
	s.until("all is given back", func(st Stats) bool { return st.Running+st.Waiting == 0 })
}

func TestAbortLooksLikeTheRealOne(t *testing.T) {
	want, err := os.ReadFile("testdata/vllm/sse_sigterm_midstream.bin")
	require.NoError(t, err)
	s := serve(t, Options{})
	require.NoError(t, s.SetFault(Fault{Kind: FaultAbort, AfterTokens: 5}))
	got, err := s.wire(chatBody("hello", streaming+`,"stream_options":{"include_usage":true}`))
	require.NoError(t, err)
	body := func(raw string) []string {
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
		require.NoError(t, err)
		defer res.Body.Close()
		return events(strings.Replace(readAll(t, res), `,"prompt_tokens_details":{"cached_tokens":0,"created_cache_tokens":0}`, "", 1))
	}
	require.Empty(t, cmp.Diff(body(string(want)), body(got)))
}

func TestADeadEngineLooksLikeTheRealOne(t *testing.T) {
	want, err := os.ReadFile("testdata/vllm/sse_enginecore_sigkill_midstream.bin")
	require.NoError(t, err)
	s := serve(t, Options{})
	require.NoError(t, s.SetFault(Fault{Kind: FaultEngineDead}))
	got, err := s.wire(chatBody("hello", streaming))
	require.NoError(t, err)
	_, wantBody, _ := bytes.Cut(want, []byte("\r\n\r\n"))
	_, gotBody, _ := strings.Cut(got, "\r\n\r\n")
	require.Equal(t, string(wantBody), gotBody)
	status, body := s.post("/v1/chat/completions", chatBody("hello", ""))
	require.Equal(t, http.StatusInternalServerError, status, body.Raw)
	status, _ = s.get("/health")
	require.Equal(t, http.StatusServiceUnavailable, status)
}

// The bytes of a stream are framed as the real engine's are: each event a chunk of its own.
func TestStreamFraming(t *testing.T) {
	b, err := os.ReadFile("testdata/vllm/sse_chat_raw.bin")
	require.NoError(t, err)
	s := serve(t, Options{ForceUsage: true})
	got, err := s.wire(`{"messages":[{"role":"user","content":"hello"}],"max_tokens":8,"stream":true}`)
	require.NoError(t, err)
	sizes := func(raw string) (n int, fields map[string]bool) {
		head, rest, _ := strings.Cut(raw, "\r\n\r\n")
		fields = map[string]bool{}
		for _, line := range strings.Split(head, "\r\n")[1:] {
			name, _, _ := strings.Cut(line, ":")
			fields[strings.ToLower(name)] = true
		}
		for chunk := range strings.SplitSeq(rest, "\n\n\r\n") {
			if strings.Contains(chunk, "data: ") {
				require.Equal(t, 1, strings.Count(chunk, "data: "))
				n++
			}
		}
		return n, fields
	}
	wantN, wantFields := sizes(string(b))
	gotN, gotFields := sizes(got)
	require.Equal(t, wantFields, gotFields)
	require.Equal(t, wantN, gotN)
}

func TestHangs(t *testing.T) {
	for _, kind := range []FaultKind{FaultHang, FaultHangInference} {
		t.Run(string(kind), func(t *testing.T) {
			s := serve(t, Options{})
			require.NoError(t, s.SetFault(Fault{Kind: kind}))
			done := make(chan gjson.Result, 1)
			go func() { done <- s.ok("/v1/chat/completions", chatBody("hello", "")) }()
			require.Eventually(t, func() bool { return s.inFlight.Load() == 1 }, patience, time.Millisecond)
			if kind == FaultHangInference {
				status, _ := s.get("/health")
				require.Equal(t, http.StatusOK, status)
			} else {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/health", nil)
				require.NoError(t, err)
				_, err = s.client.Do(req) //nolint:bodyclose // there is none
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			require.Empty(t, done)
			s.ClearFault()
			require.NotEmpty(t, (<-done).Get("id").Str, "who hung is served when it is over")
		})
	}
}

func TestAStallGoesOnWhenItIsOver(t *testing.T) {
	s := serve(t, Options{})
	require.NoError(t, s.SetFault(Fault{Kind: FaultStallMidstream, AfterTokens: 3}))
	done := make(chan []string, 1)
	go func() {
		events, _ := s.stream("/v1/chat/completions", chatBody("hello", streaming))
		done <- events
	}()
	s.until("it stalls", func(st Stats) bool { return st.Generated == 3 })
	require.Empty(t, done)
	s.ClearFault()
	require.Len(t, <-done, 32)
}

func TestAHungClientThatLeavesIsForgotten(t *testing.T) {
	s := serve(t, Options{})
	require.NoError(t, s.SetFault(Fault{Kind: FaultHangInference}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.start(ctx, "/v1/chat/completions", chatBody("hello", "")) //nolint:bodyclose // there is none
		done <- err
	}()
	require.Eventually(t, func() bool { return s.inFlight.Load() == 1 }, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Eventually(t, func() bool { return s.inFlight.Load() == 0 }, patience, time.Millisecond)
}

func TestRefuse(t *testing.T) {
	s := serve(t, Options{ITL: patience})
	res, err := s.start(t.Context(), "/v1/chat/completions", chatBody("hello", `,"stream":true`))
	require.NoError(t, err)
	defer res.Body.Close()
	s.until("it runs", func(st Stats) bool { return st.Generated == 1 })
	status, got := s.post("/sim/fault", `{"kind":"refuse"}`)
	require.Equal(t, http.StatusOK, status, got.Raw)
	_, err = io.ReadAll(res.Body)
	require.Error(t, err, "connections are cut")
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", s.addr, patience) //nolint:noctx // with a timeout
		if err == nil {
			_ = conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}, patience, 5*time.Millisecond)
	s.until("its work is gone", func(st Stats) bool { return st.Running == 0 })
	s.ClearFault()
	require.Eventually(t, func() bool {
		res, err := s.client.Get(s.url + "/health")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	}, patience, 5*time.Millisecond)
	require.NoError(t, s.SetFault(Fault{Kind: FaultRefuse, Duration: 50 * time.Millisecond}))
	require.Eventually(t, func() bool {
		res, err := s.client.Get(s.url + "/health")
		if err != nil {
			return false
		}
		return res.Body.Close() == nil && s.faults.current.Load().over()
	}, patience, 5*time.Millisecond, "it comes back by itself")
}

func TestFaultOverHTTP(t *testing.T) {
	s := serve(t, Options{})
	s.ok("/sim/fault", `{"kind":"status","status":500,"count":2,"all":true}`)
	status, _ := s.get("/v1/models")
	require.Equal(t, http.StatusInternalServerError, status)
	status, _ = s.post("/v1/completions", `{"prompt":"x"}`)
	require.Equal(t, http.StatusInternalServerError, status)
	s.ok("/v1/completions", `{"prompt":"x"}`)
	s.ok("/sim/fault", `{"kind":"slow","duration":"1ms"}`)
	s.ok("/v1/completions", `{"prompt":"x"}`)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.url+"/sim/fault", nil)
	require.NoError(t, err)
	res, err := s.client.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Nil(t, s.faults.current.Load())
	for _, body := range []string{`{"kind":"nonsense"}`, `{`, `{"kind":"slow","duration":"soon"}`, `{"kind":"status","status":200}`, `{"kind":"abort","count":-1}`} {
		status, _ := s.post("/sim/fault", body)
		require.Equal(t, http.StatusBadRequest, status, body)
	}
	_, stats := s.get("/sim/stats")
	require.Equal(t, int64(2), gjson.Get(stats, "requests").Int())
}

// Whatever is sent, the engine answers with JSON and is as it was before.
func FuzzRequest(f *testing.F) {
	paths := []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/v1/images/generations", "/v1/load_lora_adapter"}
	for i, body := range []string{
		chatBody("hi", `,"max_tokens":3,"logprobs":true,"n":2`), `{"prompt":[[1,2],"x"],"max_tokens":2,"echo":true,"logprobs":1}`,
		`{"input":[{"role":"user","content":"x"}],"max_output_tokens":3}`, `{"messages":[{"role":"user","content":[{"type":"text"}]}],"max_tokens":2}`,
		`[]`, `{"messages":[1]}`, `{"tokens":[1e99,-1]}`, `{"max_tokens":1e400}`, "{\"a\":\"\xff\"}",
	} {
		f.Add(uint8(i), body)
	}
	e, err := New(Options{MaxModelLen: 256})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, paths[int(path)%len(paths)], strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		w := newWriter()
		e.Handler().ServeHTTP(w, req)
		require.Less(t, w.status, 500, "%s", w.body.String())
		if w.header.Get("Content-Type") == "application/json" {
			require.True(t, gjson.ValidBytes(w.body.Bytes()), "%s", w.body.String())
		}
		st := e.Stats()
		require.Zero(t, st.Running+st.Waiting)
	})
}

func newWriter() *recorder { return &recorder{header: http.Header{}, status: http.StatusOK} }

package proxy

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStreamsThatDieTellTheClient(t *testing.T) {
	const (
		abort      = `{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"abort"}]}`
		engineDead = `{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}`
		told       = "data: {\"error\":{\"message\":\"the engine failed before the end of its answer\",\"type\":\"EngineError\",\"param\":null,\"code\":502}}\n\n"
	)
	passed := make(chan struct{})
	cut := func(s string) func(r *request) bool {
		return func(r *request) bool { r.say(streamHead + s); return false }
	}
	for _, c := range []struct {
		name, target string
		script       func(r *request) bool
		want         string
	}{
		{name: "EOF between events", script: cut(chunk(token(0))), want: token(0) + told},
		{name: "EOF in an event", script: cut(chunk(token(0) + "data: {\"ha")), want: token(0) + "data: {\"ha\n\n" + told},
		{name: "EOF before the empty line", script: cut(chunk("data: {}\n")), want: "data: {}\n\n" + told},
		{name: "EOF in a chunk", script: cut("ff\r\n" + token(0)), want: token(0) + told},
		{name: "reset", script: func(r *request) bool {
			r.say(streamHead + chunk(token(0)))
			_, _ = r.conn.Read(make([]byte, 1)) // until the client has it
			return false
		}, want: token(0) + told},
		{name: "bad chunk", script: func(r *request) bool {
			r.say(streamHead + chunk(token(0)))
			<-passed
			r.say(chunk(token(1)) + "zz\r\n")
			return false
		}, want: token(0) + token(1) + told},
		{name: "proper end without [DONE]", script: cut(chunk(token(0)) + lastChunk0), want: token(0) + told},
		{name: "the engine's own error event", script: cut(chunk(token(0)) + chunk(event(engineDead)) + chunk(event("[DONE]")) + lastChunk0), want: token(0) + event(engineDead) + event("[DONE]")},
		{name: "the engine's own error event and EOF", script: cut(chunk(token(0)) + chunk(event(engineDead))), want: token(0) + event(engineDead)},
		{name: "abort", script: cut(chunk(token(0)) + chunk(event(abort)) + chunk(event("[DONE]")) + lastChunk0), want: token(0) + event(abort) + event("[DONE]")},
		{
			name: "messages", target: "/v1/messages", script: cut(chunk("event: message_start\n" + event(`{"type":"message_start"}`))),
			want: "event: message_start\n" + event(`{"type":"message_start"}`) + "event: error\n" + event(`{"type":"error","error":{"type":"api_error","message":"the engine failed before the end of its answer"}}`),
		},
		{name: "responses", target: "/v1/responses", script: cut(chunk("event: response.created\n" + event(`{}`))), want: "event: response.created\n" + event(`{}`) + told},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, c.script)
			x, client := exchange(f.Endpoint, f.Endpoint), &MemoryClient{}
			if c.target != "" {
				x.Target = c.target
			}
			switch c.name {
			case "reset":
				client.OnWrite = func([]byte) { f.kill() }
			case "bad chunk":
				var once sync.Once
				client.OnWrite = func([]byte) { once.Do(func() { passed <- struct{}{} }) }
			}
			got := do(t, newProxy(t, retries(2)), x, client)
			want := CauseTruncated
			if c.name == "bad chunk" {
				want = CauseProtocol
			}
			require.Equal(t, want, cause(t, got.Err))
			require.True(t, strings.HasSuffix(got.body, c.want), got.body)
			require.Equal(t, 200, got.Status)
			require.False(t, got.Cut, "the client was told, so the answer may end properly")
			require.Equal(t, []string{want.String()}, got.causes(), "no retry after the first byte")
		})
	}
}

func TestStreamsThatEndedAreWhole(t *testing.T) {
	for _, c := range []struct{ name, target, stream string }{
		{name: "[DONE] and EOF", stream: chunk(token(0)) + chunk(event("[DONE]"))},
		{name: "[DONE] and a bad chunk", stream: chunk(token(0)) + chunk(event("[DONE]")) + "zz\r\n"},
		{name: "[DONE] alone", stream: chunk(event("[DONE]")) + lastChunk0},
		{name: "message_stop", target: "/v1/messages", stream: chunk("event: message_stop\n"+event(`{}`)) + lastChunk0},
		{name: "response.completed", target: "/v1/responses", stream: chunk("event: response.completed\n"+event(`{}`)) + lastChunk0},
		{name: "a route whose streams don't say", target: "/v1/audio/transcriptions", stream: chunk(event("{}")) + lastChunk0},
		{name: "an error of the client's", stream: chunk(event(`{"error":{"message":"bad grammar","code":400}}`)) + chunk(event("[DONE]")) + lastChunk0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, func(r *request) bool { r.say(streamHead + c.stream); return false })
			x := exchange(f.Endpoint)
			if c.target != "" {
				x.Target = c.target
			}
			got := do(t, newProxy(t, retries(2)), x, &MemoryClient{})
			require.NoError(t, got.Err)
			require.NotContains(t, got.body, "EngineError")
			require.Equal(t, []string{"ok"}, got.causes())
		})
	}
}

func TestOtherAnswersThatDieAreCut(t *testing.T) {
	big := strings.Repeat("x", 100<<10)
	for _, c := range []struct{ name, answer string }{
		{name: "short of its length", answer: plain(200, big)[:60<<10]},
		{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk("abc")},
		{name: "a stream in gzip", answer: "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk("\x1f\x8b")},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, func(r *request) bool { r.say(c.answer); return false })
			got := do(t, newProxy(t, retries(2)), exchange(f.Endpoint, f.Endpoint), &MemoryClient{})
			require.Equal(t, CauseTruncated, cause(t, got.Err))
			require.True(t, got.Cut)
			require.NotContains(t, got.body, "error")
		})
	}
}

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"golang.org/x/term"
)

// server is an OpenAI-compatible server that says what a test tells it to.
type server struct {
	*httptest.Server
	asked chan request
}

// request is what a chat request said.
type request struct {
	Model    string
	Messages []message
	Stream   bool
	auth     string
}

func newServer(t *testing.T, chat http.HandlerFunc) *server {
	t.Helper()
	s := &server{asked: make(chan request, 100)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":[{"id":"lora","parent":"first"},{"id":"first"},{"id":"second"}]}`)
	})
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		var q request
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		q.auth = r.Header.Get("Authorization")
		s.asked <- q
		w.Header().Set("X-Mobula-Endpoint", "engine-1")
		chat(w, r)
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// says streams these events, one for each argument, and nothing else.
func says(events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range events {
			_, _ = fmt.Fprintf(w, "data: %s\n\n", e)
		}
	}
}

// delta is a chunk with some text.
func delta(text string) string {
	b, _ := json.Marshal(text)
	return `{"choices":[{"index":0,"delta":{"content":` + string(b) + `},"finish_reason":null}]}`
}

const (
	opening = `{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}`
	ending  = `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
	usage   = `{"choices":[],"usage":{"prompt_tokens":1}}`
	done    = `[DONE]`
)

func TestChatOneShot(t *testing.T) {
	for name, tc := range map[string]struct {
		chat http.HandlerFunc
		want result
	}{
		"whole answer":          {says(opening, delta("Hello"), delta(", you\n"), delta("there"), ending, usage, done), result{0, "Hello, you\nthere\n", ""}},
		"ends its own line":     {says(delta("Hi\n"), ending, done), result{0, "Hi\n", ""}},
		"reasoning is left out": {says(`{"choices":[{"delta":{"reasoning":"hm"}}]}`, `{"choices":[{"delta":{"reasoning_content":"hm"}}]}`, delta("4"), done), result{0, "4\n", ""}},
		"empty answer":          {says(opening, ending, done), result{0, "", ""}},
		"cut off":               {says(delta("Hel")), result{1, "Hel\n", "error: the answer was cut off\n"}},
		"error in the stream":   {says(delta("Hel"), `{"error":{"message":"engine died","code":500}}`, done), result{1, "Hel\n", "error: the server: engine died\n"}},
		"junk in the stream":    {says(`<html>`), result{1, "", "error: unreadable chunk: invalid character '<' looking for beginning of value\n"}},
		"refused in JSON": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = io.WriteString(w, `{"error":{"message":"no engine","type":"x","code":503}}`)
			},
			result{1, "", "error: the server answered 503: no engine\n"},
		},
		"refused in words": {
			func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "go \x1b[2J away", http.StatusBadGateway) },
			result{1, "", "error: the server answered 502: go [2J away\n"},
		},
		"not allowed": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
			result{1, "", "error: the server answered 401\nhint: give a key with --api-key-file\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tc.chat)
			require.Empty(t, cmp.Diff(tc.want, execute(t, "", "chat", "--url", s.URL, "Hi"), cmp.AllowUnexported(result{})))
		})
	}
}

func TestChatSends(t *testing.T) {
	s := newServer(t, says(done))
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("sk-1\n"), 0o600))
	user := func(text string) message { return message{"user", text} }
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		want  request
	}{
		"arguments, and the first model": {"", []string{"why", "not?"}, request{"first", []message{user("why not?")}, true, ""}},
		"standard input":                 {"a\nb\n", nil, request{"first", []message{user("a\nb")}, true, ""}},
		"another model":                  {"", []string{"-m", "lora", "x"}, request{"lora", []message{user("x")}, true, ""}},
		"system prompt":                  {"", []string{"--system", "Be brief.", "x"}, request{"first", []message{{"system", "Be brief."}, user("x")}, true, ""}},
		"API key":                        {"", []string{"--api-key-file", key, "x"}, request{"first", []message{user("x")}, true, "Bearer sk-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := execute(t, tc.stdin, append([]string{"chat", "--url", s.URL + "/v1/"}, tc.args...)...)
			require.Zero(t, got.code, got.stderr)
			require.Empty(t, cmp.Diff(tc.want, <-s.asked, cmp.AllowUnexported(request{})))
		})
	}
}

func TestChatHelpsWhenItFails(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	got := execute(t, "", "chat", "--url", gone.URL, "Hi")
	require.Equal(t, result{1, "", "error: nothing listens at " + gone.URL + "\nhint: start one with: mobula up\n"}, got)

	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":{"message":"The model x does not exist."}}`)
	})
	got = execute(t, "", "chat", "--url", s.URL, "--model", "x", "Hi")
	require.Equal(t, result{1, "", "error: the server answered 404: The model x does not exist.\nhint: there are: first, second, lora\n"}, got)

	got = execute(t, "", "chat", "--url", s.URL, "--api-key-file", "no-such", "Hi")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "error: --api-key-file: open no-such")

	slow := newServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	got = execute(t, "", "chat", "--url", slow.URL, "--timeout", "20ms", "Hi")
	require.Equal(t, result{1, "", "error: no complete answer within 20ms\nhint: wait longer with --timeout\n"}, got)
}

func TestChatInterrupted(t *testing.T) {
	left := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		says(delta("Hel"))(w, r)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(left)
	})
	chat := background(t, nil, "chat", "--url", s.URL, "Hi")
	chat.stdout.await(t, "Hel")
	chat.cancel()
	require.Equal(t, exitInterrupted, chat.wait(t))
	require.Equal(t, "Hel\n", chat.stdout.String())
	require.Empty(t, chat.stderr.String())
	<-left // the request is not left running
}

func TestChatCompletesModels(t *testing.T) {
	s := newServer(t, says(done))
	got := execute(t, "", "__complete", "chat", "--url", s.URL, "--model", "")
	require.Zero(t, got.code)
	require.Equal(t, "first\nsecond\nlora\n:4\n", got.stdout)
	s.Close()
	got = execute(t, "", "__complete", "chat", "--url", s.URL, "--model", "")
	require.Equal(t, ":4\n", got.stdout, "a shell gets nothing rather than an error")
}

// talk opens a session whose keyboard is typed on through the pipe.
func talk(t *testing.T, s *server) (keys io.Writer, screen *buffer, ended <-chan error) {
	t.Helper()
	r, w := io.Pipe()
	screen = &buffer{}
	client := newChatServer(s.URL, "")
	conversation := &conversation{client: client, timeout: deadline}
	require.NoError(t, conversation.chooseModel(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		over <- newSession(conversation, r, screen, newConsole(screen), func(*term.Terminal) {}).run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		_ = w.Close()
		client.close()
	})
	return w, screen, over
}

func enter(t *testing.T, keys io.Writer, line string) {
	t.Helper()
	_, err := io.WriteString(keys, line+"\r")
	require.NoError(t, err)
}

func ends(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(deadline):
		t.Fatal("the session does not end")
	}
}

func TestConversationRemembers(t *testing.T) {
	s := newServer(t, says(delta("A\x1b[2Jnswer"), ending, done))
	keys, screen, ended := talk(t, s)
	ask := func(line string) []message {
		enter(t, keys, line)
		q := <-s.asked
		screen.await(t, "nswer\r\n(")
		return q.Messages
	}
	require.Equal(t, []message{{"user", "one"}}, ask("one"))
	// What is kept is what the model said; only the screen is spared its control characters.
	const said = "A\x1b[2Jnswer"
	require.Equal(t, []message{{"user", "one"}, {"assistant", said}, {"user", "two"}}, ask("two"))
	enter(t, keys, "/reset")
	enter(t, keys, "/system Be brief.")
	require.Equal(t, []message{{"system", "Be brief."}, {"user", "three"}}, ask("three"))
	require.Contains(t, screen.String(), "A[2Jnswer")
	require.Contains(t, screen.String(), ", engine-1)")
	enter(t, keys, "/exit")
	ends(t, ended)
}

func TestConversationCommands(t *testing.T) {
	s := newServer(t, says(done))
	keys, screen, ended := talk(t, s)
	screen.await(t, "first at "+s.URL)
	for _, step := range []struct{ line, want string }{
		{"/help", "forget what was said"},
		{"/models", "* first\r\n  second\r\n  lora\r\n"},
		{"/model nope", "there is no model nope; /models lists them"},
		{"/model second", ""},
		{"/model", "second\r\n"},
		{"/frob", "there is no /frob; /help lists commands"},
	} {
		enter(t, keys, step.line)
		screen.await(t, step.want)
	}
	enter(t, keys, "hi")
	require.Equal(t, "second", (<-s.asked).Model)
	_, err := io.WriteString(keys, "\x04") // Ctrl-D
	require.NoError(t, err)
	ends(t, ended)
}

func TestCtrlCCancelsTheAnswerThenLeaves(t *testing.T) {
	left := make(chan struct{}, 1)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		says(delta("Hel"))(w, r)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		left <- struct{}{}
	})
	keys, screen, ended := talk(t, s)
	enter(t, keys, "hi")
	screen.await(t, "Hel")
	_, err := io.WriteString(keys, "\x03")
	require.NoError(t, err)
	screen.await(t, "(cancelled)")
	<-left
	<-s.asked
	enter(t, keys, "go on")
	require.Equal(t, []message{{"user", "hi"}, {"assistant", "Hel"}, {"user", "go on"}}, (<-s.asked).Messages, "what was said stays said")
	_, err = io.WriteString(keys, "\x03")
	require.NoError(t, err)
	<-left
	_, err = io.WriteString(keys, "\x03")
	require.NoError(t, err)
	ends(t, ended)
}

func TestAFailedQuestionIsForgotten(t *testing.T) {
	fail := true
	keys, screen, _ := talk(t, newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if fail {
			fail = false
			http.Error(w, "busy", http.StatusTooManyRequests)
			return
		}
		says(delta("ok"), done)(w, r)
	}))
	enter(t, keys, "hi")
	screen.await(t, "error: the server answered 429: busy")
	enter(t, keys, "hi again")
	screen.await(t, "ok\r\n(")
}

func TestSessionEndsWithItsContext(t *testing.T) {
	s := newServer(t, says(done))
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	screen := &buffer{}
	client := newChatServer(s.URL, "")
	defer client.close()
	ended := make(chan error, 1)
	go func() {
		ended <- newSession(&conversation{client: client, model: "m", timeout: deadline}, r, screen, newConsole(screen), func(*term.Terminal) {}).run(ctx)
	}()
	screen.await(t, "> ")
	cancel()
	ends(t, ended)
}

func TestTurnsAreBounded(t *testing.T) {
	s := newServer(t, says(delta("a"), done))
	client := newChatServer(s.URL, "")
	defer client.close()
	c := &conversation{client: client, model: "m", system: "s", timeout: deadline}
	for range maxTurns {
		c.turns = append(c.turns, message{"user", "old"})
	}
	_, err := c.ask(t.Context(), "new", func(piece) {})
	require.NoError(t, err)
	require.Len(t, c.turns, maxTurns)
	require.Equal(t, []message{{"user", "new"}, {"assistant", "a"}}, c.turns[maxTurns-2:])
	require.Equal(t, message{"system", "s"}, (<-s.asked).Messages[0])
}

func FuzzReadStream(f *testing.F) {
	f.Add("data: " + delta("x") + "\n\ndata: [DONE]\n\n")
	f.Add("data:" + ending + "\r\n\r\n: comment\n\n")
	f.Add("data: {\"error\":{\"message\":\"m\"}}\n\n")
	f.Add("data: {\"choices\":[{}]}\n")
	f.Fuzz(func(t *testing.T, stream string) {
		var reason string
		err := readStream(strings.NewReader(stream), func(p piece) {
			if p.text == "" {
				t.Fatal("an empty piece")
			}
		}, &reason)
		if err == nil && !strings.Contains(stream, "[DONE]") {
			t.Fatal("a stream without its end was taken for whole")
		}
		if errors.Is(err, errCutOff) && strings.HasPrefix(stream, "data: [DONE]\n") {
			t.Fatal("a whole stream was taken for cut off")
		}
	})
}

func TestSafeTextForATerminal(t *testing.T) {
	require.Equal(t, "a\tb\n[31mcé世", safe("a\tb\n\x1b[31m\x07\x00c\u009bé世\r"))
	require.Equal(t, "ab", printable("a\nbc", 2))
}

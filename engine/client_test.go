package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
)

// golden is the body of a captured exchange.
func golden(tb testing.TB, file string) []byte {
	tb.Helper()
	b, err := os.ReadFile("testdata/http/" + file)
	require.NoError(tb, err)
	var exchange struct {
		Body json.RawMessage `json:"response_json"`
	}
	require.NoError(tb, json.Unmarshal(b, &exchange))
	return exchange.Body
}

// newClient makes a Client that must leave nothing behind.
func newClient(t *testing.T) *Client {
	t.Helper()
	before := goleak.IgnoreCurrent()
	c := NewClient(Options{Timeout: 20 * time.Second})
	t.Cleanup(func() {
		c.Close()
		goleak.VerifyNone(t, before)
	})
	return c
}

// serve starts an engine made of h. It stops before the leak check of newClient, which
// must be called first.
func serve(t *testing.T, h http.HandlerFunc) mobula.Endpoint {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return mobula.Endpoint{ID: s.URL, URL: s.URL}
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// hang answers when the client has gone, which net/http only sees once the body is read.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func TestHealthIsAnyAnswerBelow500(t *testing.T) {
	for _, c := range []struct {
		status int
		alive  bool
	}{
		{200, true},
		{204, true},
		{307, true},
		{401, true},
		{404, true},
		{429, true},
		{500, false},
		{503, false},
	} {
		t.Run(strconv.Itoa(c.status), func(t *testing.T) {
			client := newClient(t)
			e := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || r.URL.Path != "/health" {
					c.status = 500
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
			})
			err := client.Health(t.Context(), e)
			if c.alive {
				require.NoError(t, err)
				return
			}
			require.Equal(t, c.status, Status(err))
		})
	}
}

func TestHealthOfNothing(t *testing.T) {
	client := newClient(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	err = client.Health(t.Context(), mobula.Endpoint{URL: "http://" + l.Addr().String()})
	require.True(t, Refused(err), "%v", err)
	require.Zero(t, Status(err))
}

func TestHealthOfGarbage(t *testing.T) {
	client := newClient(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1024))
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n")
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	err = client.Health(t.Context(), mobula.Endpoint{URL: "http://" + l.Addr().String()})
	require.Error(t, err)
	require.False(t, Refused(err))
	require.Zero(t, Status(err))
}

func TestCallsEndWithTheirContext(t *testing.T) {
	client := newClient(t)
	e := serve(t, hang)
	for name, call := range map[string]func(context.Context) error{
		"health":   func(ctx context.Context) error { return client.Health(ctx, e) },
		"models":   func(ctx context.Context) error { _, err := client.Models(ctx, e); return err },
		"metrics":  func(ctx context.Context) error { _, err := client.Metrics(ctx, e); return err },
		"complete": func(ctx context.Context) error { return client.Complete(ctx, e, "m") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, call(ctx), context.DeadlineExceeded)
		})
	}
}

func TestAClientBoundsCallsThatNobodyBounds(t *testing.T) {
	client := newClient(t)
	client.timeout = 20 * time.Millisecond
	e := serve(t, hang)
	require.ErrorIs(t, client.Health(t.Context(), e), context.DeadlineExceeded)
}

func TestModelsOfRealEngines(t *testing.T) {
	for _, c := range []struct {
		file string
		want []mobula.Card
	}{
		{"models.json", []mobula.Card{{ID: "tiny", MaxModelLen: 2048}}},
		{"models_with_lora.json", []mobula.Card{{ID: "tiny", MaxModelLen: 2048}, {ID: "ad1", Parent: "tiny"}}},
		{"pool_models.json", []mobula.Card{{ID: "tinyemb", MaxModelLen: 2048}}},
	} {
		t.Run(c.file, func(t *testing.T) {
			client := newClient(t)
			body := golden(t, c.file)
			cards, err := client.Models(t.Context(), serve(t, answer(200, string(body))))
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, cards, cmpopts.IgnoreFields(mobula.Card{}, "Raw")))
			for _, card := range cards {
				require.True(t, json.Valid(card.Raw))
				require.Contains(t, string(body), string(card.Raw), "the entry as the engine sent it")
			}
		})
	}
}

func TestModelsOfOtherServers(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       []mobula.Card
	}{
		{"only ids", `{"data":[{"id":"a"},{"id":"b"}]}`, []mobula.Card{{ID: "a"}, {ID: "b"}}},
		{"a bare list", `[{"id":"a"}]`, []mobula.Card{{ID: "a"}}},
		{"no models", `{"object":"list","data":[]}`, nil},
		{"null models", `{"object":"list","data":null}`, nil},
		{"odd types", `{"data":[{"id":"a","parent":7,"max_model_len":"x"},{"id":"b","max_model_len":-1},{"id":"c","max_model_len":1e99},{"id":"d","max_model_len":4096.0}]}`, []mobula.Card{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d", MaxModelLen: 4096}}},
		{"entries that are none", `{"data":[7,"x",null,[],{},{"id":""},{"id":5},{"id":"a"}]}`, []mobula.Card{{ID: "a"}}},
		{"each id once", `{"data":[{"id":"a","max_model_len":1},{"id":"a","max_model_len":2}]}`, []mobula.Card{{ID: "a", MaxModelLen: 1}}},
		{"its own parent", `{"data":[{"id":"a","parent":"a"}]}`, []mobula.Card{{ID: "a"}}},
		{"escapes", `{"data":[{"id":"org\/mod\u00e8l","parent":"b\u0061se"}]}`, []mobula.Card{{ID: "org/modèl", Parent: "base"}}},
		{"a name without end", `{"data":[{"id":"` + strings.Repeat("x", maxModelName+1) + `"},{"id":"a"}]}`, []mobula.Card{{ID: "a"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t)
			got, err := client.Models(t.Context(), serve(t, answer(200, c.body)))
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, got, cmpopts.IgnoreFields(mobula.Card{}, "Raw"), cmpopts.EquateEmpty()))
		})
	}
}

func TestModelsThatAreNone(t *testing.T) {
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		is   error
		want string
	}{
		{"html", answer(200, "<html>hello</html>"), ErrMalformed, "not JSON"},
		{"cut off", answer(200, `{"data":[{"id":"a"}`), ErrMalformed, "not JSON"},
		{"nothing", answer(200, ""), ErrMalformed, "not JSON"},
		{"no list", answer(200, `{"object":"list"}`), ErrMalformed, `no "data" array`},
		{"a string", answer(200, `"models"`), ErrMalformed, `no "data" array`},
		{"too deep", answer(200, strings.Repeat("[", 1<<20)+strings.Repeat("]", 1<<20)), ErrMalformed, "not JSON"},
		{"too long", answer(200, `{"data":[`+strings.Repeat(" ", maxModelsBytes)+`]}`), ErrTooLarge, "too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t)
			_, err := client.Models(t.Context(), serve(t, c.h))
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestManyModelsAreBounded(t *testing.T) {
	client := newClient(t)
	var b strings.Builder
	b.WriteString("[")
	for i := range 2 * maxCards {
		fmt.Fprintf(&b, `{"id":"m%d"},`, i)
	}
	b.WriteString(`{"id":"last"}]`)
	cards, err := client.Models(t.Context(), serve(t, answer(200, b.String())))
	require.NoError(t, err)
	require.Len(t, cards, maxCards)
}

func TestErrorsSayWhatTheEngineSaid(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"openai", `{"error":{"message":"no such key","type":"x"}}`, "/v1/models: status 401: no such key"},
		{"old vllm", `{"object":"error","message":"no such key"}`, "/v1/models: status 401: no such key"},
		{"fastapi", `{"detail":"no such key"}`, "/v1/models: status 401: no such key"},
		{"flat", `{"error":"Unauthorized"}`, "/v1/models: status 401: Unauthorized"},
		{"html", `<html>`, "/v1/models: status 401"},
		{"long", `{"error":"` + strings.Repeat("é", 500) + `"}`, "/v1/models: status 401: " + strings.Repeat("é", maxMessageBytes/2+1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t)
			_, err := client.Models(t.Context(), serve(t, answer(401, c.body)))
			require.True(t, Unauthorized(err))
			var s *StatusError
			require.ErrorAs(t, err, &s)
			require.Equal(t, c.want, s.Error())
		})
	}
}

func TestAPIKeyIsSentAndNeverShown(t *testing.T) {
	client := newClient(t)
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer sk-1" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"data":[{"id":"a"}]}`)
	})
	_, err := client.Models(t.Context(), e)
	require.True(t, Unauthorized(err))
	e.APIKey = "sk-1"
	_, err = client.Models(t.Context(), e)
	require.NoError(t, err)
	e.APIKey = "sk-secret"
	_, err = client.Models(t.Context(), e)
	require.NotContains(t, fmt.Sprintf("%v %+v", err, e), "sk-secret")
}

func TestAPIKeyDoesNotFollowRedirects(t *testing.T) {
	client := newClient(t)
	elsewhere := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("followed to %s", r.URL) })
	e := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/v1/models", http.StatusTemporaryRedirect)
	})
	e.APIKey = "sk-1"
	_, err := client.Models(t.Context(), e)
	require.Equal(t, http.StatusTemporaryRedirect, Status(err))
}

func TestCertificatesAreVerifiedUnlessToldOtherwise(t *testing.T) {
	client := newClient(t)
	s := httptest.NewUnstartedServer(answer(200, ""))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	e := mobula.Endpoint{URL: s.URL}
	require.ErrorContains(t, client.Health(t.Context(), e), "certificate")
	e.TLSSkipVerify = true
	require.NoError(t, client.Health(t.Context(), e))
}

func TestMetricsOverHTTP(t *testing.T) {
	client := newClient(t)
	page, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(t, err)
	m, err := client.Metrics(t.Context(), serve(t, answer(200, string(page))))
	require.NoError(t, err)
	require.Equal(t, 32768*32, m.CacheTokens)

	_, err = client.Metrics(t.Context(), serve(t, answer(404, "")))
	require.Equal(t, 404, Status(err))
	_, err = client.Metrics(t.Context(), serve(t, answer(200, strings.Repeat("x 1\n", maxMetricsBytes/4+1))))
	require.ErrorIs(t, err, ErrTooLarge)
}

func TestCompleteProvesInference(t *testing.T) {
	type call struct {
		Path, Model string
	}
	for _, c := range []struct {
		name        string
		completions int
		embeddings  int
		calls       []call
		status      int
	}{
		{"it answers", 200, 500, []call{{"/v1/completions", `a"b`}}, 0},
		{"a refusal is an answer", 400, 500, []call{{"/v1/completions", `a"b`}}, 0},
		{"busy is an answer", 429, 500, []call{{"/v1/completions", `a"b`}}, 0},
		{"it fails", 500, 200, []call{{"/v1/completions", `a"b`}}, 500},
		{"a pooling engine embeds", 404, 200, []call{{"/v1/completions", `a"b`}, {"/v1/embeddings", `a"b`}}, 0},
		{"a pooling engine fails", 404, 503, []call{{"/v1/completions", `a"b`}, {"/v1/embeddings", `a"b`}}, 503},
		{"neither path is there", 404, 404, []call{{"/v1/completions", `a"b`}, {"/v1/embeddings", `a"b`}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := newClient(t)
			calls := make(chan call, 4)
			e := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var body struct {
					Model     string
					MaxTokens int `json:"max_tokens"`
				}
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%s %s: %v", r.Method, r.URL, err)
				}
				calls <- call{r.URL.Path, body.Model}
				status := c.embeddings
				if r.URL.Path == "/v1/completions" {
					status = c.completions
					if body.MaxTokens != 1 {
						t.Errorf("max_tokens %d", body.MaxTokens)
					}
				}
				w.WriteHeader(status)
			})
			err := client.Complete(t.Context(), e, `a"b`)
			require.Equal(t, c.status, Status(err))
			if c.status == 0 {
				require.NoError(t, err)
			}
			close(calls)
			var got []call
			for c := range calls {
				got = append(got, c)
			}
			require.Empty(t, cmp.Diff(c.calls, got))
		})
	}
}

func TestAnAnswerCutOffProvesNothing(t *testing.T) {
	client := newClient(t)
	e := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	require.ErrorIs(t, client.Complete(t.Context(), e, "m"), io.ErrUnexpectedEOF)
	require.ErrorIs(t, client.Health(t.Context(), e), io.ErrUnexpectedEOF)
}

func FuzzParseModels(f *testing.F) {
	for _, file := range []string{"models.json", "models_with_lora.json", "pool_models.json"} {
		f.Add([]byte(golden(f, file)))
	}
	f.Add([]byte(`[{"id":"a","parent":"a"},{"id":"a"},7]`))
	f.Add([]byte(`{"data":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		cards, err := parseModels(body)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		seen := map[string]bool{}
		for _, c := range cards {
			if !validName(c.ID) || seen[c.ID] || c.Parent == c.ID || c.MaxModelLen < 0 || !json.Valid(c.Raw) {
				t.Fatalf("%+v", c)
			}
			seen[c.ID] = true
		}
	})
}

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// service is somebody else's OpenAI API.
type service struct {
	*httptest.Server
	key      string // of a file
	answered atomic.Int64
	wrong    atomic.Pointer[string] // the last request that it refused
}

const serviceKey = "sk-of-the-service"

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{key: filepath.Join(t.TempDir(), "key")}
	require.NoError(t, os.WriteFile(s.key, []byte(serviceKey+"\n"), 0o600))
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var ask struct {
		Model  string `json:"model"`
		Stream bool   `json:"stream"`
	}
	if err := json.Unmarshal(body, &ask); err != nil || ask.Model != "their-name" || r.URL.Path != "/openai/v1/chat/completions" || r.Header.Get("Authorization") != "Bearer "+serviceKey {
		s.wrong.Store(new(fmt.Sprint(r.URL, r.Header, string(body))))
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	s.answered.Add(1)
	if ask.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"id":"x","choices":[{"index":0,"delta":{"content":"theirs"},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"theirs"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":20,"total_tokens":21}}`)
}

func (s *service) requireRight(t *testing.T) {
	t.Helper()
	if wrong := s.wrong.Load(); wrong != nil {
		t.Fatal("asked wrongly: ", *wrong)
	}
}

func TestAProviderAnswersWhenNoEngineCan(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := oneHost(t, fleetHead+fmt.Sprintf(`
models:
  - {name: org/chat, replicas: 1, engine: {kind: sim}}
  - {name: org/never, replicas: 1, engine: %s, resources: {gpus: 0}}
providers:
  - {name: backup, url: %s/openai/v1, apiKeyFile: %s, models: [{name: org/chat, as: their-name}, {name: org/never, as: their-name}]}
`, never, s.URL, s.key))
	by := func(model string) string {
		t.Helper()
		a, err := f.Chat(t.Context(), model)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, a.Status, a.Body)
		return a.Header.Get("X-Mobula-Endpoint")
	}
	require.Equal(t, "provider/backup", by("org/never"), "its engine starts")
	f.AwaitReady("org/chat", 1)
	f.Await("the engine answers", func() bool { return by("org/chat") != "provider/backup" })
	before := s.answered.Load()
	f.Burst("org/chat", 20)
	require.Equal(t, before, s.answered.Load(), "nobody asks a provider while an engine can answer")

	load := f.Traffic("org/chat", 4, true)
	f.Run("scale", "org/chat", "0")
	f.Await("the provider answers", func() bool { return s.answered.Load() > before+20 && len(f.Replicas()) == 1 })
	require.Equal(t, "provider/backup", by("org/chat"))
	f.Run("scale", "org/chat", "auto")
	f.Await("the engine answers again", func() bool { return by("org/chat") != "provider/backup" })
	load.More(20)
	load.End()
	s.requireRight(t)
}

func TestAProviderTakesWhatBusyEnginesWouldKeepWaiting(t *testing.T) {
	t.Parallel()
	s := newService(t)
	f := oneHost(t, fleetHead+fmt.Sprintf(`
models:
  - {name: org/chat, replicas: 1, engine: {kind: sim, args: [--prefill-rate, "2000"]}}
providers:
  - {name: overflow, url: %s/openai/v1, apiKeyFile: %s, use: spill, spillAfter: 1s, models: [{name: org/chat, as: their-name}]}
`, s.URL, s.key))
	f.AwaitReady("org/chat", 1)
	// A request alone, with the engine idle and known, is not the provider's.
	f.Await("the engine answers", func() bool {
		a, err := f.Chat(t.Context(), "org/chat")
		return err == nil && a.Status == http.StatusOK && a.Header.Get("X-Mobula-Endpoint") != "provider/overflow"
	})
	before := s.answered.Load()
	require.NoError(t, f.Ask(t.Context(), "org/chat", "alone", true))
	require.Equal(t, before, s.answered.Load())
	load := f.TrafficOf("org/chat", 12, true, strings.Repeat("word ", 800))
	f.Await("it is taken over", func() bool { return s.answered.Load() > before })
	load.More(20)
	load.End()
	f.Await("the engine answers again", func() bool {
		a, err := f.Chat(t.Context(), "org/chat")
		return err == nil && a.Status == http.StatusOK && a.Header.Get("X-Mobula-Endpoint") != "provider/overflow"
	})
	s.requireRight(t)
}

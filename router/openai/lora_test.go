package openai

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine/sim"
)

// TestALoRAThatHasMovedIsFound: the router believes for up to 10 s what an engine said of its LoRAs. A request
// that meets with a 404 meanwhile goes to where the LoRA is now, or waits for it.
func TestALoRAThatHasMovedIsFound(t *testing.T) {
	m := placed("m")
	m.LoRAs = []mobula.LoRA{{Name: "lora", Source: "/l"}}
	s := newStack(t, options{models: []mobula.Model{m}, router: func(r *mobula.Router) { r.Health.ModelsInterval = mobula.Duration(time.Hour) }})
	a, b := startSim(t, sim.Options{Model: "m", LoRAs: []sim.LoRA{{Name: "lora"}}}), startSim(t, sim.Options{Model: "m"})
	s.endpoints(a.endpoint(), b.endpoint())
	s.until("both serve", func() bool { g := s.keeper.Snapshot().Lookup("m"); return g.Engines() == 2 })
	do := func(e mobula.Endpoint, what string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.URL+"/v1/"+what+"_lora_adapter", strings.NewReader(`{"lora_name":"lora","lora_path":"/l"}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
	ask := strings.Replace(plainChat, `"m"`, `"lora"`, 1)
	by := func(r reply, e mobula.Endpoint) {
		t.Helper()
		require.Equal(t, http.StatusOK, r.status, r.body)
		require.Equal(t, e.ID, r.header.Get("X-Mobula-Endpoint"))
	}
	by(s.ask(chat, ask), a.endpoint())
	do(b.endpoint(), "load")
	do(a.endpoint(), "unload")
	by(s.ask(chat, ask), b.endpoint())

	do(a.endpoint(), "load")
	do(b.endpoint(), "unload")
	by(s.ask(chat, strings.Replace(ask, `4}`, `4,"stream":true}`, 1)), a.endpoint())

	do(a.endpoint(), "unload")
	held := s.later(chat, ask)
	s.holds(1)
	require.Equal(t, http.StatusOK, s.ask(chat, plainChat).status, "the model itself does not wait")
	require.Zero(t, s.reporter.Report(time.Now()).Models[0].Failed)
	do(b.endpoint(), "load")
	s.endpoints(a.endpoint()) // b is known anew: its list is read
	s.endpoints(a.endpoint(), b.endpoint())
	by(s.take(held), b.endpoint())
	s.idle()
}

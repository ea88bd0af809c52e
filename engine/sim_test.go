package engine_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/engine/sim"
)

// simulated runs an engine on loopback until the test ends, and a client for it.
func simulated(t *testing.T, o sim.Options) (*engine.Client, mobula.Endpoint) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	e, err := sim.New(o)
	require.NoError(t, err)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, l) }()
	c := engine.NewClient(engine.Options{Timeout: time.Minute})
	t.Cleanup(func() {
		c.Close()
		stop()
		require.NoError(t, <-done)
	})
	return c, mobula.Endpoint{URL: "http://" + l.Addr().String()}
}

// served gives the LoRAs that the engine lists, with the path that each came from.
func served(t *testing.T, c *engine.Client, e mobula.Endpoint) map[string]string {
	t.Helper()
	cards, err := c.Models(t.Context(), e)
	require.NoError(t, err)
	got := map[string]string{}
	for _, card := range cards {
		if card.Parent != "" {
			require.Equal(t, "base", card.Parent)
			got[card.ID] = engine.Root(card)
		}
	}
	return got
}

func TestLoRAsComeAndGo(t *testing.T) {
	c, e := simulated(t, sim.Options{Model: "base", APIKey: "sesame"})
	require.True(t, engine.Unauthorized(c.LoadLoRA(t.Context(), e, "poet", "/loras/poet")))
	e.APIKey = "sesame"
	require.NoError(t, c.LoadLoRA(t.Context(), e, "poet", "/loras/poet"))
	require.NoError(t, c.LoadLoRA(t.Context(), e, "poet", "/loras/poet"), "again")
	require.NoError(t, c.LoadLoRA(t.Context(), e, "hub", "someone/lora"))
	require.Empty(t, cmp.Diff(map[string]string{"poet": "/loras/poet", "hub": "someone/lora"}, served(t, c, e)))

	require.NoError(t, c.LoadLoRA(t.Context(), e, "poet", "/loras/poet-2"), "from elsewhere")
	require.NoError(t, c.UnloadLoRA(t.Context(), e, "hub"))
	require.NoError(t, c.UnloadLoRA(t.Context(), e, "hub"), "again")
	require.Empty(t, cmp.Diff(map[string]string{"poet": "/loras/poet-2"}, served(t, c, e)))

	err := c.LoadLoRA(t.Context(), e, "gone", "/nonexistent/gone")
	require.Equal(t, http.StatusNotFound, engine.Status(err))
	require.NotErrorIs(t, err, engine.ErrUnsupported)
	require.ErrorContains(t, err, "/nonexistent/gone")
	require.Equal(t, http.StatusBadRequest, engine.Status(c.LoadLoRA(t.Context(), e, "base", "/x")), "the model's own name")
}

func TestAnEngineWithoutLoRAs(t *testing.T) {
	c, e := simulated(t, sim.Options{Model: "base", NoLoRA: true})
	require.ErrorIs(t, c.LoadLoRA(t.Context(), e, "poet", "/loras/poet"), engine.ErrUnsupported)
	require.NoError(t, c.UnloadLoRA(t.Context(), e, "poet"), "it has none")
}

func TestSleepAndWake(t *testing.T) {
	c, e := simulated(t, sim.Options{Model: "base"})
	asleep := func() bool {
		is, err := c.IsSleeping(t.Context(), e)
		require.NoError(t, err)
		return is
	}
	require.False(t, asleep())
	require.NoError(t, c.Wake(t.Context(), e), "it is awake")
	for range 2 {
		require.NoError(t, c.Sleep(t.Context(), e, engine.SleepOffload))
		require.True(t, asleep())
	}
	require.NoError(t, c.Health(t.Context(), e), "it lives")
	require.Empty(t, served(t, c, e))
	require.NoError(t, c.Wake(t.Context(), e))
	require.False(t, asleep())
	require.NoError(t, c.Complete(t.Context(), e, "base"))
}

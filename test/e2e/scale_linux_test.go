package e2e

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/test/fleet"
)

// oneHost starts a fleet of one host with this file.
func oneHost(t *testing.T, file string) *fleet.Fleet {
	t.Helper()
	machines := fleet.Loopback("head", "h1")
	return fleet.New(t, fleet.Options{Binary: binary(t), Head: machines[0], Hosts: machines[1:], File: file})
}

const fleetHead = `apiVersion: mobula/v1
kind: Fleet
platform: {static: {}}
`

func TestAModelGoesToZeroAndBackForRequestsThatWait(t *testing.T) {
	t.Parallel()
	f := oneHost(t, fleetHead+`
models:
  - name: org/chat
    replicas: 0-2
    engine: {kind: sim, args: [--itl, 2ms]}
    scaling: {zeroAfter: 2s, upAfter: 0s, downAfter: 1s}
`)
	zero := func(why string) func() bool {
		return func() bool {
			m := f.Status("org/chat")
			return m.Wanted == 0 && m.Load.Held == 0 && len(f.Replicas()) == 0 && strings.Contains(m.ScaleReason, why)
		}
	}
	f.Await("no replica before anybody asks", zero("as the fleet says"))
	require.Contains(t, f.Run("get"), "as the fleet says")
	require.Empty(t, f.Processes("sim"))
	require.Contains(t, f.Get("/v1/models"), "org/chat", "what may be asked for is listed")
	for range 2 {
		f.Burst("org/chat", 20)
		require.NotEmpty(t, f.Ready("org/chat"))
		f.Await("zero again", zero("no request for 2s"))
		require.Contains(t, f.Run("describe", "model", "org/chat"), "no request for 2s")
		f.Await("no process left", func() bool { return len(f.Processes("shim"))+len(f.Processes("sim")) == 0 })
	}
}

// never is an engine that is never ready.
const never = `{command: [/bin/sh, -c, exec sleep 1000]}`

func TestRequestsWaitWithinTheirBounds(t *testing.T) {
	t.Parallel()
	f := oneHost(t, fleetHead+`
models:
  - {name: org/few, replicas: 0-1, engine: `+never+`, resources: {gpus: 0}, scaling: {held: 2}}
  - {name: org/short, replicas: 0-1, engine: `+never+`, resources: {gpus: 0}, scaling: {heldFor: 1s}}
`)
	refused := func(model, why string) {
		t.Helper()
		a, err := f.Chat(t.Context(), model)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, a.Status, a.Body)
		require.NotEmpty(t, a.Header.Get("Retry-After"))
		e := gjson.Get(a.Body, "error")
		require.Contains(t, e.Get("message").String(), why)
		require.NotEmpty(t, e.Get("type").String(), a.Body)
		require.True(t, e.Get("param").Exists() && e.Get("code").Exists(), a.Body)
	}
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := f.Chat(ctx, "org/few")
			gone <- err
		}()
	}
	f.Await("two wait", func() bool { return f.Status("org/few").Load.Held == 2 })
	refused("org/few", "scaling.held allows")
	leave()
	require.ErrorIs(t, <-gone, context.Canceled)
	require.ErrorIs(t, <-gone, context.Canceled)
	f.Await("nobody waits", func() bool { return f.Status("org/few").Load.Held == 0 })
	refused("org/short", "scaling.heldFor allows")
}

func TestAModelFollowsItsLoad(t *testing.T) {
	t.Parallel()
	f := oneHost(t, fleetHead+`
models:
  - name: org/chat
    replicas: 1-3
    engine: {kind: sim, args: [--prefill-rate, "2000", --itl, 2ms]}
    scaling: {upAfter: 1s, downAfter: 3s, ttft: 1s}
`)
	f.AwaitReady("org/chat", 1)
	load := f.TrafficOf("org/chat", 12, true, strings.Repeat("word ", 800))
	f.Await("more than one replica", func() bool { return len(f.Ready("org/chat")) > 1 })
	up := f.Status("org/chat")
	require.Contains(t, up.ScaleReason, " → ")
	require.Contains(t, up.ScaleReason, "prompt tokens")
	require.Positive(t, up.Load.PromptTokens)
	require.Contains(t, f.Run("get"), up.ScaleReason)
	load.More(20)
	load.End()

	idle := f.Traffic("org/chat", 1, true) // what goes must not take requests with it
	f.Await("one replica again", func() bool { return f.Status("org/chat").Wanted == 1 && len(f.Replicas()) == 1 })
	require.Contains(t, f.Run("describe", "model", "org/chat"), "no more needed for 3s")
	idle.End()
}

func TestAModelSleepsAndWakesUpForARequest(t *testing.T) {
	t.Parallel()
	f := oneHost(t, fleetHead+`
models:
  - name: org/chat
    replicas: 0-1
    engine: {kind: sim}
    scaling: {sleep: true, zeroAfter: 2s}
`)
	f.Burst("org/chat", 1)
	engine := f.Processes("sim")
	require.Len(t, engine, 1)
	for range 2 {
		f.Await("it sleeps", func() bool { return f.Status("org/chat").Asleep == 1 })
		require.Contains(t, f.Run("get", "replicas"), "Asleep")
		require.Empty(t, f.Ready("org/chat"))
		f.Burst("org/chat", 10)
		require.Equal(t, engine, f.Processes("sim"), "the same process")
	}
}

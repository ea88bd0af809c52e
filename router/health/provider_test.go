package health

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

func provider(key mobula.Secret, models ...string) mobula.Endpoint {
	return mobula.Endpoint{ID: "provider/p", URL: "https://p", APIKey: key, Models: models, Provider: &mobula.ProviderTarget{Kind: "openai", InFlight: 1}}
}

// send has discovery report these and waits until all is quiet.
func (f *fleet) send(all ...mobula.Endpoint) {
	f.up <- all
	synctest.Wait()
}

func TestAProviderServesUnasked(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.send(provider("k", "x", "y")) // any probe of it would panic: there is no such engine
		require.True(t, f.Ready())
		for _, m := range []string{"x", "y"} {
			require.Len(t, f.Snapshot().Lookup(m).Providers, 1)
			require.Empty(t, f.Snapshot().Lookup(m).Endpoints)
		}
		after(time.Hour)
		f.send(provider("k", "z"))
		require.Nil(t, f.Snapshot().Lookup("x"))
		require.Len(t, f.Snapshot().Lookup("z").Providers, 1)
		f.Overdue(f.Snapshot().Endpoints[0])
		after(time.Hour)
		require.True(t, f.Snapshot().Endpoints[0].Serving)
	})
}

func TestAProviderThatFailsPausesEverLonger(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.send(provider("k", "m"))
		ends := func(c proxy.Cause) { f.ends("provider/p", c) }
		serves := func() bool { return f.Snapshot().Endpoints[0].Serving }
		ends(proxy.CauseBusy)
		ends(proxy.CauseStatus)
		ends(proxy.CauseStatus)
		require.True(t, serves())
		ends(proxy.CauseStatus)
		require.False(t, serves())
		begin := time.Now()
		var pauses []time.Duration
		for range 9 {
			for !serves() {
				after(100 * time.Millisecond)
			}
			pauses = append(pauses, time.Since(begin).Round(time.Second))
			begin = time.Now()
			ends(proxy.CauseStatus) // one is enough after a pause
			require.False(t, serves())
		}
		for i := range len(pauses) - 1 {
			require.GreaterOrEqual(t, pauses[i+1], pauses[i])
		}
		require.Equal(t, maxPause, pauses[len(pauses)-1])
		after(maxPause)
		require.True(t, serves())
		ends(proxy.CauseOK)
		ends(proxy.CauseStatus)
		require.True(t, serves(), "all is forgiven")
		ends(proxy.CauseConnect)
		require.False(t, serves(), "nothing listens")
		f.send(provider("another key", "m"))
		require.True(t, serves(), "what was wrong may be mended")
	})
}

func TestAPlacedModelIsReadyWithoutEngines(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		m := mobula.NewModel("placed")
		m.Replicas = &mobula.Range{Max: 1}
		f.Update(mobula.Health{}, []mobula.Model{m})
		synctest.Wait()
		require.False(t, f.Ready(), "discovery has not spoken")
		f.send()
		require.True(t, f.Ready())
		m.Scaling.Held = 0
		f.Update(mobula.Health{}, []mobula.Model{m})
		synctest.Wait()
		require.False(t, f.Ready(), "nobody may wait")
	})
}

func TestADrainMarkIsSeenAtOnce(t *testing.T) {
	bubble(t, func(f *fleet) {
		t := f.t
		f.report("a", "b")
		a := f.endpoint("a")
		marked := a.Endpoint
		marked.Draining = true
		f.send(marked, f.endpoint("b").Endpoint)
		require.Equal(t, "b", f.serving())
		require.True(t, a.Live.Draining.Load(), "for those whose list has it already")
		a.Live.InFlight.Store(1)
		f.send(f.endpoint("b").Endpoint)
		require.True(t, a.Live.Draining.Load())
		require.Equal(t, map[string]*pick.Live{a.ID: a.Live}, f.Departed())
		f.send(a.Endpoint, f.endpoint("b").Endpoint)
		require.Equal(t, "a b", f.serving())
		require.False(t, a.Live.Draining.Load())
		require.Empty(t, f.Departed())
		f.send(f.endpoint("b").Endpoint)
		require.True(t, a.Live.Draining.Load(), "what is gone takes nothing new either")
	})
}

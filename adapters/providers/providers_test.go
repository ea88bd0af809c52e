package providers

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i+1 < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func provider(name, kind string) mobula.Provider {
	return mobula.Provider{
		Name: name, Kind: kind, Use: "fallback", SpillAfter: mobula.Duration(10 * time.Second), InFlight: 100,
		Models: []mobula.ProviderModel{{Name: "m"}},
	}
}

// first is what a Run begins with.
func first(t *testing.T, d *Discovery) []mobula.Endpoint {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan []mobula.Endpoint), make(chan error, 1)
	go func() { done <- d.Run(ctx, up) }()
	state := <-up
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	return state
}

func TestEndpointsOfProviders(t *testing.T) {
	spill := provider("b", "azure")
	spill.URL, spill.Use, spill.APIKeyEnv = "https://x.openai.azure.com:8443/openai/v1/", "spill", "KEY"
	spill.Models = []mobula.ProviderModel{{Name: "m", As: "deployment"}, {Name: "n"}}
	local := provider("d", "openai")
	local.URL = "http://[::1]:9000"
	d, err := New([]mobula.Provider{provider("a", "openai"), spill, provider("c", "anthropic"), local}, Options{LookupEnv: env("KEY", " sk \n")})
	require.NoError(t, err)
	target := func(kind, path string, order int) *mobula.ProviderTarget {
		return &mobula.ProviderTarget{Kind: kind, BasePath: path, Rename: map[string]string{}, Order: order, SpillAfter: 10 * time.Second, InFlight: 100}
	}
	azure := target("azure", "/openai/v1", 1)
	azure.Spill, azure.Rename = true, map[string]string{"m": "deployment"}
	want := []mobula.Endpoint{
		{ID: "provider/a", URL: "https://api.openai.com", Models: []string{"m"}, Labels: map[string]string{"provider": "openai"}, Provider: target("openai", "/v1", 0)},
		{ID: "provider/b", URL: "https://x.openai.azure.com:8443", Models: []string{"m", "n"}, Labels: map[string]string{"provider": "azure"}, APIKey: "sk", Provider: azure},
		{ID: "provider/c", URL: "https://api.anthropic.com", Models: []string{"m"}, Labels: map[string]string{"provider": "anthropic"}, Provider: target("anthropic", "/v1", 2)},
		{ID: "provider/d", URL: "http://[::1]:9000", Models: []string{"m"}, Labels: map[string]string{"provider": "openai"}, Provider: target("openai", "", 3)},
	}
	require.Empty(t, cmp.Diff(want, first(t, d)))
}

func TestUpdateReadsKeysAgainAndKeepsTheOldStateOnAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("one"), 0o600))
	p := provider("a", "openai")
	p.APIKeyFile = file
	d, err := New([]mobula.Provider{p}, Options{})
	require.NoError(t, err)
	require.Equal(t, mobula.Secret("one"), first(t, d)[0].APIKey)
	require.NoError(t, os.WriteFile(file, []byte("two"), 0o600))
	require.NoError(t, d.Update([]mobula.Provider{p}))
	require.Equal(t, mobula.Secret("two"), first(t, d)[0].APIKey)

	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.ErrorIs(t, d.Check([]mobula.Provider{p}), adapters.ErrNoKey)
	err = d.Update([]mobula.Provider{p})
	require.ErrorIs(t, err, adapters.ErrNoKey)
	require.ErrorContains(t, err, "provider a")
	require.Equal(t, mobula.Secret("two"), first(t, d)[0].APIKey)
}

func TestNewFailsWithoutItsKeyOrURL(t *testing.T) {
	keyless := provider("a", "openai")
	keyless.APIKeyEnv = "KEY"
	_, err := New([]mobula.Provider{keyless}, Options{LookupEnv: env()})
	require.ErrorIs(t, err, adapters.ErrNoKey)
	_, err = New([]mobula.Provider{provider("a", "azure")}, Options{})
	require.ErrorContains(t, err, "want a base URL")
}

func TestConformance(t *testing.T) {
	conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
		tb.Helper()
		list := []mobula.Provider{provider("a", "openai"), provider("b", "anthropic")}
		d, err := New(list, Options{})
		require.NoError(tb, err)
		want, err := d.endpoints(list)
		require.NoError(tb, err)
		return conformance.Subject{Discoverer: d, Want: want, Change: func(tb testing.TB) []mobula.Endpoint {
			tb.Helper()
			list = append(list, provider("p"+string(rune('a'+len(list)%26)), "openai"))
			require.NoError(tb, d.Update(list))
			now, err := d.endpoints(list)
			require.NoError(tb, err)
			return now
		}}
	})
}

package static_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/static"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDiscoveryConforms(t *testing.T) {
	conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
		tb.Helper()
		d, err := static.New(mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://a:8000"}}}, static.Options{})
		require.NoError(tb, err)
		n := 0
		return conformance.Subject{
			Discoverer: d,
			Want:       []mobula.Endpoint{{ID: "http://a:8000", URL: "http://a:8000"}},
			Change: func(tb testing.TB) []mobula.Endpoint {
				tb.Helper()
				n++
				url := fmt.Sprintf("http://b:%d", n)
				require.NoError(tb, d.Update(mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: url}}}))
				return []mobula.Endpoint{{ID: url, URL: url}}
			},
		}
	})
}

// firstState runs d and gives its first state.
func firstState(t *testing.T, d *static.Discovery) []mobula.Endpoint {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up, done := make(chan []mobula.Endpoint), make(chan error)
	go func() { done <- d.Run(ctx, up) }()
	s := <-up
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	return s
}

func TestEndpointsFromConfig(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(" sk-file\r\n"), 0o600))
	env := func(name string) (string, bool) { return "sk-" + name, true }

	for _, c := range []struct {
		name string
		in   mobula.StaticEndpoint
		want mobula.Endpoint
	}{
		{"single-label host", mobula.StaticEndpoint{URL: "http://vllm:8000"}, mobula.Endpoint{ID: "http://vllm:8000", URL: "http://vllm:8000"}},
		{"trailing slash is no other endpoint", mobula.StaticEndpoint{URL: "http://vllm:8000/"}, mobula.Endpoint{ID: "http://vllm:8000", URL: "http://vllm:8000"}},
		{"ipv6 and https", mobula.StaticEndpoint{URL: "https://[::1]:8443", InsecureSkipVerify: true}, mobula.Endpoint{ID: "https://[::1]:8443", URL: "https://[::1]:8443", TLSSkipVerify: true}},
		{"key file", mobula.StaticEndpoint{URL: "http://a", APIKeyFile: key}, mobula.Endpoint{ID: "http://a", URL: "http://a", APIKey: "sk-file"}},
		{"key variable", mobula.StaticEndpoint{URL: "http://a", APIKeyEnv: "K"}, mobula.Endpoint{ID: "http://a", URL: "http://a", APIKey: "sk-K"}},
		{
			"everything else",
			mobula.StaticEndpoint{URL: "http://a", Models: []string{"m"}, Role: mobula.RolePrefill, Labels: map[string]string{"z": "1"}, Drain: true},
			mobula.Endpoint{ID: "http://a", URL: "http://a", Models: []string{"m"}, Role: mobula.RolePrefill, Labels: map[string]string{"z": "1"}, Draining: true},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := static.New(mobula.Static{Endpoints: []mobula.StaticEndpoint{c.in}}, static.Options{LookupEnv: env})
			require.NoError(t, err)
			require.Empty(t, cmp.Diff([]mobula.Endpoint{c.want}, firstState(t, d)))
		})
	}
}

func TestBadConfigIsRefusedAndOldStateStays(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(content), 0o600))
		return p
	}
	for _, c := range []struct {
		name string
		in   []mobula.StaticEndpoint
		want string
	}{
		{"no such file", []mobula.StaticEndpoint{{URL: "http://a", APIKeyFile: filepath.Join(dir, "none")}}, "apiKeyFile: open"},
		{"empty file", []mobula.StaticEndpoint{{URL: "http://a", APIKeyFile: write("empty", "\n")}}, "apiKeyFile: no API key there"},
		{"variable not set", []mobula.StaticEndpoint{{URL: "http://a", APIKeyEnv: "K"}}, "apiKeyEnv K: no API key there"},
		{"a line break can't smuggle a header", []mobula.StaticEndpoint{{URL: "http://a", APIKeyFile: write("nl", "sk\r\nX-Admin: 1")}}, "byte 2 is not printable"},
		{"a huge file is not read", []mobula.StaticEndpoint{{URL: "http://a", APIKeyFile: write("huge", strings.Repeat("k", 20<<10))}}, "more than 16384 bytes"},
		{"the same endpoint twice", []mobula.StaticEndpoint{{URL: "http://a"}, {URL: "http://a/"}}, "listed twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := static.Options{LookupEnv: func(string) (string, bool) { return "", false }}
			_, err := static.New(mobula.Static{Endpoints: c.in}, o)
			require.ErrorContains(t, err, c.want)

			d, err := static.New(mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://old"}}}, o)
			require.NoError(t, err)
			require.ErrorContains(t, d.Update(mobula.Static{Endpoints: c.in}), c.want)
			require.Empty(t, cmp.Diff([]mobula.Endpoint{{ID: "http://old", URL: "http://old"}}, firstState(t, d)))
		})
	}
}

func TestUpdateReadsKeysAgain(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("one"), 0o600))
	s := mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://a", APIKeyFile: key}}}
	d, err := static.New(s, static.Options{})
	require.NoError(t, err)
	require.Equal(t, mobula.Secret("one"), firstState(t, d)[0].APIKey)
	require.NoError(t, os.WriteFile(key, []byte("two"), 0o600))
	require.NoError(t, d.Update(s))
	require.Equal(t, mobula.Secret("two"), firstState(t, d)[0].APIKey)
}

func TestErrorsDontShowKeys(t *testing.T) {
	o := static.Options{LookupEnv: func(string) (string, bool) { return "sk-secret\x00", true }}
	_, err := static.New(mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://a", APIKeyEnv: "K"}}}, o)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "sk-secret")
}

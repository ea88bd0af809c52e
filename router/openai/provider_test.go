package openai

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine/sim"
	"github.com/mobula-serve/mobula/router/proxy"
)

const answerOfProvider = `{"id":"chatcmpl-1","object":"chat.completion","choices":[]}`

// takes is a provider that answers.
func takes(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Set-Cookie", "theirs=1")
	w.Header().Set("Openai-Organization", "ours")
	_, _ = w.Write([]byte(answerOfProvider))
}

// at is the endpoint of a provider as adapters/providers reports it.
func at(srv *httptest.Server, name, kind, base string, change ...func(*mobula.ProviderTarget)) mobula.Endpoint {
	e := mobula.Endpoint{
		ID: "provider/" + name, URL: srv.URL, Models: []string{"m"}, APIKey: "sk-ours",
		Provider: &mobula.ProviderTarget{Kind: kind, BasePath: base, Rename: map[string]string{"m": `their "m"`}, InFlight: 10, SpillAfter: time.Hour},
	}
	for _, c := range change {
		c(e.Provider)
	}
	return e
}

// trusting has the router trust the certificates of test servers, and nothing else.
func trusting(servers ...*httptest.Server) func(*proxy.Options) {
	roots := x509.NewCertPool()
	for _, srv := range servers {
		roots.AddCert(srv.Certificate())
	}
	return func(o *proxy.Options) { o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots} }
}

// TestWhatAProviderGets: its path, its key, its name for the model, and nothing of the client's but what
// says how to read the body.
func TestWhatAProviderGets(t *testing.T) {
	const body = `{"messages":[{"role":"user","content":"hi"}], "model" : "m","max_tokens":4}`
	const renamed = `{"messages":[{"role":"user","content":"hi"}], "model" : "their \"m\"","max_tokens":4}`
	for name, tc := range map[string]struct {
		kind, base, path string
		body, want       string
		header           []string
		wantPath         string
		wantHeader       http.Header
	}{
		"openai": {
			kind: "openai", base: "/v1", path: chat, body: body, want: renamed, wantPath: "/v1/chat/completions",
			wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"openai at another path, with a query": {
			kind: "openai", base: "/compatible/api/v2", path: "/v1/embeddings?a=b", body: `{"model":"m","input":"x"}`, want: `{"model":"their \"m\"","input":"x"}`,
			wantPath: "/compatible/api/v2/embeddings?a=b", wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"openai without a path": {
			kind: "openai", path: "/v1/completions", body: `{"model":"m","prompt":"x"}`, want: `{"model":"their \"m\"","prompt":"x"}`,
			wantPath: "/completions", wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"the model by an alias": {
			kind: "openai", base: "/v1", path: chat, body: `{"model":"alias","messages":[]}`, want: `{"model":"their \"m\"","messages":[]}`,
			wantPath: "/v1/chat/completions", wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"no model": {
			kind: "openai", base: "/v1", path: chat, body: " {\"messages\":[] \n} ", want: " {\"messages\":[],\"model\":\"their \\\"m\\\"\"} ",
			wantPath: "/v1/chat/completions", wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"an empty body": {
			kind: "openai", base: "/v1", path: chat, body: "{}", want: `{"model":"their \"m\""}`,
			wantPath: "/v1/chat/completions", wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
		"azure": {
			kind: "azure", base: "/openai/v1", path: "/v1/responses", body: `{"model":"m","input":"x"}`, want: `{"model":"their \"m\"","input":"x"}`,
			wantPath: "/openai/v1/responses", wantHeader: http.Header{"Api-Key": {"sk-ours"}},
		},
		"anthropic": {
			kind: "anthropic", base: "/v1", path: "/v1/messages?beta=true", body: body, want: renamed, wantPath: "/v1/messages?beta=true",
			header:     []string{"Anthropic-Beta", "x"},
			wantHeader: http.Header{"X-Api-Key": {"sk-ours"}, "Anthropic-Version": {"2023-06-01"}, "Anthropic-Beta": {"x"}},
		},
		"anthropic with the client's version": {
			kind: "anthropic", base: "/v1", path: "/v1/messages", body: body, want: renamed, wantPath: "/v1/messages", header: []string{"anthropic-version", "2030-01-01"},
			wantHeader: http.Header{"X-Api-Key": {"sk-ours"}, "Anthropic-Version": {"2030-01-01"}},
		},
		"anthropic in OpenAI's dialect": {
			kind: "anthropic", base: "/v1", path: chat, body: body, want: renamed, wantPath: "/v1/chat/completions",
			wantHeader: http.Header{"Authorization": {"Bearer sk-ours"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv, requests := newProvider(t, takes)
			m := placed("m")
			m.Aliases = []string{"alias"}
			s := newStack(t, options{models: []mobula.Model{m}, proxy: trusting(srv)})
			s.endpoints(at(srv, "p", tc.kind, tc.base))
			s.until("the provider", s.keeper.Ready)
			header := append([]string{
				"Authorization", "Bearer sk-client", "X-Api-Key", "sk-client", "Api-Key", "sk-client", "Cookie", "a=b", "X-Forwarded-For", "10.0.0.1",
				"X-Request-Id", "id", "Accept-Encoding", "gzip", "User-Agent", "client", "X-Data-Parallel-Rank", "1", "OpenAI-Organization", "theirs",
			}, tc.header...)
			r := s.ask(tc.path, tc.body, header...)
			require.NoError(t, r.err)
			require.Equal(t, http.StatusOK, r.status, r.body)
			require.JSONEq(t, answerOfProvider, r.body)
			require.Equal(t, "provider/p", r.header.Get("X-Mobula-Endpoint"))
			require.Empty(t, r.header.Get("Set-Cookie")+r.header.Get("Openai-Organization"))
			want := tc.wantHeader.Clone()
			want.Set("Content-Type", "application/json")
			want.Set("User-Agent", "client")
			want.Set("X-Request-Id", "id")
			want.Set("Accept-Encoding", "identity")
			want.Set("Content-Length", strconv.Itoa(len(tc.want)))
			host, err := url.Parse(srv.URL)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff([]seen{{tc.wantPath, host.Host, tc.want, want}}, requests(), cmp.AllowUnexported(seen{})))
			s.idle()
		})
	}
}

func TestACertificateThatNobodyVouchesForIsRefused(t *testing.T) {
	srv, requests := newProvider(t, takes)
	s := newStack(t, options{models: []mobula.Model{mobula.NewModel("m")}}) // the system's roots
	s.endpoints(at(srv, "p", "openai", "/v1"))
	s.until("the provider", s.keeper.Ready)
	r := s.ask(chat, plainChat)
	require.Equal(t, http.StatusServiceUnavailable, r.status)
	require.NotContains(t, r.body, "sk-ours")
	require.Empty(t, requests())
	s.idle()
}

func TestProvidersAreAskedInTheirOrder(t *testing.T) {
	refusing := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if len(header) > 0 {
				w.Header().Set(header[0], header[1])
			}
			http.Error(w, `{"error":{"message":"Incorrect API key provided: sk-o**rs"}}`, status)
		}
	}
	second := func(p *mobula.ProviderTarget) { p.Order = 1 }
	for name, tc := range map[string]struct {
		first  http.HandlerFunc
		second http.HandlerFunc
		kind   string
		path   string
		status int
		from   string
	}{
		"the first":                       {first: takes, second: takes, kind: "openai", path: chat, status: 200, from: "provider/z"},
		"429 with Retry-After":            {first: refusing(429, "Retry-After", "60"), second: takes, kind: "openai", path: chat, status: 200, from: "provider/a"},
		"500":                             {first: refusing(500), second: takes, kind: "openai", path: chat, status: 200, from: "provider/a"},
		"our key is no good":              {first: refusing(401), second: takes, kind: "openai", path: chat, status: 200, from: "provider/a"},
		"none of our keys is":             {first: refusing(401), second: refusing(403), kind: "openai", path: chat, status: 502, from: "provider/a"},
		"the client's mistake is its":     {first: refusing(400), second: takes, kind: "openai", path: chat, status: 400, from: "provider/z"},
		"one that does not speak so":      {first: takes, second: takes, kind: "anthropic", path: "/v1/completions", status: 200, from: "provider/a"},
		"429 of the last is the client's": {first: refusing(429), second: refusing(429, "Retry-After", "60"), kind: "openai", path: chat, status: 429, from: "provider/a"},
	} {
		t.Run(name, func(t *testing.T) {
			z, _ := newProvider(t, tc.first)
			a, _ := newProvider(t, tc.second)
			s := newStack(t, options{models: []mobula.Model{mobula.NewModel("m")}, proxy: trusting(z, a)})
			s.endpoints(at(z, "z", tc.kind, "/v1"), at(a, "a", "openai", "/v1", second))
			s.until("the providers", s.keeper.Ready)
			r := s.ask(tc.path, plainChat)
			require.NoError(t, r.err)
			require.Equal(t, tc.status, r.status, r.body)
			require.Equal(t, tc.from, r.header.Get("X-Mobula-Endpoint"))
			if tc.status == http.StatusBadGateway {
				require.NotContains(t, r.body, "API key")
			}
			s.idle()
		})
	}
}

func TestAProviderAnswersForEnginesThatCannot(t *testing.T) {
	srv, requests := newProvider(t, takes)
	s := newStack(t, options{models: []mobula.Model{placed("m")}, proxy: trusting(srv)})
	p := at(srv, "p", "openai", "/v1")
	s.endpoints(p)
	s.until("the provider", s.keeper.Ready)
	require.Equal(t, "provider/p", s.ask(chat, plainChat).header.Get("X-Mobula-Endpoint"), "nothing else serves")
	held := s.later("/tokenize", `{"model":"m","prompt":"x"}`)
	s.holds(1) // no provider has that path

	e := startSim(t, sim.Options{Model: "m"})
	s.endpoints(p, e.endpoint())
	require.Equal(t, http.StatusOK, s.take(held).status)
	for range 5 {
		require.Equal(t, e.endpoint().ID, s.ask(chat, plainChat).header.Get("X-Mobula-Endpoint"))
	}
	require.NoError(t, e.SetFault(sim.Fault{Kind: sim.FaultStatus, Status: 503}))
	require.Equal(t, "provider/p", s.ask(chat, plainChat).header.Get("X-Mobula-Endpoint"), "the engine refuses")
	e.ClearFault()
	e.stop()
	e.stop = func() {}
	for range 3 {
		require.Equal(t, "provider/p", s.ask(chat, plainChat).header.Get("X-Mobula-Endpoint"), "the engine is dead")
	}
	require.Len(t, requests(), 5)
	s.idle()
}

func TestAFullProviderIsPassedOver(t *testing.T) {
	begun, release := make(chan struct{}, 10), make(chan struct{})
	srv, _ := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		takes(w, r)
	})
	s := newStack(t, options{models: []mobula.Model{placed("m")}, proxy: trusting(srv)})
	s.endpoints(at(srv, "p", "openai", "/v1", func(p *mobula.ProviderTarget) { p.InFlight = 2 }))
	s.until("the provider", s.keeper.Ready)
	var all []<-chan reply
	for range 6 {
		all = append(all, s.later(chat, plainChat))
	}
	<-begun
	<-begun
	s.holds(4)
	require.Empty(t, begun)
	close(release)
	for _, a := range all {
		require.Equal(t, http.StatusOK, s.take(a).status)
	}
	s.idle()
}

func TestBusyEnginesSpill(t *testing.T) {
	for _, policy := range []string{"cost", "leastload"} {
		t.Run(policy, func(t *testing.T) {
			srv, _ := newProvider(t, takes)
			e := startSim(t, sim.Options{Model: "m", PrefillBase: 200 * time.Millisecond})
			s := newStack(t, options{policy: policy, models: []mobula.Model{placed("m")}, proxy: trusting(srv)})
			s.endpoints(e.endpoint(), at(srv, "p", "openai", "/v1", func(p *mobula.ProviderTarget) { p.Spill, p.SpillAfter = true, 100*time.Millisecond }))
			s.until("both", func() bool {
				engines := s.keeper.Snapshot().Lookup("m").Endpoints
				return len(engines) == 1 && engines[0].Serving
			})
			require.Equal(t, e.endpoint().ID, s.ask(chat, streamChat).header.Get("X-Mobula-Endpoint"), "an idle engine is asked first")
			// Ever more wait for the engine, until one goes to the provider.
			var waiting []<-chan reply
			s.until("one is spilled", func() bool {
				first := s.later(chat, streamChat)
				select {
				case r := <-first:
					return r.header.Get("X-Mobula-Endpoint") == "provider/p"
				case <-time.After(20 * time.Millisecond):
					waiting = append(waiting, first)
					return false
				}
			})
			for _, a := range waiting {
				require.Equal(t, http.StatusOK, s.take(a).status)
			}
			s.idle()
		})
	}
}

// TestAProviderThatFailsIsLeftAlone: it is ejected, and taken back when it is asked again after a pause.
func TestAProviderThatFailsIsLeftAlone(t *testing.T) {
	bad := make(chan struct{})
	srv, requests := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-bad:
			takes(w, r)
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := newStack(t, options{models: []mobula.Model{placed("m")}, proxy: trusting(srv), router: func(r *mobula.Router) { r.Health.EjectAfter = 1 }})
	s.endpoints(at(srv, "p", "openai", "/v1"))
	s.until("the provider", s.keeper.Ready)
	require.Equal(t, http.StatusInternalServerError, s.ask(chat, plainChat).status)
	s.until("it is ejected", func() bool { return !s.keeper.Snapshot().Endpoints[0].Serving })
	held := s.later(chat, plainChat)
	s.holds(1)
	require.Len(t, requests(), 1)
	close(bad)
	require.Equal(t, http.StatusOK, s.take(held).status, "it gets another chance by itself")
	s.idle()
}

func TestStreamsOfProvidersPassThrough(t *testing.T) {
	const stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"
	srv, _ := newProvider(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte(stream))
	})
	s := newStack(t, options{models: []mobula.Model{placed("m")}, proxy: trusting(srv)})
	s.endpoints(at(srv, "p", "openai", "/v1"))
	s.until("the provider", s.keeper.Ready)
	r := s.ask(chat, streamChat)
	require.Equal(t, stream, r.body)
	require.Equal(t, "text/event-stream", r.header.Get("Content-Type"))
	s.idle()
}

func TestAResponseIsAskedForWhereItIs(t *testing.T) {
	srv, requests := newProvider(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id":"resp_1","object":"response"}`))
	})
	s := newStack(t, options{models: []mobula.Model{placed("m")}, proxy: trusting(srv)})
	s.endpoints(at(srv, "p", "openai", "/api/v1"))
	s.until("the provider", s.keeper.Ready)
	require.Contains(t, s.get("/v1/responses/resp_2"), "404", "nobody asks a provider for what may be another client's")
	require.Empty(t, requests())
	require.Equal(t, http.StatusOK, s.ask("/v1/responses", `{"model":"m","input":"x"}`).status)
	require.Contains(t, s.get("/v1/responses/resp_1"), "200")
	all := requests()
	require.Equal(t, "/api/v1/responses/resp_1", all[len(all)-1].path)
	require.Equal(t, "Bearer sk-ours", all[len(all)-1].header.Get("Authorization"))
	s.idle()
}

func FuzzRename(f *testing.F) {
	f.Add(`{"model":"m","a":[1]}`, "their model")
	f.Add(" {} \n", `a "b" \`)
	f.Add(`{"a":{"model":"x"}, "model":null}`, "x")
	f.Fuzz(func(t *testing.T, body, model string) {
		c := &call{route: &route{}, body: []byte(body)}
		if model == "" || strings.ToValidUTF8(model, "") != model || scanBody(c.body, 100, "", &c.fields) != nil {
			return
		}
		var got fields
		renamed := c.rename(model)
		require.NoError(t, scanBody(renamed, 100, "", &got), "%s", renamed)
		require.Equal(t, model, string(got.name), "%s", renamed)
	})
}

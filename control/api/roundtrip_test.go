package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

func TestClientCallsReachTheBackend(t *testing.T) {
	h := start(t)
	ctx := t.Context()
	report := mobula.Report{
		Router: "r1", At: time.Unix(1e9, 0).UTC(),
		Endpoints: []mobula.EndpointReport{{ID: "llama-1", State: "up", InFlight: 3, Running: -1, Waiting: -1, KVUsage: -1}},
		Models:    []mobula.ModelReport{{Model: "Qwen/Qwen2.5", Held: 2, TTFT90: 0.25}},
	}
	for name, tc := range map[string]struct {
		call func(client.API) error
		want string
	}{
		"scale":          {func(c client.API) error { return c.Scale(ctx, "Qwen/Qwen2.5", 3) }, "scale Qwen/Qwen2.5 3"},
		"scale back":     {func(c client.API) error { return c.Scale(ctx, "m", -7) }, "scale m -1"},
		"drain":          {func(c client.API) error { return c.Drain(ctx, "m-1", true) }, "drain m-1 true"},
		"undrain":        {func(c client.API) error { return c.Drain(ctx, "m-1", false) }, "drain m-1 false"},
		"cordon":         {func(c client.API) error { return c.Cordon(ctx, "gpu-1", true, false) }, "cordon gpu-1 true drain false"},
		"cordon, drain":  {func(c client.API) error { return c.Cordon(ctx, "gpu-1", true, true) }, "cordon gpu-1 true drain true"},
		"uncordon":       {func(c client.API) error { return c.Cordon(ctx, "gpu-1", false, true) }, "cordon gpu-1 false drain false"},
		"forget":         {func(c client.API) error { return c.Forget(ctx, "gpu-1") }, "forget gpu-1"},
		"restart":        {func(c client.API) error { return c.Restart(ctx, "a/b") }, `restart "a/b"`},
		"restart all":    {func(c client.API) error { return c.Restart(ctx, "") }, `restart ""`},
		"rollback":       {func(c client.API) error { return c.Rollback(ctx, "a/b") }, "rollback a/b"},
		"delete":         {func(c client.API) error { return c.Delete(ctx, "a/b") }, `delete "a/b"`},
		"delete all":     {func(c client.API) error { return c.Delete(ctx, "") }, `delete ""`},
		"report":         {func(c client.API) error { return c.Report(ctx, report) }, "report r1"},
		"logs":           {func(c client.API) error { return readLogs(ctx, c, "m-1", 7) }, "logs m-1 7 false"},
		"apply":          {func(c client.API) error { return apply(ctx, c, "a: b", true, false) }, "apply a: b from me dry true force false"},
		"apply by force": {func(c client.API) error { return apply(ctx, c, "a: b", false, true) }, "apply a: b from me dry false force true"},
		"apply nothing":  {func(c client.API) error { return apply(ctx, c, "", true, false) }, "apply  from me dry true force false"},
	} {
		t.Run(name, func(t *testing.T) {
			h.fake.takeCalls()
			require.NoError(t, tc.call(h.client))
			require.Equal(t, []string{tc.want}, h.fake.takeCalls())
			h.fake.fail(fmt.Errorf("say why: %w", control.ErrConflict))
			defer h.fake.fail(nil)
			err := tc.call(h.client)
			require.ErrorIs(t, err, control.ErrConflict)
			require.EqualError(t, err, "say why: conflict")
		})
	}
	require.Empty(t, cmp.Diff(report, h.fake.reports[0]))
}

func readLogs(ctx context.Context, c client.API, replica string, tail int) error {
	r, err := c.Logs(ctx, replica, tail, false)
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if string(b) != "one\ntwo\n" {
		return fmt.Errorf("got %q, %w", b, err)
	}
	return err
}

func apply(ctx context.Context, c client.API, file string, dry, force bool) error {
	change, err := c.Apply(ctx, []byte(file), "me", dry, force)
	if err == nil && (change.Fleet != "prod" || change.Models == nil) {
		err = fmt.Errorf("got %+v", change)
	}
	return err
}

func TestFleetTravelsAsItWasWritten(t *testing.T) {
	h := start(t)
	_, err := h.client.Fleet(t.Context())
	require.ErrorIs(t, err, control.ErrNotFound)
	file := []byte("# a comment\r\nkind: Fleet\n\x00")
	h.fake.change(func(f *fake) { f.file = file })
	got, err := h.client.Fleet(t.Context())
	require.NoError(t, err)
	require.Equal(t, file, got)
}

// TestViewTravelsWhole fills every field of a View.
func TestViewTravelsWhole(t *testing.T) {
	h := start(t)
	var v control.View
	fill(t, reflect.ValueOf(&v).Elem(), 1)
	v.Version = 3
	h.fake.change(func(f *fake) { f.view = v })
	got, err := h.client.View(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(&v, got))
}

// fill sets all there is in a value to something that is not zero.
func fill(t *testing.T, v reflect.Value, n int) {
	t.Helper()
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(1e9+n), 0).UTC()))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n+i)
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n+1)
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.SetMapIndex(key, value)
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprintf("text-%d", n))
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(int64(n))
	case v.CanFloat():
		v.SetFloat(float64(n) / 2)
	default:
		t.Fatalf("nothing to fill %s with", v.Type())
	}
}

func TestEndpointsTravelWhole(t *testing.T) {
	h := start(t)
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.String()
		list := rapid.SliceOfN(text, 1, 3)
		var want []mobula.Endpoint
		for i := range rapid.IntRange(0, 4).Draw(r, "n") {
			want = append(want, mobula.Endpoint{
				ID: strconv.Itoa(i), URL: text.Draw(r, "url"), Models: list.Draw(r, "models"),
				Role: rapid.SampledFrom([]mobula.Role{"", "prefill", "decode"}).Draw(r, "role"), Labels: map[string]string{"a": text.Draw(r, "label")},
				APIKey: mobula.Secret(text.Draw(r, "key")), TLSSkipVerify: rapid.Bool().Draw(r, "skip"), Draining: rapid.Bool().Draw(r, "draining"),
			})
		}
		var got []mobula.Endpoint
		for _, e := range want {
			wire := client.EncodeEndpoint(&e)
			got = append(got, wire.Decode())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.Fatal(diff)
		}
	})
	var e mobula.Endpoint
	for i := range reflect.TypeFor[mobula.Endpoint]().NumField() {
		if f := reflect.ValueOf(&e).Elem().Field(i); reflect.TypeFor[mobula.Endpoint]().Field(i).Name != "Provider" { // each router's own
			fill(t, f, i)
		}
	}
	h.source.Set(e)
	up := make(chan []mobula.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.client.Discoverer().Run(ctx, up) })
	got := <-up
	for len(got) == 0 { // the state before
		got = <-up
	}
	cancel()
	wg.Wait()
	require.Empty(t, cmp.Diff([]mobula.Endpoint{e}, got))
}

func TestTokensAndJoining(t *testing.T) {
	h := start(t)
	token, err := h.client.Token(t.Context())
	require.NoError(t, err)
	require.Equal(t, "fresh", token)
	j := agent.Join{Name: "gpu-1", Address: "10.0.0.7:8200", CSR: "PEM", Clock: time.Now().UTC()}
	joined, err := client.Join(t.Context(), h.http.URL, nil, "good", j)
	require.NoError(t, err)
	require.Equal(t, agent.Joined{Control: "c1", Certificate: "CERT", CA: "CA"}, joined)
	require.Equal(t, []agent.Join{j}, h.join.joined)
	require.Equal(t, []string{""}, h.join.peers)

	_, err = client.Join(t.Context(), h.http.URL, nil, "old", j)
	require.ErrorContains(t, err, "used up")
	h.join.err = fmt.Errorf("%w: gpu-1 is at another address", control.ErrConflict)
	_, err = client.Join(t.Context(), h.http.URL, nil, "good", j)
	require.ErrorIs(t, err, control.ErrConflict)
	used := h.join.used
	j.Clock = j.Clock.Add(-time.Hour)
	_, err = client.Join(t.Context(), h.http.URL, nil, "good", j)
	require.ErrorContains(t, err, "clocks differ")
	require.Equal(t, used, h.join.used, "a request that makes no sense uses no token up")
}

func TestAControlPlaneWithoutAgentsSaysSo(t *testing.T) {
	h := start(t, func(o *Options) { o.Tokens, o.Joiner = nil, nil })
	_, err := h.client.Token(t.Context())
	require.ErrorContains(t, err, "takes no agents")
	_, err = client.Join(t.Context(), h.http.URL, nil, "good", agent.Join{})
	require.ErrorContains(t, err, "takes no agents")
}

func TestDiscovererKeepsEndpointsWhileTheControlPlaneIsAway(t *testing.T) {
	h := start(t)
	h.source.Set(endpointsOf(1)...)
	eventually(t, func() bool {
		body, _, _ := h.endpoints.get()
		return strings.Contains(string(body), `"ra"`)
	})
	// A front that can be taken away, with connections that are cut.
	var away sync.Mutex
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !away.TryLock() {
			panic(http.ErrAbortHandler)
		}
		away.Unlock()
		h.Handler().ServeHTTP(w, r)
	}))
	defer front.Close()
	c := client.New(client.Options{URL: front.URL, Token: secret, RetryFor: -1})
	defer c.Close()
	up := make(chan []mobula.Endpoint)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = c.Discoverer().Run(ctx, up) })
	require.Len(t, <-up, 1)
	eventually(t, func() bool { return len(h.waiters) == 1 })
	away.Lock()
	front.CloseClientConnections()
	eventually(t, func() bool { return len(h.waiters) == 0 })
	h.source.Set(endpointsOf(2)...)
	select {
	case got := <-up:
		t.Fatalf("got %v from a control plane that is away", got)
	case <-time.After(300 * time.Millisecond): // a few tries; they must send nothing
	}
	away.Unlock()
	require.Len(t, <-up, 2, "back")
	h.source.Set(endpointsOf(3)...)
	require.Len(t, <-up, 3)
}

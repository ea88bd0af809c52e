package proxy

import (
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

// asked has a proxy serve one request by list.
func asked(t *testing.T, change func(x *Exchange), list ...*pick.Endpoint) (Result, *log, *MemoryClient) {
	t.Helper()
	p := New(Options{Retries: mobula.Retries{Attempts: 5, Budget: 1, MaxRetryAfter: mobula.Duration(time.Second)}})
	t.Cleanup(p.Close)
	client, hooks := &MemoryClient{}, &log{}
	x := &Exchange{Method: http.MethodPost, Target: "/v1/completions", Body: []byte(`{"model":"m"}`), List: list, Client: client, Hooks: hooks}
	if change != nil {
		change(x)
	}
	r := p.Do(x)
	for _, e := range list {
		require.Zero(t, e.Live.Waiting.Load())
		require.Zero(t, e.Live.Tokens.Load())
	}
	return r, hooks, client
}

func TestADrainingEndpointIsPassedOver(t *testing.T) {
	good := newFake(t, always(plain(200, "{}")))
	for name, tc := range map[string]struct {
		list   func(draining, sick *pick.Endpoint) []*pick.Endpoint
		owned  bool
		status int
		cause  Cause
		sent   int
	}{
		"first":                {list: func(d, _ *pick.Endpoint) []*pick.Endpoint { return []*pick.Endpoint{d, good.Endpoint} }, status: 200, sent: 1},
		"of a retry":           {list: func(d, s *pick.Endpoint) []*pick.Endpoint { return []*pick.Endpoint{s, d, good.Endpoint} }, status: 200, sent: 2},
		"and nobody else":      {list: func(d, _ *pick.Endpoint) []*pick.Endpoint { return []*pick.Endpoint{d} }, cause: CauseDraining},
		"after one that fails": {list: func(d, s *pick.Endpoint) []*pick.Endpoint { return []*pick.Endpoint{s, d} }, cause: CauseConnect, sent: 1},
		"but not for what it has begun": {
			list: func(d, _ *pick.Endpoint) []*pick.Endpoint { return []*pick.Endpoint{d} }, owned: true, status: 200, sent: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			other := newFake(t, always(plain(200, "{}")))
			other.Live.Draining.Store(true)
			r, hooks, _ := asked(t, func(x *Exchange) { x.Owned = tc.owned }, tc.list(other.Endpoint, refusing(t))...)
			require.Equal(t, tc.status, r.Status)
			if tc.status == 0 {
				var e *Error
				require.ErrorAs(t, r.Err, &e)
				require.Equal(t, tc.cause, e.Cause)
			}
			require.Len(t, hooks.sent, tc.sent)
			require.Equal(t, tc.owned, other.requests.Load() == 1)
			require.Zero(t, other.Live.InFlight.Load())
		})
	}
}

// TestNothingComesAfterADrainedEndpointIsIdle: once it is marked and has nothing in flight, it stays so.
func TestNothingComesAfterADrainedEndpointIsIdle(t *testing.T) {
	e := endpoint("a", "http://a")
	var entered atomic.Int64
	stop := make(chan struct{})
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			k := &task{x: &Exchange{List: []*pick.Endpoint{e}}}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if k.enter(0) {
					entered.Add(1)
					e.Live.InFlight.Add(-1)
				}
				runtime.Gosched()
			}
		})
	}
	for range 20000 {
		e.Live.Draining.Store(true)
		for e.Live.InFlight.Load() != 0 {
			runtime.Gosched()
		}
		n := entered.Load()
		for range 20 {
			runtime.Gosched()
		}
		require.Equal(t, n, entered.Load())
		e.Live.Draining.Store(false)
		runtime.Gosched()
	}
	close(stop)
	g.Wait()
}

func provider(e *pick.Endpoint, inFlight int) *pick.Endpoint {
	e.Provider = &mobula.ProviderTarget{Kind: "openai", InFlight: inFlight}
	return e
}

func outside(*pick.Endpoint) (string, []byte, []byte) {
	return "/there", []byte("a: b\r\n"), []byte("{}")
}

func TestAProviderIsAskedWithinItsBound(t *testing.T) {
	var got []string
	p := newFake(t, func(r *request) bool {
		got = append(got, r.RequestURI+" "+r.Header.Get("a")+" "+string(r.body)+" "+r.Host)
		r.say(plain(200, "{}", "set-cookie: a=b", "content-language: en"))
		return true
	})
	provider(p.Endpoint, 1)
	p.APIKey = "sk"
	r, _, client := asked(t, func(x *Exchange) { x.Outside = outside }, p.Endpoint)
	require.Equal(t, 200, r.Status)
	require.Equal(t, []string{"/there b {} " + p.l.Addr().String()}, got)
	_, fields, _, _, _ := client.Answer()
	require.Contains(t, fields, "content-language: en")
	require.NotContains(t, fields, "set-cookie")

	p.Live.InFlight.Store(1)
	good := newFake(t, always(plain(200, "{}")))
	r, _, _ = asked(t, func(x *Exchange) { x.Outside = outside }, p.Endpoint, good.Endpoint)
	require.Equal(t, good.Endpoint, r.Endpoint)
	r, _, _ = asked(t, func(x *Exchange) { x.Outside = outside }, p.Endpoint)
	var e *Error
	require.ErrorAs(t, r.Err, &e)
	require.Equal(t, CauseBusy, e.Cause)
	require.Zero(t, r.Attempts)
	require.EqualValues(t, 1, p.Live.InFlight.Load())

	p.Live.InFlight.Store(0)
	r, _, _ = asked(t, nil, p.Endpoint) // nobody says what may go there
	require.Error(t, r.Err)
	require.Len(t, got, 1)
}

func TestWhatAProviderSaysOfOurKeyStaysHere(t *testing.T) {
	for _, status := range []int{401, 402, 403, 404} {
		p := newFake(t, always(plain(status, `{"error":"sk-o...rs is not a key"}`)))
		provider(p.Endpoint, 1)
		r, hooks, client := asked(t, func(x *Exchange) { x.Outside = outside }, p.Endpoint)
		var e *Error
		require.ErrorAs(t, r.Err, &e)
		require.Equal(t, CauseStatus, e.Cause)
		require.Zero(t, r.Status)
		require.False(t, hooks.ended[0].Retried)
		got, _, _, body, _ := client.Answer()
		require.Zero(t, got)
		require.Empty(t, body)
	}
}

func TestALimitThatIsGivenHolds(t *testing.T) {
	f := newFake(t, func(r *request) bool { return r.waitGone() == nil })
	r, _, _ := asked(t, func(x *Exchange) { x.Limit = time.Now().Add(50 * time.Millisecond) }, f.Endpoint)
	var e *Error
	require.ErrorAs(t, r.Err, &e)
	require.Equal(t, CauseFirstByte, e.Cause)
}

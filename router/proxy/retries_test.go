package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

// hang answers nothing until the other side gives up.
func hang(r *request) bool { _ = r.waitGone(); return false }

func TestFailuresBeforeTheFirstByteAreRetriedOnTheNext(t *testing.T) {
	errorStream := streamHead + chunk(event(`{"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}`)) + chunk(event("[DONE]")) + lastChunk0
	for _, c := range []struct {
		name   string
		script func(r *request) bool // nil refuses
		cause  Cause
	}{
		{name: "refuses", cause: CauseConnect},
		{name: "hangs", script: hang, cause: CauseFirstByte},
		{name: "hangs after the head", script: func(r *request) bool { r.say(streamHead); return hang(r) }, cause: CauseFirstByte},
		{name: "resets", script: func(r *request) bool { r.reset(); return false }, cause: CauseReset},
		{name: "closes", script: func(*request) bool { return false }, cause: CauseReset},
		{name: "closes in the head", script: func(r *request) bool { r.say("HTTP/1.1 200 OK\r\nA:"); return false }, cause: CauseReset},
		{name: "closes in a short plain body", script: func(r *request) bool { r.say(plain(200, strings.Repeat("x", 100))[:120]); return false }, cause: CauseTruncated},
		{name: "stalls in a short plain body", script: func(r *request) bool { r.say(plain(200, strings.Repeat("x", 100))[:120]); return hang(r) }, cause: CauseIdle},
		{name: "500", script: always(plain(500, "oops")), cause: CauseStatus},
		{name: "503", script: always(plain(503, "later", "Retry-After: 99")), cause: CauseStatus},
		{name: "429", script: always(plain(429, "later", "Retry-After: 1")), cause: CauseBusy},
		{name: "garbage", script: func(r *request) bool { r.say("\x00\x01 not HTTP\r\n\r\n"); return false }, cause: CauseProtocol},
		{name: "switching protocols", script: always("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), cause: CauseProtocol},
		{name: "endless 1xx", script: always(strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 99)), cause: CauseProtocol},
		{name: "stream begins with an error event", script: always(errorStream), cause: CauseTruncated},
		{name: "stream begins with half an error event", script: func(r *request) bool {
			half := `data: {"error": {"message": "x", "co`
			r.say(streamHead + chunk(half))
			time.Sleep(5 * time.Millisecond) // so that it likely is a read of its own
			r.say(chunk(`de": 500}}`+"\n\n") + lastChunk0)
			return true
		}, cause: CauseTruncated},
		{name: "Anthropic stream begins with an error event", script: always(streamHead + chunk("event: error\n"+event(`{"type":"error","error":{"type":"api_error","message":"x"}}`)) + lastChunk0), cause: CauseTruncated},
		{name: "stream without events", script: always(streamHead + lastChunk0), cause: CauseTruncated},
		{name: "stream cut before an event", script: func(r *request) bool { r.say(streamHead); return false }, cause: CauseTruncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := refusing(t)
			if c.script != nil {
				bad = newFake(t, c.script).Endpoint
			}
			good := newFake(t, always(stream(3)))
			o := retries(1)
			o.Timeouts = mobula.Timeouts{FirstByte: mobula.Duration(2 * time.Second), Idle: mobula.Duration(2 * time.Second)} // the good one needs some of it on a busy machine
			x := exchange(bad, good.Endpoint)
			x.Stream = true
			got := do(t, newProxy(t, o), x, &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, tokens(3)+event("[DONE]"), got.body)
			require.Equal(t, []string{c.cause.String() + "+", "ok"}, got.causes())
			require.Equal(t, []string{bad.ID, good.ID}, got.sent)
			require.Equal(t, 2, got.Attempts)
			require.Len(t, got.first, 1)
		})
	}
}

func TestTheLastFailureGoesToTheClient(t *testing.T) {
	t.Run("an answer as the engine sent it", func(t *testing.T) {
		a, b := newFake(t, always(plain(500, "a"))), newFake(t, always(plain(503, "b", "Retry-After: 99")))
		got := do(t, newProxy(t, retries(2)), exchange(a.Endpoint, b.Endpoint), &MemoryClient{})
		require.NoError(t, got.Err)
		require.Equal(t, 503, got.status)
		require.Equal(t, "b", got.body)
		require.Contains(t, got.fields, "Retry-After: 99\r\n")
		require.Equal(t, []string{"status_5xx+", "status_5xx"}, got.causes())
	})
	t.Run("else an error", func(t *testing.T) {
		a := newFake(t, always(plain(429, "a", "Retry-After: 7")))
		e := refusing(t)
		got := do(t, newProxy(t, retries(2)), exchange(a.Endpoint, e), &MemoryClient{})
		require.Equal(t, CauseConnect, cause(t, got.Err))
		require.Equal(t, 0, got.Status)
		require.False(t, got.Cut)
		require.ErrorContains(t, got.Err, "engine refusing: connect")
		var pe *Error
		require.ErrorAs(t, got.Err, &pe)
		require.Equal(t, 7*time.Second, pe.RetryAfter)
		require.Equal(t, e, got.Endpoint)
	})
	t.Run("attempts are bounded", func(t *testing.T) {
		var list []*pick.Endpoint
		for range 5 {
			list = append(list, refusing(t))
		}
		require.Equal(t, 3, do(t, newProxy(t, retries(2)), exchange(list...), &MemoryClient{}).Attempts)
	})
}

func TestClientErrorsAreNotRetried(t *testing.T) {
	a, b := newFake(t, always(plain(400, "no"))), newFake(t, always(plain(200, "yes")))
	got := do(t, newProxy(t, retries(2)), exchange(a.Endpoint, b.Endpoint), &MemoryClient{})
	require.NoError(t, got.Err)
	require.Equal(t, 400, got.status)
	require.Equal(t, []string{"ok"}, got.causes())
}

func TestPoisonousRequestsDoNotCountAgainstEngines(t *testing.T) {
	for _, c := range []struct {
		name, body string
		status     int
		want       string
	}{
		{name: "method", body: "{}", status: 501, want: "ok"},
		{name: "version", body: "{}", status: 505, want: "ok"},
		{name: "500 for JSON that is not UTF-8", body: "{\"a\":\"\xff\"}", status: 500, want: "ok"},
		{name: "500 for bytes that need not be", body: "--b\r\n\xff", status: 500, want: "status_5xx"},
		{name: "500 for good JSON", body: `{"a":"ü"}`, status: 500, want: "status_5xx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, always(plain(c.status, "oops")))
			x := exchange(f.Endpoint)
			x.Body = []byte(c.body)
			got := do(t, newProxy(t, retries(2)), x, &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, []string{c.want}, got.causes())
			require.Equal(t, "oops", got.body)
		})
	}
}

func TestRetryAfter(t *testing.T) {
	busyOnce := func(field string) func(r *request) bool {
		return func(r *request) bool {
			if r.n == 1 {
				r.say(plain(429, "busy", field))
			} else {
				r.say(plain(200, "fine"))
			}
			return true
		}
	}
	t.Run("is waited for when nobody is left", func(t *testing.T) {
		f := newFake(t, busyOnce("Retry-After: 0"))
		got := do(t, newProxy(t, retries(1)), exchange(f.Endpoint), &MemoryClient{})
		require.NoError(t, got.Err)
		require.Equal(t, "fine", got.body)
		require.Equal(t, []string{"busy+", "ok"}, got.causes())
		require.EqualValues(t, 1, f.conns.Load(), "the connection of the 429 is used again")
	})
	t.Run("in time", func(t *testing.T) {
		f := newFake(t, busyOnce("Retry-After: 1"))
		start := time.Now()
		got := do(t, newProxy(t, retries(1)), exchange(f.Endpoint), &MemoryClient{})
		require.Equal(t, "fine", got.body)
		require.GreaterOrEqual(t, time.Since(start), time.Second)
	})
	for _, field := range []string{"Retry-After: 3", "Retry-After: soon", "X-None: 1", "Retry-After: Fri, 31 Dec 2999 23:59:59 GMT"} {
		t.Run("passes the answer with "+field, func(t *testing.T) {
			got := do(t, newProxy(t, retries(1)), exchange(newFake(t, busyOnce(field)).Endpoint), &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, 429, got.status)
			require.Contains(t, got.fields, field+"\r\n")
			require.Equal(t, []string{"busy"}, got.causes())
		})
	}
	t.Run("another engine is asked at once", func(t *testing.T) {
		a, b := newFake(t, always(plain(503, "busy", "Retry-After: 3600"))), newFake(t, always(plain(200, "fine")))
		got := do(t, newProxy(t, retries(1)), exchange(a.Endpoint, b.Endpoint), &MemoryClient{})
		require.Equal(t, "fine", got.body)
	})
}

func TestRetriesHaveABudget(t *testing.T) {
	bad, good := newFake(t, always(plain(500, "bad"))), newFake(t, always(plain(200, "good")))
	o := retries(1)
	o.Retries.Budget = 0
	p := newProxy(t, o)
	bodies := map[string]int{}
	for range 4 * budgetFree {
		bodies[do(t, p, exchange(bad.Endpoint, good.Endpoint), &MemoryClient{}).body]++
	}
	require.GreaterOrEqual(t, bodies["good"], budgetFree)
	require.Positive(t, bodies["bad"], "the budget is used up at some time")
}

func TestIdleConnectionsThatAreClosedAreReplacedSilently(t *testing.T) {
	t.Run("closed while idle", func(t *testing.T) {
		f := newFake(t, func(r *request) bool { r.say(plain(200, "hi")); return false })
		p := newProxy(t, Options{})
		for i := range 5 {
			got := do(t, p, exchange(f.Endpoint), &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, []string{"ok"}, got.causes())
			require.EqualValues(t, i+1, f.conns.Load())
		}
	})
	t.Run("closed when the request comes", func(t *testing.T) {
		f := newFake(t, func(r *request) bool {
			if r.n == 2 {
				r.reset()
				return false
			}
			r.say(plain(200, "hi"))
			return true
		})
		p := newProxy(t, Options{})
		for range 2 {
			got := do(t, p, exchange(f.Endpoint), &MemoryClient{})
			require.NoError(t, got.Err)
			require.Equal(t, []string{"ok"}, got.causes())
		}
		require.EqualValues(t, 2, f.conns.Load())
	})
	t.Run("bytes that nobody asked for", func(t *testing.T) {
		// What came on an idle connection must not be taken for the next answer.
		said := make(chan struct{})
		f := newFake(t, func(r *request) bool {
			r.say(plain(200, "hi"))
			if r.n == 1 {
				go func() {
					defer close(said)
					time.Sleep(50 * time.Millisecond)
					r.say(plain(200, "somebody else's"))
				}()
			}
			return true
		})
		p := newProxy(t, Options{})
		require.Equal(t, "hi", do(t, p, exchange(f.Endpoint), &MemoryClient{}).body)
		<-said
		require.Eventually(t, func() bool { return !p.pool(f.Endpoint).idle[0].alive() }, patience, time.Millisecond)
		require.Equal(t, "hi", do(t, p, exchange(f.Endpoint), &MemoryClient{}).body)
		require.EqualValues(t, 2, f.conns.Load())
	})
	t.Run("dead engine", func(t *testing.T) {
		f := newFake(t, always(plain(200, "hi")))
		good := newFake(t, always(plain(200, "good")))
		p := newProxy(t, retries(1))
		require.Equal(t, "hi", do(t, p, exchange(f.Endpoint, good.Endpoint), &MemoryClient{}).body)
		f.kill()
		got := do(t, p, exchange(f.Endpoint, good.Endpoint), &MemoryClient{})
		require.Equal(t, "good", got.body)
		require.Equal(t, []string{"connect+", "ok"}, got.causes())
	})
}

func TestAnswerBeforeTheWholeBodyIsReadPasses(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1<<10))
			_, _ = c.Write([]byte(plain(413, "too large")))
			_ = c.Close() // a reset, as there are bytes unread
		}
	}()
	p := newProxy(t, Options{})
	for range 20 {
		x := exchange(endpoint("e", "http://"+l.Addr().String()))
		x.Body = make([]byte, 32<<20)
		got := do(t, p, x, &MemoryClient{})
		require.NoError(t, got.Err)
		require.Equal(t, 413, got.status)
		require.Equal(t, []Stat{{Endpoint: "e"}}, p.Stats())
	}
	require.NoError(t, l.Close())
	<-done
}

func TestWhatADeadEngineLeavesMovesWithoutBudget(t *testing.T) {
	for name, c := range map[string]struct {
		script  func(r *request) bool
		ejected bool
	}{
		"resets":                {script: func(r *request) bool { r.reset(); return false }},
		"fails and was ejected": {script: func(r *request) bool { r.say(plain(500, "no")); return true }, ejected: true},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := newFake(t, c.script), newFake(t, func(r *request) bool { r.say(plain(200, "good")); return true })
			bad.Live.Ejected.Store(c.ejected)
			o := retries(1)
			o.Retries.Budget = 0
			p := newProxy(t, o)
			for range 4 * budgetFree {
				require.Equal(t, "good", do(t, p, exchange(bad.Endpoint, good.Endpoint), &MemoryClient{}).body)
			}
		})
	}
}

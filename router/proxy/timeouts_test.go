package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/pick"
)

// soon is a timeout that a test waits for; long is one that it must not.
const (
	soon = mobula.Duration(100 * time.Millisecond)
	long = mobula.Duration(time.Hour)
)

func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		name     string
		timeouts mobula.Timeouts
		stream   bool
		body     int
		script   func(r *request) bool
		cause    Cause
		got      string
	}{
		{name: "first byte of a stream", timeouts: mobula.Timeouts{FirstByte: soon, Plain: long, Idle: long}, stream: true, script: hang, cause: CauseFirstByte},
		{name: "first byte of a plain answer", timeouts: mobula.Timeouts{FirstByte: long, Plain: soon, Idle: long}, script: hang, cause: CauseFirstByte},
		{name: "half a head", timeouts: mobula.Timeouts{Plain: soon}, script: func(r *request) bool { r.say("HTTP/1.1 200"); return hang(r) }, cause: CauseFirstByte},
		{name: "an engine that does not read", timeouts: mobula.Timeouts{Plain: soon}, body: 64 << 20, cause: CauseFirstByte},
		{name: "between reads of a stream", timeouts: mobula.Timeouts{Idle: soon}, stream: true, script: func(r *request) bool {
			r.say(streamHead + chunk(token(0)))
			return hang(r)
		}, cause: CauseIdle, got: token(0) + event(`{"error":{"message":"the engine stopped sending before the end of its answer","type":"EngineError","param":null,"code":504}}`)},
		{name: "between reads of a plain answer", timeouts: mobula.Timeouts{Idle: soon}, script: func(r *request) bool {
			r.say(plain(200, strings.Repeat("x", 100<<10))[:50<<10])
			return hang(r)
		}, cause: CauseIdle},
		{name: "whole request", timeouts: mobula.Timeouts{Idle: long, Total: 5 * soon}, stream: true, script: func(r *request) bool {
			r.say(streamHead)
			for time.Sleep(time.Millisecond); ; time.Sleep(time.Duration(soon) / 10) {
				if _, err := r.conn.Write([]byte(chunk(": tick\n\n"))); err != nil {
					return false
				}
			}
		}, cause: CauseIdle},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e *pick.Endpoint
			if c.script != nil {
				e = newFake(t, c.script).Endpoint
			} else {
				l := listen(t, "127.0.0.1:0") // its backlog takes the connection
				t.Cleanup(func() { _ = l.Close() })
				e = endpoint("e", "http://"+l.Addr().String())
			}
			x := exchange(e)
			x.Stream = c.stream
			x.Body = append(x.Body, make([]byte, c.body)...)
			got := do(t, newProxy(t, Options{Timeouts: c.timeouts}), x, &MemoryClient{})
			require.Equal(t, c.cause, cause(t, got.Err))
			require.Equal(t, []string{c.cause.String()}, got.causes())
			if c.got != "" {
				require.Equal(t, c.got, got.body)
			}
			require.Equal(t, got.status != 0 && !c.stream, got.Cut)
		})
	}
}

func TestADeadlineOfAnEarlierRequestDoesNotEndALaterOne(t *testing.T) {
	f := newFake(t, func(r *request) bool {
		if r.n == 2 {
			time.Sleep(300 * time.Millisecond)
		}
		r.say(plain(200, "hi"))
		return true
	})
	p := newProxy(t, Options{Timeouts: mobula.Timeouts{Plain: 2 * soon}})
	require.NoError(t, do(t, p, exchange(f.Endpoint), &MemoryClient{}).Err)
	p.Update(Options{Timeouts: mobula.Timeouts{Plain: long}})
	require.NoError(t, do(t, p, exchange(f.Endpoint), &MemoryClient{}).Err)
	require.EqualValues(t, 1, f.conns.Load())
}

func TestConnectTimeout(t *testing.T) {
	p := newProxy(t, Options{Timeouts: mobula.Timeouts{Connect: 1}})
	got := do(t, p, exchange(newFake(t, hang).Endpoint), &MemoryClient{})
	require.Equal(t, CauseConnect, cause(t, got.Err))
}

func TestDefaults(t *testing.T) {
	o := Options{}.withDefaults()
	require.Equal(t, mobula.Timeouts{
		Connect: mobula.Duration(2 * time.Second), FirstByte: mobula.Duration(time.Minute), Plain: mobula.Duration(10 * time.Minute),
		Idle: mobula.Duration(time.Minute), Total: mobula.Duration(time.Hour),
	}, o.Timeouts)
	require.Equal(t, 1024, o.IdleConnections)
}

func TestPlainAnswersLeaveAnEngineThatHangs(t *testing.T) {
	hung, good := newFake(t, hang), newFake(t, func(r *request) bool {
		r.say(plain(200, "hi"))
		return true
	})
	x := exchange(hung.Endpoint, good.Endpoint)
	l := &log{onOverdue: func(e *pick.Endpoint) { e.Live.Hung.Store(true) }} // as health does when a probe fails too
	x.Hooks = l
	c := &MemoryClient{}
	x.Client = c
	p := newProxy(t, Options{Timeouts: mobula.Timeouts{FirstByte: soon, Plain: long}, Retries: mobula.Retries{Attempts: 1, Budget: 1}})
	got := p.Do(x)
	require.NoError(t, got.Err)
	require.Same(t, good.Endpoint, got.Endpoint)
	require.Equal(t, 1, l.overdue)
	require.Equal(t, CauseFirstByte, l.ended[0].Cause)
	require.Zero(t, hung.Live.InFlight.Load())
}

func TestPlainAnswersLeaveAnEngineThatIsSilent(t *testing.T) {
	silent, good := newFake(t, hang), newFake(t, func(r *request) bool {
		r.say(plain(200, "hi"))
		return true
	})
	silent.Live.Silent.Store(true) // as health does when /health does not answer either
	x := exchange(silent.Endpoint, good.Endpoint)
	x.Hooks, x.Client = &log{}, &MemoryClient{}
	p := newProxy(t, Options{Timeouts: mobula.Timeouts{FirstByte: long, Plain: long}, Retries: mobula.Retries{Attempts: 1, Budget: 1}})
	got := p.Do(x)
	require.NoError(t, got.Err)
	require.Same(t, good.Endpoint, got.Endpoint)
}

func TestPlainAnswersAreWaitedForWhileTheEngineAnswersOthers(t *testing.T) {
	f := newFake(t, func(r *request) bool {
		time.Sleep(5 * time.Duration(soon))
		r.say(plain(200, "late"))
		return true
	})
	f.Live.Hung.Store(true) // an engine that answers is not left, whatever is thought of it
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(soon) / 10):
				f.Live.Heard.Store(time.Now().Add(time.Minute).UnixNano())
			}
		}
	}()
	f.Live.Heard.Store(time.Now().Add(time.Minute).UnixNano())
	got := do(t, newProxy(t, Options{Timeouts: mobula.Timeouts{FirstByte: soon, Plain: long}}), exchange(f.Endpoint), &MemoryClient{})
	close(stop)
	<-done
	require.NoError(t, got.Err)
	require.Equal(t, "late", got.body)
}

package health

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/router/proxy"
)

func bad(c proxy.Cause) input { return input{event: requestBad, cause: c} }

func on(e event) input { return input{event: e} }

func TestMachine(t *testing.T) {
	var (
		up     = []input{on(healthGood)}
		late   = input{event: requestGood, late: true}
		recent = input{event: healthSilent, recent: true}
		hung   = []input{on(healthGood), bad(proxy.CauseFirstByte)}
		reset  = bad(proxy.CauseReset)
		status = bad(proxy.CauseStatus)
	)
	for _, c := range []struct {
		name   string
		start  []input
		events []input
		want   state
		reason string
	}{
		{"a new endpoint serves once it answers", nil, []input{on(healthGood)}, stateUp, ""},
		{"a new endpoint that refuses stays new", nil, []input{on(healthRefused), on(healthSick), on(healthSilent), on(healthSilent), on(healthSilent)}, stateNew, ""},

		{"a refused probe ejects at once", up, []input{on(healthRefused)}, stateDown, "refused"},
		{"a refused probe ejects whatever requests said", up, []input{on(requestGood), {event: healthRefused, recent: true}}, stateDown, "refused"},
		{"two silent probes do not eject", up, []input{on(healthSilent), on(healthSilent)}, stateUp, ""},
		{"three do", up, []input{on(healthSilent), on(healthSick), on(healthSilent)}, stateDown, "health"},
		{"a good probe between them resets", up, []input{on(healthSilent), on(healthSilent), on(healthGood), on(healthSilent)}, stateUp, ""},
		{"a good request between them resets", up, []input{on(healthSilent), on(healthSilent), on(requestGood), on(healthSilent)}, stateUp, ""},
		{"probes fail but requests succeed", up, []input{recent, recent, recent, recent}, stateUp, ""},

		{"a refused request ejects at once", up, []input{bad(proxy.CauseConnect)}, stateDown, "connect"},
		{"two resets do not eject", up, []input{reset, reset}, stateUp, ""},
		{"three do, and /health that was good is no proof", up, []input{reset, reset, reset}, stateHung, "reset"},
		{"three truncated answers do", up, []input{bad(proxy.CauseTruncated), bad(proxy.CauseTruncated), bad(proxy.CauseTruncated)}, stateHung, "truncated"},
		{"any three failures do", up, []input{status, bad(proxy.CauseProtocol), reset}, stateHung, "reset"},
		{"three resets while /health fails too are a dead server", up, []input{on(healthSilent), reset, reset}, stateDown, "reset"},
		{"a good request between them resets them", up, []input{reset, reset, on(requestGood), reset, reset}, stateUp, ""},
		{"a good probe between them does not", up, []input{status, on(healthGood), status, on(healthGood), status}, stateHung, "status_5xx"},
		{"one first-byte timeout ejects", up, []input{bad(proxy.CauseFirstByte)}, stateHung, "first_byte_timeout"},
		{"one stall ejects", up, []input{bad(proxy.CauseIdle)}, stateHung, "idle_timeout"},
		{"a first-byte timeout while /health fails is a dead server", up, []input{on(healthSilent), bad(proxy.CauseFirstByte)}, stateDown, "first_byte_timeout"},

		{"an overdue answer alone does not eject", up, []input{on(requestOverdue), on(healthGood)}, stateUp, ""},
		{"a failed inference probe after it does", up, []input{on(requestOverdue), on(inferSlow)}, stateHung, "first_byte_timeout"},
		{"a refused one too", up, []input{on(requestOverdue), on(inferRefused)}, stateDown, "refused"},
		{"a good one takes the doubt away", up, []input{on(requestOverdue), on(inferGood), on(inferBad)}, stateUp, ""},
		{"so does a good request", up, []input{on(requestOverdue), on(requestGood), on(inferBad)}, stateUp, ""},
		{"an overdue answer says nothing of an ejected endpoint", append(up, on(healthRefused)), []input{on(requestOverdue), on(healthGood), on(inferBad)}, stateUp, "refused"},

		{"down comes back by a good probe", append(up, on(healthRefused)), []input{on(healthGood)}, stateUp, "refused"},
		{"down stays by a bad one", append(up, on(healthRefused)), []input{on(healthSilent), on(healthSick)}, stateDown, "refused"},
		{"down stays when an earlier request ends well", append(up, on(healthRefused)), []input{late}, stateDown, "refused"},
		{"down comes back when a request sent since ends well", append(up, on(healthRefused)), []input{on(requestGood)}, stateUp, "refused"},
		{"down is not told by an inference probe", append(up, on(healthRefused)), []input{on(inferGood)}, stateDown, "refused"},

		{"hung stays while only /health is good", hung, []input{on(healthGood), on(healthGood)}, stateHung, "first_byte_timeout"},
		{"hung comes back by inference", hung, []input{on(inferSlow), on(inferBad), on(inferGood)}, stateUp, "first_byte_timeout"},
		{"hung stays when an earlier request ends well", hung, []input{late}, stateHung, "first_byte_timeout"},
		{"hung comes back when a request sent since ends well", hung, []input{on(requestGood)}, stateUp, "first_byte_timeout"},
		{"hung and then gone: /health can tell again", hung, []input{on(healthRefused), on(healthGood)}, stateUp, "first_byte_timeout"},
		{"hung and then gone, seen by the inference probe", hung, []input{on(inferRefused), on(healthGood)}, stateUp, "first_byte_timeout"},
		{"hung and then gone, seen by a request", hung, []input{bad(proxy.CauseConnect), on(healthGood)}, stateUp, "first_byte_timeout"},
		{"hung and knows it", hung, []input{on(healthSick), on(healthGood)}, stateUp, "first_byte_timeout"},
		{"hung with a silent /health stays hung", hung, []input{on(healthSilent), on(healthGood)}, stateHung, "first_byte_timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m machine
			for _, in := range append(append([]input{}, c.start...), c.events...) {
				m = m.next(in, 3)
			}
			require.Equal(t, c.want.String(), m.state.String())
			require.Equal(t, c.reason, m.reason)
		})
	}
}

func TestPaceOfInferenceProbes(t *testing.T) {
	hang := bad(proxy.CauseFirstByte)
	s := time.Second
	for _, c := range []struct {
		name   string
		events []input
		want   []time.Duration // before each of the events, and after the last
	}{
		{"the first at once, then ever slower", []input{hang, on(inferSlow), on(inferSlow), on(inferSlow), on(inferSlow), on(inferSlow), on(inferSlow)}, []time.Duration{0, 0, s, 2 * s, 4 * s, 8 * s, 10 * s, 10 * s}},
		{"quicker while it fails at once", []input{hang, on(inferBad), on(inferBad), on(inferBad), on(inferBad)}, []time.Duration{0, 0, s, 2 * s, 2 * s, 2 * s}},
		{"a probe that passes before requests hang again slows the next", []input{hang, on(inferGood), hang, on(inferGood), hang}, []time.Duration{0, 0, 0, s, s, 2 * s}},
		{"a good request starts over", []input{hang, on(inferGood), hang, on(inferGood), on(requestGood), hang}, []time.Duration{0, 0, 0, s, s, 0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machine{}.next(on(healthGood), 3)
			got := []time.Duration{m.inferAfter()}
			for _, in := range c.events {
				m = m.next(in, 3)
				got = append(got, m.inferAfter())
			}
			require.Equal(t, c.want, got)
		})
	}
}

func TestMachineProperties(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) input {
		return input{
			event: rapid.Custom(func(t *rapid.T) event {
				return event(rapid.IntRange(int(healthGood), int(requestOverdue)).Draw(t, "event"))
			}).Draw(t, "event"),
			cause:  proxy.Cause(rapid.IntRange(int(proxy.CauseConnect), int(proxy.CauseIdle)).Draw(t, "cause")),
			recent: rapid.Bool().Draw(t, "recent"),
			late:   rapid.Bool().Draw(t, "late"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		ejectAfter := rapid.IntRange(1, 5).Draw(t, "ejectAfter")
		var m machine
		failures, row := 0, 0 // since the last success; requests failed in a row while up
		for _, in := range rapid.SliceOfN(draw, 1, 60).Draw(t, "events") {
			before := m
			m = m.next(in, ejectAfter)

			failed := in.event == requestBad || in.event >= healthRefused && in.event <= healthSilent ||
				before.doubted && in.event >= inferRefused && in.event <= inferSlow
			if failed {
				failures++
			}
			ejected := before.state == stateUp && m.state != stateUp
			if ejected && failures == 0 {
				t.Fatalf("ejected without a failure: %+v after %+v", m, in)
			}
			if ejected && !failed {
				t.Fatalf("ejected by %+v", in)
			}
			if ejected != (m.epoch == before.epoch+1) || !ejected && m.epoch != before.epoch {
				t.Fatalf("epoch from %d to %d", before.epoch, m.epoch)
			}
			if ejected && m.reason == "" {
				t.Fatal("ejected without a reason")
			}

			admitted := before.state != stateUp && m.state == stateUp
			if admitted && in.late {
				if in.event == requestGood {
					t.Fatal("admitted by a request from before the ejection")
				}
			}
			switch before.state {
			case stateNew, stateDown:
				if in.event == healthGood && !admitted {
					t.Fatalf("%v is not back after a good probe", before.state)
				}
			case stateHung:
				if in.event == inferGood && !admitted {
					t.Fatal("hung is not back after a good inference probe")
				}
				if in.event == healthGood && admitted {
					t.Fatal("hung is back by /health alone")
				}
			case stateUp:
				if in.event == requestBad {
					row++
				}
				if row >= ejectAfter && m.state == stateUp {
					t.Fatalf("still up after %d failed requests in a row", row)
				}
			}
			if m.state != stateUp && before.state != stateNew && m.state == stateNew {
				t.Fatal("new again")
			}
			if in.event == requestGood || m.state != stateUp || admitted {
				row = 0
			}
			if admitted || in.event == requestGood && before.state == stateUp {
				failures = 0
			}
			if m.calm() && m.next(on(requestGood), ejectAfter) != m {
				t.Fatalf("calm, yet a good request matters: %+v", m)
			}
			if d := m.inferAfter(); d < 0 || d > stuckAtMost {
				t.Fatalf("inference probe after %v", d)
			}
		}
	})
}

func TestOnlyAnEngineThatDoesNotAnswerIsSilent(t *testing.T) {
	fail := func(how event) machine {
		m := machine{}.next(input{event: healthGood}, 3)
		for range 3 {
			require.False(t, m.silent)
			m = m.next(input{event: how}, 3)
		}
		require.Equal(t, stateDown, m.state)
		return m
	}
	require.True(t, fail(healthSilent).silent)
	require.False(t, fail(healthSick).silent, "it answers, if with an error: what it works on may yet end")
	require.False(t, fail(healthSilent).next(input{event: healthGood}, 3).silent, "it is back")
}

func TestAFailedProbeIsFollowedSoonByTheNext(t *testing.T) {
	m := machine{}.next(input{event: healthGood}, 3)
	require.Equal(t, time.Second, m.healthEvery(time.Second))
	m = m.next(input{event: healthSilent}, 3)
	require.Equal(t, newEvery, m.healthEvery(time.Second))
	require.Equal(t, time.Second, m.next(input{event: healthGood}, 3).healthEvery(time.Second))
}

package health

import (
	"time"

	"github.com/mobula-serve/mobula/router/proxy"
)

// state is what we think of an endpoint.
type state uint8

const (
	stateNew  state = iota // has never answered
	stateUp                // serves
	stateDown              // ejected; a good health probe brings it back
	stateHung              // ejected while /health was good; only an inference probe can tell when it is back
)

func (s state) String() string { return [...]string{"new", "up", "down", "hung"}[s] }

// event is what happens to an endpoint.
type event uint8

const (
	healthGood     event = iota // /health answered
	healthRefused               // nothing listens
	healthSick                  // /health answered with a 5xx
	healthSilent                // /health did not answer, or not in HTTP
	inferGood                   // the inference probe passed
	inferRefused                // nothing listens
	inferBad                    // it failed at once
	inferSlow                   // it failed by its timeout
	requestGood                 // a request ended well
	requestBad                  // a request failed
	requestOverdue              // a plain answer has not begun while the engine answered nobody
	pauseOver                   // a provider has been left alone for long enough
)

// input is an event with what matters of its circumstances.
type input struct {
	event event
	cause proxy.Cause // of requestBad
	// recent: a request has succeeded since the health probe began.
	recent bool
	// late: the request was sent while the endpoint served. Once it is ejected, the end of
	// such a request says nothing about now.
	late bool
}

// reasonHealth and reasonRefused are ejections by probes; requests give their cause.
const (
	reasonHealth  = "health"
	reasonRefused = "refused"
)

// machine is the state of one endpoint. It is a value: next is pure.
//
// What requests say outweighs what /health says. Failures of both add up to an ejection,
// but a good probe clears only the probes' failures, and a request that succeeded lately
// keeps a bad probe from counting.
type machine struct {
	state    state
	probes   int // health probes failed in a row
	requests int // requests failed since one succeeded
	trips    int // ejections as hung and inference probes failed since a request succeeded
	slow     bool
	doubted  bool   // in service, but an inference probe is to tell whether it hangs
	silent   bool   // ejected as its /health did not answer
	epoch    int    // counts ejections; a probe begun in an earlier one is no proof
	reason   string // of the last ejection
}

// next is the machine after in. ejectAfter is at least 1.
func (m machine) next(in input, ejectAfter int) machine {
	switch in.event {
	case healthGood:
		m.probes = 0
		if m.state == stateNew || m.state == stateDown {
			m = m.admit()
		}
	case healthRefused, healthSick, healthSilent:
		return m.healthFailed(in, ejectAfter)
	case pauseOver:
		if m.state != stateUp {
			if m.state == stateDown {
				m.trips++ // an ejection as hung has counted
			}
			m = m.admit()
			m.requests = ejectAfter - 1 // on probation: one failure more ejects it again
		}
	case requestOverdue:
		m.doubted = m.state == stateUp
	case inferGood:
		m.doubted = false
		if m.state == stateHung {
			m = m.admit()
		}
	case inferRefused, inferBad, inferSlow:
		return m.inferFailed(in)
	case requestGood:
		switch {
		case m.state == stateUp:
			m.probes, m.requests, m.trips, m.slow, m.doubted = 0, 0, 0, false, false
		case !in.late:
			m = m.admit()
			m.trips, m.slow = 0, false
		}
	case requestBad:
		return m.requestFailed(in, ejectAfter)
	}
	return m
}

func (m machine) inferFailed(in input) machine {
	switch {
	case m.state == stateUp && m.doubted && in.event == inferRefused:
		return m.eject(stateDown, reasonRefused)
	case m.state == stateUp && m.doubted:
		m.slow = in.event == inferSlow
		return m.eject(stateHung, proxy.CauseFirstByte.String())
	case m.state == stateHung:
		m.trips++
		m.slow = in.event == inferSlow
		if in.event == inferRefused {
			m.state = stateDown
		}
	}
	return m
}

func (m machine) healthFailed(in input, ejectAfter int) machine {
	switch m.state {
	case stateUp:
		if in.event == healthRefused {
			return m.eject(stateDown, reasonRefused)
		}
		if in.recent {
			m.probes = 0
			return m
		}
		m.probes++
		if m.probes+m.requests >= ejectAfter {
			m = m.eject(stateDown, reasonHealth)
			m.silent = in.event == healthSilent
			return m
		}
	case stateHung:
		// The server itself is gone or knows that it is broken: /health can tell again.
		if in.event != healthSilent {
			m.state = stateDown
		}
	}
	return m
}

func (m machine) requestFailed(in input, ejectAfter int) machine {
	switch {
	case m.state == stateHung && in.cause == proxy.CauseConnect:
		m.state = stateDown
		return m
	case m.state != stateUp:
		return m
	}
	m.requests++
	switch in.cause {
	case proxy.CauseConnect:
		return m.eject(stateDown, in.cause.String())
	case proxy.CauseFirstByte, proxy.CauseIdle:
		// Each one more would cost a client the whole timeout.
	default:
		if m.probes+m.requests < ejectAfter {
			return m
		}
	}
	if m.probes > 0 {
		return m.eject(stateDown, in.cause.String())
	}
	return m.eject(stateHung, in.cause.String())
}

func (m machine) admit() machine {
	m.state, m.probes, m.requests, m.silent = stateUp, 0, 0, false
	return m
}

func (m machine) eject(to state, reason string) machine {
	m.state, m.reason, m.doubted = to, reason, false
	m.epoch++
	if to == stateHung {
		m.trips++
	}
	return m
}

// calm tells that a good request would change nothing.
func (m machine) calm() bool {
	return m.state == stateUp && m.probes == 0 && m.requests == 0 && m.trips == 0 && !m.doubted
}

// Pace of probes outside of the configured one.
const (
	newEvery    = 250 * time.Millisecond // until the first answer
	downEvery   = 500 * time.Millisecond // at most, to a first good one
	hungFirst   = time.Second            // after the first failed inference probe, doubled by each
	hungAtMost  = 2 * time.Second        // while it fails at once
	stuckAtMost = 10 * time.Second       // while it takes its whole timeout, which costs the engine a place
)

// healthEvery is the time between two health probes.
func (m machine) healthEvery(interval time.Duration) time.Duration {
	switch m.state {
	case stateNew:
		return min(interval, newEvery)
	case stateUp:
		if m.probes > 0 { // one failed: the others that eject it follow soon
			return min(interval, newEvery)
		}
		return interval
	default:
		return min(interval, downEvery)
	}
}

// Pauses of a provider.
const (
	firstPause = time.Second // doubled by each in a row
	maxPause   = time.Minute
)

// pause is how long an ejected provider is left alone.
func (m machine) pause() time.Duration { return min(firstPause<<min(m.trips, 10), maxPause) }

// inferAfter is the time from an ejection or a failed inference probe to the next one.
func (m machine) inferAfter() time.Duration {
	if m.trips <= 1 {
		return 0
	}
	most := hungAtMost
	if m.slow {
		most = stuckAtMost
	}
	return min(hungFirst<<min(m.trips-2, 10), most)
}

package scale

import (
	"fmt"
	"slices"
	"time"
)

const (
	// spans is how finely a window is remembered.
	spans = 16
	// A gap of so long between decisions makes what is remembered of needs worthless.
	maxGap = 30 * time.Second
	// settleTime is how long after a change of the replicas latencies still tell of the time before: a report's window and a bit.
	settleTime = 15 * time.Second
	// stepsDown is how many steps down may be taken within DownAfter.
	stepsDown = 5
	// lesson is how long it is remembered that a number of replicas was too small for a load.
	lesson = 6 * time.Hour
	// sameLoad is the share of a load down to which it counts as the same.
	sameLoad = 0.9
)

// Decide gives the number of replicas that should be awake now, and the state to go on with. It goes up to what was
// needed at least during UpAfter, and down to what was needed at most during DownAfter, not by more than half at
// once. From zero it goes up at the first request held; to zero, if the range begins there, when nobody has asked for ZeroAfter.
func Decide(in Input, s State) (Decision, State) {
	if s.At.IsZero() {
		s = State{Wanted: in.Range.Clamp(in.Ready + in.Starting), Reason: "as the fleet says", At: in.Now, Active: in.Now, Learnt: s.Learnt}
	}
	s.Ups, s.Downs = slices.Clone(s.Ups), slices.Clone(s.Downs)
	dt := in.Now.Sub(s.At)
	if dt < 0 || dt > maxGap {
		s.Ups, s.Downs, dt = nil, nil, max(0, min(dt, maxGap))
	}
	if w := in.Range.Clamp(s.Wanted); w != s.Wanted {
		s.move(w, "the range is "+in.Range.String(), in.Now)
	}
	if !in.Heard || in.Range.Min == in.Range.Max {
		if in.Heard { // so that zero is not reached at once when the range is made wider
			s.Active, s.At = in.Now, in.Now
		}
		return s.decision(), s
	}
	s.At = in.Now
	if in.Ready != s.Ready {
		s.Ready, s.Moved = in.Ready, in.Now
	}
	s.Learnt = s.Learnt.learn(&in, dt)
	s.active(&in)
	n := s.need(&in)
	s.Ups = remember(s.Ups, n.replicas, in.Now, time.Duration(in.Spec.UpAfter))
	s.Downs = remember(s.Downs, n.replicas, in.Now, time.Duration(in.Spec.DownAfter))
	s.apply(&in, n)
	return s.decision(), s
}

func (s *State) decision() Decision { return Decision{Replicas: s.Wanted, Reason: s.Reason} }

// active notes when somebody last asked.
func (s *State) active(in *Input) {
	d := &in.Demand
	last := d.LastRequest
	if last.After(in.Now) || in.InFlight > 0 || d.Held > 0 {
		last = in.Now
	}
	if last.After(s.Active) {
		s.Active = last
	}
}

// need gives what is needed now, within the range.
func (s *State) need(in *Input) need {
	n := assess(in, &s.Learnt, in.Now.Sub(s.Moved) >= settleTime)
	if s.TooFew > 0 && in.Now.Sub(s.TooFewAt) < lesson && s.Learnt.Requests >= sameLoad*s.Requests {
		n = n.more(need{s.TooFew + 1, fmt.Sprintf("%d were too few for %.1f requests/s", s.TooFew, s.Requests)})
	}
	least := need{in.Range.Min, "the range is " + in.Range.String()}
	if least.replicas == 0 && !s.idle(in) {
		least = need{1, "requests came in the last " + in.Spec.ZeroAfter.String()}
	}
	n = n.more(least)
	n.replicas = min(n.replicas, in.Range.Max)
	return n
}

func (s *State) idle(in *Input) bool { return in.Now.Sub(s.Active) >= time.Duration(in.Spec.ZeroAfter) }

// apply moves Wanted towards what was needed over time.
func (s *State) apply(in *Input, n need) {
	switch least, most := bounds(s.Ups, in.Now, in.Spec.UpAfter), bounds(s.Downs, in.Now, in.Spec.DownAfter); {
	case in.Range.Min == 0 && s.idle(in):
		if s.Wanted > 0 {
			s.move(0, "no request for "+in.Spec.ZeroAfter.String(), in.Now)
		}
	case s.Wanted == 0 && n.replicas > 0:
		s.up(n.replicas, n.why, in)
	case least.ok && least.Least > s.Wanted:
		s.up(least.Least, n.why, in)
	case most.ok && most.Most < s.Wanted && in.Now.Sub(s.Fell) >= time.Duration(in.Spec.DownAfter)/stepsDown:
		s.Fell = in.Now
		s.move(max(most.Most, s.Wanted/2), "for "+in.Spec.DownAfter.String()+" no more was needed than for "+n.why, in.Now)
	}
}

// up goes up, and notes a step down that was one too many.
func (s *State) up(to int, why string, in *Input) {
	if s.Wanted > 0 && in.Now.Sub(s.Fell) < 2*time.Duration(in.Spec.DownAfter) {
		s.TooFew, s.Requests, s.TooFewAt = s.Wanted, s.Learnt.Requests, in.Now
	}
	s.move(to, why, in.Now)
}

func (s *State) move(to int, why string, now time.Time) {
	s.Reason = fmt.Sprintf("%s: %d → %d", why, s.Wanted, to)
	s.Wanted = to
	_ = now
}

// remember adds a need to a window of the last so long, and forgets what is older.
func remember(w []Span, n int, now time.Time, window time.Duration) []Span {
	if last := len(w) - 1; last >= 0 && now.Sub(w[last].From) < window/spans {
		w[last].Least, w[last].Most = min(w[last].Least, n), max(w[last].Most, n)
	} else {
		w = append(w, Span{From: now, Least: n, Most: n})
	}
	// The oldest one begins before the window, so that all of it is seen.
	for len(w) > 1 && now.Sub(w[1].From) >= window || len(w) > 2*spans {
		w = w[1:]
	}
	return w
}

// extent is a Span over a whole window; ok is false while less of it has passed.
type extent struct {
	Span
	ok bool
}

package scale

import (
	"fmt"
	"slices"
	"time"
)

const (
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
	// nonsense is more than any measurement.
	nonsense = 1e9
)

// Decide gives the number of replicas that should be awake now, and the state to go on with. When more than there are were
// needed all the time for UpAfter it goes up to what is needed now; it goes down to the most that was needed at any time
// in DownAfter, by half of them at once at most. From zero it goes up at the first request held; to zero, if the range
// begins there, when nobody has asked for ZeroAfter.
func Decide(in Input, s State) (Decision, State) {
	in.tidy()
	if s.At.IsZero() {
		s = State{Wanted: in.Range.Clamp(in.Ready + in.Starting), Reason: "as the fleet says", At: in.Now, Active: in.Now, Learnt: s.Learnt}
	}
	s.Ups, s.Downs = slices.Clone(s.Ups), slices.Clone(s.Downs)
	dt := in.Now.Sub(s.At)
	if dt < 0 || dt > maxGap {
		s.Ups, s.Downs, dt = nil, nil, max(0, min(dt, maxGap))
		s.Active = in.Now // for what anybody knows
	}
	if w := in.Range.Clamp(s.Wanted); w != s.Wanted {
		s.move(w, "the range is "+in.Range.String())
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
	s.Learnt = s.Learnt.learn(&in, dt, s.settled(&in))
	s.active(&in)
	s.apply(&in, s.need(&in))
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
	n := assess(in, &s.Learnt, s.settled(in))
	if s.TooFew > 0 && in.Now.Sub(s.TooFewAt) < lesson && s.Learnt.Requests >= sameLoad*s.Requests {
		n = n.more(need{s.TooFew + 1, fmt.Sprintf("%d were too few for %.1f requests/s", s.TooFew, s.Requests)})
	}
	floor := need{in.Range.Min, "the range is " + in.Range.String()}
	if floor.replicas == 0 && !s.idle(in) {
		floor = need{1, "requests came in the last " + in.Spec.ZeroAfter.String()}
	}
	n = n.more(floor)
	n.replicas = min(n.replicas, in.Range.Max)
	return n
}

// settled tells that latencies are those of the replicas that serve now.
func (s *State) settled(in *Input) bool { return in.Now.Sub(s.Moved) >= settleTime }

func (s *State) idle(in *Input) bool { return in.Now.Sub(s.Active) >= time.Duration(in.Spec.ZeroAfter) }

// apply moves Wanted towards what was needed over time.
func (s *State) apply(in *Input, n need) {
	upAfter, downAfter := time.Duration(in.Spec.UpAfter), time.Duration(in.Spec.DownAfter)
	s.Ups = remember(s.Ups, n.replicas, in.Now, upAfter, lesser)
	s.Downs = remember(s.Downs, n.replicas, in.Now, downAfter, greater)
	low, longUp := over(s.Ups, in.Now, upAfter, lesser)
	high, longDown := over(s.Downs, in.Now, downAfter, greater)
	switch {
	case in.Range.Min == 0 && s.idle(in):
		if s.Wanted > 0 {
			s.move(0, "no request for "+in.Spec.ZeroAfter.String())
		}
	case s.Wanted == 0:
		if in.Demand.Held > 0 || in.Demand.Requests > 0 {
			s.move(n.replicas, n.why)
		}
	case longUp && low > s.Wanted:
		if in.Now.Sub(s.Fell) < 2*downAfter { // the step down was one too many
			s.TooFew, s.Requests, s.TooFewAt = s.Wanted, s.Learnt.Requests, in.Now
		}
		s.move(n.replicas, n.why)
	case longDown && high < s.Wanted && in.Now.Sub(s.Fell) >= downAfter/stepsDown:
		s.Fell = in.Now
		s.move(max(high, s.Wanted/2), "no more needed for "+in.Spec.DownAfter.String()+", now "+n.why)
	}
}

func (s *State) move(to int, why string) {
	s.Reason = fmt.Sprintf("%s: %d → %d", why, s.Wanted, to)
	s.Wanted = to
}

// tidy keeps nonsense of a router from staying in the means for ever.
func (in *Input) tidy() {
	for _, v := range []*int{
		&in.Ready, &in.Starting, &in.Asleep, &in.InFlight, &in.WaitingTokens,
		&in.Demand.Held, &in.Demand.HeldTokens, &in.Demand.Requests, &in.Demand.PromptTokens, &in.Demand.Answered,
	} {
		*v = min(max(*v, 0), nonsense)
	}
	for _, v := range []*float64{
		&in.StartTime, &in.PrefillRate, &in.Demand.TTFT50, &in.Demand.TTFT90, &in.Demand.ITL50, &in.Demand.ITL90,
	} {
		if !(*v >= 0) {
			*v = 0
		}
		*v = min(*v, nonsense)
	}
	if !(in.KVMean >= 0) {
		in.KVMean = -1
	}
}

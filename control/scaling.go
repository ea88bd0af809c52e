package control

import (
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/scale"
)

// scaleEvery is the pace at which the autoscaler is asked.
const scaleEvery = 900 * time.Millisecond

// autoscale has the autoscaler decide on a model, and gives its memory with that; d tells of it. c.mu is held.
func (c *Control) autoscale(s *situation, mem memory, d *draft) memory {
	st, known := c.scaling[s.name]
	if !known && mem.Scale != nil {
		st = *mem.Scale
	}
	if s.want == nil || mem.Deleted || mem.Scaled != nil || s.now.Sub(st.At) < scaleEvery && !s.now.Before(st.At) {
		return mem
	}
	to, st := scale.Decide(scaleInput(s, &mem, c.startTime[s.name]), st)
	c.scaling[s.name] = st
	if to.Replicas == mem.Auto && mem.ScaleReason != "" { // at first there may be none wanted, and why is not said yet
		return mem
	}
	if to.Replicas != mem.Auto && mem.Range.Min < mem.Range.Max && mem.Phase != "" {
		d.notef("model/"+s.name, "Scaled", "%s", to.Reason)
	}
	kept := st
	kept.Ups, kept.Downs = nil, nil // most of it, and worth nothing after a gap of half a minute
	mem.Auto, mem.ScaleReason, mem.Scale = to.Replicas, to.Reason, &kept
	return mem
}

// scaleInput sums up what the autoscaler wants to know.
func scaleInput(s *situation, mem *memory, startTime float64) scale.Input {
	in := scale.Input{
		Now: s.now, Spec: s.want.Scaling, Range: mem.Range, StartTime: startTime,
		Heard: s.routers.any(s.now), Demand: s.routers.model(s.name, s.now), KVMean: -1, KVMax: -1,
	}
	rates, usages, kv := 0, 0, 0.0
	for i := range s.replicas {
		r := &s.replicas[i]
		m, marked := mem.Marks[r.ID]
		switch {
		case m.Asleep && !m.Waking:
			in.Asleep++
		case marked && !m.Waking:
		case !r.Serving() || m.Waking:
			in.Starting++
		default:
			in.Ready++
		}
		l := s.routers.loads[r.ID]
		if l == nil {
			continue
		}
		in.InFlight += l.InFlight // a draining one's are demand too
		in.WaitingTokens += l.WaitingTokens
		if l.PrefillRate > 0 {
			in.PrefillRate += l.PrefillRate
			rates++
		}
		if !marked && r.Serving() && l.KVUsage >= 0 {
			kv += l.KVUsage
			in.KVMax = max(in.KVMax, l.KVUsage)
			usages++
		}
	}
	if rates > 0 {
		in.PrefillRate /= float64(rates)
	}
	if usages > 0 {
		in.KVMean = kv / float64(usages)
	}
	return in
}

// learnStart learns how long a model's replicas take to get ready. c.mu is held.
func (c *Control) learnStart(before, after *observation) {
	const share = 0.3 // of the newest start in the mean
	started := map[string]time.Time{}
	for i := range before.replicas {
		if r := &before.replicas[i]; r.State == mobula.StateStarting && r.Restarts == 0 {
			started[r.ID] = r.Since
		}
	}
	for i := range after.replicas {
		r := &after.replicas[i]
		since, was := started[r.ID]
		if !was || !r.Serving() {
			continue
		}
		took := max(0, r.Since.Sub(since).Seconds())
		if old := c.startTime[r.Model]; old > 0 {
			took = old + share*(took-old)
		}
		c.startTime[r.Model] = took
	}
}

package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

const (
	maxEvents  = 1000 // that are remembered
	keptEvents = 200  // that are written to the Store
)

// events is a bounded list of what happened, oldest first. One that happens again moves to the end and counts.
type events struct {
	list  []Event
	seq   int64
	dirty bool // there is one that the Store has not seen
}

// add notes an event.
func (es *events) add(e Event) {
	es.seq++
	e.Seq, e.Count = es.seq, 1
	es.dirty = true
	if i := es.same(&e); i >= 0 {
		e.Count += es.list[i].Count
		es.list = slices.Delete(es.list, i, i+1)
	}
	if len(es.list) >= maxEvents {
		es.list = slices.Delete(es.list, 0, len(es.list)-maxEvents+1)
	}
	es.list = append(es.list, e)
}

// with gives the events with more of them; those before stay as they are.
func (es *events) with(more []Event, now time.Time) events {
	next := *es
	if len(more) == 0 {
		return next
	}
	next.list = slices.Clone(es.list)
	for _, e := range more {
		if e.At.IsZero() {
			e.At = now
		}
		next.add(e)
	}
	return next
}

// same finds e among the last ones: what fails again and again must not push out all else.
func (es *events) same(e *Event) int {
	for i := len(es.list) - 1; i >= max(0, len(es.list)-keptEvents); i-- {
		if old := &es.list[i]; old.Object == e.Object && old.Reason == e.Reason && old.Message == e.Message {
			return i
		}
	}
	return -1
}

// after gives the events with a Seq beyond after.
func (es *events) after(seq int64) []Event {
	i, _ := slices.BinarySearchFunc(es.list, seq+1, func(e Event, seq int64) int {
		return int(min(1, max(-1, e.Seq-seq)))
	})
	return slices.Clone(es.list[i:])
}

// encode gives the newest events for the Store.
func (es *events) encode(n int) ([]byte, error) {
	data, err := json.Marshal(es.list[max(0, len(es.list)-n):])
	if err != nil {
		return nil, fmt.Errorf("encode events: %w", err)
	}
	return data, nil
}

func (es *events) decode(data []byte) error {
	if err := json.Unmarshal(data, &es.list); err != nil {
		return fmt.Errorf("decode events: %w", err)
	}
	for _, e := range es.list {
		es.seq = max(es.seq, e.Seq)
	}
	es.seq += maxEvents // later ones may have been told and not written
	return nil
}

// changes tells what has become of replicas and hosts between two looks at the platform.
func changes(before, after *observation) (all []Event) {
	was := make(map[string]*mobula.Replica, len(before.replicas))
	for i := range before.replicas {
		was[before.replicas[i].ID] = &before.replicas[i]
	}
	for i := range after.replicas {
		r := &after.replicas[i]
		w := was[r.ID]
		if w == nil {
			w = &mobula.Replica{}
		}
		if e := replicaChange(w, r); e.Reason != "" {
			e.Object = "replica/" + r.ID
			all = append(all, e)
		}
	}
	knew := make(map[string]*mobula.Host, len(before.hosts))
	for i := range before.hosts {
		knew[before.hosts[i].Name] = &before.hosts[i]
	}
	for i := range after.hosts {
		h := &after.hosts[i]
		e := Event{Object: "host/" + h.Name}
		switch was := knew[h.Name]; {
		case was == nil && h.Heard.IsZero() && h.Slots == 0 && len(h.Devices) == 0:
			e.Reason, e.Message = "HostJoined", "host "+h.Name+" is there, and is asked what it has"
		case was == nil:
			e.Reason, e.Message = "HostJoined", fmt.Sprintf("host %s is there with %d GPUs", h.Name, len(h.Devices))
		case h.Silent != "" && was.Silent == "":
			e.Reason, e.Message, e.Warning = "HostSilent", h.Silent, true
		case h.Silent == "" && was.Heard.IsZero() && !h.Heard.IsZero(): // since we started; nodes of Kubernetes need not tell when
			e.Reason, e.Message = "HostAnswers", fmt.Sprintf("it has %d GPUs", len(h.Devices))
		case h.Silent == "" && was.Silent != "":
			e.Reason, e.Message = "HostBack", "it answers again"
		default:
			continue
		}
		all = append(all, e)
	}
	return all
}

func replicaChange(was, r *mobula.Replica) (e Event) {
	switch {
	case r.State == mobula.StateReady && was.State != mobula.StateReady:
		e.Reason, e.Message = "ReplicaReady", "it serves at "+r.URL
	case r.State == mobula.StateFailed && was.State != mobula.StateFailed:
		e.Reason, e.Message, e.Warning = "ReplicaFailed", r.Reason, true
	case r.State == mobula.StateSuspect && was.State != mobula.StateSuspect:
		e.Reason, e.Message, e.Warning = "ReplicaSuspect", r.Reason, true
	case was.URL != "" && r.URL != "" && was.URL != r.URL:
		e.Reason, e.Message = "ReplicaMoved", "it serves at "+r.URL+" now, and no longer at "+was.URL
	case r.Restarts > was.Restarts && was.ID != "":
		e.Reason, e.Message, e.Warning = "ReplicaRestarted", "its process died and starts again: "+r.Reason, true
	case r.NoRoom && !was.NoRoom:
		e.Reason, e.Message, e.Warning = "NoRoom", r.Reason, true
	}
	return e
}

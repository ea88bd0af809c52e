package lora

import (
	"maps"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
)

// State is what is remembered between plans. The zero value knows nothing; losing it costs no more than LoRAs that
// were taken out of the fleet meanwhile and stay loaded. It is a value: no method changes it, and it can be kept as JSON.
// It holds no more than one entry for each replica and LoRA.
type State struct {
	// Loaded is the source of each LoRA that is ours, by replica and name. What somebody loaded by hand is not here.
	Loaded map[string]map[string]string `json:"loaded,omitempty"`
	// Failures in a row, by replica and name.
	Failures map[string]map[string]Failure `json:"failures,omitempty"`
}

// Failure is an action that has failed.
type Failure struct {
	Kind   Kind      `json:"kind"`
	Source string    `json:"source,omitempty"`
	Count  int       `json:"count"` // in a row
	At     time.Time `json:"at"`    // the last one
	Error  string    `json:"error"`
}

// until is when the action may be tried again.
func (f *Failure) until() time.Time {
	return f.At.Add(min(maxBackoff, minBackoff<<min(max(f.Count-1, 0), 10)))
}

// Done gives the state after action a has ended at now, with err or well.
func (s State) Done(a Action, err error, now time.Time) State {
	s = s.clone()
	old := s.Failures[a.Replica][a.LoRA]
	drop(s.Failures, a.Replica, a.LoRA)
	if err != nil {
		f := Failure{Kind: a.Kind, Source: a.Source, Count: 1, At: now, Error: err.Error()}
		if old.is(a) {
			f.Count = old.Count + 1
		}
		s.Failures = put(s.Failures, a.Replica, a.LoRA, f)
		return s
	}
	if a.Kind == Unload {
		drop(s.Loaded, a.Replica, a.LoRA)
		return s
	}
	s.Loaded = put(s.Loaded, a.Replica, a.LoRA, a.Source)
	return s
}

// is tells whether f is a failure of a.
func (f *Failure) is(a Action) bool { return f.Count > 0 && f.Kind == a.Kind && f.Source == a.Source }

// settle forgets what in does not show any more, and takes over what is loaded already under a name that is wanted.
func (s State) settle(in *Input, wanted map[string]mobula.LoRA) State {
	next := State{}
	for i := range in.Replicas {
		r := &in.Replicas[i]
		for name, f := range s.Failures[r.ID] {
			if in.Now.Sub(f.At) < forgetAfter && s.due(r, name, wanted[name], &f) {
				next.Failures = put(next.Failures, r.ID, name, f)
			}
		}
		if !r.Known {
			for name, source := range s.Loaded[r.ID] {
				next.Loaded = put(next.Loaded, r.ID, name, source)
			}
			continue
		}
		for _, name := range r.Loaded {
			source := s.Loaded[r.ID][name]
			if l, want := wanted[name]; source == "" && want {
				source = l.Source
			}
			if source != "" {
				next.Loaded = put(next.Loaded, r.ID, name, source)
			}
		}
	}
	return next
}

// due tells whether what failed is still to be done or avoided. l is the zero LoRA when none is wanted.
func (s State) due(r *Replica, name string, l mobula.LoRA, f *Failure) bool {
	has := slices.Contains(r.Loaded, name)
	if f.Kind == Unload {
		return has
	}
	return f.Source == l.Source && (!has || s.Loaded[r.ID][name] != l.Source)
}

func (s State) clone() State { return State{Loaded: clone(s.Loaded), Failures: clone(s.Failures)} }

func clone[V any](m map[string]map[string]V) map[string]map[string]V {
	m = maps.Clone(m)
	for k, v := range m {
		m[k] = maps.Clone(v)
	}
	return m
}

func put[V any](m map[string]map[string]V, replica, name string, v V) map[string]map[string]V {
	if m == nil {
		m = map[string]map[string]V{}
	}
	if m[replica] == nil {
		m[replica] = map[string]V{}
	}
	m[replica][name] = v
	return m
}

func drop[V any](m map[string]map[string]V, replica, name string) {
	delete(m[replica], name)
	if len(m[replica]) == 0 {
		delete(m, replica)
	}
}

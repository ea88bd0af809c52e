package lora

import "slices"

// Status is how a LoRA fares.
type Status struct {
	Name   string
	Source string
	// Wanted number of replicas; with 0 in the fleet it is as many as take requests.
	Wanted int
	// Loaded are the IDs of the replicas that take requests and have it, sorted.
	Loaded []string
	// Error of the newest attempt that failed, with its replica; empty once as many as can be have it.
	Error string
}

// Statuses tells how each LoRA of in fares, in its order. s is what Plan gave.
func Statuses(in Input, s State) []Status {
	out := make([]Status, 0, len(in.LoRAs))
	for _, l := range in.LoRAs {
		st := Status{Name: l.Name, Source: l.Source, Wanted: l.Replicas, Loaded: []string{}}
		var newest Failure
		var failed string
		serving, good := 0, 0
		for i := range in.Replicas {
			r := &in.Replicas[i]
			if f := s.Failures[r.ID][l.Name]; f.Count > 0 && (failed == "" || f.At.After(newest.At)) {
				newest, failed = f, r.ID
			}
			if !r.Serving || r.Draining {
				continue
			}
			serving++
			if slices.Contains(r.Loaded, l.Name) {
				st.Loaded = append(st.Loaded, r.ID)
				if s.Loaded[r.ID][l.Name] == l.Source {
					good++
				}
			}
		}
		slices.Sort(st.Loaded)
		if l.Replicas <= 0 {
			st.Wanted = serving
		}
		if failed != "" && good < max(1, min(st.Wanted, serving)) {
			st.Error = "replica " + failed + ": " + newest.Error
		}
		out = append(out, st)
	}
	return out
}

package ctl

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// kvBar is how wide the bar of the KV cache is.
const kvBar = 6

// order is one way to sort the rows of a pane.
type order[T any] struct {
	name string
	less func(a, b *T) int
}

// sorted gives a sorted copy: by the order that was chosen, in the given sequence among equals.
func sorted[T any](all []T, orders []order[T], chosen int) []T {
	all = slices.Clone(all)
	o := orders[chosen%len(orders)]
	slices.SortStableFunc(all, func(a, b T) int { return o.less(&a, &b) })
	return all
}

func modelOrders() []order[control.ModelStatus] {
	type model = control.ModelStatus
	return []order[model]{
		{"name", func(a, b *model) int { return cmp.Compare(a.Name, b.Name) }},
		{"missing", func(a, b *model) int { return cmp.Compare(b.Wanted-b.Ready, a.Wanted-a.Ready) }},
		{"req/s", func(a, b *model) int { return cmp.Compare(b.Load.Requests, a.Load.Requests) }},
		{"held", func(a, b *model) int { return cmp.Compare(b.Load.Held, a.Load.Held) }},
		{"ttft", func(a, b *model) int { return cmp.Compare(b.Load.TTFT90, a.Load.TTFT90) }},
		{"itl", func(a, b *model) int { return cmp.Compare(b.Load.ITL90, a.Load.ITL90) }},
	}
}

func replicaOrders() []order[control.ReplicaStatus] {
	type replica = control.ReplicaStatus
	by := func(value func(*mobula.EndpointReport) float64) func(a, b *replica) int {
		of := func(r *replica) float64 {
			if r.Load == nil {
				return -1
			}
			return value(r.Load)
		}
		return func(a, b *replica) int { return cmp.Compare(of(b), of(a)) }
	}
	worst := []mobula.State{mobula.StateFailed, mobula.StateSuspect, mobula.StatePending, mobula.StateStarting, mobula.StateDraining, mobula.StateReady}
	rank := func(r *replica) int {
		if i := slices.Index(worst, r.State); i >= 0 {
			return i
		}
		return len(worst)
	}
	return []order[replica]{
		{"name", func(a, b *replica) int { return cmp.Compare(a.ID, b.ID) }},
		{"state", func(a, b *replica) int { return cmp.Compare(rank(a), rank(b)) }},
		{"waiting", by(func(l *mobula.EndpointReport) float64 { return float64(l.Waiting) })},
		{"in flight", by(func(l *mobula.EndpointReport) float64 { return float64(l.InFlight) })},
		{"kv", by(func(l *mobula.EndpointReport) float64 { return l.KVUsage })},
		{"newest", func(a, b *replica) int { return b.Since.Compare(a.Since) }},
	}
}

func hostOrders(used map[string]hostUsage) []order[mobula.Host] {
	by := func(value func(hostUsage) float64) func(a, b *mobula.Host) int {
		return func(a, b *mobula.Host) int { return cmp.Compare(value(used[b.Name]), value(used[a.Name])) }
	}
	return []order[mobula.Host]{
		{"name", func(a, b *mobula.Host) int { return cmp.Compare(a.Name, b.Name) }},
		{"utilization", by(func(u hostUsage) float64 { return u.busy / float64(max(1, u.devices)) })},
		{"memory", by(func(u hostUsage) float64 { return float64(u.used) })},
		{"replicas", by(func(u hostUsage) float64 { return float64(u.replicas) })},
	}
}

// orderName tells how a pane is sorted, empty when it can't be chosen.
func (m topModel) orderName(pane int) string {
	switch pane {
	case paneModels:
		all := modelOrders()
		return all[m.order[pane]%len(all)].name
	case paneReplicas:
		all := replicaOrders()
		return all[m.order[pane]%len(all)].name
	case paneHosts:
		all := hostOrders(nil)
		return all[m.order[pane]%len(all)].name
	}
	return ""
}

// tables gives the panes' rows, sorted and filtered.
func (m topModel) tables() [paneCount]*table {
	all := [paneCount]*table{m.models(), m.replicas(), m.hosts(), m.events()}
	for _, t := range all {
		t.gap = "  "
		if m.filter != "" {
			t.rows = slices.DeleteFunc(t.rows, func(row []cell) bool { return !m.matches(row) })
		}
	}
	return all
}

func (m topModel) matches(row []cell) bool {
	want := strings.ToLower(m.filter)
	return slices.ContainsFunc(row, func(c cell) bool { return strings.Contains(strings.ToLower(c.text), want) })
}

func (m topModel) ago(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return age(m.shown.now.Sub(t))
}

func (m topModel) models() *table {
	t := newTable(column{name: "NAME", flex: true, least: 16}, column{name: "READY"}, column{name: "ROLLOUT", drop: 2}, column{name: "REQ/S", right: true}, column{name: "HELD", right: true},
		column{name: "TTFT-P50", right: true, drop: 1}, column{name: "TTFT-P90", right: true}, column{name: "ITL-P90", right: true}, column{name: "REASON", flex: true, drop: 3})
	for _, s := range sorted(m.view().Models, modelOrders(), m.order[paneModels]) {
		held := cell{text: strconv.Itoa(s.Load.Held)}
		if s.Load.Held > 0 {
			held.code = yellow
		}
		t.add(s.Name, readiness(&s), phaseCell(s.Rollout), rate(float64(s.Load.Requests)/reportWindow), held,
			seconds(s.Load.TTFT50), seconds(s.Load.TTFT90), seconds(s.Load.ITL90), modelReason(&s))
	}
	return t
}

func (m topModel) replicas() *table {
	t := newTable(column{name: "NAME", flex: true, least: 24}, column{name: "STATE"}, column{name: "AGE", right: true}, column{name: "HOST", flex: true, drop: 1}, column{name: "GPU", flex: true, drop: 2},
		column{name: "RUN", right: true}, column{name: "WAIT", right: true}, column{name: "IN-FLIGHT", right: true, drop: 3}, column{name: "KV"}, column{name: "REASON", flex: true, drop: 4})
	for _, r := range sorted(m.view().Replicas, replicaOrders(), m.order[paneReplicas]) {
		flight, running, waiting, kv := load(r.Load)
		if r.Load != nil && r.Load.KVUsage >= 0 {
			kv = fmt.Sprintf("%s %4s", bar(r.Load.KVUsage, kvBar), kv)
		}
		t.add(r.ID, stateCell(r.State), m.ago(r.Since), list(r.Hosts), devices(&r), running, waiting, flight, cell{kv, loadColour(r.Load)}, r.Reason)
	}
	return t
}

// loadColour warns of a KV cache that is nearly full.
func loadColour(l *mobula.EndpointReport) string {
	switch {
	case l == nil:
		return ""
	case l.KVUsage > 0.9:
		return red
	case l.KVUsage > 0.75:
		return yellow
	}
	return green
}

func (m topModel) hosts() *table {
	t := newTable(column{name: "NAME", flex: true}, column{name: "STATE"}, column{name: "GPUS", right: true}, column{name: "GPU-MEMORY", right: true}, column{name: "UTIL"},
		column{name: "REPLICAS", right: true}, column{name: "HEARD", right: true}, column{name: "REASON", flex: true, drop: 1})
	used := usages(m.view())
	for _, h := range sorted(m.view().Hosts, hostOrders(used), m.order[paneHosts]) {
		u := used[h.Name]
		util := u.utilization()
		if u.total > 0 {
			util = fmt.Sprintf("%s %4s", bar(u.busy/float64(u.devices), kvBar), util)
		}
		t.add(h.Name, cell{hostState(&h), hostColour(&h)}, u.gpus(), u.memory(), util, strconv.Itoa(u.replicas), heard(&h, m.ago), hostReason(&h))
	}
	return t
}

// events gives them with the newest first.
func (m topModel) events() *table {
	t := newTable(column{name: "AGE", right: true}, column{name: "OBJECT", flex: true}, column{name: "REASON"}, column{name: "MESSAGE", flex: true})
	for _, e := range slices.Backward(m.shown.events) {
		reason := cell{text: e.Reason}
		if e.Warning {
			reason.code = yellow
		}
		t.add(m.ago(e.At), e.Object, reason, e.Message)
	}
	return t
}

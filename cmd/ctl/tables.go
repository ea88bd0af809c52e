package ctl

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// reportWindow is how many seconds a router's ModelReport is over.
const reportWindow = 10

// lora is a LoRA with its model.
type lora struct {
	Model string `json:"model"`
	control.LoRAStatus
}

// loras lists the LoRAs of all models.
func loras(v *control.View) []lora {
	all := []lora{}
	for _, m := range v.Models {
		for _, l := range m.LoRAs {
			all = append(all, lora{m.Name, l})
		}
	}
	return all
}

func (c *ctl) modelTable(models []control.ModelStatus, wide bool) *table {
	reason := column{name: "REASON", flex: true}
	if !wide {
		t := newTable(column{name: "NAME", flex: true}, column{name: "READY"}, column{name: "REPLICAS"}, column{name: "ROLLOUT"}, column{name: "AGE", clock: true}, reason)
		for _, m := range models {
			t.add(m.Name, readiness(&m), m.Replicas.String(), phaseCell(m.Rollout), c.since(m.Since), modelReason(&m))
		}
		return t
	}
	t := newTable(column{name: "NAME"}, column{name: "READY"}, column{name: "REPLICAS"}, column{name: "UPDATED"}, column{name: "ROLLOUT"}, column{name: "AGE", clock: true},
		column{name: "REVISION"}, column{name: "REQ/S"}, column{name: "HELD"}, column{name: "TTFT-P90"}, column{name: "ITL-P90"}, column{name: "ALIASES"}, column{name: "SOURCE"}, reason)
	for _, m := range models {
		t.add(m.Name, readiness(&m), m.Replicas.String(), strconv.Itoa(m.Updated), phaseCell(m.Rollout), c.since(m.Since),
			m.Revision, rate(float64(m.Load.Requests)/reportWindow), strconv.Itoa(m.Load.Held), seconds(m.Load.TTFT90), seconds(m.Load.ITL90),
			list(m.Aliases), m.Source, modelReason(&m))
	}
	return t
}

// readiness gives "1/2".
func readiness(m *control.ModelStatus) cell {
	code := green
	if m.Ready < m.Wanted {
		code = yellow
	}
	if m.Ready == 0 && m.Wanted > 0 {
		code = red
	}
	return cell{fmt.Sprintf("%d/%d", m.Ready, m.Wanted), code}
}

func phaseCell(p control.Phase) cell { return cell{string(p), phaseColour(p)} }

func phaseColour(p control.Phase) string {
	switch p {
	case control.RolloutComplete:
		return green
	case control.RolloutProgressing:
		return yellow
	}
	return red
}

// modelReason says why a model is as it is: its rollout first, then its number of replicas.
func modelReason(m *control.ModelStatus) string {
	if m.Reason == "" {
		return m.ScaleReason
	}
	return m.Reason
}

func (c *ctl) replicaTable(replicas []control.ReplicaStatus, wide bool) *table {
	reason := column{name: "REASON", flex: true}
	if !wide {
		columns := []column{{name: "NAME"}, {name: "MODEL", flex: true}, {name: "STATE"}, {name: "HOST", flex: true}, {name: "AGE", clock: true}}
		named := slices.ContainsFunc(replicas, hasName)
		if named {
			columns = append(columns, column{name: "DETAIL", flex: true})
		}
		t := newTable(append(columns, reason)...)
		for _, r := range replicas {
			row := []any{r.ID, r.Model, stateCell(r.State), list(r.Hosts), c.since(r.Since)}
			if named {
				row = append(row, r.Detail)
			}
			t.add(append(row, r.Reason)...)
		}
		return t
	}
	t := newTable(column{name: "NAME"}, column{name: "MODEL"}, column{name: "STATE"}, column{name: "HOST"}, column{name: "GPU"}, column{name: "AGE", clock: true}, column{name: "REVISION"},
		column{name: "RESTARTS"}, column{name: "URL"}, column{name: "IN-FLIGHT"}, column{name: "RUNNING"}, column{name: "WAITING"}, column{name: "KV"}, column{name: "LORAS"}, column{name: "DETAIL"}, reason)
	for _, r := range replicas {
		flight, running, waiting, kv := load(r.Load)
		t.add(r.ID, r.Model, stateCell(r.State), list(r.Hosts), devices(&r), c.since(r.Since), r.Revision,
			strconv.Itoa(r.Restarts), r.URL, flight, running, waiting, kv, list(r.LoRAs), r.Detail, r.Reason)
	}
	return t
}

// hasName tells whether the platform calls a replica something (an actor, a pod) that is worth a column: a process
// of a host is not.
func hasName(r control.ReplicaStatus) bool {
	return r.Detail != "" && !strings.HasPrefix(r.Detail, "pid ")
}

func stateCell(s mobula.State) cell { return cell{string(s), stateColour(s)} }

func stateColour(s mobula.State) string {
	switch s {
	case mobula.StateReady:
		return green
	case mobula.StateFailed, mobula.StateSuspect:
		return red
	case mobula.StateAsleep, mobula.StateGone:
		return dim
	}
	return yellow
}

// devices gives the GPUs of a replica, host by host: "0,1" or "0,1+0,1".
func devices(r *control.ReplicaStatus) string {
	var of []string
	for _, d := range r.Devices {
		if d != "" {
			of = append(of, d)
		}
	}
	return strings.Join(of, "+")
}

// load gives what is known of an endpoint's load, none for what is not.
func load(l *mobula.EndpointReport) (inFlight, running, waiting, kv string) {
	if l == nil {
		return none, none, none, none
	}
	return strconv.Itoa(l.InFlight), known(l.Running), known(l.Waiting), percent(l.KVUsage)
}

// known gives a number, none for a negative one.
func known(n int) string {
	if n < 0 {
		return none
	}
	return strconv.Itoa(n)
}

func (c *ctl) hostTable(v *control.View, hosts []mobula.Host, wide bool) *table {
	columns := []column{{name: "NAME"}, {name: "STATE"}, {name: "GPUS"}, {name: "GPU-MEMORY"}, {name: "GPU-UTIL"}, {name: "REPLICAS"}, {name: "HEARD", clock: true}}
	if wide {
		columns = append(columns, column{name: "GPU"}, column{name: "SLOTS"}, column{name: "ADDRESS"}, column{name: "VERSION"}, column{name: "LABELS"})
	}
	t := newTable(append(columns, column{name: "REASON", flex: true})...)
	used := usages(v)
	for _, h := range hosts {
		u := used[h.Name]
		row := []any{h.Name, cell{hostState(&h), hostColour(&h)}, u.gpus(), u.memory(), u.utilization(), strconv.Itoa(u.replicas), heard(&h, c.since)}
		if wide {
			row = append(row, gpuNames(&h), strconv.Itoa(h.Slots), h.Address, h.Version, labels(h.Labels))
		}
		t.add(append(row, hostReason(&h))...)
	}
	return t
}

// heard tells when a host has answered last. A control plane is always asking one that answers, and a view says
// when it was made, not now.
func heard(h *mobula.Host, since func(time.Time) string) string {
	if h.Silent == "" && !h.Heard.IsZero() {
		return "now"
	}
	return since(h.Heard)
}

// hostState is Ready, Cordoned or Silent.
func hostState(h *mobula.Host) string {
	switch {
	case h.Silent != "":
		return "Silent"
	case h.Cordoned:
		return "Cordoned"
	}
	return "Ready"
}

func hostColour(h *mobula.Host) string {
	switch {
	case h.Silent != "":
		return red
	case h.Cordoned:
		return yellow
	}
	return green
}

// hostReason says what is wrong with a host, or with its GPUs.
func hostReason(h *mobula.Host) string {
	var why []string
	if h.Silent != "" {
		why = append(why, h.Silent)
	}
	for _, d := range h.Devices {
		if d.Unhealthy != "" {
			why = append(why, "GPU "+d.ID+": "+d.Unhealthy)
		}
	}
	return strings.Join(why, "; ")
}

// hostUsage sums up what a host has and what of it is taken.
type hostUsage struct {
	devices, taken, replicas int
	used, total              mobula.Size
	busy                     float64 // sum of the devices' utilizations
}

// usages sums up all hosts.
func usages(v *control.View) map[string]hostUsage {
	all := make(map[string]hostUsage, len(v.Hosts))
	for _, h := range v.Hosts {
		u := hostUsage{devices: len(h.Devices)}
		for _, d := range h.Devices {
			u.used += d.Used
			u.total += d.Memory
			u.busy += d.Utilization
		}
		all[h.Name] = u
	}
	for _, r := range v.Replicas {
		for i, host := range r.Hosts {
			u, ok := all[host]
			if !ok {
				continue
			}
			u.replicas++
			if i < len(r.Devices) && r.Devices[i] != "" {
				u.taken += strings.Count(r.Devices[i], ",") + 1
			}
			all[host] = u
		}
	}
	return all
}

func (u hostUsage) gpus() string { return fmt.Sprintf("%d/%d", u.taken, u.devices) }

func (u hostUsage) memory() string {
	if u.total == 0 {
		return none
	}
	return memory(u.used) + "/" + memory(u.total)
}

// utilization is unknown where the memory is: both come from whoever reads the GPUs.
func (u hostUsage) utilization() string {
	if u.total == 0 {
		return none
	}
	return percent(u.busy / float64(u.devices))
}

// gpuNames gives "8×NVIDIA H100", kind by kind.
func gpuNames(h *mobula.Host) string {
	numbers := map[string]int{}
	var names []string
	for _, d := range h.Devices {
		if numbers[d.Name] == 0 {
			names = append(names, d.Name)
		}
		numbers[d.Name]++
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("%d×%s", numbers[name], name)
	}
	return strings.Join(names, ", ")
}

// labels gives "a=1,b=2".
func labels(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, ",")
}

func loraTable(all []lora) *table {
	t := newTable(column{name: "NAME"}, column{name: "MODEL", flex: true}, column{name: "LOADED"}, column{name: "SOURCE", flex: true}, column{name: "REASON", flex: true})
	for _, l := range all {
		code := green
		if len(l.Loaded) < l.Wanted {
			code = yellow
		}
		if l.Error != "" {
			code = red
		}
		t.add(l.Name, l.Model, cell{fmt.Sprintf("%d/%d", len(l.Loaded), l.Wanted), code}, l.Source, l.Error)
	}
	return t
}

func (c *ctl) eventTable(events []control.Event) *table {
	t := newTable(column{name: "AGE", clock: true}, column{name: "TYPE"}, column{name: "COUNT"}, column{name: "OBJECT"}, column{name: "REASON"}, column{name: "MESSAGE", flex: true})
	for _, e := range events {
		kind := cell{"Normal", dim}
		if e.Warning {
			kind = cell{"Warning", yellow}
		}
		t.add(c.since(e.At), kind, strconv.Itoa(max(1, e.Count)), e.Object, e.Reason, e.Message)
	}
	return t
}

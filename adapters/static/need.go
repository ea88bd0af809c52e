package static

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/engine"
)

// reasonHosts bounds how many hosts a reason names.
const reasonHosts = 4

var errNoHost = errors.New("no host has joined: start mobula agent on one")

// need is what one replica takes of each of its hosts.
type need struct {
	hosts  int
	gpus   int // on each; 0 for a slot
	memory mobula.Size
	labels map[string]string
}

// needOf says what a replica of m takes. Without a number of GPUs it is what the engine's arguments ask
// for; where no host that m may use has a GPU, vLLM runs on the CPU.
func needOf(m *mobula.Model, nodes []*node) (need, error) {
	n := need{hosts: max(1, m.Resources.Hosts), memory: m.Resources.GPUMemory, labels: m.Resources.HostLabels}
	total := 0
	switch {
	case m.Resources.GPUs != nil:
		total = *m.Resources.GPUs
	case m.Engine.Kind != "sim" && slices.ContainsFunc(nodes, func(h *node) bool { return len(h.gpus) > 0 && n.lacks(h) == "" }):
		total = max(engine.Devices(m.Engine.Args), n.hosts)
	}
	if total%n.hosts != 0 {
		return n, fmt.Errorf("%d GPUs can't be shared equally by %d hosts", total, n.hosts)
	}
	n.gpus = total / n.hosts
	return n, nil
}

// lacks says which label a host lacks, empty for none.
func (n *need) lacks(h *node) string {
	for _, name := range slices.Sorted(maps.Keys(n.labels)) {
		if h.labels[name] != n.labels[name] {
			return name + "=" + n.labels[name]
		}
	}
	return ""
}

// String says it for people: "2 GPUs of 80GB on one host", "a CPU slot on one host".
func (n *need) String() string {
	what := "a CPU slot"
	if n.gpus > 0 {
		what = fmt.Sprintf("%d GPU%s", n.gpus, plural(n.gpus))
		if n.memory > 0 {
			what += " of " + n.memory.String()
		}
	}
	if n.hosts > 1 {
		return fmt.Sprintf("%s on each of %d hosts", what, n.hosts)
	}
	return what + " on one host"
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// why says what is missing where for one more replica. It names first the hosts that come nearest.
func why(nodes []*node, n need) string {
	if len(nodes) == 0 {
		return errNoHost.Error()
	}
	type missing struct {
		text string
		rank int
	}
	all := make([]missing, 0, len(nodes))
	for _, h := range nodes {
		switch label := n.lacks(h); {
		case label != "":
			all = append(all, missing{h.name + " lacks the label " + label, 3})
		case h.closed != "":
			all = append(all, missing{h.name + " " + h.closed, 1})
		case n.gpus > 0 && len(h.gpus) == 0:
			all = append(all, missing{h.name + " has no GPU", 2})
		case n.gpus > 0:
			all = append(all, missing{fmt.Sprintf("%s has %d free%s", h.name, len(h.free(n.memory)), h.unfit(n.memory)), 0})
		case h.slots > 0:
			all = append(all, missing{fmt.Sprintf("%s has %d free", h.name, h.slots), 0})
		default:
			all = append(all, missing{h.name + " has none free", 0})
		}
	}
	slices.SortStableFunc(all, func(a, b missing) int { return cmp.Compare(a.rank, b.rank) })
	texts := make([]string, 0, reasonHosts+1)
	for _, m := range all[:min(len(all), reasonHosts)] {
		texts = append(texts, m.text)
	}
	if more := len(all) - reasonHosts; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return fmt.Sprintf("needs %s: %s", n.String(), strings.Join(texts, ", "))
}

// unfit counts the GPUs that are not taken and must not be.
func (n *node) unfit(memory mobula.Size) string {
	ill, small := 0, 0
	for _, g := range n.gpus {
		switch {
		case g.taken:
		case g.ill:
			ill++
		case g.memory < memory:
			small++
		}
	}
	text := ""
	if ill > 0 {
		text += fmt.Sprintf(" (%d unhealthy)", ill)
	}
	if small > 0 {
		text += fmt.Sprintf(" (%d too small)", small)
	}
	return text
}

// possible fails with ErrImpossible when nodes could not run one replica even if they were empty and well.
func possible(nodes []*node, m *mobula.Model) error {
	n, err := needOf(m, nodes)
	if err != nil {
		return fmt.Errorf("model %s: %w: %w", m.Name, adapters.ErrImpossible, err)
	}
	fit, most, largest := 0, -1, ""
	for _, h := range nodes {
		if n.lacks(h) != "" {
			continue
		}
		have := len(h.gpus) - small(h.gpus, n.memory)
		if n.gpus == 0 {
			have = h.slots
		}
		if have > most {
			most, largest = have, h.name
		}
		if have >= max(1, n.gpus) {
			fit++
		}
	}
	switch {
	case fit >= n.hosts:
		return nil
	case most < 0 && len(n.labels) > 0:
		return fmt.Errorf("model %s: %w: no host has the labels %s", m.Name, adapters.ErrImpossible, labelText(n.labels))
	case most < 0:
		return fmt.Errorf("model %s: %w: none of the hosts that have joined is in platform.static.hosts", m.Name, adapters.ErrImpossible)
	case fit > 0:
		return fmt.Errorf("model %s: %w: needs %s, %d can", m.Name, adapters.ErrImpossible, n.String(), fit)
	default:
		return fmt.Errorf("model %s: %w: needs %s, the largest, %s, has %d", m.Name, adapters.ErrImpossible, n.String(), largest, most)
	}
}

func small(gpus []gpu, memory mobula.Size) int {
	count := 0
	for _, g := range gpus {
		if g.memory < memory {
			count++
		}
	}
	return count
}

func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, name+"="+labels[name])
	}
	return strings.Join(pairs, ", ")
}

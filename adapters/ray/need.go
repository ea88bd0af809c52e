package ray

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/engine"
)

const (
	reasonNodes = 4 // how many nodes a reason names

	acceleratorPrefix = "accelerator_type:"
	nodePrefix        = "node:"
	// trace is what is taken of a resource that only says what a node is: Ray has 1 of each.
	trace = 0.001
	// nodeIDLabel is the label in which Ray itself names a node.
	nodeIDLabel = "ray.io/node-id"
)

// need is what one replica takes of the cluster: a bundle on each of parts nodes that have the labels.
type need struct {
	parts  int
	bundle map[string]float64
	labels map[string]string // with Ray's selectors as values
}

// gpusOf decides how many GPUs a replica of m takes, over all its parts.
func gpusOf(m *mobula.Model, nodes []Node, autoscaling bool) int {
	hasGPU := func(n Node) bool { return n.Alive && n.Resources["GPU"] > 0 }
	switch {
	case m.Resources.GPUs != nil:
		return *m.Resources.GPUs
	case m.Engine.Kind == "sim" || !autoscaling && !slices.ContainsFunc(nodes, hasGPU):
		return 0
	default:
		return max(engine.Devices(m.Engine.Args), m.Resources.Hosts)
	}
}

// spreads tells that vLLM itself takes what it needs of the cluster, beside our part.
func spreads(m *mobula.Model) bool {
	return m.Engine.Kind != "sim" && m.Resources.Hosts > 1 && engine.Spreads(m.Engine.Args)
}

// needOf says what a replica of m with so many GPUs takes.
func needOf(m *mobula.Model, gpus int) (need, error) {
	n := need{parts: max(1, m.Resources.Hosts), bundle: maps.Clone(m.Ray.Resources), labels: m.Resources.HostLabels}
	if n.bundle == nil {
		n.bundle = map[string]float64{}
	}
	if m.Ray.CPUs > 0 {
		n.bundle["CPU"] = m.Ray.CPUs
	}
	switch {
	case spreads(m):
		n.parts = 1
	case m.Ray.GPUFraction > 0:
		n.bundle["GPU"] = m.Ray.GPUFraction
	case gpus%n.parts != 0:
		return n, fmt.Errorf("%d GPUs can't be shared equally by %d nodes", gpus, n.parts)
	case gpus > 0:
		n.bundle["GPU"] = float64(gpus / n.parts)
	}
	if m.Ray.AcceleratorType != "" {
		n.bundle[acceleratorPrefix+m.Ray.AcceleratorType] = trace
	}
	if m.Ray.Node != "" {
		n.bundle[nodePrefix+m.Ray.Node] = trace
	}
	if len(n.bundle) == 0 { // Ray has no empty bundles
		n.bundle["CPU"] = trace
	}
	return n, nil
}

// lacks says what a node would miss for one part if it were empty, empty for nothing. rank is smaller for what comes nearer.
func (n *need) lacks(node *Node) (what string, rank int) {
	for _, name := range slices.Sorted(maps.Keys(n.labels)) {
		value, has := node.Labels[name]
		if !selects(n.labels[name], value, has) {
			return "lacks the label " + name + "=" + n.labels[name], 3
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.bundle)) {
		have, want := node.Resources[name], n.bundle[name]
		switch {
		case have >= want:
		case strings.HasPrefix(name, nodePrefix):
			return "is not node " + strings.TrimPrefix(name, nodePrefix), 4
		case strings.HasPrefix(name, acceleratorPrefix):
			return "has no " + strings.TrimPrefix(name, acceleratorPrefix), 2
		case have == 0:
			return "has no " + name, 2
		default:
			return "has " + amount(name, have), 1
		}
	}
	return "", 0
}

// selects tells whether a label meets a selector of Ray's: value, !value, in(a, b) or !in(a, b).
func selects(selector, value string, has bool) bool {
	selector, not := strings.CutPrefix(selector, "!")
	values := []string{selector}
	if list, ok := strings.CutPrefix(selector, "in("); ok {
		values = strings.Split(strings.TrimSuffix(list, ")"), ",")
	}
	met := has && slices.ContainsFunc(values, func(v string) bool { return strings.TrimSpace(v) == value })
	return met != not
}

// amount says it for people: "1 GPU", "0.5 GPUs", "2 vllm_node".
func amount(name string, n float64) string {
	text := strconv.FormatFloat(n, 'g', -1, 64) + " " + name
	if n != 1 && (name == "GPU" || name == "CPU") {
		text += "s"
	}
	return text
}

// String says it for people: "8 GPUs and 1 CPU on one node", "2 GPUs of type H100 and 1 CPU on each of 2 nodes with the label zone=b".
func (n *need) String() string {
	var all []string
	add := func(name string) {
		if v := n.bundle[name]; v > 0 {
			all = append(all, amount(name, v))
		}
	}
	add("GPU")
	where := ""
	for _, name := range slices.Sorted(maps.Keys(n.bundle)) {
		if kind, ok := strings.CutPrefix(name, acceleratorPrefix); ok {
			all = append(all, kind)
		}
		if ip, ok := strings.CutPrefix(name, nodePrefix); ok {
			where = "node " + ip
		}
	}
	add("CPU")
	for _, name := range slices.Sorted(maps.Keys(n.bundle)) {
		if name != "GPU" && name != "CPU" && !strings.HasPrefix(name, acceleratorPrefix) && !strings.HasPrefix(name, nodePrefix) {
			add(name)
		}
	}
	if where == "" && n.parts > 1 {
		where = fmt.Sprintf("each of %d nodes", n.parts)
	}
	text := strings.Join(all, ", ") + " on " + cmp.Or(where, "one node")
	if len(n.labels) > 0 {
		pairs := make([]string, 0, len(n.labels))
		for _, name := range slices.Sorted(maps.Keys(n.labels)) {
			pairs = append(pairs, name+"="+n.labels[name])
		}
		text += " with the label " + strings.Join(pairs, ", ")
	}
	return text
}

// why says for each node, those that come nearest first, what it lacks for a part; whole says it of those that lack nothing.
func (n *need) why(nodes []Node, whole func(*Node) string) string {
	type missing struct {
		text string
		rank int
	}
	var all []missing
	for i := range nodes {
		node := &nodes[i]
		if !node.Alive {
			continue
		}
		what, rank := n.lacks(node)
		if what == "" {
			what = whole(node)
		}
		all = append(all, missing{nodeName(node) + " " + what, rank})
	}
	if len(all) == 0 {
		return "no node of the cluster is alive"
	}
	slices.SortStableFunc(all, func(a, b missing) int { return cmp.Compare(a.rank, b.rank) })
	texts := make([]string, 0, reasonNodes+1)
	for _, m := range all[:min(len(all), reasonNodes)] {
		texts = append(texts, m.text)
	}
	if more := len(all) - reasonNodes; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}

// possible fails with ErrImpossible when too few of the nodes that are alive could hold a part even if they were empty; with
// more there may be nodes that are not among them.
func possible(m *mobula.Model, gpus int, nodes []Node, more bool) error {
	n, err := needOf(m, gpus)
	if err != nil {
		return fmt.Errorf("model %s: %w: %w", m.Name, adapters.ErrImpossible, err)
	}
	fit := 0
	for i := range nodes {
		if what, _ := n.lacks(&nodes[i]); nodes[i].Alive && what == "" {
			fit++
		}
	}
	if more || fit >= n.parts {
		return nil
	}
	return fmt.Errorf("model %s: %w: needs %s: %s", m.Name, adapters.ErrImpossible, n.String(), n.why(nodes, func(*Node) string { return "could hold one" }))
}

func nodeName(n *Node) string { return cmp.Or(n.Name, n.IP, n.ID) }

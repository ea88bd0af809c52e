package static

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// testNode makes a host from a drawing of its GPUs: one letter each, upper case when it is taken, "!" when
// it is ill; equal letters are one NVLink group, "." is in none.
func testNode(name, gpus string, slots int) *node {
	n := &node{name: name, address: name + ".example", slots: slots, replicas: map[modelKey]int{}, masters: map[int]bool{}}
	for i, c := range gpus {
		g := gpu{id: strconv.Itoa(i), memory: 80e9, ill: c == '!'}
		if letter := strings.ToLower(string(c)); c != '.' && c != '!' {
			g.group, g.taken = letter, letter != string(c)
		}
		n.gpus = append(n.gpus, g)
	}
	return n
}

func testWants(model *mobula.Model, n int) []want {
	wants := make([]want, n)
	for i := range wants {
		wants[i] = want{
			id: fmt.Sprintf("%s-%d", model.Name, i), born: int64(i), model: model,
			key: adapters.Key{Fleet: "f", Model: model.Name, Revision: "r"},
		}
	}
	return wants
}

func testModel(gpus, hosts int) *mobula.Model {
	return &mobula.Model{Name: "m", Resources: mobula.Resources{GPUs: &gpus, Hosts: hosts}}
}

// where says it in a line: "m-0: a[0 1]; m-1: b[0]+c[0]".
func where(places []place) string {
	var lines []string
	for _, p := range places {
		var parts []string
		for _, part := range p.parts {
			parts = append(parts, fmt.Sprint(part.Host, part.Devices))
		}
		lines = append(lines, p.id+": "+strings.Join(parts, "+"))
	}
	return strings.Join(lines, "; ")
}

func TestPlacement(t *testing.T) {
	labelled := func(n *node, labels map[string]string) *node { n.labels = labels; return n }
	closed := func(n *node, why string) *node { n.closed = why; return n }
	with := func(m *mobula.Model, change func(*mobula.Model)) *mobula.Model { change(m); return m }
	for name, tc := range map[string]struct {
		nodes []*node
		model *mobula.Model
		n     int
		want  string
		why   string
	}{
		"the fullest host": {
			nodes: []*node{testNode("a", "aaaa", 0), testNode("b", "BBbb", 0)}, model: testModel(2, 0), n: 1, want: "m-0: b[2 3]",
		},
		"one group before the fullest host": {
			nodes: []*node{testNode("a", "aabb", 0), testNode("b", "ccCdD", 0)}, model: testModel(2, 0), n: 1, want: "m-0: b[0 1]",
		},
		"a group of its size": {
			nodes: []*node{testNode("a", "aaaabb", 0)}, model: testModel(2, 0), n: 1, want: "m-0: a[4 5]",
		},
		"as few groups as can be": {
			nodes: []*node{testNode("a", "abbbcc", 0)}, model: testModel(5, 0), n: 1, want: "m-0: a[1 2 3 4 5]",
		},
		"a GPU alone before one of a group": {
			nodes: []*node{testNode("a", "aa.", 0)}, model: testModel(1, 0), n: 1, want: "m-0: a[2]",
		},
		"not an unhealthy one": {
			nodes: []*node{testNode("a", "!!a", 0)}, model: testModel(2, 0), n: 1,
			why: "needs 2 GPUs on one host: a has 1 free (2 unhealthy)",
		},
		"not all replicas on one host": {
			nodes: []*node{testNode("a", "aaaa", 0), testNode("b", "bbbb", 0)}, model: testModel(1, 0), n: 3,
			want: "m-0: a[0]; m-1: b[0]; m-2: a[1]",
		},
		"all on one host when there is no other": {
			nodes: []*node{testNode("a", "aaaa", 0)}, model: testModel(1, 0), n: 2, want: "m-0: a[0]; m-1: a[1]",
		},
		"slots spread": {
			nodes: []*node{testNode("a", "", 4), testNode("b", "", 4)}, model: testModel(0, 0), n: 4,
			want: "m-0: a[]; m-1: b[]; m-2: a[]; m-3: b[]",
		},
		"slots run out": {
			nodes: []*node{testNode("a", "aa", 1)}, model: testModel(0, 0), n: 2, want: "m-0: a[]",
			why: "needs a CPU slot on one host: a has none free",
		},
		"labels": {
			nodes: []*node{testNode("a", "a", 0), labelled(testNode("b", "b", 0), map[string]string{"zone": "x"})},
			model: with(testModel(1, 0), func(m *mobula.Model) { m.Resources.HostLabels = map[string]string{"zone": "x"} }), n: 2,
			want: "m-0: b[0]", why: "needs 1 GPU on one host: b has 0 free, a lacks the label zone=x",
		},
		"closed hosts": {
			nodes: []*node{closed(testNode("a", "aa", 0), "is cordoned"), testNode("b", "b", 0)}, model: testModel(2, 0), n: 1,
			why: "needs 2 GPUs on one host: b has 1 free, a is cordoned",
		},
		"memory": {
			nodes: []*node{testNode("a", "aa", 0)},
			model: with(testModel(1, 0), func(m *mobula.Model) { m.Resources.GPUMemory = 90e9 }), n: 1,
			why: "needs 1 GPU of 90GB on one host: a has 0 free (2 too small)",
		},
		"several hosts": {
			nodes: []*node{testNode("a", "aaaa", 0), testNode("b", "bbBB", 0), testNode("c", "cccc", 0)}, model: testModel(6, 2), n: 2,
			want: "m-0: a[0 1 2]+c[0 1 2]", why: "needs 3 GPUs on each of 2 hosts: a has 1 free, b has 2 free, c has 1 free",
		},
		"several hosts without GPUs": {
			nodes: []*node{testNode("a", "", 1), testNode("b", "", 2)}, model: testModel(0, 2), n: 1, want: "m-0: b[]+a[]",
		},
		"unequal shares": {
			nodes: []*node{testNode("a", "aaaa", 0)}, model: testModel(3, 2), n: 1, why: "3 GPUs can't be shared equally by 2 hosts",
		},
		"as many as the arguments say": {
			nodes: []*node{testNode("a", "aaaa", 0)}, n: 1, want: "m-0: a[0 1]",
			model: &mobula.Model{Name: "m", Engine: mobula.Engine{Kind: "vllm", Args: []string{"--tensor-parallel-size=2"}}},
		},
		"vLLM on the CPU where there is no GPU": {
			nodes: []*node{testNode("a", "", 1)}, n: 1, want: "m-0: a[]", model: &mobula.Model{Name: "m", Engine: mobula.Engine{Kind: "vllm"}},
		},
		"vLLM not on the CPU where there are GPUs": {
			nodes: []*node{testNode("a", "", 1), testNode("b", "B", 1)}, n: 1, model: &mobula.Model{Name: "m", Engine: mobula.Engine{Kind: "vllm"}},
			why: "needs 1 GPU on one host: b has 0 free, a has no GPU",
		},
		"a simulated engine needs none": {
			nodes: []*node{testNode("a", "a", 1)}, n: 1, want: "m-0: a[]", model: &mobula.Model{Name: "m", Engine: mobula.Engine{Kind: "sim"}},
		},
		"no host": {model: testModel(1, 0), n: 1, why: "no host has joined: start mobula agent on one"},
		"many hosts": {
			nodes: []*node{testNode("a", "A", 0), testNode("b", "B", 0), testNode("c", "C", 0), testNode("d", "D", 0), testNode("e", "E", 0), testNode("f", "F", 0)},
			model: testModel(1, 0), n: 1, why: "needs 1 GPU on one host: a has 0 free, b has 0 free, c has 0 free, d has 0 free, and 2 more",
		},
	} {
		t.Run(name, func(t *testing.T) {
			places, reasons := schedule(tc.nodes, testWants(tc.model, tc.n))
			require.Equal(t, tc.want, where(places))
			require.Equal(t, tc.why, reasons[adapters.Key{Fleet: "f", Model: "m", Revision: "r"}])
		})
	}
}

func TestMastersOfOneHostHavePortsOfTheirOwn(t *testing.T) {
	nodes := []*node{testNode("a", strings.Repeat("a", 4), 0), testNode("b", strings.Repeat("b", 4), 0)}
	places, _ := schedule(nodes, testWants(testModel(2, 2), 4))
	require.Len(t, places, 4)
	seen := map[string]bool{}
	for _, p := range places {
		require.Equal(t, p.parts[0].Host+".example", p.master)
		at := fmt.Sprint(p.master, ":", p.masterPort)
		require.False(t, seen[at], at)
		seen[at] = true
	}
}

func TestImpossible(t *testing.T) {
	a, b := testNode("a", "AA!", 1), testNode("b", "b", 0)
	a.closed = "is cordoned"
	for name, tc := range map[string]struct {
		model *mobula.Model
		want  string
	}{
		"would fit an empty host": {model: testModel(3, 0)},
		"too many GPUs":           {testModel(4, 0), "model m: does not fit on any host: needs 4 GPUs on one host, the largest, a, has 3"},
		"too many hosts":          {testModel(4, 2), "model m: does not fit on any host: needs 2 GPUs on each of 2 hosts, 1 can"},
		"labels": {
			&mobula.Model{Name: "m", Resources: mobula.Resources{HostLabels: map[string]string{"zone": "x", "gpu": "y"}}},
			"model m: does not fit on any host: no host has the labels gpu=y, zone=x",
		},
		"memory": {
			&mobula.Model{Name: "m", Resources: mobula.Resources{GPUs: new(1), GPUMemory: 90e9}},
			"model m: does not fit on any host: needs 1 GPU of 90GB on one host, the largest, a, has 0",
		},
		"shares": {testModel(3, 2), "model m: does not fit on any host: 3 GPUs can't be shared equally by 2 hosts"},
	} {
		t.Run(name, func(t *testing.T) {
			err := possible([]*node{a, b}, tc.model)
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, adapters.ErrImpossible)
			require.EqualError(t, err, tc.want)
		})
	}
}

// drawNodes and drawWants make an arbitrary world.
func drawNodes(t *rapid.T) []*node {
	nodes := make([]*node, rapid.IntRange(0, 6).Draw(t, "nodes"))
	for i := range nodes {
		gpus := rapid.StringMatching(`[abAB.!]{0,8}`).Draw(t, "gpus")
		nodes[i] = testNode(fmt.Sprintf("n%d", i), gpus, rapid.IntRange(0, 3).Draw(t, "slots"))
		if rapid.IntRange(0, 4).Draw(t, "open") == 0 {
			nodes[i].closed = "is cordoned"
		}
	}
	return nodes
}

func drawWants(t *rapid.T) []want {
	var wants []want
	for m := range rapid.IntRange(0, 4).Draw(t, "models") {
		model := testModel(rapid.IntRange(0, 6).Draw(t, "gpus"), rapid.IntRange(0, 3).Draw(t, "hosts"))
		model.Name = fmt.Sprint("m", m)
		wants = append(wants, testWants(model, rapid.IntRange(1, 5).Draw(t, "replicas"))...)
	}
	return wants
}

func cloneNodes(nodes []*node) []*node {
	all := make([]*node, len(nodes))
	for i, n := range nodes {
		c := *n
		c.gpus, c.replicas, c.masters = slices.Clone(n.gpus), map[modelKey]int{}, map[int]bool{}
		all[i] = &c
	}
	return all
}

func TestScheduleNeverOverbooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, wants := drawNodes(t), drawWants(t)
		free := map[string]bool{} // host/device
		slots := map[string]int{}
		for _, n := range nodes {
			if n.closed == "" {
				slots[n.name] = n.slots
				for _, g := range n.gpus {
					free[n.name+"/"+g.id] = !g.taken && !g.ill
				}
			}
		}
		byID := map[string]want{}
		for _, w := range wants {
			byID[w.id] = w
		}
		places, reasons := schedule(nodes, wants)
		for _, p := range places {
			w := byID[p.id]
			delete(byID, p.id)
			hosts := max(1, w.model.Resources.Hosts)
			require.Len(t, p.parts, hosts, "all parts or none")
			on := map[string]bool{}
			for _, part := range p.parts {
				require.False(t, on[part.Host], "each part on a host of its own")
				on[part.Host] = true
				require.Len(t, part.Devices, *w.model.Resources.GPUs/hosts)
				if len(part.Devices) == 0 {
					slots[part.Host]--
					require.GreaterOrEqual(t, slots[part.Host], 0)
				}
				for _, d := range part.Devices {
					require.True(t, free[part.Host+"/"+d], "%s of %s is taken", d, part.Host)
					free[part.Host+"/"+d] = false
				}
			}
		}
		for _, w := range byID { // what is left has a reason, and truly has no room
			require.NotEmpty(t, reasons[w.key])
			again, _ := schedule(cloneNodes(nodes), []want{w})
			require.Empty(t, again, "%s would have fitted", w.id)
		}
	})
}

func TestScheduleDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, wants := drawNodes(t), drawWants(t)
		otherNodes, otherWants := cloneNodes(nodes), slices.Clone(wants)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		r.Shuffle(len(otherNodes), func(i, j int) { otherNodes[i], otherNodes[j] = otherNodes[j], otherNodes[i] })
		r.Shuffle(len(otherWants), func(i, j int) { otherWants[i], otherWants[j] = otherWants[j], otherWants[i] })
		places, reasons := schedule(nodes, wants)
		otherPlaces, otherReasons := schedule(otherNodes, otherWants)
		require.Equal(t, where(places), where(otherPlaces))
		require.Empty(t, cmp.Diff(reasons, otherReasons))
	})
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"gpu-1", "gpu-1", true},
		{"gpu-1", "gpu-11", false},
		{"gpu-*", "gpu-11", true},
		{"gpu-*", "cpu-1", false},
		{"*", "", true},
		{"*-a-*.example", "x-a-y-a-z.example", true},
		{"*-a-*.example", "x-a.example", false},
		{"**", "anything", true},
	} {
		require.Equal(t, tc.want, matches(tc.pattern, tc.name), "%s of %s", tc.name, tc.pattern)
	}
}

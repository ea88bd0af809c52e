package lora

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/mobula-serve/mobula"
)

// Plan gives what is to be done now, sorted by LoRA and replica, and the state to go on with. A LoRA with N
// replicas is wanted on N of those that take requests: on ones that have it already, as far as that spreads the
// LoRAs evenly, and else by rendezvous hashing, so that replicas that come and go move little. It is loaded wherever it is
// wanted before it is unloaded anywhere. What failed is tried again after 1 s, 2 s and so on up to 1 min, and on
// another replica first. LoRAs that the fleet never named are left alone.
func Plan(in Input, s State) ([]Action, State) {
	wanted := make(map[string]mobula.LoRA, len(in.LoRAs))
	for _, l := range in.LoRAs {
		wanted[l.Name] = l
	}
	s = s.settle(&in, wanted)
	p := newPlacing(&in, s)
	targets := p.targets(in.LoRAs)
	var actions []Action
	for name := range p.holders {
		if _, want := wanted[name]; !want {
			for _, r := range p.holders[name] {
				actions = p.add(actions, Action{Kind: Unload, Replica: r, LoRA: name})
			}
		}
	}
	for _, l := range in.LoRAs {
		complete := true
		for _, r := range targets[l.Name] {
			lacks := s.Loaded[r][l.Name] != l.Source
			complete = complete && !lacks && p.doubt[r] == 0
			if lacks {
				actions = p.add(actions, Action{Kind: Load, Replica: r, LoRA: l.Name, Source: l.Source})
			}
		}
		for _, r := range p.holders[l.Name] {
			if complete && len(targets[l.Name]) > 0 && !slices.Contains(targets[l.Name], r) {
				actions = p.add(actions, Action{Kind: Unload, Replica: r, LoRA: l.Name})
			}
		}
	}
	slices.SortFunc(actions, func(a, b Action) int {
		return cmp.Or(cmp.Compare(a.LoRA, b.LoRA), cmp.Compare(a.Replica, b.Replica))
	})
	return actions, s
}

// placing is a plan in the making.
type placing struct {
	in      *Input
	state   State
	open    []string            // replicas that LoRAs can be on, sorted
	doubt   map[string]int      // 1 for those that are not known yet: nothing can be done to them, and they may have lost what they had
	holders map[string][]string // LoRAs that are ours → open replicas that have them, sorted
	most    int                 // LoRAs that a replica should have, those that are wanted everywhere aside
	count   map[string]int      // replica → LoRAs that it is to have, the same aside
}

func newPlacing(in *Input, s State) *placing {
	p := &placing{in: in, state: s, doubt: map[string]int{}, holders: map[string][]string{}, count: map[string]int{}}
	for i := range in.Replicas {
		if r := &in.Replicas[i]; r.open() {
			p.open = append(p.open, r.ID)
			if !r.Known {
				p.doubt[r.ID] = 1
			}
		}
	}
	slices.Sort(p.open)
	for _, r := range p.open {
		for name := range s.Loaded[r] {
			p.holders[name] = append(p.holders[name], r)
		}
	}
	return p
}

// add appends a unless it has failed too lately, or its replica is not known yet.
func (p *placing) add(actions []Action, a Action) []Action {
	if f := p.state.Failures[a.Replica][a.LoRA]; p.doubt[a.Replica] > 0 || f.is(a) && p.in.Now.Before(f.until()) {
		return actions
	}
	return append(actions, a)
}

// everywhere tells whether the LoRA is wanted on all replicas there are.
func (p *placing) everywhere(l mobula.LoRA) bool { return l.Replicas <= 0 || l.Replicas >= len(p.open) }

// targets gives the replicas that each LoRA is wanted on. First all LoRAs keep what they have, in the order of their
// names, as long as no replica gets more than its share; then each gets what it still needs. Once its loads are done
// the same answer comes again, since nobody could keep more than before.
func (p *placing) targets(loras []mobula.LoRA) map[string][]string {
	targets := make(map[string][]string, len(loras))
	var some []mobula.LoRA
	total := 0
	for _, l := range loras {
		if p.everywhere(l) {
			targets[l.Name] = p.open
			continue
		}
		some = append(some, l)
		total += l.Replicas
	}
	if len(some) == 0 {
		return targets
	}
	slices.SortFunc(some, func(a, b mobula.LoRA) int { return cmp.Compare(a.Name, b.Name) })
	p.most = (total + len(p.open) - 1) / len(p.open)
	for _, l := range some {
		holders := p.ranked(l.Name, p.holders[l.Name])
		slices.SortStableFunc(holders, func(a, b string) int { return cmp.Compare(p.doubt[a], p.doubt[b]) })
		for _, r := range holders {
			if len(targets[l.Name]) < l.Replicas && p.count[r] < p.most {
				targets[l.Name] = append(targets[l.Name], r)
				p.count[r]++
			}
		}
	}
	for _, l := range some {
		targets[l.Name] = p.fill(l, targets[l.Name])
	}
	return targets
}

// fill adds replicas to have until there are as many as l wants: those that have not failed at it, have
// room, and come first by hash.
func (p *placing) fill(l mobula.LoRA, have []string) []string {
	if len(have) >= l.Replicas {
		return have
	}
	rest := p.ranked(l.Name, p.open)
	rest = slices.DeleteFunc(rest, func(r string) bool { return slices.Contains(have, r) })
	slices.SortStableFunc(rest, func(a, b string) int {
		return cmp.Or(
			cmp.Compare(p.state.Failures[a][l.Name].Count, p.state.Failures[b][l.Name].Count),
			cmp.Compare(max(0, p.count[a]+1-p.most), max(0, p.count[b]+1-p.most)),
		)
	})
	for _, r := range rest[:l.Replicas-len(have)] {
		have = append(have, r)
		p.count[r]++
	}
	return have
}

// ranked gives a copy of replicas in the order in which the LoRA prefers them.
func (p *placing) ranked(name string, replicas []string) []string {
	score := make(map[string]uint64, len(replicas))
	for _, r := range replicas {
		score[r] = rendezvous(name, r)
	}
	replicas = slices.Clone(replicas)
	slices.SortFunc(replicas, func(a, b string) int { return cmp.Or(cmp.Compare(score[b], score[a]), cmp.Compare(a, b)) })
	return replicas
}

// rendezvous hashes a pair: FNV-1a, whose last bytes move few bits, and a finalizer that mends it.
func rendezvous(name, replica string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(replica))
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

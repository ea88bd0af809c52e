package adapters

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula"
)

// ReplicaID makes the ID of a replica from its model, its revision and what makes it unique: a DNS
// label such as "llama-3-1-8b-3fa9c1-xk2p4". unique has lower-case letters and digits, at most 20.
func ReplicaID(model, revision, unique string) string {
	revision = slug(revision[:min(len(revision), 6)])
	if revision == "" {
		revision = "0"
	}
	tail := "-" + revision + "-" + unique
	model = model[strings.LastIndexByte(model, '/')+1:] // the organisation says little
	name := slug(model)
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "m" + name
	}
	name = strings.TrimRight(name[:min(len(name), 63-len(tail))], "-")
	return name + tail
}

// slug gives s in lower-case letters, digits and single dashes between them.
func slug(s string) string {
	var b strings.Builder
	for _, c := range []byte(strings.ToLower(s)) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			b.WriteByte(c)
		case b.Len() > 0 && b.String()[b.Len()-1] != '-':
			b.WriteByte('-')
		}
	}
	return strings.TrimRight(b.String(), "-")
}

// Leaving picks the n replicas that go when a deployment has too many, in the order that Placer.Apply
// promises. replicas are oldest first; drain holds the IDs that are marked.
func Leaving(replicas []mobula.Replica, drain []string, n int) []string {
	type candidate struct {
		id        string
		rank, age int
	}
	all := make([]candidate, len(replicas))
	for i := range replicas {
		r := &replicas[i]
		all[i] = candidate{id: r.ID, rank: rank(r.State), age: i}
		if at := slices.Index(drain, r.ID); at >= 0 {
			all[i].rank, all[i].age = 0, -at // the first of drain goes first
		}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.age, a.age))
	})
	n = min(max(n, 0), len(all))
	ids := make([]string, 0, n)
	for _, c := range all[:n] {
		ids = append(ids, c.id)
	}
	return ids
}

// rank orders states by how little is lost when such a replica goes. 0 is for marked ones.
func rank(s mobula.State) int {
	switch s {
	case mobula.StateFailed:
		return 1
	case mobula.StatePending:
		return 2
	case mobula.StateSuspect:
		return 3
	case mobula.StateStarting:
		return 4
	default:
		return 5
	}
}

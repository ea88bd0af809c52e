package kubetest

import (
	"maps"
	"slices"
	"strconv"
)

// Objects are trees as JSON has them. One that is stored is never changed: who changes an object makes a draft, and
// puts new maps where it changes something.
type tree = map[string]any

// at gives what lies at a path, nil if nothing does.
func at(t tree, path ...string) any {
	var v any = t
	for _, key := range path {
		m, _ := v.(tree)
		v = m[key]
	}
	return v
}

func text(t tree, path ...string) string {
	s, _ := at(t, path...).(string)
	return s
}

func sub(t tree, path ...string) tree {
	m, _ := at(t, path...).(tree)
	return m
}

func list(t tree, path ...string) []any {
	l, _ := at(t, path...).([]any)
	return l
}

func flag(t tree, path ...string) bool {
	b, _ := at(t, path...).(bool)
	return b
}

// number gives an integer, fallback if there is none.
func number(t tree, fallback int64, path ...string) int64 {
	switch n := at(t, path...).(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	}
	return fallback
}

// trees gives the maps of a list.
func trees(l []any) []tree {
	out := make([]tree, 0, len(l))
	for _, v := range l {
		if m, ok := v.(tree); ok {
			out = append(out, m)
		}
	}
	return out
}

// texts gives a map of strings, such as labels.
func texts(t tree) map[string]string {
	out := make(map[string]string, len(t))
	for key, v := range t {
		if s, ok := v.(string); ok {
			out[key] = s
		}
	}
	return out
}

// with gives t with a value at a path. Maps on the way are copied, so that t stays as it is.
func with(t tree, value any, path ...string) tree {
	out := maps.Clone(t)
	if out == nil {
		out = tree{}
	}
	if len(path) == 1 {
		out[path[0]] = value
		return out
	}
	out[path[0]] = with(sub(t, path[0]), value, path[1:]...)
	return out
}

// without gives t with nothing at a path.
func without(t tree, path ...string) tree {
	if at(t, path...) == nil && len(path) > 1 {
		return t
	}
	out := maps.Clone(t)
	if len(path) == 1 {
		delete(out, path[0])
		return out
	}
	out[path[0]] = without(sub(t, path[0]), path[1:]...)
	return out
}

// copied gives a deep copy.
func copied(v any) any {
	switch v := v.(type) {
	case tree:
		out := make(tree, len(v))
		for key, x := range v {
			out[key] = copied(x)
		}
		return out
	case []any:
		out := slices.Clone(v)
		for i, x := range out {
			out[i] = copied(x)
		}
		return out
	}
	return v
}

func copyTree(t tree) tree {
	c, _ := copied(t).(tree)
	return c
}

// pruned gives t without the nulls that typed clients send for what is not set.
func pruned(t tree) tree {
	for key, v := range t {
		switch v := v.(type) {
		case nil:
			delete(t, key)
		case tree:
			pruned(v)
		case []any:
			for _, m := range trees(v) {
				pruned(m)
			}
		}
	}
	return t
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }

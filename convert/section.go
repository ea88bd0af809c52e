package convert

import (
	"strconv"
	"strings"
)

// section is a mapping of theirs, and where it is. What it has is of the types that walk has checked, else that of a later error.
type section struct {
	path   string
	values map[string]any
	spec   *spec
}

func (s *stack) root() section { return section{values: s.values, spec: s.index} }

// at is the path of a key.
func (s section) at(key string) string { return join(s.path, key) }

// raw gives a value. It is a bug to ask for one that no row is about: it would be in no table and unchecked.
func (s section) raw(key string) any {
	if s.spec.keys[key] == nil {
		panic("no row for " + s.at(key))
	}
	return s.values[key]
}

func (s section) has(key string) bool { return s.raw(key) != nil }

// text gives a text, number or flag as text.
func (s section) text(key string) string { return scalarText(s.raw(key)) }

// flag gives a flag, otherwise when it isn't set.
func (s section) flag(key string, otherwise bool) bool {
	if v, ok := s.raw(key).(bool); ok {
		return v
	}
	return otherwise
}

// whole gives a whole number, otherwise when it isn't set.
func (s section) whole(key string, otherwise int) int {
	if n, err := strconv.Atoi(s.text(key)); err == nil {
		return n
	}
	return otherwise
}

// list gives a list of anything.
func (s section) list(key string) []any {
	l, _ := s.raw(key).([]any)
	return l
}

// texts gives a list of texts.
func (s section) texts(key string) []string {
	out := make([]string, 0, len(s.list(key)))
	for _, v := range s.list(key) {
		out = append(out, scalarText(v))
	}
	return out
}

// mapping gives a mapping of anything.
func (s section) mapping(key string) map[string]any {
	m, _ := s.raw(key).(map[string]any)
	return m
}

// labels gives a mapping with texts for values, as Kubernetes wants them.
func (s section) labels(key string) map[string]any {
	out := map[string]any{}
	for name, v := range s.mapping(key) {
		if v != nil {
			out[name] = scalarText(v)
		}
	}
	return out
}

// sub gives a section in it, which may be empty.
func (s section) sub(key string) section {
	s.raw(key)
	return section{s.at(key), s.mapping(key), s.spec.keys[key]}
}

// item gives an item of a list of sections.
func (s section) item(key string, i int) section {
	m, _ := s.list(key)[i].(map[string]any)
	return section{s.at(key) + "[" + strconv.Itoa(i) + "]", m, s.spec.keys[key]}
}

// enabled tells whether a section is there and switched on.
func (s section) enabled() bool { return s.flag("enabled", false) }

// copyTo puts values as they are: pairs of their key and ours.
func (s section) copyTo(o *object, keys ...string) {
	for i := 0; i+1 < len(keys); i += 2 {
		switch s.spec.keys[keys[i]].row.kind {
		case labels:
			o.set(keys[i+1], s.labels(keys[i]))
		case texts:
			o.set(keys[i+1], s.texts(keys[i]))
		case whole:
			if s.text(keys[i]) != "" {
				o.keep(keys[i+1], s.whole(keys[i], 0))
			}
		case flagged, on, off:
			if s.has(keys[i]) {
				o.keep(keys[i+1], s.flag(keys[i], false))
			}
		case text:
			o.set(keys[i+1], s.text(keys[i]))
		default:
			o.set(keys[i+1], s.raw(keys[i]))
		}
	}
}

// slug makes a name for a Kubernetes object of any text, as the chart does.
func slug(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String()[:min(b.Len(), 40)], "-")
}

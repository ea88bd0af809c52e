package convert

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
)

// row is one value of theirs and what becomes of it. The rows are what is converted, what is checked and the table in
// docs/migrating-from-production-stack.md.
type row struct {
	// theirs is its path; [] stands for each item of a list.
	theirs string
	kind   kind
	fate   fate
	// ours is where it goes, empty if it goes nowhere.
	ours string
	// text says more: it is the note of a value that is not just mapped.
	text string
	// std is the default of their chart, as JSON, which needs no note. Empty for what is empty there.
	std string
}

// fate is what becomes of a value.
type fate int

const (
	mapped  fate = iota // becomes one of ours; what is to be noted depends on the value
	changed             // done in another way, noted
	dropped             // has no counterpart, noted
	later               // Mobula has it not yet, noted as dropped
)

// kind is the type of a value.
type kind int

const (
	text     kind = iota // text or a number
	whole                // a whole number from 0 on, or one as text
	number               // a number, or one as text
	flagged              // true or false
	list                 // a list of anything
	texts                // a list of texts and numbers
	mapping              // a mapping of anything
	labels               // a mapping of texts and numbers
	secretly             // text that is secret, or a mapping with secretName and secretKey
	either               // text or a mapping
	some                 // a mapping or a list
	on                   // a flag, true unless it is set, without which its section does not matter
	off                  // a flag, false unless it is set, without which its section does not matter
)

// spec is the tree of rows.
type spec struct {
	row  *row
	keys map[string]*spec
	// order of keys.
	order []string
	// list tells that keys are those of each item.
	list bool
}

func newSpec(rows []row) *spec {
	root := &spec{keys: map[string]*spec{}}
	for i := range rows {
		at := root
		for part := range strings.SplitSeq(rows[i].theirs, ".") {
			name, isList := strings.CutSuffix(part, "[]")
			below := at.keys[name]
			if below == nil {
				below = &spec{keys: map[string]*spec{}}
				at.keys[name], at.order = below, append(at.order, name)
			}
			below.list = below.list || isList
			at = below
		}
		at.row = &rows[i]
	}
	return root
}

// walk checks a mapping of theirs, and notes what has a fate of its own. It is quiet about what is switched off.
func (s *stack) walk(at *spec, path string, values map[string]any, quiet bool) {
	for _, key := range at.order {
		if below := at.keys[key]; below.row != nil && (below.row.kind == on || below.row.kind == off) {
			given, isFlag := values[key].(bool)
			quiet = quiet || isFlag && !given || !isFlag && below.row.kind == off
		}
	}
	for _, key := range at.order {
		if value, given := values[key]; given && value != nil {
			s.walkValue(at.keys[key], join(path, key), value, quiet)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if at.keys[key] == nil && values[key] != nil {
			s.note(join(path, key), Dropped, "unknown to production-stack's chart too%s", at.like(key))
		}
	}
}

func (s *stack) walkValue(at *spec, path string, value any, quiet bool) {
	switch {
	case at.row != nil:
		if want := at.row.kind.wants(value); want != "" {
			got := shown(value)
			if at.row.kind == secretly {
				got = "something else" // it may be the secret
			}
			s.bad(path, "want %s, got %s", want, got)
			return
		}
		if !quiet {
			s.tell(at.row, path, value)
		}
	case at.list:
		items, ok := value.([]any)
		if !ok {
			s.bad(path, "want a list, got %s", shown(value))
		}
		for i, item := range items {
			below := path + "[" + strconv.Itoa(i) + "]"
			if m, ok := item.(map[string]any); ok {
				s.walk(at, below, m, quiet)
			} else {
				s.bad(below, "want a mapping, got %s", shown(item))
			}
		}
	default:
		if m, ok := value.(map[string]any); ok {
			s.walk(at, path, m, quiet)
		} else if given(value) {
			s.bad(path, "want a mapping, got %s", shown(value))
		}
	}
}

// tell notes a value that is not just mapped, unless it says no more than their default.
func (s *stack) tell(r *row, path string, value any) {
	if r.fate == mapped || r.std == "" && !given(value) || r.std != "" && within(value, standard(r.std)) {
		return
	}
	switch r.fate {
	case changed:
		s.note(path, Changed, "%s", r.text)
	case later:
		s.note(path, Dropped, "not there yet: %s", r.text)
	default:
		s.note(path, Dropped, "%s", r.text)
	}
}

func standard(text string) any {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		panic(err) // a row is wrong
	}
	return v
}

// within tells whether value says nothing that std doesn't.
func within(value, std any) bool {
	a, isMap := value.(map[string]any)
	b, both := std.(map[string]any)
	if !isMap || !both {
		return scalarText(value) != "" && scalarText(value) == scalarText(std) || reflect.DeepEqual(value, std)
	}
	for key, v := range a {
		if v != nil && !within(v, b[key]) {
			return false
		}
	}
	return true
}

// given tells whether a value is one, as Helm's templates see it.
func given(value any) bool {
	switch v := value.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case json.Number:
		n, err := v.Float64()
		return err != nil || n != 0
	case []any:
		return len(v) > 0
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), given)
	}
	return true
}

// wants says what is wanted in place of value, empty if value is it.
func (k kind) wants(value any) string {
	_, isText := value.(string)
	_, isNumber := value.(json.Number)
	m, isMap := value.(map[string]any)
	items, isList := value.([]any)
	_, isFlag := value.(bool)
	switch k {
	case text:
		return unless(isText || isNumber, "text")
	case whole:
		n, err := strconv.Atoi(scalarText(value))
		return unless(value == "" || (isText || isNumber) && err == nil && n >= 0, "a whole number from 0 on")
	case number:
		_, err := strconv.ParseFloat(scalarText(value), 64)
		return unless(value == "" || (isText || isNumber) && err == nil, "a number")
	case flagged, on, off:
		return unless(isFlag, "true or false")
	case list:
		return unless(isList, "a list")
	case texts:
		return unless(isList && !slices.ContainsFunc(items, notText), "a list of texts")
	case labels:
		return unless(isMap && !slices.ContainsFunc(slices.Collect(maps.Values(m)), notText), "a mapping of texts")
	case mapping:
		return unless(isMap, "a mapping")
	case secretly:
		return unless(isText || isMap && !slices.ContainsFunc(slices.Collect(maps.Values(m)), notText), "text, or a mapping with secretName and secretKey")
	}
	if k == some {
		return unless(isList || isMap, "a list")
	}
	return unless(isText || isMap, "text or a mapping")
}

func unless(ok bool, want string) string {
	if ok {
		return ""
	}
	return want
}

func notText(v any) bool {
	switch v.(type) {
	case string, json.Number, bool, nil:
		return false
	}
	return true
}

// scalarText is a text, number or flag as text.
func scalarText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// like proposes what was meant by an unknown key.
func (at *spec) like(key string) string {
	best := mobula.Nearest(key, at.order, min(3, len(key)))
	for _, name := range at.order {
		if _, ok := at.keys[name].keys[key]; ok && best == "" {
			best = name + "." + key
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

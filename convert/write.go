package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// object is a mapping with an order, in which values of ours are put together.
type object struct{ pairs []pair }

// pair is a key, its value and a comment for readers. Values are bool, int, string, json.Number, []string, []any, map[string]any
// and *object.
type pair struct {
	key     string
	value   any
	comment string
}

// keep puts a value in place.
func (o *object) keep(key string, value any) {
	if i := o.find(key); i >= 0 {
		o.pairs[i].value = value
		return
	}
	o.pairs = append(o.pairs, pair{key: key, value: value})
}

// set puts a value in place unless it is empty.
func (o *object) set(key string, value any) {
	if !empty(value) {
		o.keep(key, value)
	}
}

// say puts a comment to a key that is there.
func (o *object) say(key, comment string) {
	if i := o.find(key); i >= 0 {
		o.pairs[i].comment = comment
	}
}

// child gives the mapping of a key, which it makes if there is none.
func (o *object) child(keys ...string) *object {
	for _, key := range keys {
		below, ok := o.get(key).(*object)
		if !ok {
			below = &object{}
			o.keep(key, below)
		}
		o = below
	}
	return o
}

func (o *object) get(key string) any {
	if i := o.find(key); i >= 0 {
		return o.pairs[i].value
	}
	return nil
}

func (o *object) drop(key string) {
	if i := o.find(key); i >= 0 {
		o.pairs = slices.Delete(o.pairs, i, i+1)
	}
}

func (o *object) find(key string) int {
	return slices.IndexFunc(o.pairs, func(p pair) bool { return p.key == key })
}

// order sorts the keys as given.
func (o *object) order(keys ...string) {
	slices.SortStableFunc(o.pairs, func(a, b pair) int { return slices.Index(keys, a.key) - slices.Index(keys, b.key) })
}

func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case []string:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	case *object:
		return len(v.pairs) == 0
	}
	return false
}

const (
	flowWidth = 100 // of a list or mapping in one line
	lineWidth = 150 // with a comment
)

// write gives a mapping as YAML that Helm and Mobula read alike.
func write(title string, o *object) ([]byte, error) {
	w := &writer{}
	if title != "" {
		w.out.WriteString("# " + title + "\n")
	}
	w.mapping(o.pairs, 0, title != "")
	if len(o.pairs) == 0 {
		w.out.WriteString("{}\n")
	}
	return w.out.Bytes(), w.err
}

type writer struct {
	out bytes.Buffer
	err error
}

// mapping writes pairs, the first where the line is: it may have begun with a dash.
func (w *writer) mapping(pairs []pair, indent int, fresh bool) {
	_ = fresh
	for i, p := range pairs {
		if i > 0 || indent == 0 {
			w.out.WriteString(strings.Repeat(" ", indent))
		}
		comment := ""
		if p.comment != "" {
			comment = " # " + p.comment
		}
		w.out.WriteString(scalar(p.key, false) + ":")
		w.value(p.value, indent, comment)
	}
}

// value writes what follows a colon.
func (w *writer) value(value any, indent int, comment string) {
	if line, ok := w.flow(value, indent == 0); ok {
		w.out.WriteString(" " + line + comment + "\n")
		return
	}
	if s, ok := value.(string); ok {
		w.lines(s, indent+2, comment)
		return
	}
	w.out.WriteString(comment + "\n")
	if items, ok := itemsOf(value); ok {
		for _, item := range items {
			w.out.WriteString(strings.Repeat(" ", indent+2) + "- ")
			if pairs, isMap := pairsOf(item); isMap && len(pairs) > 0 {
				if line, ok := w.flow(item, false); ok && len(pairs) > 0 && !hasName(pairs) {
					w.out.WriteString(line + "\n")
					continue
				}
				w.mapping(pairs, indent+4, false)
				continue
			}
			if line, ok := w.flow(item, false); ok {
				w.out.WriteString(line + "\n")
				continue
			}
			if s, ok := item.(string); ok {
				w.trimSpace()
				w.lines(s, indent+4, "")
				continue
			}
			w.trimSpace()
			w.value(item, indent+2, "")
		}
		return
	}
	pairs, ok := pairsOf(value)
	if !ok {
		w.err = fmt.Errorf("write values: no way to write %T", value)
		return
	}
	w.out.WriteString(strings.Repeat(" ", indent+2))
	w.mapping(pairs, indent+2, false)
}

func (w *writer) trimSpace() { w.out.Truncate(w.out.Len() - 1) }

// hasName tells of things that are read one by one.
func hasName(pairs []pair) bool { return len(pairs) > 3 && pairs[0].key == "name" }

// lines writes text of several lines.
func (w *writer) lines(s string, indent int, comment string) {
	chomp := map[bool]string{true: "", false: "-"}[strings.HasSuffix(s, "\n")]
	if strings.HasSuffix(s, "\n\n") {
		chomp = "+"
	}
	w.out.WriteString(" |" + chomp + comment + "\n")
	for line := range strings.Lines(s) {
		if text := strings.TrimSuffix(line, "\n"); text != "" {
			w.out.WriteString(strings.Repeat(" ", indent) + text)
		}
		w.out.WriteString("\n")
	}
}

// flow gives a value in one line, if that is how it is read best.
func (w *writer) flow(value any, top bool) (string, bool) {
	switch v := value.(type) {
	case nil:
		return "null", true
	case bool, int, json.Number:
		return fmt.Sprint(v), true
	case string:
		return scalar(v, false), !inLines(v)
	}
	line := inline(value)
	return line, line != "" && len(line) <= flowWidth && (!top || line == "{}" || line == "[]")
}

// inline is a value as part of a line, empty if it can't be.
func inline(value any) string {
	if items, ok := itemsOf(value); ok {
		parts := make([]string, 0, len(items))
		for _, item := range items {
			part := inline(item)
			if part == "" {
				return ""
			}
			parts = append(parts, part)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if pairs, ok := pairsOf(value); ok {
		parts := make([]string, 0, len(pairs))
		for _, p := range pairs {
			part := inline(p.value)
			if part == "" || p.comment != "" {
				return ""
			}
			parts = append(parts, scalar(p.key, true)+": "+part)
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	switch v := value.(type) {
	case nil:
		return "null"
	case string:
		if inLines(v) {
			return ""
		}
		return scalar(v, true)
	}
	return fmt.Sprint(value)
}

// itemsOf gives the items of a list.
func itemsOf(value any) ([]any, bool) {
	switch v := value.(type) {
	case []any:
		return v, true
	case []string:
		out := make([]any, 0, len(v))
		for _, s := range v {
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

// pairsOf gives what a mapping has: in its order, or by names.
func pairsOf(value any) ([]pair, bool) {
	switch v := value.(type) {
	case *object:
		return v.pairs, true
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		if i := slices.Index(keys, "name"); i > 0 { // what things are called comes first
			keys = append([]string{"name"}, slices.Delete(keys, i, i+1)...)
		}
		out := make([]pair, 0, len(keys))
		for _, key := range keys {
			out = append(out, pair{key: key, value: v[key]})
		}
		return out, true
	}
	return nil, false
}

// inLines tells of text that is written in lines of its own.
func inLines(s string) bool {
	if !strings.Contains(s, "\n") || strings.TrimLeft(s[:1], " \t\n") == "" || strings.Contains(s, "\r") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) })
}

// scalar writes text so that it is text to every parser, without quotes where none are needed.
func scalar(s string, inFlow bool) string {
	word := regexp.MustCompile(`^(/?[A-Za-z_][A-Za-z0-9_./@+-]*(:[A-Za-z0-9_./@+-]+)*|--?[A-Za-z][A-Za-z0-9_-]*|[0-9]+(m|k|M|G|T|Ki|Mi|Gi|Ti|KiB|MiB|GiB|KB|MB|GB|s|h))$`)
	reserved := regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null|nan|inf|_+)$`)
	switch {
	case word.MatchString(s) && !reserved.MatchString(s) && !(inFlow && strings.Contains(s, ":")):
		return s
	case strings.Contains(s, `"`) && !strings.Contains(s, "'") && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "'" + s + "'"
	}
	return strconv.Quote(s)
}

package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
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

// flowWidth is the longest list or mapping in one line.
const flowWidth = 110

// write gives a mapping as YAML that Helm and Mobula read alike.
func write(title string, o *object) ([]byte, error) {
	w := &writer{}
	if title != "" {
		w.out.WriteString("# " + title + "\n")
	}
	w.mapping(o.pairs, 0)
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
func (w *writer) mapping(pairs []pair, indent int) {
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
			w.item(item, indent+2)
		}
		return
	}
	pairs, ok := pairsOf(value)
	if !ok {
		w.err = fmt.Errorf("write values: no way to write %T", value)
		return
	}
	w.out.WriteString(strings.Repeat(" ", indent+2))
	w.mapping(pairs, indent+2)
}

// item writes one of a list.
func (w *writer) item(item any, indent int) {
	w.out.WriteString(strings.Repeat(" ", indent) + "-")
	pairs, isMap := pairsOf(item)
	line, inOne := w.flow(item, false)
	text, isText := item.(string)
	switch {
	case inOne && (!isMap || len(pairs) == 0 || indent > 2 && (len(pairs) <= 3 || pairs[0].key != "name")): // what has a name and much else is read line by line
		w.out.WriteString(" " + line + "\n")
	case isMap:
		w.out.WriteString(" ")
		w.mapping(pairs, indent+2)
	case isText:
		w.lines(text, indent+2, "")
	default:
		w.value(item, indent, "")
	}
}

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
	switch {
	case isPlain(s) && (!inFlow || !strings.Contains(s, ":")):
		return s
	case strings.Contains(s, `"`) && !strings.Contains(s, "'") && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "'" + s + "'"
	}
	return strconv.Quote(s)
}

const letters, digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "0123456789"

// isPlain tells of words, paths, images and flags that no parser of YAML takes for anything but text, and of quantities.
func isPlain(s string) bool {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf":
		return false
	}
	amount := strings.TrimLeft(s, digits)
	if amount != s {
		return slices.Contains([]string{"m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "KiB", "MiB", "GiB", "KB", "MB", "GB", "s", "h"}, amount)
	}
	word := strings.TrimPrefix(strings.TrimPrefix(s, "-"), "-")
	if word == s {
		word = strings.TrimPrefix(s, "/")
	}
	return word != "" && strings.Trim(word[:1], letters) == "" && strings.Trim(word, letters+digits+"_./@+-:") == "" && !strings.HasSuffix(word, ":")
}

package mobula

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Bounds on what aliases can make of a small file.
const (
	maxNodes  = 400_000
	maxMerges = 8
)

// decoder writes a document into a value by the value's yaml tags and notes all that doesn't
// fit. The library's own decoder stops at the first problem and expands aliases without a bound.
type decoder struct {
	report
	anchors map[*ast.AliasNode]ast.Node
	nodes   int // visited so far, aliased ones each time
}

func newDecoder(root ast.Node) *decoder {
	d := &decoder{anchors: map[*ast.AliasNode]ast.Node{}}
	d.places = map[string]place{}
	ast.Walk(anchorVisitor{seen: map[string]ast.Node{}, found: d.anchors}, root)
	return d
}

// anchorVisitor resolves aliases: each means the last anchor of its name before it.
type anchorVisitor struct {
	seen  map[string]ast.Node
	found map[*ast.AliasNode]ast.Node
}

// Visit implements ast.Visitor.
func (v anchorVisitor) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.AnchorNode:
		v.seen[n.Name.GetToken().Value] = n.Value
	case *ast.AliasNode:
		if target, ok := v.seen[n.Value.GetToken().Value]; ok {
			v.found[n] = target
		}
	}
	return v
}

// resolve follows anchors and aliases to the node that they stand for. It gives nil after it
// has noted a problem.
func (d *decoder) resolve(path string, n ast.Node) ast.Node {
	for {
		if !d.spend(1) {
			return nil
		}
		switch node := n.(type) {
		case *ast.AnchorNode:
			n = node.Value
		case *ast.AliasNode:
			target, ok := d.anchors[node]
			if !ok {
				d.add(placeOf(node.Start), path, "no anchor %s before this alias", quote("&"+node.Value.GetToken().Value))
				return nil
			}
			n = target
		case *ast.TagNode:
			d.add(placeOf(node.Start), path, "want no tag, got %s", quote(node.Start.Value))
			return nil
		case nil:
			return nil
		default:
			return n
		}
	}
}

// spend counts visited nodes; it reports false when there were too many.
func (d *decoder) spend(n int) bool {
	if d.nodes <= maxNodes && d.nodes+n > maxNodes {
		d.add(place{1, 1}, "", "the file's aliases expand to too much: more than %d values", maxNodes)
	}
	d.nodes = min(d.nodes+n, maxNodes+1)
	return d.nodes <= maxNodes
}

// value decodes a node into v.
func (d *decoder) value(path string, n ast.Node, v reflect.Value) {
	n = d.resolve(path, n)
	if n == nil {
		return
	}
	if _, ok := d.places[path]; !ok || isScalar(n) {
		d.places[path] = placeOf(keyToken(n))
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		d.text(path, n, u)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(path, n, v.Elem())
	case reflect.Struct:
		d.object(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.Map:
		switch v.Type().Elem().Kind() {
		case reflect.Interface:
			d.free(path, n, v)
		case reflect.Float64:
			mapping[float64](d, path, n, v)
		default:
			mapping[string](d, path, n, v)
		}
	default:
		d.scalar(path, n, v)
	}
}

// object decodes a mapping into a struct.
func (d *decoder) object(path string, n ast.Node, v reflect.Value) {
	if part, ok := reflect.TypeAssert[defaulter](v.Addr()); ok {
		part.setDefaults()
	}
	for _, e := range d.entries(path, n, 0) {
		field := join(path, e.key)
		i := fieldIndex(v.Type(), e.key)
		if i < 0 {
			d.add(e.at, field, "unknown field, %s", suggest(e.key, fieldNames(v.Type())))
			continue
		}
		d.places[field] = e.at
		if !isNull(e.value) { // a field without a value keeps its default
			d.field(field, e.value, v.Field(i), v.Type().Field(i).Tag.Get("takes") == "numbers")
		}
	}
}

// field decodes a struct's field. One of text that takes numbers has them as they are written.
func (d *decoder) field(path string, n ast.Node, v reflect.Value, numbers bool) {
	if numbers {
		if n = d.resolve(path, n); n == nil {
			return
		}
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode:
			d.places[path] = placeOf(n.GetToken())
			v.SetString(n.GetToken().Value)
			return
		}
	}
	d.value(path, n, v)
}

// list decodes a sequence into a slice.
func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.mismatch(path, n, "a list")
		return
	}
	v.SetZero() // so that an empty list equals none
	if len(seq.Values) > 0 {
		v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	}
	for i, item := range seq.Values {
		if d.more {
			return
		}
		d.value(path+"["+strconv.Itoa(i)+"]", item, v.Index(i))
	}
}

// mapping decodes a mapping of strings or of numbers.
func mapping[T string | float64](d *decoder, path string, n ast.Node, v reflect.Value) {
	m := map[string]T{}
	for _, e := range d.entries(path, n, 0) {
		field := join(path, e.key)
		d.places[field] = e.at
		var item T
		d.value(field, e.value, reflect.ValueOf(&item).Elem())
		m[e.key] = item
	}
	if v.SetZero(); len(m) > 0 {
		v.Set(reflect.ValueOf(m))
	}
}

// scalar decodes a string, bool, int or float64.
func (d *decoder) scalar(path string, n ast.Node, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		s, ok := stringOf(n)
		if !ok {
			d.mismatch(path, n, "text")
			return
		}
		if !isPrintable(s) {
			d.add(d.places[path], path, "want text of printable characters on one line, got %s", quote(s))
			return
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.mismatch(path, n, "true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int:
		i, ok := intOf(n)
		if !ok {
			d.mismatch(path, n, "a whole number")
			return
		}
		v.SetInt(i)
	case reflect.Float64:
		if i, ok := intOf(n); ok {
			v.SetFloat(float64(i))
			return
		}
		f, ok := n.(*ast.FloatNode)
		if !ok {
			d.mismatch(path, n, "a number")
			return
		}
		v.SetFloat(f.Value)
	default:
		panic("mobula: no decoding for " + v.Type().String()) // a test decodes every field
	}
}

// text decodes a scalar into a type that reads itself.
func (d *decoder) text(path string, n ast.Node, u encoding.TextUnmarshaler) {
	s, ok := stringOf(n)
	if !ok {
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			s = n.GetToken().Value
		case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
			d.mismatch(path, n, "one value")
			return
		}
	}
	if err := u.UnmarshalText([]byte(s)); err != nil {
		d.add(d.places[path], path, "%v", err)
	}
}

// mismatch notes a value of the wrong type.
func (d *decoder) mismatch(path string, n ast.Node, want string) {
	var got, hint string
	switch n := n.(type) {
	case *ast.SequenceNode:
		got = "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		got = "a mapping"
	case *ast.NullNode:
		got = "nothing"
	default:
		if s, ok := stringOf(n); ok {
			got = quote(s)
			break
		}
		got = clip(n.GetToken().Value)
		if want == "text" {
			hint = " (put it in quotes)"
		}
	}
	d.add(d.places[path], path, "want %s, got %s%s", want, got, hint)
}

// entry is a key of a mapping with its value.
type entry struct {
	key   string
	at    place
	value ast.Node
}

// entries gives a mapping's keys in order, merged ones ("<<") last. It notes what is not a
// mapping, keys that are not text and keys given twice.
func (d *decoder) entries(path string, n ast.Node, merges int) []entry {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.mismatch(path, n, "a mapping")
		return nil
	}
	if !d.spend(len(values)) {
		return nil
	}
	var out, merged []entry
	seen := map[string]place{}
	for _, v := range values {
		at := placeOf(v.Key.GetToken())
		if v.Key.IsMergeKey() {
			merged = append(merged, d.merge(path, v.Value, merges)...)
			continue
		}
		key, ok := stringOf(v.Key)
		if !ok {
			d.add(at, path, "want text as a key, got %s (put it in quotes)", clip(v.Key.GetToken().Value))
			continue
		}
		if first, twice := seen[key]; twice {
			d.add(at, join(path, key), "given twice, first in line %d", first.line)
			continue
		}
		seen[key] = at
		out = append(out, entry{key, at, v.Value})
	}
	for _, e := range merged {
		if _, own := seen[e.key]; !own {
			seen[e.key] = e.at
			out = append(out, e)
		}
	}
	return out
}

// merge gives the entries of the mapping, or list of mappings, that "<<" names; the first one of a key counts.
func (d *decoder) merge(path string, n ast.Node, merges int) []entry {
	n = d.resolve(path, n)
	if n == nil {
		return nil
	}
	if merges == maxMerges {
		d.add(placeOf(keyToken(n)), path, "merge keys nest more than %d deep", maxMerges)
		return nil
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.entries(path, n, merges+1)
	}
	var out []entry
	for _, item := range seq.Values {
		if item = d.resolve(path, item); item != nil {
			out = append(out, d.entries(path, item, merges+1)...)
		}
	}
	return out
}

// stringOf gives the text of a plain, quoted or block string. Infinity and NaN are text: no field takes them, and the
// library writes text that looks like them without quotes.
func stringOf(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func intOf(n ast.Node) (int64, bool) {
	i, ok := n.(*ast.IntegerNode)
	if !ok {
		return 0, false
	}
	switch v := i.Value.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), v <= 1<<63-1
	}
	return 0, false
}

func isScalar(n ast.Node) bool {
	_, ok := n.(ast.ScalarNode)
	return ok
}

func isNull(n ast.Node) bool {
	if n == nil {
		return true
	}
	_, ok := n.(*ast.NullNode)
	return ok
}

func fieldNames(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}

func fieldIndex(t reflect.Type, key string) int {
	for i, name := range fieldNames(t) {
		if name == key {
			return i
		}
	}
	return -1
}

// suggest names the field that was probably meant, else all of them.
func suggest(key string, names []string) string {
	if best := Nearest(key, names, max(2, len(key)/3)+1); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "want one of " + strings.Join(names, ", ")
}

// Nearest gives the first of the names that are nearest to what was written: less than limit letters to add, drop or change, large and
// small ones being the same. It is empty when none is so near.
func Nearest(written string, names []string, limit int) (best string) {
	written = strings.ToLower(written)
	for _, name := range names {
		if n := editDistance(written, strings.ToLower(name), limit); n < limit {
			best, limit = name, n
		}
	}
	return best
}

// editDistance counts the letters to add, drop or change to make b of a; limit if it is that or more.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return min(limit, row[len(b)])
}

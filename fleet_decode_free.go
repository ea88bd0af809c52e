package mobula

import (
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

const (
	// maxFreeDepth bounds the levels of a free-form value: aliases nest deeper than the file does.
	maxFreeDepth = 16
	// maxWhole is the largest number up to which a JSON reader keeps all whole ones.
	maxWhole = 1<<53 - 1
)

// free decodes a mapping of anything. What comes out is as encoding/json would have it: text, float64, bool, nil,
// []any and map[string]any, so that it is the same after a way through JSON.
func (d *decoder) free(path string, n ast.Node, v reflect.Value) {
	m := d.freeMap(path, n, 1)
	if v.SetZero(); len(m) > 0 {
		v.Set(reflect.ValueOf(m))
	}
}

func (d *decoder) freeMap(path string, n ast.Node, depth int) map[string]any {
	m := map[string]any{}
	for _, e := range d.entries(path, n, 0) {
		field := join(path, e.key)
		if e.key == "" || !isPrintable(e.key) {
			d.add(e.at, field, "want a key of printable characters")
			continue
		}
		if depth <= 2 { // those that checks speak of
			d.places[field] = e.at
		}
		m[e.key] = d.freeValue(field, e.value, depth+1)
	}
	return m
}

func (d *decoder) freeValue(path string, n ast.Node, depth int) any {
	if n == nil {
		return nil
	}
	if n = d.resolve(path, n); n == nil || d.more {
		return nil
	}
	at := placeOf(keyToken(n))
	if depth > maxFreeDepth {
		d.add(at, path, "nested too deep: more than %d levels", maxFreeDepth)
		return nil
	}
	switch n := n.(type) {
	case *ast.NullNode:
		return nil
	case *ast.BoolNode:
		return n.Value
	case *ast.MappingNode, *ast.MappingValueNode:
		return d.freeMap(path, n, depth)
	case *ast.SequenceNode:
		all := make([]any, len(n.Values))
		for i, item := range n.Values {
			all[i] = d.freeValue(path+"["+strconv.Itoa(i)+"]", item, depth+1)
		}
		return all
	}
	if s, ok := stringOf(n); ok {
		if !isPrintable(strings.NewReplacer("\n", "", "\t", "").Replace(s)) { // scripts have lines
			d.add(at, path, "want text of printable characters, got %s", quote(s))
		}
		return s
	}
	f := numberOf(n)
	if !(math.Abs(f) <= maxWhole) {
		d.add(at, path, "want a number of at most %d, got %s (put it in quotes)", maxWhole, clip(n.GetToken().Value))
	}
	return f
}

// numberOf gives a number, NaN for what is none.
func numberOf(n ast.Node) float64 {
	switch n := n.(type) {
	case *ast.IntegerNode:
		switch v := n.Value.(type) {
		case int64:
			return float64(v)
		case uint64:
			return float64(v)
		}
	case *ast.FloatNode:
		return n.Value
	}
	return math.NaN()
}

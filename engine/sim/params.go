package sim

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// params is a request's body by its top-level fields; what has the wrong type is noted.
type params struct {
	names  []string
	values []gjson.Result
	bad    validation
	size   int // fields in the body
}

// maxFields bounds how many fields are looked at.
const maxFields = 256

func newParams(body gjson.Result) *params {
	p := &params{}
	body.ForEach(func(k, v gjson.Result) bool {
		p.size++
		if len(p.names) < maxFields {
			p.names, p.values = append(p.names, k.Str), append(p.values, v)
		}
		return true
	})
	return p
}

// find finds a field; of several the last one counts.
func (p *params) find(name string) (gjson.Result, bool) {
	for i, n := range slices.Backward(p.names) {
		if n == name {
			return p.values[i], true
		}
	}
	return gjson.Result{}, false
}

// get finds a field that may be null, which counts as absent.
func (p *params) get(name string) (gjson.Result, bool) {
	v, ok := p.find(name)
	return v, ok && v.Type != gjson.Null
}

// truthy tells whether Python would take a field for true.
func (p *params) truthy(name string) bool {
	v, ok := p.get(name)
	switch v.Type {
	case gjson.Number:
		return v.Num != 0
	case gjson.String:
		return v.Str != ""
	case gjson.JSON:
		return count(v) > 0
	}
	return ok && v.Type == gjson.True
}

func (p *params) wrong(kind, name, msg string, v gjson.Result) {
	p.bad.add(kind, "body."+name, msg, describe(v), "")
}

// beyond notes a number over its upper bound, or else under its lower one. exact is the
// bound as the type that it is compared as.
func (p *params) beyond(name string, over bool, bound, exact string) {
	kind, word, key := "greater_than_equal", "greater", "ge"
	if over {
		kind, word, key = "less_than_equal", "less", "le"
	}
	v, _ := p.get(name)
	p.bad.add(kind, "body."+name, "Input should be "+word+" than or equal to "+bound, describe(v), ", 'ctx': {'"+key+"': "+exact+"}")
}

func (p *params) missing(name string) {
	p.bad.add("missing", "body."+name, "Field required", "<dict of "+strconv.Itoa(p.size)+" items>", "")
}

// int reads a field that may be null.
func (p *params) int(name string) (int, bool) {
	v, ok := p.get(name)
	if !ok {
		return 0, false
	}
	return p.number(name, v)
}

// notNull is int for a field that must not be null.
func (p *params) notNull(name string) (int, bool) {
	v, ok := p.find(name)
	if !ok {
		return 0, false
	}
	return p.number(name, v)
}

// number reads v, which is called name.
func (p *params) number(name string, v gjson.Result) (int, bool) {
	switch v.Type {
	case gjson.True:
		return 1, true
	case gjson.False:
		return 0, true
	case gjson.Number:
		if v.Num != math.Trunc(v.Num) {
			p.wrong("int_from_float", name, "Input should be a valid integer, got a number with a fractional part", v)
			return 0, false
		}
		return whole(v), true
	case gjson.String:
		if n, err := strconv.Atoi(strings.TrimSpace(v.Str)); err == nil {
			return n, true
		}
		p.wrong("int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", v)
	default:
		p.wrong("int_type", name, "Input should be a valid integer", v)
	}
	return 0, false
}

// whole is a number as an int, the nearest one for those out of range.
func whole(v gjson.Result) int {
	switch {
	case v.Num >= math.MaxInt:
		return math.MaxInt
	case v.Num <= math.MinInt:
		return unset + 1
	}
	return int(v.Int())
}

func (p *params) float(name string, def float64) float64 {
	v, ok := p.get(name)
	if !ok {
		return def
	}
	switch v.Type {
	case gjson.True:
		return 1
	case gjson.False:
		return 0
	case gjson.Number:
		return v.Num
	case gjson.String:
		if f, err := strconv.ParseFloat(strings.TrimSpace(v.Str), 64); err == nil {
			return f
		}
		p.wrong("float_parsing", name, "Input should be a valid number, unable to parse string as a number", v)
	default:
		p.wrong("float_type", name, "Input should be a valid number", v)
	}
	return def
}

func (p *params) bool(name string, def bool) bool {
	v, ok := p.get(name)
	if !ok {
		return def
	}
	switch {
	case v.Type == gjson.True, v.Type == gjson.Number && v.Num == 1:
		return true
	case v.Type == gjson.False, v.Type == gjson.Number && v.Num == 0:
		return false
	case v.Type == gjson.String:
		switch strings.ToLower(v.Str) {
		case "true", "1", "yes", "on", "t", "y":
			return true
		case "false", "0", "no", "off", "f", "n":
			return false
		}
	}
	if v.Type == gjson.JSON || v.Num != math.Trunc(v.Num) {
		p.wrong("bool_type", name, "Input should be a valid boolean", v)
	} else {
		p.wrong("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", v)
	}
	return def
}

func (p *params) string(name string) string {
	v, ok := p.get(name)
	if ok && v.Type != gjson.String {
		p.wrong("string_type", name, "Input should be a valid string", v)
		return ""
	}
	return v.Str
}

func (p *params) list(name string) (gjson.Result, bool) {
	v, ok := p.get(name)
	if ok && !v.IsArray() {
		p.wrong("list_type", name, "Input should be a valid list", v)
		return gjson.Result{}, false
	}
	return v, ok
}

// ints reads a list of integers, at most the first most of them.
func (p *params) ints(name string, most int) []int {
	list, ok := p.list(name)
	if !ok {
		return nil
	}
	var out []int
	list.ForEach(func(_, v gjson.Result) bool {
		n, _ := p.number(name+"."+strconv.Itoa(len(out)), v)
		out = append(out, n)
		return len(out) < most
	})
	return out
}

// stops reads a list of stop strings. alone tells that a string by itself will do too: then
// a value that is neither is named for both, as pydantic does.
func (p *params) stops(name string, alone bool) []string {
	v, ok := p.get(name)
	if !ok {
		return nil
	}
	if alone && v.Type == gjson.String {
		return []string{v.Str}
	}
	list := &params{}
	var out []string
	switch n := count(v); {
	case !v.IsArray():
		list.wrong("list_type", name, "Input should be a valid list", v)
	case n > maxStops:
		list.bad.add("too_long", "body."+name, fmt.Sprintf("List should have at most %d items after validation, not %d", maxStops, n), describe(v),
			fmt.Sprintf(", 'ctx': {'field_type': 'List', 'max_length': %d, 'actual_length': %d}", maxStops, n))
	default:
		for i, s := range v.Array() {
			if s.Type != gjson.String {
				list.wrong("string_type", name+"."+strconv.Itoa(i), "Input should be a valid string", s)
			}
			out = append(out, s.Str)
		}
	}
	if alone && list.bad.err() != nil {
		p.wrong("string_type", name, "Input should be a valid string", v)
	}
	p.bad.join(list.bad)
	return out
}

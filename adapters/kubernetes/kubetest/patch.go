package kubetest

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// merged changes o by a JSON merge patch (RFC 7386): null removes.
func merged(o, change tree) tree {
	if o == nil {
		o = tree{}
	}
	for field, v := range change {
		switch v := v.(type) {
		case nil:
			delete(o, field)
		case tree:
			o[field] = merged(sub(o, field), v)
		default:
			o[field] = v
		}
	}
	return o
}

// patchJSON changes o by the steps of a JSON patch (RFC 6902).
func patchJSON(o tree, steps []tree) (tree, error) {
	for i, step := range steps {
		out, err := patchStep(o, step)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the server rejected our request due to an error in our request: step %d of the patch: %v", i, err))
		}
		o = out
	}
	return o, nil
}

func patchStep(o tree, step tree) (tree, error) {
	path, err := pointer(text(step, "path"))
	if err != nil {
		return nil, err
	}
	value, op := step["value"], text(step, "op")
	if op == "move" || op == "copy" {
		from, err := pointer(text(step, "from"))
		if err != nil {
			return nil, err
		}
		if value, err = found(o, from); err != nil {
			return nil, err
		}
		value = copied(value)
		if op == "move" {
			if _, err := changed(o, from, "remove", nil); err != nil {
				return nil, err
			}
		}
		op = "add"
	}
	out, err := changed(o, path, op, value)
	if err != nil {
		return nil, err
	}
	t, ok := out.(tree)
	if !ok {
		return nil, fmt.Errorf("%q makes the object none", text(step, "path"))
	}
	return t, nil
}

// pointer splits a JSON pointer.
func pointer(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' {
		return nil, fmt.Errorf("%q is no JSON pointer", path)
	}
	parts := strings.Split(path[1:], "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~1", "/"), "~0", "~")
	}
	return parts, nil
}

func found(v any, path []string) (any, error) {
	for _, part := range path {
		switch at := v.(type) {
		case tree:
			next, ok := at[part]
			if !ok {
				return nil, fmt.Errorf("no field %q", part)
			}
			v = next
		case []any:
			i, err := position(part, len(at)-1)
			if err != nil {
				return nil, err
			}
			v = at[i]
		default:
			return nil, fmt.Errorf("nothing has a field %q", part)
		}
	}
	return v, nil
}

// position reads an index of a list, 0 to last.
func position(part string, last int) (int, error) {
	i, err := strconv.Atoi(part)
	if err != nil || i < 0 || i > last {
		return 0, fmt.Errorf("no index %q", part)
	}
	return i, nil
}

// changed gives v with one operation done at a path below it.
func changed(v any, path []string, op string, value any) (any, error) {
	if len(path) == 0 {
		switch op {
		case "add", "replace":
			return value, nil
		case "test":
			if !reflect.DeepEqual(v, value) {
				return nil, fmt.Errorf("testing value failed: %v is not %v", v, value)
			}
			return v, nil
		}
		return nil, fmt.Errorf("operation %q is unknown, or not for this path", op)
	}
	part, rest := path[0], path[1:]
	switch at := v.(type) {
	case tree:
		if _, ok := at[part]; !ok && (op != "add" || len(rest) > 0) {
			return nil, fmt.Errorf("no field %q", part)
		}
		if op == "remove" && len(rest) == 0 {
			delete(at, part)
			return at, nil
		}
		below, err := changed(at[part], rest, op, value)
		if err != nil {
			return nil, err
		}
		at[part] = below
		return at, nil
	case []any:
		return changedList(at, part, rest, op, value)
	}
	return nil, fmt.Errorf("nothing has a field %q", part)
}

func changedList(at []any, part string, rest []string, op string, value any) (any, error) {
	if part == "-" && op == "add" && len(rest) == 0 {
		return append(at, value), nil
	}
	last := len(at) - 1
	if op == "add" && len(rest) == 0 {
		last++
	}
	i, err := position(part, last)
	if err != nil {
		return nil, err
	}
	switch {
	case len(rest) == 0 && op == "add":
		return slices.Insert(at, i, value), nil
	case len(rest) == 0 && op == "remove":
		return slices.Delete(at, i, i+1), nil
	}
	below, err := changed(at[i], rest, op, value)
	if err != nil {
		return nil, err
	}
	at[i] = below
	return at, nil
}

package kube

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/mobula-serve/mobula"
)

// checkShape tells where value, as JSON has it with json.Number for numbers, is no part of a pod template, and why; why is empty
// when it is one. Nulls and the directives of strategic merge ($patch and such) may be anywhere.
func checkShape(path string, value map[string]any) (at, why string) {
	return shape(path, value, reflect.TypeFor[corev1.PodTemplateSpec]())
}

func shape(path string, value any, t reflect.Type) (at, why string) {
	if value == nil {
		return "", ""
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v := reflect.New(t).Interface(); isScalar(v) {
		return path, scalar(value, v)
	}
	switch t.Kind() {
	case reflect.Struct:
		return object(path, value, func(key string) (reflect.Type, string) {
			fields := fieldsOf(t)
			if field, ok := fields[key]; ok {
				return field, ""
			}
			return nil, "no such field" + nearest(key, slices.Sorted(maps.Keys(fields)))
		})
	case reflect.Map:
		return object(path, value, func(string) (reflect.Type, string) { return t.Elem(), "" })
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			break // text in base64
		}
		return list(path, value, t.Elem())
	default:
	}
	return path, scalar(value, reflect.New(t).Interface())
}

// isScalar tells of types that read themselves from one value.
func isScalar(v any) bool {
	switch v.(type) {
	case json.Unmarshaler, encoding.TextUnmarshaler:
		return true
	}
	return false
}

// object checks a map; typeOf gives the type of a key's value, or why there is no such key.
func object(path string, value any, typeOf func(key string) (reflect.Type, string)) (at, why string) {
	m, ok := value.(map[string]any)
	if !ok {
		return path, "want a map, got " + shown(value)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		below := path + "." + key
		if strings.HasPrefix(key, "$") {
			if why = directive(key, m[key]); why != "" {
				return below, why
			}
			continue
		}
		t, why := typeOf(key)
		if why != "" {
			return below, why
		}
		if at, why := shape(below, m[key], t); why != "" {
			return at, why
		}
	}
	return "", ""
}

func list(path string, value any, t reflect.Type) (at, why string) {
	all, ok := value.([]any)
	if !ok {
		return path, "want a list, got " + shown(value)
	}
	for i, item := range all {
		below := path + "[" + strconv.Itoa(i) + "]"
		if item == nil {
			return below, "want a value, got nothing"
		}
		if at, why := shape(below, item, t); why != "" {
			return at, why
		}
	}
	return "", ""
}

// scalar reads value into v, a pointer, and says why it can't.
func scalar(value, v any) string {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err == nil {
		return ""
	}
	want := "want another kind of value"
	switch v.(type) {
	case *resource.Quantity:
		want = "want a quantity such as 500m or 16Gi"
	default:
		switch reflect.TypeOf(v).Elem().Kind() {
		case reflect.String:
			want = "want text (in quotes if need be)"
		case reflect.Bool:
			want = "want true or false"
		case reflect.Int, reflect.Int32, reflect.Int64:
			want = "want a whole number"
		default:
		}
	}
	return want + ", got " + shown(value)
}

// directive checks what only strategic merge knows.
func directive(key string, value any) string {
	switch name, of, _ := strings.Cut(key, "/"); {
	case name == "$patch" && of == "":
		if value != "replace" && value != "merge" && value != "delete" {
			return "want replace, merge or delete, got " + shown(value)
		}
	case name == "$retainKeys" && of == "", (name == "$deleteFromPrimitiveList" || name == "$setElementOrder") && of != "":
		if _, ok := value.([]any); !ok {
			return "want a list, got " + shown(value)
		}
	default:
		return "no such directive: want $patch, $retainKeys, $deleteFromPrimitiveList/… or $setElementOrder/…"
	}
	return ""
}

// fieldsOf gives the types of a struct's fields by their names in JSON.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	all := map[string]reflect.Type{}
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name != "" && name != "-":
			all[name] = field.Type
		case field.Anonymous:
			maps.Copy(all, fieldsOf(field.Type))
		}
	}
	return all
}

// shown is a value as an error has it.
func shown(value any) string {
	switch v := value.(type) {
	case map[string]any:
		return "a map"
	case []any:
		return "a list"
	case string:
		return strconv.Quote(clip(v))
	default:
		return clip(fmt.Sprint(v))
	}
}

// nearest proposes the name that was meant, if one is near.
func nearest(name string, names []string) string {
	best := mobula.Nearest(name, names, 3)
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

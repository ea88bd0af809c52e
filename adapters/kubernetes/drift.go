package kubernetes

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula/kube"
)

const fieldSpec = `"f:spec"`

// change is a field of an object's spec that somebody else has set.
type change struct{ field, manager string }

// strangers are the field managers beside ours that own fields of an object's spec.
func strangers(o *unstructured.Unstructured) []metav1.ManagedFieldsEntry {
	return slices.DeleteFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == kube.FieldManager || m.Subresource == "status" || m.FieldsV1 == nil ||
			!bytes.Contains(m.FieldsV1.GetRawBytes(), []byte(fieldSpec))
	})
}

// changes gives what of wish's spec others have set to something else in the object as it is there. What wish says nothing about is
// not looked at.
func changes(there, wish *unstructured.Unstructured) []change {
	var all []change
	for _, m := range strangers(there) {
		var fields map[string]any
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		owned, _ := fields["f:spec"].(map[string]any)
		for _, field := range differ(owned, there.Object["spec"], wish.Object["spec"], nil) {
			all = append(all, change{field: field, manager: m.Manager})
		}
	}
	return all
}

// differ walks a set of owned fields (managedFields' f: and k: keys) and gives those that wish has with another value.
func differ(owned map[string]any, there, wish any, path []string) []string {
	var all []string
	for key, below := range owned {
		kind, name, _ := strings.Cut(key, ":")
		var a, b any
		var ok bool
		switch kind {
		case "f":
			b, ok = at(wish, name)
			a, _ = at(there, name)
		case "k":
			b, ok = member(wish, name)
			a, _ = member(there, name)
			name = itemName(name)
		}
		if !ok {
			continue
		}
		where := append(slices.Clone(path), name)
		if deeper, _ := below.(map[string]any); len(deeper) > 0 {
			all = append(all, differ(deeper, a, b, where)...)
		} else if !equalValues(a, b) {
			all = append(all, strings.Join(where, "."))
		}
	}
	slices.Sort(all)
	return all
}

func at(v any, name string) (any, bool) {
	m, _ := v.(map[string]any)
	value, ok := m[name]
	return value, ok
}

// member finds the member of a list that has the keys, such as {"name":"engine"}.
func member(v any, keys string) (any, bool) {
	var want map[string]any
	list, ok := v.([]any)
	if !ok || json.Unmarshal([]byte(keys), &want) != nil {
		return nil, false
	}
	for _, m := range list {
		fits := true
		for key, value := range want {
			got, there := at(m, key)
			fits = fits && (equalValues(got, value) || !there && key == "protocol")
		}
		if fits {
			return m, true
		}
	}
	return nil, false
}

// itemName is how people call such a member.
func itemName(keys string) string {
	var of map[string]any
	if json.Unmarshal([]byte(keys), &of) == nil {
		if name, ok := of["name"].(string); ok {
			return name
		}
	}
	return keys
}

// equalValues compares values as JSON has them, and quantities by what they mean.
func equalValues(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, isText := a.(string)
	y, both := b.(string)
	if isText && both {
		p, errP := resource.ParseQuantity(x)
		q, errQ := resource.ParseQuantity(y)
		return errP == nil && errQ == nil && p.Cmp(q) == 0
	}
	m, errM := json.Marshal(a)
	n, errN := json.Marshal(b)
	return errM == nil && errN == nil && bytes.Equal(m, n) // int64 and float64
}

// slimObject leaves of a workload's object what plans look at: its spec only where others have a hand in it.
func slimObject(o any) (any, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o, nil
	}
	theirs := strangers(u)
	u.SetManagedFields(theirs)
	if spec, ok := u.Object["spec"].(map[string]any); ok && len(theirs) == 0 {
		kept := map[string]any{}
		for _, field := range []string{"replicas", "suspend", "managedBy"} {
			if value, ok := spec[field]; ok {
				kept[field] = value
			}
		}
		u.Object["spec"] = kept
	}
	return u, nil
}

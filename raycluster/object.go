package raycluster

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object gives a RayCluster, RayService or RayJob as it is applied: without its status, and without what is empty only because Go's
// types say it, which server-side apply would refuse or take for a wish.
func Object(typed runtime.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
	if err != nil {
		return nil, fmt.Errorf("make an object of %T: %w", typed, err)
	}
	delete(content, "status")
	prune(content)
	return &unstructured.Unstructured{Object: content}, nil
}

// prune takes away nulls, such as the time at which a template was never made.
func prune(value any) {
	switch v := value.(type) {
	case map[string]any:
		for key, item := range v {
			if item == nil {
				delete(v, key)
				continue
			}
			prune(item)
		}
	case []any:
		for _, item := range v {
			prune(item)
		}
	}
}

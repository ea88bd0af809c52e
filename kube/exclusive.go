package kube

import (
	"maps"
	"slices"
)

// replaceWhole has fields of an overlay that exclude others of ours take their place: a value that of valueFrom, an nfs volume that of an
// emptyDir, a probe by exec that of httpGet, the host's processes those of the pod. Strategic merge would leave both, and the API server refuse them.
func replaceWhole(overlay map[string]any) {
	spec, _ := overlay["spec"].(map[string]any)
	volumes, _ := spec["volumes"].([]any)
	for _, v := range volumes {
		volume, _ := v.(map[string]any)
		if _, given := volume["$retainKeys"]; len(volume) < 2 || given || volume["$patch"] != nil {
			continue
		}
		kept := []any{}
		for _, key := range slices.Sorted(maps.Keys(volume)) {
			kept = append(kept, key)
		}
		volume["$retainKeys"] = kept
	}
	if _, given := spec["shareProcessNamespace"]; spec["hostPID"] == true && !given {
		spec["shareProcessNamespace"] = nil
	}
	containers, _ := spec["containers"].([]any)
	for _, c := range containers {
		container, _ := c.(map[string]any)
		env, _ := container["env"].([]any)
		for _, v := range env {
			oneOf(v, "value", "valueFrom")
		}
		for _, probe := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
			oneOf(container[probe], "exec", "httpGet", "tcpSocket", "grpc")
		}
		lifecycle, _ := container["lifecycle"].(map[string]any)
		oneOf(lifecycle["preStop"], "exec", "httpGet", "tcpSocket", "sleep")
	}
}

// oneOf has a map that sets one of these keys delete the others.
func oneOf(value any, keys ...string) {
	m, _ := value.(map[string]any)
	set := func(key string) bool { return m[key] != nil }
	if !slices.ContainsFunc(keys, set) {
		return
	}
	for _, key := range keys {
		if _, given := m[key]; !given {
			m[key] = nil
		}
	}
}

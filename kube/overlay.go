package kube

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// overlayField is where the overlay is in a model.
const overlayField = "kubernetes.pod"

// overlaid merges the model's part of a pod template into pod, as kubectl patch would.
func (e Engine) overlaid(pod corev1.PodTemplateSpec) (corev1.PodTemplateSpec, error) {
	overlay := e.Model.Kubernetes.Pod
	if len(overlay) == 0 {
		return pod, nil
	}
	var none, merged corev1.PodTemplateSpec
	patch, err := e.patch(overlay)
	if err != nil {
		return none, err
	}
	base, err := json.Marshal(pod)
	if err != nil {
		return none, err
	}
	both, err := strategicpatch.StrategicMergePatch(base, patch, none)
	if err != nil {
		return none, e.wrong(overlayField, "can't be merged into the engine's pod: %v", err)
	}
	if err := json.Unmarshal(both, &merged); err != nil {
		return none, e.wrong(overlayField, "merged into the engine's pod it is no pod: %v", err)
	}
	if err := e.checkMerged(&pod, &merged); err != nil {
		return none, err
	}
	arrange(&merged)
	if !e.simulated() { // whose pod has what it needs
		writable(&merged)
	}
	return merged, nil
}

// arrange puts first what others look for at the first place: strategic merge leaves what is new before it.
func arrange(pod *corev1.PodTemplateSpec) {
	front(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == Container }) // KubeRay takes the first for Ray's
	env := pod.Spec.Containers[0].Env
	front(env, func(v corev1.EnvVar) bool { return v.Name == podIP }) // references work only to variables before them
}

// front moves the first of all that is it to the front; the others keep their order.
func front[T any](all []T, is func(T) bool) {
	if i := slices.IndexFunc(all, is); i > 0 {
		it := all[i]
		copy(all[1:i+1], all[:i])
		all[0] = it
	}
}

// patch gives the overlay as JSON, for strategic merge. It finds what is no part of a pod template, which strategic merge would drop.
func (e Engine) patch(overlay map[string]any) ([]byte, error) {
	text, err := json.Marshal(overlay)
	if err != nil {
		return nil, e.wrong(overlayField, "can't be written as JSON: %v", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value map[string]any // a copy with the types of JSON
	if err := decoder.Decode(&value); err != nil {
		return nil, e.wrong(overlayField, "%v", err)
	}
	if at, why := checkShape(overlayField, value); why != "" {
		return nil, e.wrong(at, "%s", why)
	}
	if meta, ok := value["metadata"].(map[string]any); ok {
		for _, key := range slices.Sorted(maps.Keys(meta)) {
			if key != "labels" && key != "annotations" && !strings.HasPrefix(key, "$") {
				return nil, e.wrong(overlayField+".metadata."+key, "not for a pod template: want labels or annotations")
			}
		}
	}
	replaceWhole(value)
	return json.Marshal(value)
}

// checkMerged refuses overlays after which the pod would not be found, or not be an engine's.
func (e Engine) checkMerged(pod, merged *corev1.PodTemplateSpec) error {
	for _, kind := range []struct {
		name        string
		ours, after map[string]string
	}{{"labels", pod.Labels, merged.Labels}, {"annotations", pod.Annotations, merged.Annotations}} {
		for _, key := range slices.Sorted(maps.Keys(kind.ours)) {
			if kind.after[key] != kind.ours[key] {
				return e.wrong(overlayField+".metadata."+kind.name, "%s is Mobula's own: leave it out", key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(kind.after)) {
			if _, ours := kind.ours[key]; !ours && strings.HasPrefix(key, Group+"/") {
				return e.wrong(overlayField+".metadata."+kind.name, "%s is Mobula's own: leave it out", key)
			}
		}
	}
	i := slices.IndexFunc(merged.Spec.Containers, func(c corev1.Container) bool { return c.Name == Container })
	switch {
	case i < 0:
		return e.wrong(overlayField+".spec.containers", "the container %s is gone: it is the engine", Container)
	case merged.Spec.Containers[i].Image == "":
		return e.wrong(overlayField+".spec.containers", "the container %s has no image", Container)
	case merged.Spec.RestartPolicy != "" && merged.Spec.RestartPolicy != corev1.RestartPolicyAlways:
		return e.wrong(overlayField+".spec.restartPolicy", "want Always: an engine that ends is started again, got %s", merged.Spec.RestartPolicy)
	}
	return nil
}

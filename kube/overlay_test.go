package kube_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
)

// What excludes something of ours takes its place: the API server would refuse both.
func TestOverlayReplacesWhatItExcludes(t *testing.T) {
	for _, tc := range []struct {
		name, overlay string
		change        func(*mobula.Model)
		got           func(*corev1.PodTemplateSpec) any
		want          string
	}{
		{
			"another volume at /data", "spec: {volumes: [{name: data, nfs: {server: a, path: /b}}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return volume(p, "data") }, "[{name: data, nfs: {server: a, path: /b}}]",
		},
		{
			"the same kind of volume", "spec: {volumes: [{name: data, emptyDir: {sizeLimit: 1Gi}}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return volume(p, "data") }, "[{name: data, emptyDir: {sizeLimit: 1Gi}}]",
		},
		{
			"a volume away", "spec: {volumes: [{name: data, $patch: delete}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return volume(p, "data") }, "null",
		},
		{
			"a probe of another kind", "spec: {containers: [{name: engine, readinessProbe: {exec: {command: [ok]}}}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.Containers[0].ReadinessProbe },
			"{exec: {command: [ok]}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 3, successThreshold: 1}",
		},
		{
			"times of a probe", "spec: {containers: [{name: engine, readinessProbe: {periodSeconds: 1}}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.Containers[0].ReadinessProbe },
			"{httpGet: {path: /health, port: http, scheme: HTTP}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3, successThreshold: 1}",
		},
		{
			"a hook of another kind", "spec: {containers: [{name: engine, lifecycle: {preStop: {exec: {command: [sleep, \"9\"]}}}}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.Containers[0].Lifecycle }, "{preStop: {exec: {command: [sleep, \"9\"]}}}",
		},
		{
			"a value for a Secret's", "spec: {containers: [{name: engine, env: [{name: HF_TOKEN, value: x}]}]}",
			func(m *mobula.Model) { m.Kubernetes.HuggingFaceToken.Name = "hub" },
			func(p *corev1.PodTemplateSpec) any { return variable(p, "HF_TOKEN") }, "[{name: HF_TOKEN, value: x}]",
		},
		{
			"a Secret's for a value", "spec: {containers: [{name: engine, env: [{name: KEY, valueFrom: {secretKeyRef: {name: a, key: b}}}]}]}",
			func(m *mobula.Model) { m.Engine.Env = map[string]string{"KEY": "x"} },
			func(p *corev1.PodTemplateSpec) any { return variable(p, "KEY") }, "[{name: KEY, valueFrom: {secretKeyRef: {name: a, key: b}}}]",
		},
		{
			"a variable away", "spec: {containers: [{name: engine, env: [{name: HF_HOME, $patch: delete}]}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return variable(p, "HF_HOME") }, "null",
		},
		{
			"processes of containers apart", "spec: {shareProcessNamespace: false}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.ShareProcessNamespace }, "false",
		},
		{
			"the host's processes", "spec: {hostPID: true}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.ShareProcessNamespace }, "null",
		},
		{
			"all of the spread", "spec: {topologySpreadConstraints: [{$patch: replace}]}", nil,
			func(p *corev1.PodTemplateSpec) any { return p.Spec.TopologySpreadConstraints }, "null",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := engineOf("chat", tc.change)
			overlaid(t, tc.overlay)(&e.Model)
			pod, err := e.Pod()
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(unstructured(t, tc.want), unstructured(t, tc.got(&pod))))
		})
	}
}

// variable gives the engine's variables of that name.
func variable(p *corev1.PodTemplateSpec, name string) []corev1.EnvVar {
	var all []corev1.EnvVar
	for _, v := range p.Spec.Containers[0].Env {
		if v.Name == name {
			all = append(all, v)
		}
	}
	return all
}

// unstructured gives a value, or the value of a text in YAML, as maps and lists.
func unstructured(t *testing.T, value any) any {
	t.Helper()
	text, isText := value.(string)
	if !isText {
		out, err := yaml.Marshal(value)
		require.NoError(t, err)
		text = string(out)
	}
	var all any
	require.NoError(t, yaml.Unmarshal([]byte(text), &all))
	if list, ok := all.([]any); ok && len(list) == 0 {
		return nil
	}
	return all
}

func TestOverlayIsNotChanged(t *testing.T) {
	e := engineOf("chat", overlaid(t, overlay))
	before := unstructured(t, e.Model.Kubernetes.Pod)
	_, err := e.Pod()
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(before, unstructured(t, e.Model.Kubernetes.Pod)))
}

func TestVariablesOfTheFleetWin(t *testing.T) {
	for _, name := range []string{"POD_IP", "HF_TOKEN", "HF_HOME", "VLLM_HOST_IP", "VLLM_CACHE_ROOT"} {
		pod, err := engineOf("chat", func(m *mobula.Model) {
			m.Kubernetes.HuggingFaceToken.Name = "hub"
			m.Engine.Env = map[string]string{name: "mine"}
		}).Pod()
		require.NoError(t, err)
		require.Equal(t, []corev1.EnvVar{{Name: name, Value: "mine"}}, variable(&pod, name))
	}
}

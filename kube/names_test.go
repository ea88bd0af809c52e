package kube_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

func TestLabelKeepsWhatIsOne(t *testing.T) {
	for _, tc := range []struct{ name, value, label string }{
		{"a label", "chat", "chat"},
		{"dashes and digits", "llama-3-8b", "llama-3-8b"},
		{"the longest", strings.Repeat("a", 41), strings.Repeat("a", 41)},
		{"an organisation", "org/chat", "chat-e797e2e5"},
		{"another organisation", "other/chat", "chat-23622bf7"},
		{"upper case and dots", "meta-llama/Llama-3.1-8B-Instruct", "llama-3-1-8b-instruct-08a20b29"},
		{"a digit first, as no Service may have it", "7b-chat", "m-7b-chat-e14c5e17"},
		{"one that looks as if it had been hashed", "chat-14f6bbb8", "chat-14f6bbb8-e958806b"},
		{"nothing that can be kept", "模型", "m-c98e118e"},
		{"nothing", "", "m-e3b0c442"},
	} {
		t.Run(tc.name, func(t *testing.T) { require.Equal(t, tc.label, kube.Label(tc.value)) })
	}
}

func TestNamesAreValidAndUnique(t *testing.T) {
	names := rapid.OneOf(
		rapid.StringMatching(`([A-Za-z0-9.-]{1,8}/)?[A-Za-z0-9._-]{0,12}`), // so short that some differ by little
		rapid.StringMatching(`[a-z][a-z0-9-]{30,60}`),
		rapid.String(),
	)
	rapid.Check(t, func(t *rapid.T) {
		a, b := names.Draw(t, "a"), names.Draw(t, "b")
		label := kube.Label(a)
		require.Empty(t, validation.IsDNS1035Label(label), label)
		require.LessOrEqual(t, len(label), 41)
		require.Empty(t, validation.IsDNS1035Label(kube.Name(a, "0123456789")))
		require.LessOrEqual(t, len(kube.Name(a, "0123456789")), 52)
		if a != b {
			require.NotEqual(t, label, kube.Label(b))
		}
		require.NotEqual(t, label, kube.Label(label+"/x"), "a label that is made is not made of another text")
		if again := kube.Label(label); again == label {
			require.Equal(t, a, label, "only what was a label keeps its name")
		}
	})
}

func TestWorkloadFollowsTheEngine(t *testing.T) {
	kuberay := &mobula.KubeRay{}
	for _, tc := range []struct {
		name    string
		kuberay *mobula.KubeRay
		change  func(*mobula.Model)
		want    string
	}{
		{"one host", nil, nil, "Deployment"},
		{"several hosts", nil, func(m *mobula.Model) { m.Resources.Hosts = 2 }, "StatefulSet"},
		{"one host on KubeRay", kuberay, nil, "Deployment"},
		{"several hosts on KubeRay", kuberay, func(m *mobula.Model) { m.Resources.Hosts = 2 }, "RayCluster"},
		{"Ray on one host", kuberay, func(m *mobula.Model) { m.Engine.Args = []string{"--distributed-executor-backend=ray"} }, "RayCluster"},
		{"Ray inside of one pod", nil, func(m *mobula.Model) { m.Engine.Args = []string{"--distributed-executor-backend", "ray"} }, "Deployment"},
		{"simulated engines need no Ray", kuberay, func(m *mobula.Model) { m.Engine.Kind, m.Resources.Hosts = "sim", 2 }, "StatefulSet"},
		{"asked for", nil, func(m *mobula.Model) { m.Kubernetes.Workload = "StatefulSet" }, "StatefulSet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := engineOf("chat", tc.change)
			e.KubeRay = tc.kuberay
			require.Equal(t, tc.want, e.Workload())
		})
	}
}

func TestHashIsOfWhatJSONShows(t *testing.T) {
	a := kube.Hash(map[string]int{"a": 1, "b": 2})
	require.Len(t, a, 10)
	require.Equal(t, a, kube.Hash(map[string]int{"b": 2, "a": 1}))
	require.NotEqual(t, a, kube.Hash(map[string]int{"a": 1, "b": 3}))
	require.Panics(t, func() { kube.Hash(make(chan int)) })
}

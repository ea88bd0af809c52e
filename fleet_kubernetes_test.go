package mobula_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

// onKubernetes loads a fleet of one model with these fields in its kubernetes section.
func onKubernetes(fields map[string]any) (*mobula.Fleet, error) {
	file, err := json.Marshal(map[string]any{
		"apiVersion": mobula.APIVersion, "kind": mobula.Kind, "platform": map[string]any{"kubernetes": map[string]any{}},
		"models": []any{map[string]any{"name": "m", "replicas": 1, "kubernetes": fields}},
	})
	if err != nil {
		return nil, err
	}
	return mobula.Load(file, "fleet.yaml")
}

func TestTheFormsOfALabelSelector(t *testing.T) {
	long := strings.Repeat("a", 64)
	for selector, want := range map[string]string{
		"a=b": "", "a==b": "", "a!=b": "", "a": "", "!a": "", "! a": "", "a=": "", "a in (b)": "", "a in(b,c)": "", "a notin ( b , c )": "", "a in ()": "",
		"a > 1": "", "a<5": "", " a = b , c ": "", "example.org/a.B_c=X-1": "", "a in (b,,c),d": "", "in in (in)": "", "notin": "",
		"":                     "nothing in it",
		" ":                    "nothing in it",
		"a=b,":                 "between two commas",
		"a=b,,c":               "between two commas",
		",a":                   "between two commas",
		"a=b c":                `no label has the value "b c"`,
		"a in b":               `after "a"`,
		"a in (b":              "parentheses",
		"a in b)":              "parentheses",
		"a in ((b))":           "parentheses",
		"a in (b) c":           "comma after )",
		"a of (b)":             `after "a"`,
		"a in (b c)":           `no label has the value "b c"`,
		"a>b":                  "whole number after >",
		"a<-5":                 `no label has the value "-5"`,
		"=b":                   `no label is called ""`,
		"!":                    `no label is called ""`,
		"-a=b":                 `no label is called "-a"`,
		"Example.org/a=b":      `no label is called "Example.org/a"`,
		"a/b/c":                `no label is called "a/b/c"`,
		"/a":                   `no label is called "/a"`,
		"a=" + long:            "no label has the value",
		long + "=a":            "no label is called",
		strings.Repeat("(", 9): "parentheses",
	} {
		file := header + "platform: {kubernetes: {discover: [{selector: \"" + selector + "\"}]}}\n"
		_, err := mobula.Load([]byte(file), "fleet.yaml")
		if want == "" {
			require.NoError(t, err, selector)
		} else {
			require.ErrorContains(t, err, want, selector)
		}
	}
}

func TestTheFormsOfAQuantity(t *testing.T) {
	for quantity, ok := range map[string]bool{
		"1": true, "500m": true, "0.5": true, ".5": true, "1.": true, "2k": false, "1e2": true, "1E2": true, "1000000u": true, "2000000000n": true,
		"0": false, "0.0001": false, "1025": false, "-1": false, "+1": false, "1K": false, "1 ": false, "m": false, ".": false, "1e": false, "1e-": false, "1ee1": false,
		"1e99": false, "1mm": false, "1.5.5": false, "1_0": false, "0x1": false, "inf": false, "NaN": false, "1n u": false,
	} {
		_, err := onKubernetes(map[string]any{"cpu": quantity})
		require.Equal(t, ok, err == nil, "%s: %v", quantity, err)
	}
	for quantity, ok := range map[string]bool{
		"16Gi": true, "16G": true, "1Ti": true, "1048576": true, "0.5Gi": true, "1Ki": false, "1048576Ki": true, "1Pi": true, "1Ei": false, "1E": false,
		"2Pi": false, "16GB": false, "16GiB": false, "16gi": false, "16iG": false, "1e9": true, "1048576000m": true, "1048575000m": false,
	} {
		_, err := onKubernetes(map[string]any{"memory": quantity})
		require.Equal(t, ok, err == nil, "%s: %v", quantity, err)
	}
}

func TestNumbersNeedNoQuotesWhereKubernetesHasThem(t *testing.T) {
	fleet, err := onKubernetes(map[string]any{"cpu": 4, "memory": 1 << 30, "maxUnavailable": 2})
	require.NoError(t, err)
	k := fleet.Models[0].Kubernetes
	require.Equal(t, []string{"4", "1073741824", "2"}, []string{k.CPU, k.Memory, k.MaxUnavailable})
	fleet, err = onKubernetes(map[string]any{"cpu": 0.5})
	require.NoError(t, err)
	require.Equal(t, "0.5", fleet.Models[0].Kubernetes.CPU)
	_, err = onKubernetes(map[string]any{"image": 4})
	require.ErrorContains(t, err, "put it in quotes")
	_, err = onKubernetes(map[string]any{"cpu": true})
	require.ErrorContains(t, err, "models[0].kubernetes.cpu: want text, got true")
}

// Its models may be objects that come later, and the last of them may go.
func TestAFleetOnKubernetesMayServeNothing(t *testing.T) {
	for _, platform := range []string{"{kubernetes: {}}", "{kuberay: {}}", "{kuberay: {kubernetes: {}}}"} {
		_, err := mobula.Load([]byte(header+"platform: "+platform+"\n"), "fleet.yaml")
		require.NoError(t, err, platform)
	}
}

// What a model leaves out is the platform's; what it says is its own.
func TestAModelsPodsAreOverThePlatforms(t *testing.T) {
	base := mobula.KubernetesPods{
		Workload: "StatefulSet", Image: "i", PullPolicy: "Always", PullSecrets: []string{"s"}, CPU: "1", CPULimit: "2", Memory: "1Gi", MemoryLimit: "2Gi",
		GPUResource: "a/b", RuntimeClass: "r", PriorityClass: "p", ServiceAccount: "sa", SharedMemory: 1, HuggingFaceToken: mobula.SecretKey{Name: "h"},
		Data: mobula.KubernetesData{Claim: "c"}, MaxUnavailable: "1", Pod: map[string]any{"spec": map[string]any{"a": "1", "list": []any{"x"}}},
	}
	require.Empty(t, cmp.Diff(base, mobula.KubernetesPods{}.Over(base)), "each field is taken over")
	require.Empty(t, cmp.Diff(base, base.Over(mobula.KubernetesPods{Image: "other", Pod: map[string]any{}})))

	own := mobula.KubernetesPods{
		Image: "mine", PullSecrets: []string{"t"}, Data: mobula.KubernetesData{HostPath: "/d"},
		Pod: map[string]any{"spec": map[string]any{"b": "2", "list": []any{"y"}}, "metadata": map[string]any{"x": "y"}},
	}
	before, err := json.Marshal([]any{base, own})
	require.NoError(t, err)
	got := own.Over(base)
	want := base
	want.Image, want.PullSecrets, want.Data = "mine", []string{"t"}, mobula.KubernetesData{HostPath: "/d"}
	want.Pod = map[string]any{"spec": map[string]any{"a": "1", "b": "2", "list": []any{"y"}}, "metadata": map[string]any{"x": "y"}}
	require.Empty(t, cmp.Diff(want, got))
	after, err := json.Marshal([]any{base, own})
	require.NoError(t, err)
	require.Equal(t, string(before), string(after), "neither is changed")

	for _, name := range []string{"kubernetes", "kuberay"} {
		section := "{pods: {image: i}}"
		if name == "kuberay" {
			section = "{kubernetes: " + section + "}"
		}
		fleet, err := mobula.Load([]byte(header+"platform: {"+name+": "+section+"}\nmodels: [{name: m, replicas: 1}]\n"), "fleet.yaml")
		require.NoError(t, err)
		require.Equal(t, "i", fleet.Engine(fleet.Models[0]).Kubernetes.Image)
	}
}

func TestListsOfPodsAreMergedAsKubernetesDoes(t *testing.T) {
	pods := func(text string) mobula.KubernetesPods {
		fleet, err := onKubernetes(map[string]any{"pod": json.RawMessage(text)})
		require.NoError(t, err)
		return fleet.Models[0].Kubernetes
	}
	base := pods(`{"spec": {
		"containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "volumeMounts": [{"mountPath": "/a", "name": "v"}], "args": ["x"]}],
		"volumes": [{"name": "v", "emptyDir": {}}],
		"tolerations": [{"key": "a", "operator": "Exists"}]
	}}`)
	own := pods(`{"spec": {
		"containers": [{"name": "engine", "env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}], "volumeMounts": [{"mountPath": "/b", "name": "w"}], "args": ["y"]}, {"name": "side"}],
		"volumes": [{"name": "v", "hostPath": {"path": "/v"}}, {"name": "w", "emptyDir": {}}],
		"tolerations": [{"key": "b", "operator": "Exists"}]
	}}`)
	want := pods(`{"spec": {
		"containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
			"volumeMounts": [{"mountPath": "/a", "name": "v"}, {"mountPath": "/b", "name": "w"}], "args": ["y"]}, {"name": "side"}],
		"volumes": [{"name": "v", "hostPath": {"path": "/v"}}, {"name": "w", "emptyDir": {}}],
		"tolerations": [{"key": "b", "operator": "Exists"}]
	}}`)
	require.Empty(t, cmp.Diff(want.Pod, own.Over(base).Pod))
}

// What has been merged once is not changed by merging it again.
func TestOverIsIdempotent(t *testing.T) {
	var value func(depth int) *rapid.Generator[map[string]any]
	value = func(depth int) *rapid.Generator[map[string]any] {
		leaf := rapid.SampledFrom([]string{"1", "2"}).AsAny()
		item := leaf
		if depth > 0 {
			item = rapid.OneOf(leaf, rapid.Custom(func(t *rapid.T) any { return value(depth-1).Draw(t, "map") }))
		}
		return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), item, 1, 3)
	}
	list := rapid.Custom(func(t *rapid.T) any {
		var all []any
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z"}), 1, 3, rapid.ID).Draw(t, "names") {
			all = append(all, map[string]any{"name": name, "a": value(1).Draw(t, "member")})
		}
		return all
	})
	rapid.Check(t, func(t *rapid.T) {
		pods := func(name string) mobula.KubernetesPods {
			spec := value(2).Draw(t, name)
			spec[rapid.SampledFrom([]string{"env", "containers", "others"}).Draw(t, "list's name")] = list.Draw(t, "list")
			return mobula.KubernetesPods{Pod: map[string]any{"spec": spec}, Image: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, name+" image")}
		}
		a, b := pods("a"), pods("b")
		require.Empty(t, cmp.Diff(a, a.Over(a)))
		require.Empty(t, cmp.Diff(a.Over(b), a.Over(a.Over(b))))
		require.Empty(t, cmp.Diff(a.Over(b), a.Over(b).Over(b)))
	})
}

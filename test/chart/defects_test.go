package chart_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// The rows are those of docs/production-stack.md, of its chart.

func rendered(t *testing.T, values string) rendering {
	t.Helper()
	out, err := render(t, values)
	require.NoError(t, err)
	return out
}

func TestRowH1TriggersAreAList(t *testing.T) {
	out := rendered(t, `
platform: {kubernetes: {pods: {cpuLimit: 1.5}}}
models: [{name: a, replicas: 1, kubernetes: {cpu: 0.5}}]
keda: {enabled: true, models: [{name: a, triggers: [{type: cron, metadata: {timezone: UTC, start: "0 8 * * *", end: "0 20 * * *", desiredReplicas: "2"}}]}]}`)
	require.Equal(t, "cron", at(out.Objects["ScaledObject/a"], "spec triggers 0 type"))
	require.Nil(t, at(out.Objects["ScaledObject/a"], "spec triggers 1"))
	require.Equal(t, "0.5", at(out.Objects["Model/a"], "spec kubernetes cpu"), "half a CPU is text to an API server")
	require.Equal(t, "1.5", at(out.Objects["Fleet/default"], "spec platform kubernetes pods cpuLimit"))
}

func TestRowH2TriggersAskByTheNameThatVLLMServes(t *testing.T) {
	out := rendered(t, "{models: [{name: org/a, replicas: 1}], keda: {enabled: true, prometheusAddress: http://p:9090, models: [{name: org/a}]}}")
	require.Contains(t, at(out.Objects["ScaledObject/org-a"], "spec triggers 0 metadata query"), `model_name="org/a"`)
}

func TestRowH3OnlyWhatIsAskedForIsScaled(t *testing.T) {
	out := rendered(t, `
platform: {kuberay: {}}
models: [{name: a, replicas: 1}, {name: b, replicas: 1}]
keda: {enabled: true, prometheusAddress: http://p:9090, models: [{name: a}]}`)
	require.Contains(t, out.Objects, "ScaledObject/a")
	require.NotContains(t, out.Objects, "ScaledObject/b")
	require.NotContains(t, out.Objects, "Service/b")
	_, err := render(t, "{models: [{name: a, replicas: 1}], keda: {enabled: true, prometheusAddress: http://p:9090, models: [{name: gone}]}}")
	require.ErrorContains(t, err, "gone")
}

func TestRowH5TheRouterReadsPodsAndItsPortIsOne(t *testing.T) {
	out := rendered(t, "{router: {service: {port: 9000}}, models: [{name: a, replicas: 1, kubernetes: {huggingFaceToken: {name: hf}}}]}")
	require.Equal(t, "9000", text(t, at(out.Objects["Service/mobula-router"], "spec ports 0 port")))
	target := at(out.Objects["Service/mobula-router"], "spec ports 0 targetPort")
	require.Equal(t, target, at(out.Objects[router], "spec template spec containers 0 ports 0 name"), "a Service's port is found by its name")
	for _, rule := range roleOf(t, out, "Role/mobula-router") {
		for _, resource := range rule.Resources {
			require.False(t, resource == "pods" && strings.Contains(strings.Join(rule.Verbs, " "), "patch"))
		}
	}
	raw, err := yaml.Marshal(out.Objects[router])
	require.NoError(t, err)
	require.NotContains(t, string(raw), "HF_TOKEN", "the router needs none")
}

func TestRowH7NoHostNamespacesNoFixedSeedNoLatest(t *testing.T) {
	out := rendered(t, "{models: [{name: a, replicas: 1}], cacheServer: {enabled: true, image: {repository: lmcache/vllm-openai, tag: v0.5.6}}, redis: {enabled: true}}")
	for name, object := range out.Objects {
		raw, err := yaml.Marshal(object)
		require.NoError(t, err)
		for _, bad := range []string{"hostIPC: true", "hostPID: true", "hostNetwork: true", "PYTHONHASHSEED", ":latest", "imagePullPolicy: Always"} {
			require.NotContains(t, string(raw), bad, name)
		}
	}
	for _, of := range []string{router, control} {
		requests, limits := at(out.Objects[of], "spec template spec containers 0 resources requests memory"), at(out.Objects[of], "spec template spec containers 0 resources limits memory")
		require.NotEqual(t, requests, limits, "there is room above what it takes at first")
	}
}

package chart_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"sigs.k8s.io/yaml"
)

// cluster is one that has some Model objects.
type cluster []runtime.Object

// GetClientFor implements engine.ClientProvider.
func (c cluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if kind != "Model" || len(c) == 0 {
		return nil, false, fmt.Errorf("the templates look up a %s %s", apiVersion, kind)
	}
	models := schema.GroupVersionResource{Group: "mobula.dev", Version: "v1alpha1", Resource: "models"}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{models: "ModelList"}, c...)
	return client.Resource(models), true, nil
}

func model(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "mobula.dev/v1alpha1", "kind": "Model"}}
	require.NoError(t, yaml.Unmarshal([]byte(text), &o.Object))
	o.Object["apiVersion"], o.Object["kind"] = "mobula.dev/v1alpha1", "Model"
	return o
}

// An upgrade must not take back what an autoscaler has set, and must set what values say in all other cases.
func TestAnUpgradeKeepsWhatAnAutoscalerHasSet(t *testing.T) {
	for _, c := range []struct{ name, values, there, replicas string }{
		{"an autoscaler", "{name: a/B, replicas: 1}", "{subresource: scale, manager: kube-controller-manager, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "3"},
		{"KEDA", "{name: a/B, replicas: 1}", "{subresource: scale, manager: keda, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "3"},
		{"a person", "{name: a/B, replicas: 1}", "{subresource: scale, manager: kubectl, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "1"},
		{"a person, and the values stay", "{name: a/B, replicas: 2}", "{subresource: scale, manager: kubectl, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "3"},
		{"Helm", "{name: a/B, replicas: 1}", "{manager: helm, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "1"},
		{"the control plane's status", "{name: a/B, replicas: 1}", "{subresource: status, manager: mobula, fieldsV1: {'f:status': {}}}", "1"},
		{"a range now", "{name: a/B, replicas: 0-4}", "{subresource: scale, manager: keda, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "null"},
		{"none now", "{name: a/B}", "{subresource: scale, manager: keda, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "null"},
		{"another model", "{name: c, replicas: 1}", "{subresource: scale, manager: keda, fieldsV1: {'f:spec': {'f:replicas': {}}}}", "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			there := model(t, "{metadata: {name: a-b, namespace: "+namespace+", annotations: {mobula.dev/replicas: '2'}, managedFields: ["+c.there+"]}, spec: {replicas: 3}}")
			out, err := renderAs(t, "mobula", "models: ["+c.values+"]", there)
			require.NoError(t, err)
			for key, object := range out.Objects {
				if object["kind"] == "Model" {
					require.Equal(t, c.replicas, text(t, at(object, "spec replicas")), key)
				}
			}
		})
	}
}

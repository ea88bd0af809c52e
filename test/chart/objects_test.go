package chart_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// foreign are API groups of others, whose types the tests don't have: their objects are looked at in the cases only.
var foreign = map[string]bool{"monitoring.coreos.com": true, "keda.sh": true, "gateway.networking.k8s.io": true}

// requireKnown fails unless an object is one that its API takes: without fields that the built-in types don't have, and as
// the custom resource definitions have it.
func requireKnown(t *testing.T, object map[string]any) {
	t.Helper()
	version, _ := object["apiVersion"].(string)
	group, _, _ := strings.Cut(version, "/")
	raw, err := json.Marshal(object)
	require.NoError(t, err)
	switch {
	case foreign[group]:
		require.NotEmpty(t, at(object, "metadata name"))
	case group == "mobula.dev":
		instance, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
		require.NoError(t, err)
		require.NoError(t, crdSchema(t, object["kind"].(string)).Validate(instance), "%s", raw)
	default:
		strict := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Strict: true})
		_, _, err := strict.Decode(raw, nil, nil)
		require.NoError(t, err, "%s", raw)
	}
}

// crdSchema gives the schema of a custom resource as JSON Schema: with fields that it doesn't name refused, as `kubectl` does.
func crdSchema(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(chartPath, "crds", strings.ToLower(kind)+"s.yaml"))
	require.NoError(t, err)
	var definition map[string]any
	require.NoError(t, yaml.Unmarshal(raw, &definition))
	require.Equal(t, kind, at(definition, "spec names kind"))
	schema := at(definition, "spec versions 0 schema openAPIV3Schema").(map[string]any)
	strict(schema)
	schema["properties"].(map[string]any)["metadata"] = map[string]any{"type": "object"}
	text, err := json.Marshal(schema)
	require.NoError(t, err)
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource(kind, document))
	compiled, err := compiler.Compile(kind)
	require.NoError(t, err)
	return compiled
}

// strict makes JSON Schema of a structural schema: what Kubernetes would prune is refused.
func strict(schema map[string]any) {
	if schema["x-kubernetes-int-or-string"] == true {
		delete(schema, "type")
	}
	if schema["nullable"] == true && schema["type"] != nil {
		schema["type"] = []any{schema["type"], "null"}
	}
	properties, _ := schema["properties"].(map[string]any)
	if properties != nil && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	for _, property := range properties {
		strict(property.(map[string]any))
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if below, is := schema[key].(map[string]any); is {
			strict(below)
		}
	}
}

// The check itself: it must see a field that is none.
func TestUnknownFieldsOfObjectsAreSeen(t *testing.T) {
	strict := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Strict: true})
	_, _, err := strict.Decode([]byte(`{"apiVersion":"v1","kind":"Pod","spec":{"containrs":[]}}`), nil, nil)
	require.ErrorContains(t, err, "containrs")
	require.Error(t, crdSchema(t, "Model").Validate(map[string]any{"spec": map[string]any{"replcas": 1}}))
	require.NoError(t, crdSchema(t, "Model").Validate(map[string]any{"spec": map[string]any{"replicas": 1}}))
}

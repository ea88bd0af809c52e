package chart_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	definitions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// definition is a custom resource as an API server has it, which looks at objects as the server does.
type definition struct {
	internal  apiextensions.CustomResourceDefinition
	structure *schema.Structural
	schema    validation.SchemaValidator
	rules     *cel.Validator
}

// definitionFiles gives where definitions are, by kind: ours, KEDA's and the Gateway API's.
func definitionFiles() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	gateway, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		return nil, fmt.Errorf("where the module sigs.k8s.io/gateway-api is: %w", err)
	}
	files := map[string]string{
		"ScaledObject": filepath.Join("testdata", "crds", "scaledobjects.yaml"),
		"HTTPRoute":    filepath.Join(strings.TrimSpace(string(gateway)), "config", "crd", "standard", "gateway.networking.k8s.io_httproutes.yaml"),
	}
	for _, kind := range []string{"Fleet", "Model", "LoRA"} {
		files[kind] = filepath.Join(chartPath, "crds", strings.ToLower(kind)+"s.yaml")
	}
	return files, nil
}

// allDefinitions reads them once: their rules take a while to compile.
var allDefinitions = sync.OnceValues(func() (map[string]*definition, error) {
	files, err := definitionFiles()
	if err != nil {
		return nil, err
	}
	all := map[string]*definition{}
	for kind, path := range files {
		d, err := readDefinition(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if d.internal.Spec.Names.Kind != kind {
			return nil, fmt.Errorf("%s is of %s, not of %s", path, d.internal.Spec.Names.Kind, kind)
		}
		all[kind] = d
	}
	return all, nil
})

func definitionOf(t *testing.T, kind string) *definition {
	t.Helper()
	all, err := allDefinitions()
	require.NoError(t, err)
	require.Contains(t, all, kind)
	return all[kind]
}

// readDefinition reads a file with one definition, of which the first version counts.
func readDefinition(path string) (*definition, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var external apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		return nil, err
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&external)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&external.Spec)
	external.Status.StoredVersions = []string{external.Spec.Versions[0].Name}
	var d definition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&external, &d.internal, nil); err != nil {
		return nil, err
	}
	var props apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(external.Spec.Versions[0].Schema.OpenAPIV3Schema, &props, nil); err != nil {
		return nil, err
	}
	if d.structure, err = schema.NewStructural(&props); err != nil {
		return nil, err
	}
	if d.schema, _, err = validation.NewSchemaValidator(&props); err != nil {
		return nil, err
	}
	d.rules = cel.NewValidator(d.structure, true, celconfig.PerCallLimit)
	return &d, nil
}

// check tells what a server would refuse an object for, and what it would drop of it in silence.
func (d *definition) check(t *testing.T, raw []byte) error {
	t.Helper()
	var object unstructured.Unstructured
	require.NoError(t, object.UnmarshalJSON(raw))
	unknown := pruning.PruneWithOptions(object.DeepCopy().Object, d.structure, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	var all []error
	for _, path := range unknown {
		all = append(all, fmt.Errorf("%s: unknown", path))
	}
	defaulting.Default(object.Object, d.structure)
	found := validation.ValidateCustomResource(nil, object.Object, d.schema)
	found = append(found, listtype.ValidateListSetsAndMaps(nil, d.structure, object.Object)...)
	if len(found) == 0 && d.rules != nil { // rules are for what has the right form
		broken, _ := d.rules.Validate(t.Context(), nil, d.structure, object.Object, nil, celconfig.RuntimeCELCostBudget)
		found = append(found, broken...)
	}
	for _, err := range found {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// Our definitions are ones that an API server takes: structural, with rules that compile and cost no more than it allows.
func TestDefinitionsAreTaken(t *testing.T) {
	for _, kind := range []string{"Fleet", "Model", "LoRA"} {
		t.Run(kind, func(t *testing.T) {
			require.Empty(t, definitions.ValidateCustomResourceDefinition(t.Context(), &definitionOf(t, kind).internal))
		})
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// definition is a CustomResourceDefinition, as far as ours need it.
type definition struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		Group    string     `json:"group"`
		Scope    string     `json:"scope"`
		Names    crdNames   `json:"names"`
		Versions [1]version `json:"versions"`
	} `json:"spec"`
}

type crdNames struct {
	Kind       string   `json:"kind"`
	ListKind   string   `json:"listKind"`
	Plural     string   `json:"plural"`
	Singular   string   `json:"singular"`
	ShortNames []string `json:"shortNames"`
	Categories []string `json:"categories"`
}

type version struct {
	Name         string                `json:"name"`
	Served       bool                  `json:"served"`
	Storage      bool                  `json:"storage"`
	Subresources map[string]any        `json:"subresources"`
	Columns      []column              `json:"additionalPrinterColumns"`
	Schema       map[string]*structure `json:"schema"`
}

type column struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Path     string `json:"jsonPath"`
	Text     string `json:"description,omitempty"`
	Priority int    `json:"priority,omitempty"` // 1: with kubectl get -o wide only
}

// resource says what a custom resource is made from.
type resource struct {
	kind, plural, short string
	// from is the fleet file's struct that spec is, less the fields omitted; own has more fields, and ones that take a field's place.
	from, own string
	omitted   []string
	status    string
	columns   []column
	scale     bool
}

func resources() []resource {
	age := column{Name: "Age", Type: "date", Path: ".metadata.creationTimestamp"}
	phase := column{Name: "Phase", Type: "string", Path: ".status.phase"}
	message := func(condition string) column {
		return column{Name: "Message", Type: "string", Path: `.status.conditions[?(@.type=="` + condition + `")].message`, Priority: 1}
	}
	ready := func(text string) column {
		return column{Name: "Ready", Type: "string", Path: ".status.ready", Text: text}
	}
	return []resource{
		{
			kind: "Fleet", plural: "fleets", short: "mfleet", from: "Fleet", own: "FleetSpec", status: "FleetStatus",
			omitted: []string{"apiVersion", "kind", "name", "models"},
			columns: []column{
				{Name: "Models", Type: "integer", Path: ".status.models"},
				ready("Models with all their replicas, of all."), phase, message("Accepted"), age,
			},
		},
		{
			kind: "Model", plural: "models", short: "mmodel", from: "Model", own: "ModelSpec", status: "ModelStatus", scale: true,
			columns: []column{
				{Name: "Model", Type: "string", Path: ".spec.name", Text: "The id that clients ask for, where it is not the object's name."},
				ready("Replicas that serve, of those that there should be."), phase,
				{Name: "Revision", Type: "string", Path: ".status.revision"},
				{Name: "Message", Type: "string", Path: ".status.message", Priority: 1},
				age,
			},
		},
		{
			kind: "LoRA", plural: "loras", short: "mlora", from: "LoRA", own: "LoRASpec", status: "LoRAStatus",
			columns: []column{
				{Name: "Model", Type: "string", Path: ".spec.model"},
				ready("Engines that have it, of those that should."), phase, message("Ready"), age,
			},
		},
	}
}

// writeDefinition gives charts/mobula/crds/PLURAL.yaml.
func writeDefinition(types map[string]structType, r resource) ([]byte, error) {
	spec, err := structureOf(types, r.spec(types))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.kind, err)
	}
	status, err := structureOf(types, types[r.status])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.kind, err)
	}
	var d definition
	d.APIVersion, d.Kind = "apiextensions.k8s.io/v1", "CustomResourceDefinition"
	d.Metadata = map[string]any{"name": r.plural + ".mobula.dev", "labels": map[string]any{"app.kubernetes.io/part-of": "mobula"}}
	d.Spec.Group, d.Spec.Scope = "mobula.dev", "Namespaced"
	d.Spec.Names = crdNames{
		Kind: r.kind, ListKind: r.kind + "List", Plural: r.plural, Singular: strings.ToLower(r.kind),
		ShortNames: []string{r.short}, Categories: []string{"mobula"},
	}
	v := version{Name: "v1alpha1", Served: true, Storage: true, Columns: r.columns, Subresources: map[string]any{"status": struct{}{}}}
	if r.scale {
		v.Subresources["scale"] = map[string]any{
			"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector",
		}
	}
	top := &structure{Description: spec.Description, Type: "object", Properties: map[string]*structure{
		"apiVersion": {Type: "string"}, "kind": {Type: "string"}, "metadata": {Type: "object"}, "spec": spec, "status": status,
	}}
	if len(spec.Required) > 0 {
		top.Required = []string{"spec"}
	}
	v.Schema = map[string]*structure{"openAPIV3Schema": top}
	d.Spec.Versions[0] = v
	file, err := writeYAML(d)
	if err != nil {
		return nil, err
	}
	const head = "# Written by cmd/fleetdoc from the fleet's types: change the comments there and run go generate ./...\n" +
		"# It sets no defaults: they are the program's, so that an object stays as it was applied.\n"
	return append([]byte(head), file...), nil
}

// spec gives the struct that a resource's spec is.
func (r resource) spec(types map[string]structType) structType {
	own := types[r.own]
	out := structType{name: r.own, doc: own.doc, fields: slices.Clone(own.fields)}
	for _, f := range types[r.from].fields {
		taken := slices.ContainsFunc(own.fields, func(o field) bool { return o.name == f.name })
		if !taken && !slices.Contains(r.omitted, f.name) {
			out.fields = append(out.fields, f)
		}
	}
	return out
}

// withoutConnection is the platform's struct as objects in a cluster have it: engines run in the objects' namespace.
func withoutConnection(types map[string]structType) map[string]structType {
	out := make(map[string]structType, len(types))
	for name, t := range types {
		if name == "Kubernetes" {
			t.fields = slices.DeleteFunc(slices.Clone(t.fields), func(f field) bool {
				return f.name == "namespace" || f.name == "kubeconfig" || f.name == "context"
			})
		}
		out[name] = t
	}
	return out
}

// structure is a node of a structural schema: what an API server takes of OpenAPI.
type structure struct {
	Description   string                `json:"description,omitempty"`
	Type          string                `json:"type,omitempty"`
	Format        string                `json:"format,omitempty"`
	Enum          []string              `json:"enum,omitempty"`
	Pattern       string                `json:"pattern,omitempty"`
	Minimum       json.Number           `json:"minimum,omitempty"`
	Maximum       json.Number           `json:"maximum,omitempty"`
	MinLength     int                   `json:"minLength,omitempty"`
	MaxLength     int                   `json:"maxLength,omitempty"`
	MinItems      json.Number           `json:"minItems,omitempty"`
	MaxItems      int                   `json:"maxItems,omitempty"`
	MaxProperties int                   `json:"maxProperties,omitempty"`
	Required      []string              `json:"required,omitempty"`
	Properties    map[string]*structure `json:"properties,omitempty"`
	Items         *structure            `json:"items,omitempty"`
	Additional    *structure            `json:"additionalProperties,omitempty"`
	IntOrString   bool                  `json:"x-kubernetes-int-or-string,omitempty"`
	Preserve      bool                  `json:"x-kubernetes-preserve-unknown-fields,omitempty"`
	ListType      string                `json:"x-kubernetes-list-type,omitempty"`
	ListMapKeys   []string              `json:"x-kubernetes-list-map-keys,omitempty"`
	Rules         []rule                `json:"x-kubernetes-validations,omitempty"`
}

// rule is a CEL expression that has to be true.
type rule struct {
	Rule    string `json:"rule"`
	Message string `json:"message"`
}

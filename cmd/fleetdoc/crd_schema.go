package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Bounds, without which an API server would reckon with more than it allows for rules.
const (
	maxItems  = 1000
	maxLength = 253 // of a name that a rule compares
)

// structureOf gives the schema of a struct and all that is in it.
func structureOf(types map[string]structType, t structType) (*structure, error) {
	s := &structure{Description: t.doc, Type: "object", Properties: map[string]*structure{}}
	for _, f := range t.fields {
		p, err := fieldStructure(types, f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if pattern := patterns()[t.name+"."+f.name]; pattern != "" {
			p.Pattern = pattern
		}
		s.Properties[f.name] = p
		if f.required {
			s.Required = append(s.Required, f.name)
		}
	}
	s.Rules = slices.Concat(keyRules(t), rules(t.name))
	return s, nil
}

func fieldStructure(types map[string]structType, f field) (*structure, error) {
	s, err := typeStructure(types, f)
	if err != nil {
		return nil, err
	}
	whole := s.Type == "integer" || s.Type == "number"
	switch {
	case f.mapping && f.typ == "any":
		s = &structure{Type: "object", Preserve: true}
	case f.mapping:
		s = &structure{Type: "object", Additional: s, MaxProperties: maxItems}
	case f.list:
		item := s
		s = &structure{Type: "array", Items: item, MinItems: json.Number(f.low), MaxItems: maxItems}
		for _, key := range []string{"name", "type"} {
			if slices.Contains(item.Required, key) {
				s.ListType, s.ListMapKeys = "map", []string{key}
				break
			}
		}
	case whole:
		s.Minimum, s.Maximum = json.Number(f.low), json.Number(f.high)
	case f.oneOf != nil:
		s.Enum = f.oneOf
		if !f.required && f.fallback == "" {
			s.Enum = append(slices.Clone(s.Enum), "") // as if it was left out
		}
	case f.required && f.typ == "string":
		s.MinLength = 1
	}
	if f.name == "name" || f.name == "model" {
		s.MaxLength = maxLength
	}
	s.Description = describe(f)
	switch {
	case f.fallback != "" && f.derived != "":
		s.Description += " Default: " + f.fallback + " " + f.derived + "."
	case f.fallback+f.derived != "":
		s.Description += " Default: " + f.fallback + f.derived + "."
	}
	s.Description = strings.TrimSpace(s.Description)
	return s, nil
}

func typeStructure(types map[string]structType, f field) (*structure, error) {
	switch f.typ {
	case "string", "Role":
		if f.number {
			return &structure{IntOrString: true}, nil
		}
		if f.name == "lastTransitionTime" {
			return &structure{Type: "string", Format: "date-time"}, nil
		}
		return &structure{Type: "string"}, nil
	case "bool":
		return &structure{Type: "boolean"}, nil
	case "int":
		return &structure{Type: "integer", Format: "int64"}, nil
	case "float64":
		return &structure{Type: "number"}, nil
	case "any":
		return &structure{}, nil // fieldStructure knows what it is in
	case "Duration":
		return &structure{Type: "string", Pattern: durationPattern}, nil
	case "Size":
		return &structure{IntOrString: true, Pattern: sizePattern, Minimum: "0"}, nil
	case "PortRange":
		return &structure{Type: "string", Pattern: portRangePattern}, nil
	}
	t, ok := types[f.typ]
	if !ok {
		return nil, fmt.Errorf("no schema for type %s", f.typ)
	}
	return structureOf(types, t)
}

// keyRules refuse two places for one key, NAMEFile and NAMEEnv.
func keyRules(t structType) []rule {
	var out []rule
	for _, f := range t.fields {
		name, isFile := strings.CutSuffix(f.name, "File")
		if isFile && slices.ContainsFunc(t.fields, func(o field) bool { return o.name == name+"Env" }) {
			out = append(out, rule{
				fmt.Sprintf("!(%s && %s)", given(name+"File"), given(name+"Env")),
				fmt.Sprintf("want %sFile or %sEnv, got both", name, name),
			})
		}
	}
	return out
}

// given is an expression that tells whether a text is there and not empty.
func given(name string) string { return fmt.Sprintf("has(self.%s) && self.%s != ''", name, name) }

// rules gives those of a struct that its fields' own bounds can't say. They say less than mobula.Load does, which
// refuses all of these too.
func rules(of string) []rule {
	const sameName = "(has(self.name) ? self.name : '') == (has(oldSelf.name) ? oldSelf.name : '')"
	count := func(names ...string) string {
		terms := make([]string, len(names))
		for i, name := range names {
			terms[i] = "(has(self." + name + ") ? 1 : 0)"
		}
		return strings.Join(terms, " + ")
	}
	switch of {
	case "Platform":
		return []rule{{count("static", "ray", "kubernetes", "kuberay") + " == 1", "want exactly one platform: static, ray, kubernetes or kuberay"}}
	case "KubeRayShared":
		return []rule{{fmt.Sprintf("!(%s && %s)", given("cluster"), given("service")), "want cluster or service, got both"}}
	case "KubernetesData":
		const sized = "has(self.size) && self.size != 0 && self.size != '0'"
		one := fmt.Sprintf("(%s ? 1 : 0) + (%s ? 1 : 0) + (%s ? 1 : 0) <= 1", given("claim"), sized, given("hostPath"))
		return []rule{
			{one, "want at most one of claim, size and hostPath"},
			{fmt.Sprintf("!(%s) || (%s)", given("storageClass"), sized), "storageClass wants size too: it is for a claim that is made"},
			{fmt.Sprintf("!(%s) || (%s)", given("accessMode"), sized), "accessMode wants size too: it is for a claim that is made"},
		}
	case "Resources":
		return []rule{{"!has(self.gpus) || !has(self.hosts) || self.hosts < 1 || self.gpus % self.hosts == 0", "want gpus to be a multiple of hosts"}}
	case "Rollout":
		return []rule{{
			"!has(self.surge) || self.surge > 0 || has(self.unavailable) && self.unavailable > 0",
			"want surge or unavailable above 0, else no replica can ever be replaced",
		}}
	case "Provider":
		return []rule{{"!has(self.kind) || self.kind != 'azure' || " + given("url"), "want the base URL of the Azure resource as url"}}
	case "ReplicaRange":
		return []rule{{"self.min <= self.max", "want min to be at most max"}}
	case "ModelSpec":
		return []rule{
			{"!(has(self.replicas) && has(self.range))", "want replicas or range, got both"},
			{sameName, "the name of a model can't be changed: make another Model"},
			{
				"!has(self.loras) || size(self.loras) == 0 || has(self.replicas) || has(self.range)",
				"want replicas or range for a model with LoRAs: only engines of the control plane get them",
			},
			{
				"!has(self.kubernetes) || !has(self.kubernetes.workload) || self.kubernetes.workload != 'Deployment' || " +
					"!has(self.resources) || !has(self.resources.hosts) || self.resources.hosts < 2",
				"want workload StatefulSet or RayCluster for an engine of several hosts",
			},
		}
	case "LoRASpec":
		return []rule{{sameName, "the name of a LoRA can't be changed: make another LoRA"}}
	}
	return nil
}

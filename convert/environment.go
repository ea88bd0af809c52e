package convert

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// environment converts variables of engines, the later ones in place of the earlier ones, as in their pods.
func (s *stack) environment(m *model, engines section) {
	configs := engines.labels("configs")
	for _, name := range slices.Sorted(maps.Keys(configs)) { // from a ConfigMap there: all others come before it
		if value := scalarText(configs[name]); isSecret(name, value) {
			s.fromSecret(m, engines.at("configs."+name), name, value, "engine-env")
		} else {
			m.env.keep(name, value)
		}
	}
	s.hubToken(m, m.at("hf_token"), m.raw("hf_token"))
	if name, key := s.keyRef(engines.at("vllmApiKey"), engines.raw("vllmApiKey"), "vllm-api-key", "key"); name != "" {
		addVariable(m.container, variableFrom("VLLM_API_KEY", name, key))
	}
	s.variables(m, engines, "env", "engine-env")
	s.variables(m, m.section, "env", slug(m.theirs)+"-env")
	if name := m.labels("envFromSecret")["name"]; given(name) {
		m.container.set("envFrom", []any{map[string]any{"secretRef": map[string]any{"name": name}}})
	}
}

// variables converts a list of variables: plain ones go into engine.env, others into the container.
func (s *stack) variables(m *model, from section, key, secretName string) {
	for i, item := range from.list(key) {
		path := from.at(key) + "[" + strconv.Itoa(i) + "]"
		variable, name := s.variable(path, item)
		if name == "" {
			continue
		}
		value := scalarText(variable["value"])
		m.env.drop(name)
		switch {
		case variable["valueFrom"] != nil, strings.Contains(value, "$("):
			addVariable(m.container, variable)
		case isSecret(name, value):
			s.fromSecret(m, path, name, value, secretName)
		default:
			m.env.keep(name, value)
		}
	}
}

// variable checks an item of env.
func (s *stack) variable(path string, item any) (map[string]any, string) {
	variable, _ := item.(map[string]any)
	name := scalarText(variable["name"])
	if name == "" || notText(variable["value"]) {
		s.bad(path, "want a variable: a mapping with name, and value or valueFrom")
		return nil, ""
	}
	return variable, name
}

func (s *stack) fromSecret(m *model, path, variable, value, secretName string) {
	if variable == "HF_TOKEN" {
		s.hubToken(m, path, value)
		return
	}
	name, key := s.secretFor(path, secretName, variable, value)
	addVariable(m.container, variableFrom(variable, name, key))
}

// environmentOf copies an env as it is, but for secrets.
func (s *stack) environmentOf(path string, env []any, secretName string) []any {
	out := make([]any, 0, len(env))
	for i, item := range env {
		at := path + "[" + strconv.Itoa(i) + "]"
		variable, name := s.variable(at, item)
		if name == "" {
			continue
		}
		if value := scalarText(variable["value"]); isSecret(name, value) {
			secretOf, key := s.secretFor(at, secretName, name, value)
			out = append(out, variableFrom(name, secretOf, key))
			continue
		}
		if variable["value"] != nil {
			variable = maps.Clone(variable)
			variable["value"] = scalarText(variable["value"])
		}
		out = append(out, variable)
	}
	return out
}

package convert

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// secret is a Kubernetes Secret that the values refer to and somebody has to make.
type secret struct {
	name string
	keys []string
	// values tell apart what would have the same key. They are not written.
	values []string
	paths  []string
}

// secretFor finds a place for a secret value: a key of a Secret to be made.
func (s *stack) secretFor(path, name, key, value string) (string, string) {
	for n := 1; ; n++ {
		numbered := name
		if n > 1 {
			numbered += "-" + strconv.Itoa(n)
		}
		i := slices.IndexFunc(s.secrets, func(x *secret) bool { return x.name == numbered })
		if i < 0 {
			s.secrets = append(s.secrets, &secret{numbered, []string{key}, []string{value}, []string{path}})
			return numbered, key
		}
		x := s.secrets[i]
		switch k := slices.Index(x.keys, key); {
		case k < 0:
			x.keys, x.values, x.paths = append(x.keys, key), append(x.values, value), append(x.paths, path)
			return numbered, key
		case x.values[k] == value:
			x.paths = append(x.paths, path)
			return numbered, key
		}
	}
}

// tellSecrets says how the Secrets are made.
func (s *stack) tellSecrets() {
	for _, x := range s.secrets {
		literals := make([]string, 0, len(x.keys))
		for _, key := range x.keys {
			literals = append(literals, " --from-literal="+key+"=VALUE")
		}
		also := ""
		if rest := slices.Compact(slices.Clone(x.paths))[1:]; len(rest) > 0 {
			also = " (and of " + strings.Join(rest, ", ") + ")"
		}
		s.note(x.paths[0], Action, "secrets are not copied: kubectl create secret generic %s%s, with its value%s", x.name, strings.Join(literals, ""), also)
	}
}

// keyRef gives the Secret and key of a value that is secret: the one that it names, or one to be made.
func (s *stack) keyRef(path string, value any, name, key string) (string, string) {
	switch v := value.(type) {
	case map[string]any:
		ref := scalarText(v["secretName"])
		refKey := scalarText(v["secretKey"])
		if ref == "" || refKey == "" {
			return "", ""
		}
		return ref, refKey
	case nil:
	default:
		if text := scalarText(v); text != "" {
			return s.secretFor(path, name, key, text)
		}
	}
	return "", ""
}

// hubToken gives a model the token of the Hugging Face hub.
func (s *stack) hubToken(m *model, path string, value any) {
	if name, key := s.keyRef(path, value, "hf-token", "token"); name != "" {
		ref := &object{}
		ref.set("name", name)
		if key != "token" {
			ref.set("key", key)
		}
		m.pods.set("huggingFaceToken", ref)
	}
}

// secretVariable adds a variable with a value from a Secret that has to be made.
func (s *stack) secretVariable(o *object, path, variable, name, key string) {
	name, key = s.secretFor(path, name, key, "")
	addVariable(o, variableFrom(variable, name, key))
}

func variableFrom(variable, name, key string) *object {
	v := &object{}
	v.set("name", variable)
	ref := v.child("valueFrom", "secretKeyRef")
	ref.set("name", name)
	ref.set("key", key)
	return v
}

// addVariable appends to the env of a container, or of a section of the chart's values.
func addVariable(o *object, variable any) {
	env, _ := o.get("env").([]any)
	o.keep("env", append(env, variable))
}

// isSecret tells what should not be copied, by the name of a variable and by what only credentials look like.
func isSecret(name, value string) bool {
	name = strings.ToUpper(name)
	for _, part := range []string{"PASSWORD", "PASSWD", "SECRET", "API_KEY", "APIKEY", "ACCESS_KEY", "PRIVATE_KEY", "CREDENTIAL"} {
		if strings.Contains(name, part) {
			return value != ""
		}
	}
	return value != "" && (strings.HasSuffix(name, "TOKEN") || regexp.MustCompile(`://[^/@\s]*:[^/@\s]+@`).MatchString(value))
}

// keys gives routers and the control plane the engines' key.
func (s *stack) keys(engines, router section) {
	at, value := router.at("vllmApiKey"), router.raw("vllmApiKey")
	if !given(value) {
		if !engines.flag("enableEngine", true) {
			return
		}
		at, value = engines.at("vllmApiKey"), engines.raw("vllmApiKey")
	}
	name, key := s.keyRef(at, value, "vllm-api-key", "key")
	if name == "" {
		return
	}
	if router.flag("enableRouter", true) {
		addVariable(s.out.child("router"), variableFrom("VLLM_API_KEY", name, key))
	}
	addVariable(s.out.child("control"), variableFrom("VLLM_API_KEY", name, key))
}

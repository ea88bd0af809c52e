package resources

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
)

// split takes a fleet file apart: the spec of its Fleet object, and those of its Model objects by their names.
func split(file []byte) (fleet map[string]any, models map[string]map[string]any, err error) {
	doc, err := document(file)
	if err != nil {
		return nil, nil, fmt.Errorf("take the fleet file apart: %w", err)
	}
	bare(doc)
	name, _ := doc["name"].(string)
	list, _ := doc["models"].([]any)
	models = make(map[string]map[string]any, len(list))
	for _, each := range list {
		entry, ok := each.(map[string]any)
		if !ok {
			continue
		}
		id, _ := entry["name"].(string)
		spec := maps.Clone(entry)
		if name != "" && name != DefaultFleet {
			spec["fleet"] = name
		}
		if err := splitReplicas(spec); err != nil {
			return nil, nil, fmt.Errorf("model %s: %w", id, err)
		}
		models[ObjectName(id)] = spec
	}
	for _, field := range []string{"apiVersion", "kind", "name", "models"} {
		delete(doc, field)
	}
	platform, _ := doc["platform"].(map[string]any)
	if ray, ok := platform["kuberay"].(map[string]any); ok {
		platform = ray
	}
	if cluster, ok := platform["kubernetes"].(map[string]any); ok {
		for _, field := range []string{"namespace", "kubeconfig", "context"} {
			delete(cluster, field) // it is where the object is
		}
	}
	return doc, models, nil
}

// document reads a fleet file with the values that JSON has, by the library that mobula.Load uses: others know YAML 1.1, where a model
// called n is false.
func document(file []byte) (doc map[string]any, err error) {
	text, err := yaml.YAMLToJSON(file)
	if err == nil {
		err = json.Unmarshal(text, &doc)
	}
	if err == nil && doc == nil {
		err = errors.New("it is empty")
	}
	return doc, err
}

// bare takes away fields that are there without a value: a fleet file may have them, an object may not.
func bare(v any) {
	switch v := v.(type) {
	case map[string]any:
		for field, value := range v {
			if value == nil {
				delete(v, field)
			}
			bare(value)
		}
	case []any:
		for _, value := range v {
			bare(value)
		}
	}
}

// splitReplicas has "2" and 2 be replicas, and "1-4" a range.
func splitReplicas(spec map[string]any) error {
	if spec["replicas"] == nil {
		return nil
	}
	text := fmt.Sprint(spec["replicas"])
	low, high, isRange := strings.Cut(text, "-")
	if !isRange {
		high = low
	}
	least, err := strconv.ParseInt(low, 10, 32)
	most, errHigh := strconv.ParseInt(high, 10, 32)
	if err != nil || errHigh != nil {
		return fmt.Errorf("replicas: want a number or a range, got %s", text)
	}
	delete(spec, "replicas")
	if least == most {
		spec["replicas"] = least
	} else {
		spec["range"] = map[string]any{"min": least, "max": most}
	}
	return nil
}

// maxObjectName bounds names of objects, so that what is made for them may append to it.
const maxObjectName = 50

// ObjectName is what the Model object of a model is called: the model's id in lower-case letters, digits and dashes (of org/Chat-7B,
// org-chat-7b), with a hash at its end if it had to be cut. The chart names objects by the same rule.
func ObjectName(model string) string {
	var b strings.Builder
	for _, c := range []byte(strings.ToLower(model)) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			b.WriteByte(c)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	name := strings.TrimRight(b.String(), "-")
	if len(name) <= maxObjectName && name != "" {
		return name
	}
	sum := sha256.Sum256([]byte(model))
	hash := hex.EncodeToString(sum[:])[:8]
	if name == "" {
		return "model-" + hash
	}
	return strings.TrimRight(name[:maxObjectName-len(hash)-1], "-") + "-" + hash
}

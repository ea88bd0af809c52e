package raycluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
)

// kwargs turns arguments of vllm serve into what ray.serve.llm calls engine_kwargs: --max-model-len 32768 becomes
// max_model_len: 32768. A flag without a value is true, --no-flag is false, several values are a list. The error names what is no flag.
func kwargs(args []string) (map[string]any, error) {
	short := map[string]string{"-tp": "tensor_parallel_size", "-pp": "pipeline_parallel_size", "-dp": "data_parallel_size", "-q": "quantization"}
	out := map[string]any{}
	for len(args) > 0 {
		flag, value, joined := strings.Cut(args[0], "=")
		name, isShort := short[flag]
		switch {
		case isShort:
		case strings.HasPrefix(flag, "--") && len(flag) > 2:
			name = strings.ReplaceAll(flag[2:], "-", "_")
		default:
			return nil, fmt.Errorf("want flags of vllm serve, got %q", args[0])
		}
		args = args[1:]
		values := []any{}
		if joined {
			values = append(values, read(value))
		}
		for !joined && len(args) > 0 && !isFlag(args[0]) {
			values, args = append(values, read(args[0])), args[1:]
		}
		switch {
		case len(values) == 1:
			out[name] = values[0]
		case len(values) > 1:
			out[name] = values
		case strings.HasPrefix(name, "no_"):
			out[name[len("no_"):]] = false
		default:
			out[name] = true
		}
	}
	return dotted(out)
}

// isFlag tells a flag from a value such as -1.
func isFlag(arg string) bool {
	return strings.HasPrefix(arg, "--") || len(arg) > 1 && arg[0] == '-' && (arg[1] < '0' || arg[1] > '9') && arg[1] != '.'
}

// read gives numbers, objects and lists as such, and all else as text.
func read(text string) any {
	var v any
	if json.Unmarshal([]byte(text), &v) != nil || v == nil {
		return text
	}
	if n, isNumber := v.(float64); isNumber && n == float64(int64(n)) && !strings.ContainsAny(text, ".eE") {
		return int64(n)
	}
	return v
}

// dotted makes objects of vLLM's --a.b value.
func dotted(in map[string]any) (map[string]any, error) {
	out := map[string]any{}
	for _, name := range sortedKeys(in) {
		key, below, nested := strings.Cut(name, ".")
		if !nested {
			out[name] = in[name]
			continue
		}
		object, isMap := out[key].(map[string]any)
		if !isMap && out[key] != nil || strings.Contains(below, ".") {
			return nil, fmt.Errorf("can't give --%s to ray.serve.llm: want one JSON object for --%s", name, key)
		}
		object = maps.Clone(object)
		if object == nil {
			object = map[string]any{}
		}
		object[below] = in[name]
		out[key] = object
	}
	return out, nil
}

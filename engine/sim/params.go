package sim

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// params is a request's body by its top-level fields; what has the wrong type is noted.
type params struct {
	names  []string
	values []gjson.Result
	bad    validation
	size   int // fields in the body
}

// maxFields bounds how many fields are looked at.
const maxFields = 256

func newParams(body gjson.Result) *params {
	p := &params{}
	body.ForEach(func(k, v gjson.Result) bool {
		p.size++
		if len(p.names) < maxFields {
			p.names, p.values = append(p.names, k.Str), append(p.values, v)
		}
		return true
	})
	return p
}

// get finds a field; null counts as absent, and of several the last one counts.
func (p *params) get(name string) (gjson.Result, bool) {
	for i, n := range slices.Backward(p.names) {
		if n == name {
			return p.values[i], p.values[i].Type != gjson.Null
		}
	}
	return gjson.Result{}, false
}

func (p *params) wrong(kind, name, msg string, v gjson.Result) {
	p.bad.add(kind, "body."+name, msg, describe(v), "")
}

func (p *params) missing(name string) {
	p.bad.add("missing", "body."+name, "Field required", "<dict of "+strconv.Itoa(p.size)+" items>", "")
}

func (p *params) int(name string) (int, bool) {
	v, ok := p.get(name)
	if !ok {
		return 0, false
	}
	switch v.Type {
	case gjson.True:
		return 1, true
	case gjson.False:
		return 0, true
	case gjson.Number:
		if v.Num != math.Trunc(v.Num) {
			p.wrong("int_from_float", name, "Input should be a valid integer, got a number with a fractional part", v)
			return 0, false
		}
		return int(v.Int()), true
	case gjson.String:
		if n, err := strconv.Atoi(strings.TrimSpace(v.Str)); err == nil {
			return n, true
		}
		p.wrong("int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", v)
	default:
		p.wrong("int_type", name, "Input should be a valid integer", v)
	}
	return 0, false
}

func (p *params) float(name string, def float64) float64 {
	v, ok := p.get(name)
	if !ok {
		return def
	}
	switch v.Type {
	case gjson.True:
		return 1
	case gjson.False:
		return 0
	case gjson.Number:
		return v.Num
	case gjson.String:
		if f, err := strconv.ParseFloat(strings.TrimSpace(v.Str), 64); err == nil {
			return f
		}
		p.wrong("float_parsing", name, "Input should be a valid number, unable to parse string as a number", v)
	default:
		p.wrong("float_type", name, "Input should be a valid number", v)
	}
	return def
}

func (p *params) bool(name string, def bool) bool {
	v, ok := p.get(name)
	if !ok {
		return def
	}
	switch {
	case v.Type == gjson.True, v.Type == gjson.Number && v.Num == 1:
		return true
	case v.Type == gjson.False, v.Type == gjson.Number && v.Num == 0:
		return false
	case v.Type == gjson.String:
		switch strings.ToLower(v.Str) {
		case "true", "1", "yes", "on", "t", "y":
			return true
		case "false", "0", "no", "off", "f", "n":
			return false
		}
	}
	p.wrong("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", v)
	return def
}

func (p *params) string(name string) string {
	v, ok := p.get(name)
	if ok && v.Type != gjson.String {
		p.wrong("string_type", name, "Input should be a valid string", v)
		return ""
	}
	return v.Str
}

func (p *params) list(name string) (gjson.Result, bool) {
	v, ok := p.get(name)
	if ok && !v.IsArray() {
		p.wrong("list_type", name, "Input should be a valid list", v)
		return gjson.Result{}, false
	}
	return v, ok
}

// strings reads a string or a list of strings.
func (p *params) strings(name string) []string {
	v, ok := p.get(name)
	switch {
	case !ok:
		return nil
	case v.Type == gjson.String:
		return []string{v.Str}
	case !v.IsArray():
		p.wrong("string_type", name, "Input should be a valid string", v)
		return nil
	}
	var out []string
	v.ForEach(func(_, s gjson.Result) bool {
		if s.Type != gjson.String {
			p.wrong("string_type", name+"."+strconv.Itoa(len(out)), "Input should be a valid string", s)
			return false
		}
		out = append(out, s.Str)
		return true
	})
	return out
}

// sampling is how an answer is to be generated.
type sampling struct {
	n            int
	max          int // tokens to generate, unset when not said
	minTokens    int
	temperature  float64
	topP         float64
	seed         int
	stop         []string
	stopIDs      []int32
	includeStop  bool
	ignoreEOS    bool
	skipSpecials bool
	logprobs     int // alternatives wanted per token, -1 for no logprobs
	stream       bool
	usage        bool // a usage chunk ends the stream
	allUsage     bool // every chunk has usage
	ids          bool // return_token_ids
	echo         bool
	presence     float64
	frequency    float64
}

// maxLogprobs is the most alternatives that may be asked for, vLLM's default.
const maxLogprobs = 20

// maxChoices bounds the choices of one request, over all its prompts.
const maxChoices = 4096

// unset is the value of a number that a request does not give.
const unset = math.MinInt

// maxStops bounds the stop strings that are looked for.
const maxStops = 64

// sampling reads the fields that all generating routes share.
func (p *params) sampling() (*sampling, *apiError) {
	s := &sampling{n: 1, max: unset, logprobs: -1}
	if n, ok := p.int("n"); ok {
		s.n = n
	}
	if n, ok := p.int("max_tokens"); ok {
		s.max = n
	}
	s.temperature, s.topP = p.float("temperature", 1), p.float("top_p", 1)
	s.presence, s.frequency = p.float("presence_penalty", 0), p.float("frequency_penalty", 0)
	s.seed, _ = p.int("seed")
	s.stop = p.strings("stop")
	s.stop = s.stop[:min(len(s.stop), maxStops)]
	if ids, ok := p.list("stop_token_ids"); ok {
		ids.ForEach(func(_, id gjson.Result) bool {
			s.stopIDs = append(s.stopIDs, int32(id.Int()))
			return len(s.stopIDs) < maxStops
		})
	}
	s.minTokens, _ = p.int("min_tokens")
	s.includeStop, s.ignoreEOS = p.bool("include_stop_str_in_output", false), p.bool("ignore_eos", false)
	s.skipSpecials = p.bool("skip_special_tokens", true)
	s.ids, s.echo = p.bool("return_token_ids", false), p.bool("echo", false)
	s.stream = p.bool("stream", false)
	options, hasOptions := p.get("stream_options")
	if hasOptions && !options.IsObject() {
		p.wrong("model_attributes_type", "stream_options", "Input should be a valid dictionary or object to extract fields from", options)
	}
	s.usage = options.Get("include_usage").Bool()
	s.allUsage = s.usage && options.Get("continuous_usage_stats").Bool()
	if err := p.bad.err(); err != nil {
		return nil, err
	}
	if hasOptions && !s.stream {
		return nil, badRequest("stream_options", "Stream options can only be defined when `stream=True`. (parameter=stream_options)")
	}
	return s, s.check()
}

// check looks at the ranges, in vLLM's words.
func (s *sampling) check() *apiError {
	switch {
	case s.n < 1:
		return badRequest("", "n must be at least 1, got %d.", s.n)
	case s.n > maxChoices:
		return badRequest("n", "n must be at most %d, got %d. (parameter=n, value=%d)", maxChoices, s.n, s.n)
	case !(s.presence >= -2 && s.presence <= 2):
		return badRequest("", "presence_penalty must be in [-2, 2], got %s.", formatFloat(s.presence))
	case !(s.frequency >= -2 && s.frequency <= 2):
		return badRequest("", "frequency_penalty must be in [-2, 2], got %s.", formatFloat(s.frequency))
	case !(s.temperature >= 0):
		v := formatFloat(s.temperature)
		return badRequest("temperature", "temperature must be non-negative, got %s. (parameter=temperature, value=%s)", v, v)
	case !(s.topP > 0 && s.topP <= 1):
		v := formatFloat(s.topP)
		return badRequest("top_p", "top_p must be in (0, 1], got %s. (parameter=top_p, value=%s)", v, v)
	case s.minTokens < 0:
		return badRequest("", "min_tokens must be greater than or equal to 0, got %d.", s.minTokens)
	case s.max != unset && s.minTokens > max(s.max, 0):
		return badRequest("", "min_tokens must be less than or equal to max_tokens=%d, got %d.", s.max, s.minTokens)
	case slices.Contains(s.stop, ""):
		return badRequest("", "stop cannot contain an empty string.")
	}
	return nil
}

// checkMax looks at the most tokens asked for; allowZero is for an echo alone.
func (s *sampling) checkMax(maxModelLen int, allowZero bool) *apiError {
	switch {
	case s.max == 0 && allowZero, s.max == unset:
		return nil
	case s.max < 1:
		return badRequest("max_tokens", "max_tokens must be at least 1, got %d. (parameter=max_tokens, value=%d)", s.max, s.max)
	case s.max > maxModelLen:
		return badRequest("max_tokens", "max_tokens=%d cannot be greater than max_model_len=%d. Please request fewer output tokens. (parameter=max_tokens, value=%d)", s.max, maxModelLen, s.max)
	}
	return nil
}

// key is what sampling adds to the model's choice: nothing when it is greedy.
func (s *sampling) key(model uint64, choice int) uint64 {
	if s.temperature == 0 {
		return model
	}
	return chain(chain(chain(model, math.Float64bits(s.temperature)), uint64(s.seed)), uint64(choice)+1)
}

func (s *sampling) stopsAt(id int32) bool { return slices.Contains(s.stopIDs, id) }

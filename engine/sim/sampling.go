package sim

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// api is one of the generating APIs. Each takes sampling parameters of its own and ignores
// those of the others.
type api uint8

const (
	apiChat api = iota
	apiCompletions
	apiResponses
	apiMessages
)

// sampling is how an answer is to be generated.
type sampling struct {
	n            int
	max          int    // tokens to generate, unset when not said
	maxField     string // the field that said it
	minTokens    int
	temperature  float64
	topP         float64
	topK         int
	minP         float64
	presence     float64
	frequency    float64
	repetition   float64
	seed         int
	stop         []string
	stopIDs      []int
	includeStop  bool
	ignoreEOS    bool
	skipSpecials bool
	logprobs     int // alternatives wanted per token, or noLogprobs
	stream       bool
	usage        bool // a usage chunk ends the stream
	allUsage     bool // every chunk has usage
	ids          bool // return_token_ids
	echo         bool
	onlyEcho     bool // nothing is generated
}

const (
	// unset is the value of a number that a request does not give.
	unset = math.MinInt
	// noLogprobs wants no log probabilities, not even the chosen token's.
	noLogprobs = -1
	// defaultCompletion is how many tokens /v1/completions gives when the request does not say.
	defaultCompletion = 16
	// leastTemperature is what a lower one, but not zero, is raised to.
	leastTemperature = 0.01
)

// vLLM's limits.
const (
	maxN        = 16384
	maxPrompts  = 1024
	maxStops    = 4
	maxLogprobs = 20
)

const (
	// maxChoices bounds the choices of one request, over all its prompts.
	maxChoices = 4096
	// maxStopIDs bounds the token ids that are looked for.
	maxStopIDs = 64
)

// sampling reads an API's sampling parameters. What is out of range is for inRange to find.
func (c *call) sampling(p *params, a api) (*sampling, *apiError) {
	if err := p.contradiction(a); err != nil {
		return nil, err
	}
	s := &sampling{n: 1, max: unset, repetition: 1, logprobs: noLogprobs, skipSpecials: true}
	p.limit(s, a)
	switch a {
	case apiChat, apiCompletions:
		p.choices(s, a, c.e.tok.size())
	case apiResponses:
		include, _ := p.get("include")
		if top := p.logprobs("top_logprobs", 0, c.e.tok.size()); strings.Contains(include.Raw, `"message.output_text.logprobs"`) {
			s.logprobs = top
		}
	}
	s.stream = p.bool("stream", false)
	s.temperature, s.topP = p.float("temperature", 1), p.float("top_p", 1)
	s.topK, _ = p.int("top_k")
	if a == apiMessages {
		s.stop = p.stops("stop_sequences", false)
	} else {
		p.extras(s, a)
	}
	if s.temperature > 0 {
		s.temperature = max(s.temperature, leastTemperature)
	}
	return s, p.bad.err()
}

// contradiction finds what vLLM looks for before it looks at types: fields that don't go
// together, and some ranges.
func (p *params) contradiction(a api) *apiError {
	switch a {
	case apiChat:
		if err := p.logprobsField("top_logprobs"); err != nil {
			return err
		}
		if p.truthy("top_logprobs") && !p.truthy("logprobs") {
			return badRequest("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)")
		}
		return p.streamOptions()
	case apiCompletions:
		prompt, ok := p.get("prompt")
		switch {
		case !ok || prompt.Type == gjson.String && prompt.Str == "":
			return errNoPrompt()
		case prompt.IsArray() && prompt.Get("0").Type != gjson.Number: // the ids of one prompt may be more
			if n := count(prompt); n > maxPrompts {
				return badRequest("prompt", "prompt list length %d exceeds the maximum allowed count of %d. To increase this limit, set the VLLM_MAX_COMPLETION_PROMPTS environment variable. (parameter=prompt)", n, maxPrompts)
			}
		}
		if err := p.streamOptions(); err != nil {
			return err
		}
		return p.logprobsField("logprobs")
	case apiResponses:
		if _, ok := p.get("prompt"); ok {
			return badRequest("prompt", "prompt template is not supported (parameter=prompt)")
		}
	}
	return nil
}

func (p *params) logprobsField(name string) *apiError {
	v, _ := p.get(name)
	switch {
	case v.Type == gjson.String, v.Type == gjson.JSON:
		return badRequest(name, "`%s` must be an integer. (parameter=%s, value=%s)", name, name, v.String())
	case v.Num < 0 && v.Num != -1:
		return badRequest(name, "`%s` must be a positive value or -1. (parameter=%s, value=%s)", name, name, v.Raw)
	}
	return nil
}

func (p *params) streamOptions() *apiError {
	if p.truthy("stream_options") && !p.truthy("stream") {
		return badRequest("stream_options", "Stream options can only be defined when `stream=True`. (parameter=stream_options)")
	}
	return nil
}

// limit reads how many tokens to generate.
func (p *params) limit(s *sampling, a api) {
	fields := [...][]string{
		apiChat:        {"max_tokens", "max_completion_tokens"}, // the last one counts
		apiCompletions: {"max_tokens"},
		apiResponses:   {"max_output_tokens"},
		apiMessages:    {"max_tokens"},
	}
	for _, f := range fields[a] {
		if n, ok := p.int(f); ok {
			s.max, s.maxField = n, f
		}
	}
	switch a {
	case apiCompletions:
		if s.max == unset {
			s.max = defaultCompletion
		}
	case apiMessages:
		s.maxField = "max_completion_tokens" // what vLLM makes of it
		switch v, given := p.find("max_tokens"); {
		case !given:
			p.missing("max_tokens")
		case v.Type == gjson.Null:
			p.wrong("int_type", "max_tokens", "Input should be a valid integer", v)
		case s.max != unset && s.max <= 0:
			p.bad.add("value_error", "body.max_tokens", "Value error, max_tokens must be positive", describe(v), ", 'ctx': {'error': ValueError('max_tokens must be positive')}")
		}
	}
}

// choices reads what only chat and completions have.
func (p *params) choices(s *sampling, a api, vocabulary int) {
	number := p.notNull
	if a == apiChat {
		number = p.int
		if top := p.logprobs("top_logprobs", 0, vocabulary); p.bool("logprobs", false) {
			s.logprobs = top
		}
	} else {
		s.logprobs = p.logprobs("logprobs", noLogprobs, vocabulary)
	}
	if n, ok := number("n"); ok {
		s.n = n
	}
	s.minTokens, _ = p.notNull("min_tokens")
	s.ids, s.echo = p.bool("return_token_ids", false), p.bool("echo", false)
	s.onlyEcho = a == apiCompletions && s.echo && s.max == 0
	options, ok := p.get("stream_options")
	if ok && !options.IsObject() {
		p.wrong("model_attributes_type", "stream_options", "Input should be a valid dictionary or object to extract fields from", options)
	}
	s.usage = options.Get("include_usage").Bool()
	s.allUsage = s.usage && options.Get("continuous_usage_stats").Bool()
}

// logprobs reads how many alternatives are wanted; -1 wants the whole vocabulary.
func (p *params) logprobs(name string, absent, vocabulary int) int {
	n, ok := p.int(name)
	switch {
	case !ok:
		return absent
	case n == -1:
		return vocabulary
	}
	return n
}

// extras reads what only Anthropic's API does not have.
func (p *params) extras(s *sampling, a api) {
	s.presence, s.frequency = p.penalty("presence_penalty", a), p.penalty("frequency_penalty", a)
	s.minP, s.repetition = p.float("min_p", 0), p.float("repetition_penalty", 1)
	s.seed, _ = p.int("seed")
	seed, _ := p.get("seed")
	if _, err := strconv.ParseInt(seed.Raw, 10, 64); errors.Is(err, strconv.ErrRange) {
		bound := strconv.Itoa(math.MinInt64)
		if seed.Num > 0 {
			bound = strconv.Itoa(math.MaxInt64)
		}
		p.beyond("seed", seed.Num > 0, bound, bound)
	}
	if s.stop = p.stops("stop", true); a == apiResponses && !p.truthy("stop") {
		s.stop = nil // there "" is no stop string
	}
	s.stopIDs = p.ints("stop_token_ids", maxStopIDs)
	s.includeStop, s.ignoreEOS = p.bool("include_stop_str_in_output", false), p.bool("ignore_eos", false)
	s.skipSpecials = p.bool("skip_special_tokens", true)
}

// penalty reads one of two penalties. Only in the responses API is the range part of the schema.
func (p *params) penalty(name string, a api) float64 {
	f := p.float(name, 0)
	switch {
	case a != apiResponses:
	case f > 2:
		p.beyond(name, true, "2", "2.0")
	case f < -2:
		p.beyond(name, false, "-2", "-2.0")
	}
	return f
}

// fits checks the tokens asked for against the context.
func (s *sampling) fits(maxModelLen int) *apiError {
	if s.max == unset || s.max <= maxModelLen {
		return nil
	}
	return badRequest(s.maxField, "%s=%d cannot be greater than max_model_len=%d. Please request fewer output tokens. (parameter=%s, value=%d)", s.maxField, s.max, maxModelLen, s.maxField, s.max)
}

// most is how many tokens may follow a prompt of length tokens.
func (s *sampling) most(length, maxModelLen int) int {
	room := maxModelLen - length
	switch {
	case s.max == unset:
		return room
	case s.onlyEcho:
		return 1
	}
	return min(room, s.max)
}

// inRange checks a request whose prompt has length tokens, in vLLM's order and words.
func (s *sampling) inRange(length, maxModelLen int) *apiError {
	most := s.most(length, maxModelLen)
	switch {
	case s.n < 1:
		return badRequest("", "n must be at least 1, got %d.", s.n)
	case s.n > maxN:
		return badRequest("", "n must be at most %d, got %d. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable.", maxN, s.n)
	case !(s.presence >= -2 && s.presence <= 2):
		return badRequest("", "presence_penalty must be in [-2, 2], got %s.", formatFloat(s.presence))
	case !(s.frequency >= -2 && s.frequency <= 2):
		return badRequest("", "frequency_penalty must be in [-2, 2], got %s.", formatFloat(s.frequency))
	case !finite(s.repetition):
		return badRequest("", "repetition_penalty must be a finite number, got %s.", formatFloat(s.repetition))
	case s.repetition <= 0:
		return badRequest("", "repetition_penalty must be greater than zero, got %s.", formatFloat(s.repetition))
	case !finite(s.temperature):
		return outOfRange("temperature", "a finite number", s.temperature)
	case s.temperature < 0:
		return outOfRange("temperature", "non-negative", s.temperature)
	case s.temperature > 2:
		return outOfRange("temperature", "in [0, 2]", s.temperature)
	case !(s.topP > 0 && s.topP <= 1):
		return outOfRange("top_p", "in (0, 1]", s.topP)
	case s.topK < -1:
		return badRequest("", "top_k must be 0 (disable), or at least 1, got %d.", s.topK)
	case !(s.minP >= 0 && s.minP <= 1):
		return badRequest("", "min_p must be in [0, 1], got %s.", formatFloat(s.minP))
	case most < 1:
		return badRequest("max_tokens", "max_tokens must be at least 1, got %d. (parameter=max_tokens, value=%d)", most, most)
	case s.minTokens < 0:
		return badRequest("", "min_tokens must be greater than or equal to 0, got %d.", s.minTokens)
	case s.minTokens > most:
		return badRequest("", "min_tokens must be less than or equal to max_tokens=%d, got %d.", most, s.minTokens)
	case s.logprobs < noLogprobs:
		return badRequest("logprobs", "logprobs must be non-negative or -1, got %d. (parameter=logprobs, value=%d)", s.logprobs, s.logprobs)
	case slices.Contains(s.stop, ""):
		return badRequest("", "stop cannot contain an empty string.")
	case s.temperature == 0 && s.n > 1:
		return badRequest("", "n must be 1 when using greedy sampling, got %d.", s.n)
	}
	return nil
}

// checkChoices bounds the choices of a request with that many prompts.
func (s *sampling) checkChoices(prompts int) *apiError {
	if s.n > maxChoices/prompts {
		return badRequest("", "The simulator gives at most %d choices in one request.", maxChoices)
	}
	return nil
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

func outOfRange(field, want string, got float64) *apiError {
	v := formatFloat(got)
	return badRequest(field, "%s must be %s, got %s. (parameter=%s, value=%s)", field, want, v, field, v)
}

// accepted finds what vLLM's engine refuses and not its API: a stream has begun by then.
func (s *sampling) accepted(vocabulary int) *apiError {
	if s.logprobs > maxLogprobs {
		return badRequest("logprobs", "Requested sample logprobs of %d, which is greater than max allowed: %d (parameter=logprobs, value=%d)", s.logprobs, maxLogprobs, s.logprobs)
	}
	var strange []string
	for _, id := range s.stopIDs {
		if text := strconv.Itoa(id); (id < 0 || id >= vocabulary) && !slices.Contains(strange, text) {
			strange = append(strange, text)
		}
	}
	if len(strange) == 0 {
		return nil
	}
	list := "[" + strings.Join(strange, ", ") + "]"
	return badRequest("stop_token_ids", "token_id(s) %s in stop_token_ids contain out-of-vocab token ids. Vocabulary size: %d (parameter=stop_token_ids, value=%s)", list, vocabulary, list)
}

// key is what sampling adds to the model's choice: nothing when it is greedy.
func (s *sampling) key(model uint64, choice int) uint64 {
	if s.temperature == 0 {
		return model
	}
	return chain(chain(chain(model, math.Float64bits(s.temperature)), uint64(s.seed)), uint64(choice)+1)
}

func (s *sampling) stopsAt(id int32) bool { return slices.Contains(s.stopIDs, int(id)) }

package openai

import (
	"encoding/json"
	"strings"
)

// format is the shape of a route's error bodies.
type format uint8

const (
	formatOpenAI format = iota
	formatAnthropic
)

// body is how a route's request carries the model's name.
type body uint8

const (
	bodyJSON      body = iota // a member of a JSON object
	bodyMultipart             // a field of multipart/form-data
)

// route is one path that goes to engines.
type route struct {
	path   string
	engine string // the engine's path for it, when it differs
	name   string // metric label
	format format
	body   body
	cached bool // the engine keeps the prompt's KV: worth a prefix lookup
	owned  bool // answers have an id that only this engine knows (Responses)
	// kinds of providers that have the path
	kinds []string
}

// streams tells whether answers may be event streams, in which a comment says nothing.
func (r *route) streams() bool { return len(r.kinds) > 0 && r.name != "embeddings" }

// spell writes a model's name as it stands in a body between its quotes, if it has them.
func (r *route) spell(model string) string {
	if r.body == bodyMultipart || !strings.ContainsFunc(model, func(c rune) bool { return c < ' ' || c == '"' || c == '\\' }) {
		return model
	}
	quoted, err := json.Marshal(model)
	if err != nil { // a string always marshals
		return model
	}
	return string(quoted[1 : len(quoted)-1])
}

// routes are all POST paths that are proxied. Engine paths that change state (/sleep,
// /wake_up, LoRA loading, /collective_rpc, ...) are not here, and nothing else is proxied.
func routes() []route {
	open, all, anthropic := []string{"openai", "azure"}, []string{"openai", "azure", "anthropic"}, []string{"anthropic"}
	return []route{
		{path: "/v1/chat/completions", name: "chat", cached: true, kinds: all},
		{path: "/v1/completions", name: "completions", cached: true, kinds: open},
		{path: "/v1/responses", name: "responses", cached: true, owned: true, kinds: open},
		{path: "/v1/messages", name: "messages", format: formatAnthropic, cached: true, kinds: anthropic},
		{path: "/v1/messages/count_tokens", name: "count_tokens", format: formatAnthropic},
		{path: "/v1/embeddings", name: "embeddings", cached: true, kinds: open},
		{path: "/v2/embed", name: "embeddings", cached: true},
		{path: "/v1/score", name: "score", cached: true},
		{path: "/score", name: "score", cached: true},
		{path: "/v1/rerank", name: "rerank", cached: true},
		{path: "/v2/rerank", name: "rerank", cached: true},
		{path: "/rerank", name: "rerank", cached: true},
		{path: "/v1/pooling", engine: "/pooling", name: "pooling", cached: true},
		{path: "/pooling", name: "pooling", cached: true},
		{path: "/v1/classify", engine: "/classify", name: "classify", cached: true},
		{path: "/classify", name: "classify", cached: true},
		{path: "/tokenize", name: "tokenize"},
		{path: "/detokenize", name: "detokenize"},
		{path: "/v1/chat/completions/render", name: "render"},
		{path: "/v1/completions/render", name: "render"},
		{path: "/v1/audio/transcriptions", name: "transcriptions", body: bodyMultipart},
		{path: "/v1/audio/translations", name: "translations", body: bodyMultipart},
		{path: "/v1/audio/speech", name: "speech"},
		{path: "/v1/images/generations", name: "images"},
		{path: "/v1/images/edits", name: "images", body: bodyMultipart},
		{path: "/invocations", name: "invocations", cached: true},
		{path: "/generative_scoring", name: "generative_scoring", cached: true},
	}
}

// engineOnly are engine paths that this port never passes on; asking for one gets an
// answer that says so instead of a bare 404.
func engineOnly() []string {
	return []string{
		"/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused",
		"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters",
		"/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/release_kv_cache_memory",
		"/collective_rpc", "/server_info", "/abort_requests", "/update_weights", "/scale_elastic_ep",
	}
}

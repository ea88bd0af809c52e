package sim

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// call is one request on its way through the engine.
type call struct {
	e     *Engine
	w     http.ResponseWriter
	r     *http.Request
	body  string
	fault *active         // that befalls it, or nil
	ctx   context.Context // in place of the request's, or nil
	lost  bool            // the connection was taken by a fault
	armed time.Time       // when the write deadline was set last
}

// kind says what a route needs done before it.
type kind uint8

const (
	plain     kind = iota // nothing
	inference             // counts as load, and faults befall it
	generates             // is inference, and not on a pooling engine
	pools                 // is inference, and only on a pooling engine
	classify              // pools, and only when the engine classifies
)

type route struct {
	kind    kind
	methods map[string]func(*call)
	allow   string
}

// routes builds the engine's whole surface.
func (e *Engine) routes() http.Handler {
	mux := http.NewServeMux()
	add := func(k kind, method string, h func(*call), paths ...string) {
		if e.opts.Embedding && k == generates || !e.opts.Embedding && k >= pools || k == classify && !e.opts.Classify {
			return
		}
		for _, p := range paths {
			mux.Handle(p, e.serveRoute(&route{kind: k, methods: map[string]func(*call){method: h}, allow: method}))
		}
	}
	const get, post = http.MethodGet, http.MethodPost
	add(generates, post, (*call).chat, "/v1/chat/completions")
	add(generates, post, (*call).completions, "/v1/completions")
	add(generates, post, (*call).responses, "/v1/responses")
	add(plain, get, (*call).getResponse, "/v1/responses/{id}")
	add(plain, post, (*call).cancelResponse, "/v1/responses/{id}/cancel")
	add(generates, post, (*call).messages, "/v1/messages")
	add(generates, post, (*call).countTokens, "/v1/messages/count_tokens")
	add(generates, post, (*call).scaleOut, "/v1/chat/completions/render", "/v1/completions/render", "/inference/v1/generate")
	add(generates, post, (*call).transcribe, "/v1/audio/transcriptions", "/v1/audio/translations")
	add(generates, post, (*call).speech, "/v1/audio/speech")
	add(generates, post, (*call).images, "/v1/images/generations", "/v1/images/edits")
	add(pools, post, (*call).embeddings, "/v1/embeddings")
	add(pools, post, (*call).pooling, "/pooling", "/v1/pooling")
	add(pools, post, (*call).score, "/score", "/v1/score")
	add(pools, post, (*call).rerank, "/rerank", "/v1/rerank", "/v2/rerank")
	add(classify, post, (*call).classify, "/classify", "/v1/classify")
	add(inference, post, (*call).tokenize, "/tokenize")
	add(inference, post, (*call).detokenize, "/detokenize")

	add(plain, get, (*call).listModels, "/v1/models")
	add(plain, post, (*call).loadLoRA, "/v1/load_lora_adapter")
	add(plain, post, (*call).unloadLoRA, "/v1/unload_lora_adapter")
	add(plain, get, (*call).health, "/health", "/ping")
	add(plain, get, (*call).version, "/version")
	add(plain, get, (*call).getMetrics, "/metrics")
	add(plain, get, (*call).load, "/load")
	add(plain, get, (*call).serverInfo, "/server_info")
	add(plain, post, (*call).sleep, "/sleep")
	add(plain, post, (*call).wakeUp, "/wake_up")
	add(plain, get, (*call).isSleeping, "/is_sleeping")
	add(plain, post, (*call).resetPrefixCache, "/reset_prefix_cache")
	add(plain, get, (*call).getStats, "/sim/stats")
	mux.Handle("/sim/fault", e.serveRoute(&route{allow: "DELETE, POST", methods: map[string]func(*call){
		post: (*call).postFault, http.MethodDelete: (*call).deleteFault,
	}}))
	mux.Handle("/", e.serveRoute(nil))
	return mux
}

// serveRoute does for every request what comes before its handler. nil is the unknown route.
func (e *Engine) serveRoute(rt *route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{e: e, w: w, r: r}
		h := w.Header()
		h["Server"], h["Vary"] = []string{"uvicorn"}, []string{"Origin"}
		control := strings.HasPrefix(r.URL.Path, "/sim/")
		if !control && !c.authorized() {
			c.json(http.StatusUnauthorized, []byte(`{"error":"Unauthorized"}`))
			return
		}
		if rt == nil {
			c.json(http.StatusNotFound, []byte(`{"detail":"Not Found"}`))
			return
		}
		handle := rt.methods[r.Method]
		if handle == nil {
			h.Set("Allow", rt.allow)
			c.json(http.StatusMethodNotAllowed, []byte(`{"detail":"Method Not Allowed"}`))
			return
		}
		if err := c.read(); err != nil {
			c.fail(err)
			return
		}
		if rt.kind != plain {
			e.inFlight.Add(1)
			defer e.inFlight.Add(-1)
		}
		if !control {
			c.fault = e.faults.draw(rt.kind != plain)
		}
		if c.fault != nil {
			c.befall(handle)
			return
		}
		handle(c)
	}
}

// authorized checks the API key where vLLM does.
func (c *call) authorized() bool {
	key := c.e.opts.APIKey
	guarded := func(prefix string) bool { return strings.HasPrefix(c.r.URL.Path, prefix) }
	if key == "" || !slices.ContainsFunc([]string{"/v1", "/v2", "/inference"}, guarded) {
		return true
	}
	scheme, got, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare([]byte(got), []byte(key)) == 1
}

// read takes in the body, so that the server notices from then on when the client goes.
func (c *call) read() *apiError {
	if c.r.Body == nil || c.r.Body == http.NoBody {
		return nil
	}
	limit := c.e.opts.MaxBody
	if c.r.ContentLength > limit {
		return errTooLarge()
	}
	body := http.MaxBytesReader(c.w, c.r.Body, limit)
	// What a client only promises costs no more than a megabyte.
	b := bytes.NewBuffer(make([]byte, 0, bytes.MinRead+max(0, min(c.r.ContentLength, 1<<20))))
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(time.Now().Add(readBodyTimeout)) // where there is a connection
	_, err := b.ReadFrom(body)
	_ = rc.SetReadDeadline(time.Time{})
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return errTooLarge()
	case err != nil:
		return badRequest("", "There was an error parsing the body")
	}
	c.body = b.String()
	return nil
}

func errTooLarge() *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, kind: "RequestEntityTooLarge", message: "The request body is too large."}
}

// params checks the body and takes it apart.
func (c *call) params() (*params, *apiError) {
	media, _, _ := strings.Cut(strings.ToLower(c.r.Header.Get("Content-Type")), ";")
	if strings.TrimSpace(media) != "application/json" {
		return nil, errContentType()
	}
	if !gjson.Valid(c.body) {
		return nil, errBody([]byte(c.body))
	}
	body := gjson.Parse(c.body)
	if !body.IsObject() {
		return nil, errBody([]byte(c.body))
	}
	return newParams(body), nil
}

// context ends when the client goes.
func (c *call) context() context.Context {
	if c.ctx != nil {
		return c.ctx
	}
	return c.r.Context()
}

// id makes an answer's id, from the request's own if it has one.
func (c *call) id(prefix string) string {
	if id := c.r.Header.Get("X-Request-Id"); id != "" {
		return prefix + id
	}
	return prefix + newID()
}

// json answers with a JSON body.
func (c *call) json(status int, body []byte) {
	if c.lost {
		return
	}
	h := c.w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.extend()
	if status != http.StatusOK {
		c.w.WriteHeader(status)
	}
	_, _ = c.w.Write(body) // a client that is gone needs no answer
}

// text answers without a content type, as vLLM does where it has nothing to say.
func (c *call) text(status int, body string) {
	h := c.w.Header()
	h["Content-Type"] = nil
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.extend()
	c.w.WriteHeader(status)
	_, _ = io.WriteString(c.w, body)
}

// fail answers with an error, in Anthropic's shape where it belongs.
func (c *call) fail(err error) {
	if c.lost || c.context().Err() != nil || errors.Is(err, errCut) || errors.Is(err, errGone) {
		return
	}
	e := toAPIError(err)
	var body []byte
	if !e.schema && strings.HasPrefix(c.r.URL.Path, "/v1/messages") {
		body = e.appendAnthropic(nil)
	} else {
		body = e.appendTo(nil, false)
	}
	c.json(e.status, body)
}

// extend gives a client more time to take the answer; doing it for each write would cost
// more than the write.
func (c *call) extend() {
	now := time.Now()
	if now.Sub(c.armed) < writeTimeout/4 {
		return
	}
	c.armed = now
	_ = http.NewResponseController(c.w).SetWriteDeadline(now.Add(writeTimeout)) // a recorder has none
}

func (c *call) flush() error { return http.NewResponseController(c.w).Flush() }

// stream is an answer of server-sent events.
type stream struct {
	c   *call
	buf []byte
}

// begin sends the head, before there is anything to say, as vLLM does.
func (c *call) begin() *stream {
	c.w.Header()["Content-Type"] = []string{"text/event-stream; charset=utf-8"}
	c.extend()
	c.w.WriteHeader(http.StatusOK)
	_ = c.flush()
	return &stream{c: c}
}

// data starts an event; send ends it.
func (s *stream) data() []byte { return append(s.buf[:0], "data: "...) }

// event starts an event with a name.
func (s *stream) event(name string) []byte {
	return append(append(append(s.buf[:0], "event: "...), name...), "\ndata: "...)
}

// send ends the event in b and sends it at once.
func (s *stream) send(b []byte) error {
	s.buf = append(b, "\n\n"...)
	s.c.extend()
	if _, err := s.c.w.Write(s.buf); err != nil {
		return errGone
	}
	if err := s.c.flush(); err != nil {
		return errGone
	}
	return nil
}

// end closes a stream that ended with err, as OpenAI's routes do.
func (s *stream) end(err error) {
	if err != nil {
		if s.c.lost || s.c.context().Err() != nil || errors.Is(err, errCut) || errors.Is(err, errGone) {
			return
		}
		if s.send(toAPIError(err).appendTo(s.data(), true)) != nil {
			return
		}
	}
	_ = s.send(append(s.data(), "[DONE]"...))
}

// model finds what a request asks for: the LoRA's name, or "" for the base model. name is
// what the answer calls it.
func (c *call) model(p *params) (name, lora string, err *apiError) {
	want := p.string("model")
	if err := p.bad.err(); err != nil {
		return "", "", err
	}
	base := c.e.opts.Model
	if want == "" || want == base || slices.Contains(c.e.opts.Aliases, want) {
		return base, "", nil
	}
	if c.e.models.has(want) {
		return want, want, nil
	}
	if c.e.opts.Embedding {
		return "", "", notFound("", "The model `%s` does not exist.", want)
	}
	names := append([]string{base}, c.e.opts.Aliases...)
	return "", "", notFound("model", "The model `%s` does not exist. Valid aliases: %s.", want, strings.Join(names, ", "))
}

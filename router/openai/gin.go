package openai

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mobula-serve/mobula/router/front"
	"github.com/mobula-serve/mobula/router/proxy"
)

// ServeFast implements front.Handler: the same routes without net/http.
func (e *Edge) ServeFast(r *front.Request, client proxy.Client) error {
	route := e.hot[string(r.Path)]
	target := route.engine
	if len(r.Target) > len(r.Path) {
		target += string(r.Target[len(r.Path):])
	}
	return e.serve(route, target, r.Fields, r.Body, client)
}

// handler builds the Gin engine with every path.
func (e *Edge) handler(g prometheus.Gatherer) *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	h := gin.New()
	h.RedirectTrailingSlash = false
	h.HandleMethodNotAllowed = true
	h.Use(e.cors)
	for _, r := range e.hot {
		h.POST(r.path, func(c *gin.Context) { e.proxied(c, r) })
	}
	h.GET("/v1/responses/:id", e.responseByID)
	h.POST("/v1/responses/:id/cancel", e.responseByID)
	h.GET("/v1/models", e.listModels)
	h.GET("/models", e.listModels)
	h.GET("/v1/models/*id", e.getModel)
	h.GET("/health", func(c *gin.Context) { c.Status(http.StatusOK) })
	h.GET("/ping", func(c *gin.Context) { c.Status(http.StatusOK) })
	h.GET("/ready", e.ready)
	h.GET("/version", func(c *gin.Context) {
		c.JSON(http.StatusOK, gin.H{"version": e.version, "server": "mobula"})
	})
	h.GET("/metrics", gin.WrapH(promhttp.HandlerFor(g, promhttp.HandlerOpts{})))
	own := map[string]bool{}
	for _, p := range engineOnly() {
		own[p] = true
	}
	h.NoRoute(func(c *gin.Context) {
		p := c.Request.URL.Path
		message := fmt.Sprintf("this router has no path %s; see GET /v1/models and the documentation of the OpenAI API", clip(p))
		if own[p] {
			message = p + " changes or shows one engine's state and is not reachable through the router; ask the engine itself"
		}
		e.fail(c, &failure{status: http.StatusNotFound, message: message})
	})
	h.NoMethod(func(c *gin.Context) {
		e.fail(c, &failure{status: http.StatusMethodNotAllowed, message: clip(c.Request.URL.Path) + " does not take " + clip(c.Request.Method)})
	})
	return h
}

// clip bounds what of a client's string comes back in a message.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// anyOrigin is the field with which pages of every origin may read an answer. The router's
// own answers have it; engines add it to theirs.
const anyOrigin = "Access-Control-Allow-Origin"

// cors answers browsers' preflights as vLLM does by default: every origin may ask.
func (e *Edge) cors(c *gin.Context) {
	if c.Request.Method != http.MethodOptions || c.GetHeader("Access-Control-Request-Method") == "" {
		return
	}
	h := c.Writer.Header()
	h.Set(anyOrigin, "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
	if want := c.GetHeader("Access-Control-Request-Headers"); want != "" {
		h.Set("Access-Control-Allow-Headers", want)
	}
	h.Set("Access-Control-Max-Age", "600")
	c.AbortWithStatus(http.StatusNoContent)
}

func (e *Edge) fail(c *gin.Context, f *failure) {
	shape := formatOpenAI
	if strings.HasPrefix(c.Request.URL.Path, "/v1/messages") {
		shape = formatAnthropic
	}
	if err := f.send(newGinClient(c), shape, nil); err != nil {
		c.Abort()
	}
}

// ready is 200 while new requests are welcome.
func (e *Edge) ready(c *gin.Context) {
	switch {
	case e.draining.Load():
		c.JSON(http.StatusServiceUnavailable, gin.H{"ready": false, "reason": "draining"})
	case !e.fleet.Ready():
		c.JSON(http.StatusServiceUnavailable, gin.H{"ready": false, "reason": "no engine serves a model yet"})
	default:
		c.JSON(http.StatusOK, gin.H{"ready": true})
	}
}

// proxied serves a POST that goes to an engine.
func (e *Edge) proxied(c *gin.Context, r *route) {
	body, f := e.readBody(c)
	if f != nil {
		e.metrics.Rejected("body")
		e.fail(c, f)
		return
	}
	target := r.engine
	if q := c.Request.URL.RawQuery; q != "" {
		target += "?" + q
	}
	e.end(c, e.serve(r, target, appendHeader(nil, c.Request.Header), body, newGinClient(c)))
}

// end cuts the connection of an answer that is not whole.
func (e *Edge) end(c *gin.Context, err error) {
	if err != nil {
		c.Abort()
		panic(http.ErrAbortHandler) // net/http's own way to say so; nothing recovers it before net/http
	}
}

// readBody reads a request's body within its bounds of size and time.
func (e *Edge) readBody(c *gin.Context) ([]byte, *failure) {
	set := e.settings.Load()
	limit := int64(set.router.Limits.Body)
	tooLarge := &failure{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("the request body is larger than router.limits.body allows, %d bytes", limit)}
	if c.Request.ContentLength > limit {
		return nil, tooLarge
	}
	if err := http.NewResponseController(c.Writer).SetReadDeadline(time.Now().Add(time.Duration(set.router.Timeouts.ReadBody))); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, &failure{status: http.StatusInternalServerError, message: err.Error()}
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge
	case isTimeout(err):
		return nil, &failure{status: http.StatusRequestTimeout, message: "the request body did not come in the time that router.timeouts.readBody allows"}
	case err != nil:
		return nil, badRequest("", fmt.Errorf("the request body could not be read: %w", err))
	}
	// the server reads on to see a client leave: without a bound
	if err := http.NewResponseController(c.Writer).SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, &failure{status: http.StatusInternalServerError, message: err.Error()}
	}
	return body, nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// ginClient is the asking side of a request that came through net/http.
type ginClient struct {
	w      http.ResponseWriter
	ctx    context.Context //nolint:containedctx // the request's own, as in http.Request
	write  *http.ResponseController
	stream bool
	stop   func() bool
	ran    chan struct{}
}

func newGinClient(c *gin.Context) *ginClient {
	return &ginClient{w: c.Writer, ctx: c.Request.Context(), write: http.NewResponseController(c.Writer)}
}

// Head implements proxy.Client.
func (c *ginClient) Head(status int, fields []byte, length int64) error {
	h := c.w.Header()
	for line := range strings.SplitSeq(string(fields), "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			h.Add(name, strings.TrimSpace(value))
		}
	}
	if length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	c.stream = length < 0
	c.w.WriteHeader(status)
	return nil
}

// Write implements proxy.Client.
func (c *ginClient) Write(p []byte) error {
	if _, err := c.w.Write(p); err != nil {
		return err
	}
	if c.stream {
		return c.Flush()
	}
	return nil
}

// Flush implements proxy.Client.
func (c *ginClient) Flush() error { return c.write.Flush() }

// Watch implements proxy.Client.
func (c *ginClient) Watch(k proxy.Canceler) bool {
	if c.ctx.Err() != nil {
		return false
	}
	ran := make(chan struct{})
	c.ran = ran
	c.stop = context.AfterFunc(c.ctx, func() {
		defer close(ran)
		k.Cancel()
	})
	return true
}

// Unwatch implements proxy.Client.
func (c *ginClient) Unwatch() {
	if c.stop != nil && !c.stop() {
		<-c.ran
	}
	c.stop = nil
}

var (
	_ proxy.Client  = (*ginClient)(nil)
	_ front.Handler = (*Edge)(nil)
)

package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control/client"
)

const patience = time.Minute // of waits for what must come

const secret = "s3cret"

// harness is a served API over fakes. Every answer is checked against the OpenAPI document.
type harness struct {
	*Server
	fake   *fake
	join   *fakeJoin
	source *adapters.InMemory
	http   *httptest.Server
	client *client.Client
	log    *lockedBuffer
	// stop ends Run, as a stop of the control plane does.
	stop func()
}

// lockedBuffer may be written and read at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, change ...func(*Options)) *harness {
	t.Helper()
	return startTLS(t, nil, change...)
}

// startTLS serves https when config is set.
func startTLS(t *testing.T, config *tls.Config, change ...func(*Options)) *harness {
	t.Helper()
	h := &harness{fake: newFake(), join: &fakeJoin{}, source: adapters.NewInMemory(), log: &lockedBuffer{}}
	registry := prometheus.NewRegistry()
	o := Options{
		Backend: h.fake, Endpoints: h.source, Tokens: h.join, Joiner: h.join, Token: secret,
		Logger: slog.New(slog.NewTextHandler(h.log, nil)), Registerer: registry, Gatherer: registry, Version: "v1.2.3",
	}
	for _, f := range change {
		f(&o)
	}
	h.Server = New(o)
	h.http = httptest.NewUnstartedServer(h.checked(t))
	if config != nil {
		h.http.TLS = config
		h.http.StartTLS()
	} else {
		h.http.Start()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.Run(ctx)
	}()
	h.stop = func() {
		cancel()
		<-ended
	}
	h.client = client.New(client.Options{URL: h.http.URL, Token: secret, Timeout: patience})
	t.Cleanup(func() {
		h.stop()
		h.client.Close()
		h.http.Close()
	})
	require.Eventually(t, func() bool { return h.endpoints.known() && h.settings.known() }, patience, time.Millisecond)
	return h
}

// do sends a request with the token.
func (h *harness) do(t *testing.T, method, path, body string) (status int, answer string) {
	t.Helper()
	return h.doAs(t, "Bearer "+secret, method, path, body)
}

func (h *harness) doAs(t *testing.T, authorization, method, path, body string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.http.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if strings.HasPrefix(path, "/v1/fleet") {
		req.Header.Set("Content-Type", yamlKind)
	} else if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := h.http.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// loadDocument reads the served document as a client would.
func loadDocument(t *testing.T, data []byte) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(data)
	require.NoError(t, err)
	return doc
}

// checked compares all that goes through with the document.
func (h *harness) checked(t *testing.T) http.Handler {
	t.Helper()
	doc := loadDocument(t, h.document)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		operation, values := find(doc, r)
		if operation == nil || strings.Contains(r.URL.RawQuery, "follow=true") {
			h.Handler().ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		tee := &teeWriter{ResponseWriter: w, status: http.StatusOK}
		h.Handler().ServeHTTP(tee, r)
		if r.Context().Err() != nil {
			return // the client has left
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		request := &openapi3filter.RequestValidationInput{
			Request: r, PathParams: values, Route: operation,
			Options: &openapi3filter.Options{
				AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true,
				ExcludeRequestBody: r.Header.Get("Content-Type") == yamlKind,
			},
		}
		if tee.status < 300 && r.Method != http.MethodDelete {
			if err := openapi3filter.ValidateRequest(r.Context(), request); err != nil {
				t.Errorf("%s %s was taken, although: %v", r.Method, r.URL, err)
			}
		}
		options := *request.Options
		options.ExcludeResponseBody = !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json")
		if err := openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: request, Status: tee.status, Header: w.Header(),
			Body: io.NopCloser(&tee.body), Options: &options,
		}); err != nil {
			t.Errorf("%s %s: %d: %v", r.Method, r.URL, tee.status, err)
		}
	})
}

// find gives the operation of a request, nil for none.
func find(doc *openapi3.T, r *http.Request) (*routers.Route, map[string]string) {
	name := regexp.MustCompile(`\\\{(\w+)\\\}`)
	escaped := foldModel(r).URL.EscapedPath()
	for path, item := range doc.Paths.Map() {
		pattern := "^" + name.ReplaceAllString(regexp.QuoteMeta(path), `(?P<$1>[^/]+)`) + "$"
		re := regexp.MustCompile(pattern)
		found := re.FindStringSubmatch(escaped)
		operation := item.GetOperation(r.Method)
		if found == nil || operation == nil {
			continue
		}
		values := map[string]string{}
		for i, name := range re.SubexpNames()[1:] {
			values[name] = found[i+1]
		}
		return &routers.Route{Spec: doc, Path: path, PathItem: item, Method: r.Method, Operation: operation}, values
	}
	return nil, nil
}

// teeWriter keeps what is answered.
type teeWriter struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *teeWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *teeWriter) Write(b []byte) (int, error) {
	w.body.Write(b)
	return w.ResponseWriter.Write(b)
}

func (w *teeWriter) Flush()                      { _ = http.NewResponseController(w.ResponseWriter).Flush() }
func (w *teeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// eventually waits for a condition.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, time.Millisecond)
}

// endpointsOf makes n endpoints.
func endpointsOf(n int) []mobula.Endpoint {
	all := make([]mobula.Endpoint, n)
	for i := range all {
		all[i] = mobula.Endpoint{ID: "r" + string(rune('a'+i)), URL: "http://10.0.0.1:8000"}
	}
	return all
}

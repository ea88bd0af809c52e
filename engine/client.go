// Package engine is all that we know of a vLLM server: its probes, its model list, its
// metric names. Other OpenAI-compatible servers are met halfway.
package engine

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula"
)

// Bounds on what is read of an answer.
const (
	maxModelsBytes  = 4 << 20
	maxMetricsBytes = 16 << 20
	maxDrainBytes   = 1 << 20
	maxErrorBytes   = 4 << 10
	maxMessageBytes = 200
	maxCards        = 10_000
	maxModelName    = 512
)

// DefaultTimeout bounds a call of a Client whose Options don't say.
const DefaultTimeout = 10 * time.Second

// Options set up a Client.
type Options struct {
	// Timeout bounds each call whose context has no deadline, and connecting in any case.
	// Default DefaultTimeout.
	Timeout time.Duration
}

// Client asks engines about themselves. It serves all engines and many goroutines; its
// connections are its own, so that a full request pool never starves a probe.
type Client struct {
	timeout         time.Duration
	trusting, plain *http.Client
}

// NewClient makes a Client. Close it when done.
func NewClient(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	return &Client{
		timeout:  o.Timeout,
		plain:    newHTTPClient(o.Timeout, false),
		trusting: newHTTPClient(o.Timeout, true),
	}
}

// Close closes idle connections. Running calls end by themselves.
func (c *Client) Close() {
	c.plain.CloseIdleConnections()
	c.trusting.CloseIdleConnections()
}

func newHTTPClient(timeout time.Duration, skipVerify bool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			// No Proxy: engines are addressed directly, whatever the environment says.
			DialContext:            (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: skipVerify},
			TLSHandshakeTimeout:    timeout,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A redirect could take the API key elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Health asks for /health. Any answer below 500 means alive, since not every server has
// the path; a 5xx is a *StatusError.
func (c *Client) Health(ctx context.Context, e mobula.Endpoint) error {
	return c.call(ctx, e, http.MethodGet, "/health", nil, func(r *http.Response) error {
		return below500("/health", r)
	})
}

// Models asks for /v1/models: one Card for each entry with an id, LoRAs with their parent,
// in the engine's order and each id once. A body that is no model list is ErrMalformed.
func (c *Client) Models(ctx context.Context, e mobula.Endpoint) (cards []mobula.Card, err error) {
	const path = "/v1/models"
	err = c.call(ctx, e, http.MethodGet, path, nil, func(r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return statusError(path, r)
		}
		body, err := readAll(r.Body, maxModelsBytes)
		if err != nil {
			return err
		}
		cards, err = parseModels(body)
		return err
	})
	return cards, err
}

// Metrics asks for /metrics. Names that the engine does not have stay zero.
func (c *Client) Metrics(ctx context.Context, e mobula.Endpoint) (m Metrics, err error) {
	const path = "/metrics"
	err = c.call(ctx, e, http.MethodGet, path, nil, func(r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return statusError(path, r)
		}
		m, err = ParseMetrics(&boundedReader{r: r.Body, left: maxMetricsBytes})
		return err
	})
	return m, err
}

// Complete has the engine infer one token with model: any answer below 500 proves that it
// can. A server without /v1/completions is asked for an embedding instead.
func (c *Client) Complete(ctx context.Context, e mobula.Endpoint, model string) error {
	body, err := json.Marshal(completion{Model: model, Prompt: "a", MaxTokens: 1})
	if err != nil {
		return fmt.Errorf("encode completion: %w", err)
	}
	status, err := c.infer(ctx, e, "/v1/completions", body)
	if err != nil || status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
		return err
	}
	if body, err = json.Marshal(embedding{Model: model, Input: "a"}); err != nil {
		return fmt.Errorf("encode embedding: %w", err)
	}
	_, err = c.infer(ctx, e, "/v1/embeddings", body)
	return err
}

type completion struct {
	Model       string  `json:"model"`
	Prompt      string  `json:"prompt"`
	MaxTokens   int     `json:"max_tokens"`
	Temperature float64 `json:"temperature"`
}

type embedding struct {
	Model string `json:"model"`
	Input string `json:"input"`
}

func (c *Client) infer(ctx context.Context, e mobula.Endpoint, path string, body []byte) (status int, err error) {
	err = c.call(ctx, e, http.MethodPost, path, body, func(r *http.Response) error {
		status = r.StatusCode
		return below500(path, r)
	})
	return status, err
}

// call makes one bounded request and hands the response to read; the body is closed after it.
func (c *Client) call(ctx context.Context, e mobula.Endpoint, method, path string, body []byte, read func(*http.Response) error) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(e.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask %s: %w", path, err)
	}
	req.Header.Set("User-Agent", "mobula")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if e.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+string(e.APIKey))
	}
	client := c.plain
	if e.TLSSkipVerify {
		client = c.trusting
	}
	res, err := client.Do(req)
	if err != nil {
		return err // a *url.Error: method, URL and cause
	}
	defer res.Body.Close()
	if err := read(res); err != nil {
		return fmt.Errorf("ask %s: %w", e.URL, err)
	}
	return nil
}

// below500 reads the answer to its end, since an engine that stops halfway has not answered.
func below500(path string, r *http.Response) error {
	if r.StatusCode >= http.StatusInternalServerError {
		return statusError(path, r)
	}
	if _, err := io.Copy(io.Discard, &boundedReader{r: r.Body, left: maxDrainBytes}); err != nil && !errors.Is(err, ErrTooLarge) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func statusError(path string, r *http.Response) error {
	head, _ := io.ReadAll(io.LimitReader(r.Body, maxErrorBytes)) // the status is what counts
	return &StatusError{Path: path, Status: r.StatusCode, Message: errorMessage(head)}
}

// errorMessage finds the text in the error bodies that are about: OpenAI's, vLLM's old
// flat one, FastAPI's and a bare string.
func errorMessage(body []byte) string {
	if !json.Valid(body) {
		return ""
	}
	for _, path := range []string{"error.message", "message", "detail", "error"} {
		if v := gjson.GetBytes(body, path); v.Type == gjson.String {
			s := strings.ToValidUTF8(v.Str, "")
			for i := range s {
				if i > maxMessageBytes {
					return s[:i]
				}
			}
			return s
		}
	}
	return ""
}

// parseModels accepts {"data":[…]} and, as some servers have it, the bare list.
func parseModels(body []byte) ([]mobula.Card, error) {
	if !json.Valid(body) { // bounded in depth, unlike gjson
		return nil, fmt.Errorf("%w: model list is not JSON", ErrMalformed)
	}
	list := gjson.ParseBytes(body)
	if list.IsObject() {
		list = list.Get("data")
		if list.Type == gjson.Null && list.Exists() {
			return nil, nil // Ollama's "data":null: no models
		}
	}
	if !list.IsArray() {
		return nil, fmt.Errorf(`%w: model list has no "data" array`, ErrMalformed)
	}
	var cards []mobula.Card
	seen := map[string]bool{}
	list.ForEach(func(_, entry gjson.Result) bool {
		id := entry.Get("id")
		if !entry.IsObject() || id.Type != gjson.String || !validName(id.Str) || seen[id.Str] {
			return true
		}
		seen[id.Str] = true
		card := mobula.Card{ID: id.Str, Raw: []byte(entry.Raw)}
		if parent := entry.Get("parent"); parent.Type == gjson.String && parent.Str != id.Str && validName(parent.Str) {
			card.Parent = parent.Str
		}
		if n := entry.Get("max_model_len"); n.Type == gjson.Number && n.Num >= 1 && n.Num < 1<<40 {
			card.MaxModelLen = int(n.Num)
		}
		cards = append(cards, card)
		return len(cards) < maxCards
	})
	return cards, nil
}

func validName(s string) bool { return s != "" && len(s) <= maxModelName && utf8.ValidString(s) }

func readAll(r io.Reader, limit int64) ([]byte, error) {
	return io.ReadAll(&boundedReader{r: r, left: limit})
}

// boundedReader fails with ErrTooLarge where an io.LimitReader would feign an end.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, ErrTooLarge
	}
	return n, err
}

package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/mobula-serve/mobula"
)

const (
	defaultTimeout = 30 * time.Second
	defaultRetry   = 5 * time.Second
	firstContact   = time.Second // of retries to a control plane that never answered: it is rather not there
	dialTimeout    = 5 * time.Second
	firstPause     = 100 * time.Millisecond
	longestPause   = time.Second
	maxRetries     = 100      // the time bounds them
	maxAnswer      = 64 << 20 // bytes of an answer; a view of 10,000 replicas has some 8 MB
	maxErrorBody   = 64 << 10
)

// Options of a Client.
type Options struct {
	// URL of the control plane: "http://127.0.0.1:8100". Without a scheme it is https when TLS is set, else http.
	URL string
	// Token that people and commands show; empty when TLS has a client certificate.
	Token mobula.Secret
	// TLS for https; nil takes the system's roots.
	TLS *tls.Config
	// Timeout of a call with its retries, 0 for 30s. Waits come on top of it.
	Timeout time.Duration
	// RetryFor bounds how long a call is tried again when no connection can be made or the answer is 502, 503 or
	// 504; 0 for 5s. Before the first answer it is at most 1s. Negative: never.
	RetryFor time.Duration
	// Logger tells of a control plane that is away; nil for none.
	Logger *slog.Logger
}

// Client speaks to one control plane. Its methods may be called at once; Close it at the end.
type Client struct {
	base    string // scheme, host, and a path when there is a proxy in front
	token   mobula.Secret
	http    *http.Client
	timeout time.Duration
	retry   time.Duration
	logger  *slog.Logger
	reached atomic.Bool // it has answered once
}

// New makes a Client. Nothing is contacted yet; a URL that can't be one is told by the first call.
func New(o Options) *Client {
	c := &Client{
		base: baseURL(o.URL, o.TLS != nil), token: o.Token, timeout: o.Timeout, retry: o.RetryFor, logger: o.Logger,
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
				TLSClientConfig:       o.TLS,
				TLSHandshakeTimeout:   dialTimeout,
				ExpectContinueTimeout: time.Second,
				MaxIdleConnsPerHost:   8, // a router's waits and reports
				IdleConnTimeout:       time.Minute,
			},
			// A control plane sends nobody elsewhere; the token must not follow who claims so.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if c.timeout == 0 {
		c.timeout = defaultTimeout
	}
	if c.retry == 0 {
		c.retry = defaultRetry
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// baseURL gives the URL with a scheme and without a slash at its end.
func baseURL(u string, secure bool) string {
	u = strings.TrimRight(strings.TrimSpace(u), "/")
	if strings.Contains(u, "://") {
		return u
	}
	if secure {
		return "https://" + u
	}
	return "http://" + u
}

// call is one request of the API.
type call struct {
	method string
	path   string // below the base, escaped
	query  url.Values
	body   []byte
	kind   string        // Content-Type of body, empty for JSON
	bearer mobula.Secret // in place of the client's token
	wait   time.Duration // that the control plane may let pass before it answers
	once   bool          // tried again only when it was not sent
}

// read sends a request and gives the answer's body.
func (c *Client) read(ctx context.Context, r call) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+r.wait)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.explain(err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("%s%s: the answer has more than %s", c.base, r.path, mobula.Size(maxAnswer))
	}
	return body, nil
}

// exchange sends in as JSON and reads the answer into out; nil for none of either.
func (c *Client) exchange(ctx context.Context, r call, in, out any) error {
	if in != nil {
		var err error
		if r.body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
	}
	body, err := c.read(ctx, r)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s%s: not an answer of a control plane: %w", c.base, r.path, err)
	}
	return nil
}

// send gives an answer that is a success; the caller closes its body. Any other comes as an *Error.
func (c *Client) send(ctx context.Context, r call) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body any
	if r.body != nil {
		body = r.body
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%q is not the URL of a control plane such as http://127.0.0.1:8100: %w", c.base, err)
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.kind != "" {
		req.Header.Set("Content-Type", r.kind)
	}
	if token := cmp.Or(r.bearer, c.token); token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	resp, err := c.retrier(r).Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	c.reached.Store(true)
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, c.refusal(resp)
}

// retrier makes the policy of one call: it tries again what has surely not been done, or may be done twice.
func (c *Client) retrier(r call) *retryablehttp.Client {
	start, bound := time.Now(), c.retry
	if !c.reached.Load() {
		bound = min(bound, firstContact)
	}
	return &retryablehttp.Client{
		HTTPClient: c.http, RetryMax: maxRetries, RetryWaitMin: firstPause, RetryWaitMax: longestPause,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
		// Not what Retry-After says: it may be long, and somebody waits.
		Backoff: func(least, most time.Duration, attempt int, _ *http.Response) time.Duration {
			return min(least<<min(attempt, 10), most)
		},
		CheckRetry: func(ctx context.Context, resp *http.Response, err error) (bool, error) {
			if ctx.Err() != nil || time.Since(start) > bound {
				return false, nil
			}
			if err != nil {
				return notSent(err) || r.method == http.MethodGet && cutOff(err), nil
			}
			if r.once {
				return false, nil
			}
			switch resp.StatusCode {
			case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
				return true, nil
			}
			return false, nil
		},
	}
}

// notSent tells of errors before a request left.
func notSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// cutOff tells of connections that ended amid an answer or before it.
func cutOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

var _ API = (*Client)(nil)

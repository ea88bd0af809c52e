package agent

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
	"net/url"
	"strconv"
	"time"
)

// API is what an agent offers its control plane. *Client is one over HTTP, *InMemory one in memory, and
// agent/daemon has the real one.
type API interface {
	// Tell hands over all that the host is to run. When it returns the agent has made it durable.
	Tell(ctx context.Context, w Wish) (State, error)
	// State tells how the host fares: at once when its Seq is not after, else at the next change or after the wait.
	State(ctx context.Context, after int64, wait time.Duration) (State, error)
	// Logs reads what a task's engine has printed: the last tail lines, and with follow what comes until ctx
	// ends or the task is gone.
	Logs(ctx context.Context, task string, tail int, follow bool) (io.ReadCloser, error)
	// Fetch has the host hold source, see FetchRequest, and gives its path there. It takes as long as the download does.
	Fetch(ctx context.Context, source string) (string, error)
}

// Bounds of a Client.
const (
	connectTimeout = 5 * time.Second
	callTimeout    = 15 * time.Second // beside what a call is asked to wait
	maxAnswerBytes = 16 << 20
	maxErrorBytes  = 16 << 10
)

// MaxWait is how long an agent lets a State wait at most.
const MaxWait = time.Minute

// Client speaks with one agent. It may be used by many goroutines.
type Client struct {
	base string
	http *http.Client
}

// NewClient makes a client of the agent at address, host:port. A nil config means HTTP without TLS.
// Close it when done.
func NewClient(address string, config *tls.Config) *Client {
	scheme := "http"
	if config != nil {
		scheme, config = "https", config.Clone()
	}
	return &Client{
		base: scheme + "://" + address,
		http: &http.Client{
			Transport: &http.Transport{
				// No Proxy: agents are addressed directly, whatever the environment says.
				DialContext:            (&net.Dialer{Timeout: connectTimeout, KeepAlive: 10 * time.Second}).DialContext,
				TLSClientConfig:        config,
				TLSHandshakeTimeout:    connectTimeout,
				DisableCompression:     true,
				MaxIdleConnsPerHost:    2,
				IdleConnTimeout:        90 * time.Second,
				MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close closes idle connections. Running calls end by themselves.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Tell is API.Tell.
func (c *Client) Tell(ctx context.Context, w Wish) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = c.call(ctx, http.MethodPut, "/v1/tasks", w, &s)
	return s, err
}

// State is API.State.
func (c *Client) State(ctx context.Context, after int64, wait time.Duration) (s State, err error) {
	wait = min(max(wait, 0), MaxWait)
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	query := url.Values{"after": {strconv.FormatInt(after, 10)}, "wait": {wait.String()}}
	err = c.call(ctx, http.MethodGet, "/v1/state?"+query.Encode(), nil, &s)
	return s, err
}

// Fetch is API.Fetch. Only ctx bounds it.
func (c *Client) Fetch(ctx context.Context, source string) (string, error) {
	var answer FetchAnswer
	err := c.call(ctx, http.MethodPost, "/v1/fetch", FetchRequest{Source: source}, &answer)
	return answer.Path, err
}

// Logs is API.Logs. The caller closes what it gets.
func (c *Client) Logs(ctx context.Context, task string, tail int, follow bool) (io.ReadCloser, error) {
	query := url.Values{"tail": {strconv.Itoa(tail)}, "follow": {strconv.FormatBool(follow)}}
	ctx, cancel := context.WithCancel(ctx)
	// Only the answer's beginning is bounded in time: a follower reads for hours.
	timer := time.AfterFunc(callTimeout, cancel)
	res, err := c.do(ctx, http.MethodGet, "/v1/tasks/"+url.PathEscape(task)+"/logs?"+query.Encode(), nil)
	if !timer.Stop() && err == nil {
		err = fmt.Errorf("agent %s: %w", c.base, context.DeadlineExceeded)
		_ = res.Body.Close()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &body{res.Body, cancel}, nil
}

// body ends its request when it is closed.
type body struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *body) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}

// call sends in as JSON, if it is not nil, and reads the answer into out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("agent %s: %w", c.base, err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("agent %s: answer to %s: %w", c.base, path, err)
	}
	return nil
}

// do gives an answer with status 200, whose body the caller closes.
func (c *Client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var content io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("agent %s: %w", c.base, err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", c.base, err)
	}
	req.Header.Set("User-Agent", "mobula")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("agent %s does not answer: %w", c.base, context.DeadlineExceeded)
	}
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err) // a *url.Error: method, URL and cause
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBytes)) // the status is what counts
	return nil, answered(c.base, res.StatusCode, b)
}

// Failure is the body of an answer that is an error.
type Failure struct {
	Error string `json:"error"`
}

// RemoteError is an error that an agent answered with. It is the sentinel of its status, too.
type RemoteError struct {
	Agent   string // its URL
	Status  int    // HTTP
	Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("agent %s: status %d: %s", e.Agent, e.Status, e.Message)
}

// Unwrap gives the error of this package that the status stands for, nil for none.
func (e *RemoteError) Unwrap() error { return errorOf(e.Status) }

func answered(base string, status int, b []byte) error {
	var f Failure
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		f.Error = http.StatusText(status)
	}
	return &RemoteError{Agent: base, Status: status, Message: f.Error}
}

var _ API = (*Client)(nil)

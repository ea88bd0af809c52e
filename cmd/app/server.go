package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	defaultURL = "http://127.0.0.1:8000"
	apiTimeout = 10 * time.Second // of a request that generates nothing
	maxAnswer  = 8 << 20          // bytes of an answer that is not streamed, or of one SSE line
)

// errCutOff is returned when a stream ends without saying that it is complete.
var errCutOff = errors.New("the answer was cut off")

// chatServer is a client of an OpenAI-compatible server, for the terminal.
type chatServer struct {
	base string // scheme and host, without /v1
	key  string
	http *http.Client
}

// newChatServer makes a client. base may lack its scheme and may end in /v1.
func newChatServer(base, key string) *chatServer {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	base = strings.TrimSuffix(strings.TrimRight(base, "/"), "/v1")
	return &chatServer{base: base, key: key, http: &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		IdleConnTimeout:     time.Minute,
	}}}
}

// close drops idle connections.
func (c *chatServer) close() { c.http.CloseIdleConnections() }

// ready tells whether the server has an engine to send requests to.
func (c *chatServer) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/ready", nil)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}

// models lists the model ids, LoRAs last.
func (c *chatServer) models(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var list struct {
		Data []struct{ ID, Parent string }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&list); err != nil {
		return nil, fmt.Errorf("%s/v1/models: not a list of models: %w", c.base, err)
	}
	var bases, loras []string
	for _, m := range list.Data {
		if m.Parent == "" {
			bases = append(bases, m.ID)
		} else {
			loras = append(loras, m.ID)
		}
	}
	return slices.Concat(bases, loras), nil
}

// message is one turn of a chat.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// piece is a part of an answer as it comes.
type piece struct {
	text      string
	reasoning bool // what the model thinks, not its answer
}

// answer is what a chat request came to.
type answer struct {
	text     string
	endpoint string // the engine, as the router names it
	reason   string // finish_reason
}

// chat asks for the next turn, streamed; emit gets each piece at once. The answer so far
// comes with an error too.
func (c *chatServer) chat(ctx context.Context, model string, turns []message, emit func(piece)) (answer, error) {
	body, err := json.Marshal(map[string]any{"model": model, "messages": turns, "stream": true})
	if err != nil {
		return answer{}, err
	}
	resp, err := c.do(ctx, http.MethodPost, "/v1/chat/completions", body)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	a := answer{endpoint: resp.Header.Get("X-Mobula-Endpoint")}
	var text strings.Builder
	err = readStream(resp.Body, func(p piece) {
		if !p.reasoning {
			text.WriteString(p.text)
		}
		emit(p)
	}, &a.reason)
	a.text = text.String()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return a, err
}

// readStream reads the chunks of a chat completion until [DONE].
func readStream(r io.Reader, emit func(piece), reason *string) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), maxAnswer)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue
		}
		data = bytes.TrimSpace(data)
		if string(data) == "[DONE]" {
			return nil
		}
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content          string
					Reasoning        string
					ReasoningContent string `json:"reasoning_content"`
				}
				FinishReason string `json:"finish_reason"`
			}
			Error *apiError
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return fmt.Errorf("unreadable chunk: %w", err)
		}
		if chunk.Error != nil {
			return chunk.Error
		}
		if len(chunk.Choices) == 0 {
			continue
		}
		choice := chunk.Choices[0]
		if t := choice.Delta.Reasoning + choice.Delta.ReasoningContent; t != "" {
			emit(piece{t, true})
		}
		if choice.Delta.Content != "" {
			emit(piece{choice.Delta.Content, false})
		}
		if choice.FinishReason != "" {
			*reason = choice.FinishReason
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", errCutOff, err)
	}
	return errCutOff
}

// do sends a request. An answer that is not a success comes as an error; else the caller closes its body.
func (c *chatServer) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, c.refusal(resp)
}

// explain makes a transport error readable.
func (c *chatServer) explain(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the method and the URL
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return hinted(fmt.Errorf("nothing listens at %s", c.base), "start one with: mobula up")
	}
	return fmt.Errorf("%s: %w", c.base, err)
}

// apiError is an error body of the OpenAI API.
type apiError struct {
	Message string
	Status  int `json:"-"`
}

// Error gives the server's words.
func (e *apiError) Error() string {
	s := "the server"
	if e.Status != 0 {
		s += fmt.Sprintf(" answered %d", e.Status)
	}
	if e.Message != "" {
		s += ": " + printable(e.Message, 1000)
	}
	return s
}

// refusal reads an answer that is not a success.
func (c *chatServer) refusal(resp *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var body struct{ Error apiError }
	if json.Unmarshal(raw, &body) != nil || body.Error.Message == "" {
		body.Error.Message = strings.TrimSpace(string(raw[:min(len(raw), 300)]))
	}
	err := &apiError{Message: body.Error.Message, Status: resp.StatusCode}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return hinted(err, "give a key with --api-key-file")
	case http.StatusNotFound:
		if !strings.Contains(err.Message, "model") {
			return hinted(err, "is %s an OpenAI-compatible server?", c.base)
		}
	}
	return err
}

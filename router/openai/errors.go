package openai

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula/router/proxy"
)

// failure is an answer of the router's own.
type failure struct {
	status     int
	message    string
	param      string        // the offending field, empty for none
	retryAfter time.Duration // 0 for none
}

// badRequest is a 400 about a field.
func badRequest(param string, err error) *failure {
	return &failure{status: http.StatusBadRequest, message: err.Error(), param: param}
}

// failureOf maps what the proxy could not do to an answer: the one place where a cause
// becomes a status.
func failureOf(err error) *failure {
	var p *proxy.Error
	if !errors.As(err, &p) {
		return &failure{status: http.StatusBadGateway, message: "the request failed: " + err.Error()}
	}
	f := &failure{status: http.StatusBadGateway, message: "no engine could answer: the last one asked, " + p.Endpoint + ", " + words(p.Cause), retryAfter: p.RetryAfter}
	switch p.Cause {
	case proxy.CauseFirstByte, proxy.CauseIdle:
		f.status = http.StatusGatewayTimeout
	case proxy.CauseConnect, proxy.CauseDraining:
		f.status = http.StatusServiceUnavailable
		f.retryAfter = max(f.retryAfter, time.Second)
	case proxy.CauseMissing:
		f.status, f.param, f.message = http.StatusNotFound, "model", "no engine has loaded the model now"
	case proxy.CauseBusy:
		f.status = http.StatusTooManyRequests
		f.retryAfter = max(f.retryAfter, time.Second)
	}
	return f
}

// words say what an engine did, for clients: without addresses of ours.
func words(c proxy.Cause) string {
	switch c {
	case proxy.CauseConnect:
		return "could not be reached"
	case proxy.CauseFirstByte:
		return "did not begin to answer in time"
	case proxy.CauseIdle:
		return "stopped in the middle of its answer"
	case proxy.CauseBusy:
		return "is busy"
	case proxy.CauseDraining:
		return "takes no new requests"
	case proxy.CauseProtocol:
		return "did not answer in HTTP"
	case proxy.CauseTruncated:
		return "ended its answer early"
	case proxy.CauseReset:
		return "ended the connection without an answer"
	}
	return "failed: " + c.String()
}

// types are the "type" of an error by status: vLLM's names, and Anthropic's documented ones.
func errorType(status int, f format) string {
	if f == formatAnthropic {
		switch status {
		case http.StatusBadRequest:
			return "invalid_request_error"
		case http.StatusNotFound:
			return "not_found_error"
		case http.StatusRequestEntityTooLarge:
			return "request_too_large"
		case http.StatusTooManyRequests:
			return "rate_limit_error"
		case http.StatusServiceUnavailable:
			return "overloaded_error"
		}
		return "api_error"
	}
	switch status {
	case http.StatusBadRequest:
		return "BadRequestError"
	case http.StatusNotFound:
		return "NotFoundError"
	case http.StatusMethodNotAllowed:
		return "MethodNotAllowedError"
	case http.StatusRequestTimeout:
		return "RequestTimeoutError"
	case http.StatusRequestEntityTooLarge:
		return "RequestTooLargeError"
	case http.StatusUnsupportedMediaType:
		return "UnsupportedMediaTypeError"
	case http.StatusTooManyRequests:
		return "RateLimitError"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailableError"
	case http.StatusGatewayTimeout:
		return "GatewayTimeoutError"
	}
	return "BadGatewayError"
}

// body gives the JSON of a failure in a route's shape: OpenAI's
// {"error":{"message","type","param","code"}} or Anthropic's {"type":"error","error":{...}}.
func (f *failure) body(shape format) []byte {
	type openAI struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    int     `json:"code"`
	}
	type anthropic struct {
		Type    string `json:"type"`
		Message string `json:"message"`
	}
	var v any
	if shape == formatAnthropic {
		v = struct {
			Type  string    `json:"type"`
			Error anthropic `json:"error"`
		}{"error", anthropic{errorType(f.status, shape), f.message}}
	} else {
		e := openAI{Message: f.message, Type: errorType(f.status, shape), Code: f.status}
		if f.param != "" {
			e.Param = &f.param
		}
		v = struct {
			Error openAI `json:"error"`
		}{e}
	}
	b, err := json.Marshal(v)
	if err != nil { // strings and numbers always marshal
		return []byte(`{"error":{"message":"internal error","type":"InternalServerError","param":null,"code":500}}`)
	}
	return b
}

// send answers with the failure; extra are header lines to add.
func (f *failure) send(c proxy.Client, shape format, extra []byte) error {
	body := f.body(shape)
	head := append([]byte("Content-Type: application/json\r\n"+anyOrigin+": *\r\n"), extra...)
	if f.retryAfter > 0 {
		seconds := int64((f.retryAfter + time.Second - 1) / time.Second)
		head = append(head, "Retry-After: "...)
		head = strconv.AppendInt(head, seconds, 10)
		head = append(head, "\r\n"...)
	}
	if err := c.Head(f.status, head, int64(len(body))); err != nil {
		return err
	}
	return c.Write(body)
}

// ErrorBody gives the JSON of an error about a path, for the few errors that are answered
// before a request reaches the edge.
func (e *Edge) ErrorBody(path []byte, status int, message string) []byte {
	shape := formatOpenAI
	if r := e.hot[string(path)]; r != nil {
		shape = r.format
	}
	return (&failure{status: status, message: message}).body(shape)
}

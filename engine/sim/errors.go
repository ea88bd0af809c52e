package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/tidwall/gjson"
)

var (
	// errCut says that a fault has cut the connection: nothing more can be sent.
	errCut = errors.New("connection cut by a fault")
	// errGone says that the client took no more of a stream.
	errGone = errors.New("client is gone")
)

// apiError is an error answer.
type apiError struct {
	status  int
	kind    string // "type" in the body
	message string
	param   string // null when empty
	// schema tells that the request did not fit the schema: such errors have OpenAI's body
	// on Anthropic's routes too.
	schema bool
}

// Error gives the message.
func (e *apiError) Error() string { return e.message }

func badRequest(param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, kind: "BadRequestError", message: fmt.Sprintf(format, args...), param: param}
}

func notFound(param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusNotFound, kind: "NotFoundError", message: fmt.Sprintf(format, args...), param: param}
}

// engineDead is what vLLM's API process says when its engine process is gone.
func engineDead() *apiError {
	return &apiError{
		status: http.StatusInternalServerError, kind: "InternalServerError",
		message: "EngineCore encountered an issue. See stack trace (above) for the root cause.",
	}
}

// toAPIError says what a failed request is answered with.
func toAPIError(err error) *apiError {
	var e *apiError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errQueueFull):
		return &apiError{status: http.StatusServiceUnavailable, kind: "Service Unavailable", message: "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."}
	}
	return &apiError{status: http.StatusInternalServerError, kind: "InternalServerError", message: err.Error()}
}

// appendTo writes the body. spaced is the form that vLLM uses in streams.
func (e *apiError) appendTo(dst []byte, spaced bool) []byte {
	sp := ""
	if spaced {
		sp = " "
	}
	dst = append(append(append(append(dst, `{"error":`...), sp...), `{"message":`...), sp...)
	dst = appendString(dst, e.message)
	dst = append(append(append(append(dst, ","...), sp...), `"type":`...), sp...)
	dst = appendString(dst, e.kind)
	dst = append(append(append(append(dst, ","...), sp...), `"param":`...), sp...)
	dst = appendOptional(dst, e.param)
	dst = append(append(append(append(dst, ","...), sp...), `"code":`...), sp...)
	return append(appendInt(dst, e.status), "}}"...)
}

// appendAnthropic writes the body of /v1/messages.
func (e *apiError) appendAnthropic(dst []byte) []byte {
	dst = append(dst, `{"type":"error","error":{"type":`...)
	dst = appendString(dst, e.kind)
	dst = append(dst, `,"message":`...)
	return append(appendString(dst, e.message), "}}"...)
}

// validation gathers what does not fit a request's schema, as pydantic words it.
type validation struct {
	lines []string
	param string // of the first
}

func (v *validation) add(kind, loc, msg, input, more string) {
	if len(v.lines) == 0 {
		v.param = loc
	}
	v.lines = append(v.lines, fmt.Sprintf("{'type': '%s', 'loc': '%s', 'msg': '%s', 'input': '%s'%s}", kind, loc, msg, input, more))
}

// join adds what w has gathered.
func (v *validation) join(w validation) {
	if len(v.lines) == 0 {
		v.param = w.param
	}
	v.lines = append(v.lines, w.lines...)
}

// err is nil when all fits.
func (v *validation) err() *apiError {
	if len(v.lines) == 0 {
		return nil
	}
	plural := ""
	if len(v.lines) > 1 {
		plural = "s"
	}
	return &apiError{
		status: http.StatusBadRequest, kind: "Bad Request", param: v.param, schema: true,
		message: fmt.Sprintf("%d validation error%s:\n  %s", len(v.lines), plural, strings.Join(v.lines, "\n  ")),
	}
}

// errContentType is the answer to a body that is not called JSON.
func errContentType() *apiError {
	return &apiError{
		status: http.StatusBadRequest, kind: "Bad Request", schema: true,
		message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
	}
}

// errBody is the answer to a body that is no JSON object.
func errBody(body []byte) *apiError {
	var v validation
	var raw json.RawMessage
	var syntax *json.SyntaxError
	switch err := json.Unmarshal(body, &raw); {
	case len(bytes.TrimSpace(body)) == 0 || string(bytes.TrimSpace(body)) == "null":
		v.add("missing", "body", "Field required", "None", "")
	case errors.As(err, &syntax):
		at := int(syntax.Offset)
		if at < len(body) || len(body) > 0 && !strings.Contains(syntax.Error(), "unexpected end") {
			at--
		}
		v.add("json_invalid", fmt.Sprintf("body.%d", at), "JSON decode error", "<dict of 0 items>", ", 'ctx': {'error': 'Expecting value'}")
	default:
		v.add("model_attributes_type", "body", "Input should be a valid dictionary or object to extract fields from", describe(gjson.ParseBytes(body)), "")
	}
	return v.err()
}

// describe shows a value as vLLM's errors do.
func describe(v gjson.Result) string {
	switch {
	case v.IsObject():
		return fmt.Sprintf("<dict of %d items>", count(v))
	case v.IsArray():
		return fmt.Sprintf("<list of %d items>", count(v))
	case v.Type == gjson.Null:
		return "None"
	case v.Type == gjson.True:
		return "True"
	case v.Type == gjson.False:
		return "False"
	case v.Type == gjson.String:
		return v.Str[:min(len(v.Str), 200)]
	}
	return v.Raw
}

func count(v gjson.Result) int {
	n := 0
	v.ForEach(func(_, _ gjson.Result) bool { n++; return true })
	return n
}

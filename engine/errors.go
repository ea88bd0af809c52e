package engine

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
)

// ErrTooLarge is returned when an engine's answer is longer than we read.
var ErrTooLarge = errors.New("answer is too large")

// ErrMalformed is returned when an engine's answer is not what the API promises.
var ErrMalformed = errors.New("malformed answer")

// StatusError is an answer with a status that means failure.
type StatusError struct {
	Path    string // asked for, without the host
	Status  int
	Message string // from an OpenAI-shaped body, at most 200 bytes, may be empty
}

// Error says what was asked and what came back.
func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s: status %d", e.Path, e.Status)
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Status gives the HTTP status in err, 0 when the engine did not answer with one.
func Status(err error) int {
	if s, ok := errors.AsType[*StatusError](err); ok {
		return s.Status
	}
	return 0
}

// Unauthorized tells that the engine wants an API key that it did not get.
func Unauthorized(err error) bool {
	s := Status(err)
	return s == http.StatusUnauthorized || s == http.StatusForbidden
}

// Refused tells that nothing listens at the engine's address.
func Refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

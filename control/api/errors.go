package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// Errors of the server itself.
var (
	errStopping     = errors.New("the control plane is stopping")
	errCrowded      = errors.New("too many calls wait already; try again in a second")
	errTooLarge     = errors.New("the request's body is too large")
	errUnauthorized = errors.New("unauthorized")
	errUnused       = errors.New("this control plane takes no agents")
)

// statusOf gives the status of an error's answer. The code follows from it.
func statusOf(err error) int {
	if _, ok := errors.AsType[*mobula.FileError](err); ok {
		return http.StatusBadRequest
	}
	switch {
	case errors.Is(err, control.ErrInvalid), errors.Is(err, adapters.ErrUnsupported):
		return http.StatusBadRequest
	case errors.Is(err, control.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, control.ErrNotFound), errors.Is(err, errUnused),
		errors.Is(err, adapters.ErrUnknownReplica), errors.Is(err, adapters.ErrUnknownHost):
		return http.StatusNotFound
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, adapters.ErrImpossible):
		return http.StatusUnprocessableEntity
	case errors.Is(err, adapters.ErrUnavailable), errors.Is(err, errStopping), errors.Is(err, errCrowded):
		return http.StatusServiceUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// codeOf gives the code of a status.
func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return client.CodeUnauthorized
	case http.StatusNotFound:
		return client.CodeNotFound
	case http.StatusConflict:
		return client.CodeConflict
	case http.StatusUnprocessableEntity:
		return client.CodeImpossible
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return client.CodeUnavailable
	case http.StatusInternalServerError:
		return client.CodeInternal
	}
	return client.CodeInvalid
}

// fail answers with an error.
func (s *Server) fail(c *gin.Context, err error, status int) {
	switch status {
	case http.StatusInternalServerError:
		s.logger.Error("request failed", "method", c.Request.Method, "path", c.Request.URL.Path, "error", err)
	case http.StatusServiceUnavailable:
		c.Header("Retry-After", "1")
	}
	if errors.Is(err, errStopping) {
		c.Header("Connection", "close")
	}
	c.JSON(status, client.ErrorBody{Error: client.ErrorDetail{Code: codeOf(status), Message: err.Error()}})
}

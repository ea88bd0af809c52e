package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/mobula-serve/mobula/control"
)

const (
	callTimeout  = time.Minute      // of what the backend does for a call
	readTimeout  = 30 * time.Second // of a request's body
	writeTimeout = 30 * time.Second // of an answer, or of each piece of a long one
)

// serve makes the handler of a route: who may, the query, the deadlines, the answer of an error.
func (s *Server) serve(r route) gin.HandlerFunc {
	allowed := slices.DeleteFunc(params(), func(p param) bool { return !slices.Contains(r.query, p.name) })
	return func(c *gin.Context) {
		c.Set(operationKey, r.id)
		writeWithin(c, callTimeout+writeTimeout)
		if !s.allowed(c, r.access) {
			return
		}
		q, err := decodeQuery(c.Request.URL.RawQuery, allowed)
		if err == nil {
			err = r.run(c, q)
		}
		if err == nil || c.Writer.Written() || c.Request.Context().Err() != nil {
			return
		}
		writeWithin(c, writeTimeout)
		if errors.Is(err, errUnauthorized) {
			s.refuse(c, err)
			return
		}
		s.fail(c, err, statusOf(err))
	}
}

// recoverPanic answers 500 to a request that panics.
func (s *Server) recoverPanic(c *gin.Context) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(cause) // net/http cuts the connection
		}
		s.logger.Error("request panicked", "cause", cause, "stack", string(debug.Stack()))
		if c.Writer.Written() {
			panic(http.ErrAbortHandler) // half an answer must not look whole
		}
		s.fail(c, fmt.Errorf("panic: %v", cause), http.StatusInternalServerError)
	}()
	c.Next()
}

// writeWithin bounds the time in which a client has to take the answer, from now on; 0 takes the bound away.
func writeWithin(c *gin.Context, d time.Duration) {
	var deadline time.Time
	if d > 0 {
		deadline = time.Now().Add(d)
	}
	// A writer without deadlines is a recorder of a test.
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(deadline)
}

// call gives the context for one thing that the backend does.
func call(c *gin.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.Request.Context(), callTimeout)
}

// hold takes one of the places of those who wait. The context ends with the wait, with the client or with the
// server; release gives the place back.
func (s *Server) hold(c *gin.Context, wait time.Duration) (ctx context.Context, release func(), err error) {
	if s.life.Err() != nil {
		return nil, nil, errStopping
	}
	select {
	case s.waiters <- struct{}{}:
	default:
		return nil, nil, errCrowded
	}
	c.Set(waitedKey, true)
	s.metrics.waiting.Inc()
	ctx, cancel := context.WithTimeout(c.Request.Context(), wait)
	detach := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		detach()
		cancel()
		s.metrics.waiting.Dec()
		<-s.waiters
	}, nil
}

// readBody reads a request's body within a bound of bytes and time.
func readBody(c *gin.Context, limit int64) ([]byte, error) {
	deadline := http.NewResponseController(c.Writer)
	_ = deadline.SetReadDeadline(time.Now().Add(readTimeout))
	// Routers of large fleets send megabytes each second: their buffer does not grow by and by.
	buffer := bytes.NewBuffer(make([]byte, 0, min(max(c.Request.ContentLength, 0), limit)+bytes.MinRead))
	_, err := buffer.ReadFrom(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	// Or the end of the deadline would look as if the client had gone.
	_ = deadline.SetReadDeadline(time.Time{})
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLarge, limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%w: the request's body did not come within %s", control.ErrInvalid, readTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the request's body can't be read: %w", control.ErrInvalid, err)
	}
	return buffer.Bytes(), nil
}

// decodeBody reads one JSON value. What people write is read strictly; programs may be newer than we are.
func decodeBody(data []byte, into any, strict bool) error {
	err := errors.New("it is empty")
	switch {
	case len(bytes.TrimSpace(data)) == 0:
	case strict:
		err = decodeStrictly(data, into)
	default:
		err = json.Unmarshal(data, into) // which copies less: routers' reports are large
	}
	if err != nil {
		return fmt.Errorf("%w: the request's body: %w", control.ErrInvalid, err)
	}
	return nil
}

func decodeStrictly(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the JSON value")
	}
	return nil
}

// body reads and decodes a request's JSON body.
func body(c *gin.Context, limit int64, into any, strict bool) error {
	data, err := readBody(c, limit)
	if err != nil {
		return err
	}
	return decodeBody(data, into, strict)
}

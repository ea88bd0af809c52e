package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

// maxFollow ends a log that is followed; who wants more asks again.
const maxFollow = 30 * 24 * time.Hour

// getLogs streams a replica's log: each piece is flushed as it comes. An answer that ends early is cut off, so
// that nobody takes it for the whole log.
func (s *Server) getLogs(c *gin.Context, q query) error {
	replica, err := pathValue(c, "replica")
	if err != nil {
		return err
	}
	wait := callTimeout
	if q.follow {
		wait = maxFollow
	}
	ctx, release, err := s.hold(c, wait)
	if err != nil {
		return err
	}
	defer release()
	log, err := s.backend.Logs(ctx, replica, q.tail, q.follow)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	c.Header("Content-Type", textKind+"; charset=utf-8")
	c.Header("X-Content-Type-Options", "nosniff")
	if q.follow {
		writeWithin(c, 0)
		defer endWrites(ctx, c)()
		c.Writer.WriteHeader(http.StatusOK)
		c.Writer.Flush()
	}
	return copyLog(c, log, q.follow)
}

// endWrites has a write that a client does not take end with ctx. The function that it gives must be called before the handler returns.
func endWrites(ctx context.Context, c *gin.Context) func() {
	ended := make(chan struct{})
	detach := context.AfterFunc(ctx, func() {
		writeWithin(c, time.Nanosecond)
		close(ended)
	})
	return func() {
		if !detach() {
			<-ended
		}
	}
}

func copyLog(c *gin.Context, log io.Reader, follow bool) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := log.Read(buf)
		if n > 0 {
			if !follow {
				writeWithin(c, writeTimeout)
			}
			if _, err := c.Writer.Write(buf[:n]); err != nil {
				return err // the client has left
			}
			c.Writer.Flush()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			c.Writer.WriteHeaderNow()
			return nil
		case c.Writer.Written():
			panic(http.ErrAbortHandler)
		default:
			return err
		}
	}
}

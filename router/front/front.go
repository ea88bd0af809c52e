// Package front is the HTTP/1.1 connection loop in front of Gin. It serves the requests that
// it understands with certainty, plain POSTs on the hot paths, and hands every other
// connection with all its bytes to net/http, whose judgement is the authority: what the front
// accepts, net/http accepts too, with the same reading (FuzzHead).
package front

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/router/proxy"
)

// Request is one request as it was received. Its slices are valid until ServeFast returns,
// Body only until Release.
type Request struct {
	Method []byte // POST
	Path   []byte // without the query; unescaped as it is, for it has no escapes
	Target []byte // path and query
	Fields []byte // all header lines as received, each ending in \r\n
	Host   []byte // the Host field's value, never empty
	Body   []byte // the whole body, may be empty
	Remote string // the client's address
	// Received is when the request's first bytes were read.
	Received time.Time

	c *conn
}

// Release gives the body's memory back before ServeFast returns; Body is nil after it. A long
// stream calls it when no retry needs the body any more.
func (r *Request) Release() {
	r.Body = nil
	if r.c != nil {
		r.c.releaseBody()
	}
}

// Handler serves the requests that the front accepts.
type Handler interface {
	// ServeFast answers r on c, from the connection's goroutine. An error cuts the connection,
	// so that a client can't take a part of an answer for the whole; when nothing of the answer
	// has been sent, the client gets 502. c must not be used after ServeFast returns. The
	// Canceler given to c.Watch runs under a lock: it must be quick and not call c.
	ServeFast(r *Request, c proxy.Client) error
}

// Options set up a Server.
type Options struct {
	// Accepts tells the hot paths. It is called with the path without its query, must be quick
	// and keep nothing. Nil accepts none.
	Accepts func(method, path []byte) bool
	// Handler serves what Accepts accepts. Needed when Accepts is set.
	Handler Handler
	// Fallback serves all other requests, on an http.Server that the front owns. Default 404.
	Fallback http.Handler
	// ErrorBody gives the JSON body of the few errors that the front answers with itself:
	// 408, 500, 502 and 503, the last with a nil path. Default: OpenAI's shape.
	ErrorBody func(path []byte, status int, message string) []byte
	// Limits: Body, Header and Connections count here, with the fleet file's defaults for zero.
	Limits mobula.Limits
	// Timeouts: ReadHeader, ReadBody, Write and KeepAlive count here, likewise.
	Timeouts mobula.Timeouts
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Registerer takes the front's metrics; nil registers none.
	Registerer prometheus.Registerer
}

// settings are what Update may change.
type settings struct {
	header, body, connections              int64
	readHeader, readBody, write, keepAlive time.Duration
}

func newSettings(l mobula.Limits, t mobula.Timeouts) *settings {
	size := func(v mobula.Size, def int64) int64 {
		if v > 0 {
			return int64(v)
		}
		return def
	}
	span := func(v mobula.Duration, def time.Duration) time.Duration {
		if v > 0 {
			return time.Duration(v)
		}
		return def
	}
	return &settings{
		header:      size(l.Header, 64<<10),
		body:        size(l.Body, 64<<20),
		connections: size(mobula.Size(l.Connections), 20000),
		readHeader:  span(t.ReadHeader, 10*time.Second),
		readBody:    span(t.ReadBody, time.Minute),
		write:       span(t.Write, time.Minute),
		keepAlive:   span(t.KeepAlive, 2*time.Minute),
	}
}

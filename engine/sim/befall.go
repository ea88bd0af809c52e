package sim

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"
)

// befall does to a request what its fault says, and serves it with h if there is still
// something to serve.
func (c *call) befall(h func(*call)) {
	switch c.fault.Kind {
	case FaultHang, FaultHangInference:
		if c.fault.wait(c.context(), c.e.aborted) != nil {
			c.cut(false)
			return
		}
	case FaultSlow:
		if sleepUntil(c.context(), time.Now().Add(c.fault.Duration), c.e.aborted) != nil {
			c.cut(false)
			return
		}
	case FaultStatus:
		if c.fault.RetryAfter != "" {
			c.w.Header().Set("Retry-After", c.fault.RetryAfter)
		}
		c.fail(&apiError{status: c.fault.Status, kind: "SimulatedFault", message: "simulated fault"})
		return
	case FaultResetBeforeHeaders:
		c.cut(true)
		return
	case FaultGarbage:
		c.raw([]byte("\x16\x03\x01\x02\x00 this is not HTTP\r\n\x00\xff\xfe\r\n\r\n"))
		return
	case FaultLongLine:
		c.longLine()
		return
	case FaultEarlyHints:
		c.w.Header().Set("Link", "</style.css>; rel=preload")
		c.w.WriteHeader(http.StatusEarlyHints)
		c.w.Header().Del("Link")
	case FaultWrongLength, FaultTrailingJunk, FaultGzip:
		c.distort(h)
		return
	}
	h(c)
}

// midway is asked before each token of an answer.
func (c *call) midway(said int) error {
	if c.fault == nil || said < c.fault.AfterTokens {
		return nil
	}
	switch c.fault.Kind {
	case FaultResetMidstream, FaultEOFMidstream:
		c.cut(c.fault.Kind == FaultResetMidstream)
		return errCut
	case FaultStallMidstream:
		err := c.fault.wait(c.context(), c.e.aborted)
		c.fault = nil
		return err
	case FaultAbort:
		return errAborted
	case FaultEngineDead:
		return engineDead()
	}
	return nil
}

// cut ends the connection, with a reset or a plain end.
func (c *call) cut(reset bool) {
	conn := c.hijack()
	if l, ok := conn.(interface{ SetLinger(int) error }); ok && reset {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}

// raw writes bytes of no server's making, and closes.
func (c *call) raw(p []byte) {
	conn := c.hijack()
	_, _ = conn.Write(p)
	_ = conn.Close()
}

// hijack takes the connection from the server; where that can't be, net/http closes it.
func (c *call) hijack() net.Conn {
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c.lost = true
	_ = conn.SetDeadline(time.Now().Add(writeTimeout))
	return conn
}

// longLine answers with a stream of one very long line.
func (c *call) longLine() {
	c.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	_, _ = io.WriteString(c.w, "data: ")
	piece := bytes.Repeat([]byte("a"), 64<<10)
	for left := c.fault.Size; left > 0; left -= int64(len(piece)) {
		c.extend()
		if _, err := c.w.Write(piece[:min(left, int64(len(piece)))]); err != nil {
			return
		}
	}
	_, _ = io.WriteString(c.w, "\n\ndata: [DONE]\n\n")
}

// distort lets h answer into memory and sends that on, spoilt.
func (c *call) distort(h func(*call)) {
	w := c.w
	rec := &recorder{header: http.Header{}, status: http.StatusOK}
	c.w = rec
	h(c)
	c.w = w
	if c.fault.Kind == FaultGzip {
		c.gzip(rec)
		return
	}
	declared := int64(rec.body.Len())
	junk := ""
	if c.fault.Kind == FaultWrongLength {
		declared = max(0, declared+c.fault.Size)
	} else {
		junk = "HTTP/1.1 trailing junk\r\n\r\n{\"more\":"
	}
	rec.header.Set("Content-Length", strconv.FormatInt(declared, 10))
	rec.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	rec.header.Set("Server", "uvicorn")
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", rec.status, http.StatusText(rec.status))
	_ = rec.header.Write(&b)
	b.WriteString("\r\n")
	b.Write(rec.body.Bytes())
	b.WriteString(junk)
	c.raw(b.Bytes())
}

func (c *call) gzip(rec *recorder) {
	header := c.w.Header()
	maps.Copy(header, rec.header)
	header.Del("Content-Length")
	header.Set("Content-Encoding", "gzip")
	c.w.WriteHeader(rec.status)
	z := gzip.NewWriter(c.w)
	_, _ = z.Write(rec.body.Bytes())
	_ = z.Close()
}

// recorder keeps an answer in memory.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header gives the answer's header.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader keeps the status.
func (r *recorder) WriteHeader(status int) { r.status = status }

// Write keeps p.
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

// Flush has nothing to do.
func (r *recorder) Flush() {}

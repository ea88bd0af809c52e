package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// web is an origin of one file over HTTP.
type web struct {
	url    *url.URL
	client *http.Client
	idle   time.Duration
}

type webContent struct {
	name string
	body io.Reader
	resp *http.Response
	end  context.CancelCauseFunc
}

func (w *web) open(ctx context.Context, known stamp) (_ content, err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			end(nil)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSource, err)
	}
	req.Header.Set("Accept-Encoding", "identity") // what is compressed is so by its name
	if known.ETag != "" {
		req.Header.Set("If-None-Match", known.ETag)
	}
	if known.LastModified != "" {
		req.Header.Set("If-Modified-Since", known.LastModified)
	}
	watch := time.AfterFunc(w.idle, func() { end(stalled(w.idle)) })
	resp, err := w.client.Do(req)
	watch.Stop()
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	if resp.StatusCode == http.StatusNotModified && known != (stamp{}) {
		end(nil)
		return nil, resp.Body.Close()
	}
	if err := status(resp.StatusCode); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return &webContent{
		name: w.url.Path, resp: resp, end: end,
		body: &watched{from: resp.Body, idle: w.idle, ctx: ctx, end: end},
	}, nil
}

// status tells what an answer means; nil for the file itself.
func status(code int) error {
	switch code {
	case http.StatusOK:
		return nil
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w: the server says %d", ErrNotFound, code)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: the server says %d", ErrForbidden, code)
	}
	return fmt.Errorf("%w: the server says %d %s", ErrUnavailable, code, http.StatusText(code))
}

// unavailable says why a request got no answer, without the URL, which may have secrets in it.
func unavailable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func (w *webContent) stamp() stamp {
	return stamp{ETag: w.resp.Header.Get("ETag"), LastModified: w.resp.Header.Get("Last-Modified")}
}

func (w *webContent) save(ctx context.Context, into *folder) error {
	return saveOne(ctx, w.name, w.body, into)
}

func (w *webContent) close() {
	w.end(nil)
	_ = w.resp.Body.Close()
}

// watched ends a request whose body sends nothing for a while. The time that its reader takes for other things doesn't count.
type watched struct {
	from io.Reader
	idle time.Duration
	ctx  context.Context
	end  context.CancelCauseFunc
}

func (w *watched) Read(p []byte) (int, error) {
	watch := time.AfterFunc(w.idle, func() { w.end(stalled(w.idle)) })
	n, err := w.from.Read(p)
	watch.Stop()
	if cause := context.Cause(w.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

func stalled(idle time.Duration) error { return fmt.Errorf("%w for %s", ErrStalled, idle) }

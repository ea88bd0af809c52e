package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// pollWait is how long the control plane may keep a waiting call; then it is made again.
const pollWait = 20 * time.Second

func fleetPath() string                     { return "/v1/fleet" }
func modelPath(model, action string) string { return "/v1/models/" + url.PathEscape(model) + action }

func replicaPath(replica, action string) string {
	return "/v1/replicas/" + url.PathEscape(replica) + action
}

func hostPath(host, action string) string { return "/v1/hosts/" + url.PathEscape(host) + action }

// onOff gives the method that sets a mark or takes it away.
func onOff(on bool) string {
	if on {
		return http.MethodPut
	}
	return http.MethodDelete
}

// set adds a parameter that is true.
func set(q url.Values, name string, on bool) {
	if on {
		q.Set(name, "true")
	}
}

// Apply implements API.
func (c *Client) Apply(ctx context.Context, file []byte, source string, dry, force bool) (*control.Change, error) {
	q := url.Values{}
	set(q, "dry", dry)
	set(q, "force", force)
	if source != "" {
		q.Set("source", source)
	}
	if file == nil {
		file = []byte{}
	}
	var change control.Change
	err := c.exchange(ctx, call{method: http.MethodPut, path: fleetPath(), query: q, body: file, kind: "application/yaml"}, nil, &change)
	if err != nil {
		return nil, err
	}
	return &change, nil
}

// Fleet implements API.
func (c *Client) Fleet(ctx context.Context) ([]byte, error) {
	return c.read(ctx, call{method: http.MethodGet, path: fleetPath()})
}

// View implements API. A control plane that was started anew may count from the beginning: a View of
// any other Version than after is given.
func (c *Client) View(ctx context.Context, after int64) (*control.View, error) {
	for {
		var v control.View
		err := c.poll(ctx, "/v1/view", after, after > 0, &v)
		if err != nil {
			return nil, err
		}
		if after <= 0 || v.Version != after {
			return &v, nil
		}
	}
}

// Events implements API.
func (c *Client) Events(ctx context.Context, after int64, wait bool) ([]control.Event, error) {
	for {
		var list EventList
		err := c.poll(ctx, "/v1/events", after, wait, &list)
		if err != nil || len(list.Events) > 0 || !wait {
			return list.Events, err
		}
	}
}

// Settings gives what routers need, as soon as its Version is another one than after, 0 for any. It waits for that at most as
// long as ctx.
func (c *Client) Settings(ctx context.Context, after int64) (*control.Settings, error) {
	for {
		var s control.Settings
		err := c.poll(ctx, "/v1/settings", after, true, &s)
		if err != nil {
			return nil, err
		}
		if s.Version != after {
			return &s, nil
		}
	}
}

// poll asks for what is beyond after; with wait it lets the control plane keep the call for a while.
func (c *Client) poll(ctx context.Context, path string, after int64, wait bool, out any) error {
	r := call{method: http.MethodGet, path: path, query: url.Values{}}
	if after > 0 {
		r.query.Set("after", strconv.FormatInt(after, 10))
	}
	if wait {
		r.wait = pollWait
		if deadline, ok := ctx.Deadline(); ok {
			r.wait = min(r.wait, max(0, time.Until(deadline).Truncate(time.Millisecond)))
		}
		r.query.Set("wait", r.wait.String())
	}
	return c.exchange(ctx, r, nil, out)
}

// Scale implements API.
func (c *Client) Scale(ctx context.Context, model string, replicas int) error {
	r := call{method: http.MethodPut, path: modelPath(model, "/scale")}
	return c.exchange(ctx, r, ScaleRequest{Replicas: new(max(replicas, -1))}, nil)
}

// Drain implements API.
func (c *Client) Drain(ctx context.Context, replica string, on bool) error {
	return c.exchange(ctx, call{method: onOff(on), path: replicaPath(replica, "/drain")}, nil, nil)
}

// Cordon implements API.
func (c *Client) Cordon(ctx context.Context, host string, on, drain bool) error {
	q := url.Values{}
	set(q, "drain", on && drain)
	return c.exchange(ctx, call{method: onOff(on), path: hostPath(host, "/cordon"), query: q}, nil, nil)
}

// Forget implements API.
func (c *Client) Forget(ctx context.Context, host string) error {
	return c.exchange(ctx, call{method: http.MethodDelete, path: hostPath(host, "")}, nil, nil)
}

// Restart implements API.
func (c *Client) Restart(ctx context.Context, model string) error {
	path := fleetPath() + "/restart"
	if model != "" {
		path = modelPath(model, "/restart")
	}
	return c.exchange(ctx, call{method: http.MethodPost, path: path}, nil, nil)
}

// Rollback implements API.
func (c *Client) Rollback(ctx context.Context, model string) error {
	return c.exchange(ctx, call{method: http.MethodPost, path: modelPath(model, "/rollback")}, nil, nil)
}

// Delete implements API.
func (c *Client) Delete(ctx context.Context, model string) error {
	path := fleetPath()
	if model != "" {
		path = modelPath(model, "")
	}
	return c.exchange(ctx, call{method: http.MethodDelete, path: path}, nil, nil)
}

// Token implements API.
func (c *Client) Token(ctx context.Context) (string, error) {
	var answer TokenAnswer
	// Not again: each time makes one more.
	err := c.exchange(ctx, call{method: http.MethodPost, path: "/v1/tokens", once: true}, nil, &answer)
	return answer.Token, err
}

// Report implements API. One that got lost is not sent again: the next one is newer.
func (c *Client) Report(ctx context.Context, r mobula.Report) error {
	return c.exchange(ctx, call{method: http.MethodPost, path: "/v1/reports", once: true}, r, nil)
}

// Logs implements API. The timeout is until the first line may come; the reader goes on until ctx ends or it is closed.
func (c *Client) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	q := url.Values{"tail": {strconv.Itoa(max(tail, 0))}}
	set(q, "follow", follow)
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(c.timeout, cancel)
	resp, err := c.send(ctx, call{method: http.MethodGet, path: replicaPath(replica, "/logs"), query: q}) //nolint:bodyclose // logs closes it
	if inTime := late.Stop(); err == nil {
		return &logs{resp.Body, cancel}, nil
	} else if !inTime {
		err = fmt.Errorf("the control plane at %s sent no log in %s: %w", c.base, c.timeout, context.DeadlineExceeded)
	}
	cancel()
	return nil, err
}

// logs ends the request when it is closed.
type logs struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (l *logs) Close() error {
	l.cancel()
	return l.ReadCloser.Close()
}

package ray

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/adapters"
)

// Refusals.
var (
	// errNoRoute: Ray answered 404, for a route it lacks or a thing it does not know.
	errNoRoute = errors.New("not found")
	// errRefused: another answer that asking again does not change.
	errRefused = errors.New("refused")
)

// failed is an error of our own before anything was asked.
func (d *Dashboard) failed(what string, err error) error {
	return fmt.Errorf("Ray cluster at %s: %s: %w", d.base, what, err) //nolint:staticcheck // a name
}

func (d *Dashboard) notRay(why string) error {
	return fmt.Errorf("%s: %w: %s; %s", d.base, ErrNotRay, why, d.place.what())
}

// unreachable is an error of the connection. What the caller gave up is no error of the cluster.
func (d *Dashboard) unreachable(caller context.Context, what string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // its URL is long and says nothing more
	}
	switch {
	case errors.Is(caller.Err(), context.Canceled):
		return d.failed(what, caller.Err())
	case untrusted(err):
		return d.failed(what, fmt.Errorf("its certificate is not trusted, set platform.ray.caFile: %w", err))
	case notHTTP(err):
		return d.notRay("what answers there speaks something else")
	case errors.Is(err, errOverlong):
		return d.failed(what, err)
	case errors.Is(err, context.DeadlineExceeded):
		return d.failed(what, fmt.Errorf("%w: it does not answer in time: %w", adapters.ErrUnavailable, err))
	default:
		return d.failed(what, fmt.Errorf("%w: %w", adapters.ErrUnavailable, err))
	}
}

// refused is an answer that is an error.
func (d *Dashboard) refused(what string, resp *http.Response, body []byte) error {
	code, said := resp.StatusCode, dashboardText(body)
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return d.failed(what, fmt.Errorf("%w: %s (HTTP %d); %s", ErrDenied, said, code, d.place.advice()))
	case code >= 300 && code < 400:
		return d.notRay(fmt.Sprintf("it sends elsewhere (HTTP %d to %s)", code, shorten(resp.Header.Get("Location"), dashboardMaxText)))
	case code == http.StatusNotFound:
		return d.failed(what, fmt.Errorf("%w: %s (HTTP 404)", errNoRoute, said))
	case code == http.StatusTooManyRequests, code > http.StatusNotImplemented,
		code == http.StatusInternalServerError && !innerRefusal(body):
		return d.failed(what, fmt.Errorf("%w: %s (HTTP %d)", adapters.ErrUnavailable, said, code))
	default:
		return d.failed(what, fmt.Errorf("%w: %s (HTTP %d)", errRefused, said, code))
	}
}

// innerRefusal tells that a 500 of Ray's Jobs API wraps a refusal of the agent, or says what asking again won't mend.
func innerRefusal(body []byte) bool {
	for _, mark := range []string{"Request failed with status code 400", "already exists", "non-terminal state"} {
		if bytes.Contains(body, []byte(mark)) {
			return true
		}
	}
	return false
}

// dashboardText is what an answer says, in short: a state answer's msg, or the last line of a text such as a traceback.
func dashboardText(body []byte) string {
	text := strings.TrimSpace(string(body))
	if strings.HasPrefix(text, "{") && gjson.Valid(text) {
		if msg := gjson.Get(text, "msg").Str; msg != "" {
			return shorten(msg, dashboardMaxText)
		}
		return "JSON without a message"
	}
	if low := strings.ToLower(text[:min(len(text), 200)]); strings.Contains(low, "<html") || strings.Contains(low, "<!doctype") {
		return "an HTML page"
	}
	if line := lastLine(text); line != "" {
		return shorten(line, dashboardMaxText)
	}
	return "nothing"
}

// lastLine gives the last line that says something; Ray ends some texts with a line of one dot, pydantic with a link.
func lastLine(text string) string {
	for text != "" {
		i := strings.LastIndexByte(text, '\n')
		if line := strings.TrimSpace(text[i+1:]); line != "" && line != "." && !strings.HasPrefix(line, "For further information visit") {
			return line
		}
		text = text[:max(i, 0)]
	}
	return ""
}

// shorten cuts a text that is longer than most bytes, with no half a character at its end.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

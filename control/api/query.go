package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"

	"github.com/mobula-serve/mobula/control"
)

const (
	maxWait     = time.Minute
	maxTail     = 100_000 // lines
	defaultTail = 100
	maxSource   = 256 // bytes
	maxName     = 512 // bytes of a model's, replica's or host's name
)

// query holds the parameters of all routes.
type query struct {
	after                     int64
	wait                      time.Duration
	tail                      int
	dry, force, follow, drain bool
	source                    string
}

// param is one parameter of a query.
type param struct {
	name, about string
	schema      *openapi3.Schema
	read        func(q *query, value string) error
}

// params lists what routes may take.
func params() []param {
	flag := func(name, about string, at func(*query) *bool) param {
		return param{name, about, openapi3.NewBoolSchema(), func(q *query, value string) error {
			on, err := strconv.ParseBool(value)
			if err != nil && value != "" {
				return fmt.Errorf("want true or false, got %q", clip(value))
			}
			*at(q) = on || value == ""
			return nil
		}}
	}
	return []param{
		{
			"after", "Version or Seq that is known already. An unknown one is answered at once.",
			openapi3.NewInt64Schema().WithMin(0),
			func(q *query, value string) (err error) {
				if q.after, err = strconv.ParseInt(value, 10, 64); err != nil || q.after < 0 {
					return fmt.Errorf("want a number from 0 on, got %q", clip(value))
				}
				return nil
			},
		},
		{
			"wait", "How long to wait for something beyond after, such as 20s; at most 1m. Default: not at all.",
			openapi3.NewStringSchema(),
			func(q *query, value string) (err error) {
				if q.wait, err = time.ParseDuration(value); err != nil || q.wait < 0 || q.wait > maxWait {
					return fmt.Errorf("want a duration from 0s to %s, got %q", maxWait, clip(value))
				}
				return nil
			},
		},
		{
			"tail", "How many of the last lines. Default 100.",
			openapi3.NewIntegerSchema().WithMin(0).WithMax(maxTail),
			func(q *query, value string) (err error) {
				if q.tail, err = strconv.Atoi(value); err != nil || q.tail < 0 || q.tail > maxTail {
					return fmt.Errorf("want a number of lines from 0 to %d, got %q", maxTail, clip(value))
				}
				return nil
			},
		},
		{
			"source", "Where the file comes from, for people.",
			openapi3.NewStringSchema().WithMaxLength(maxSource),
			func(q *query, value string) error {
				if err := checkText(value, maxSource); err != nil {
					return err
				}
				q.source = value
				return nil
			},
		},
		flag("dry", "Only tell what would change.", func(q *query) *bool { return &q.dry }),
		flag("force", "Do what would be refused with code conflict.", func(q *query) *bool { return &q.force }),
		flag("follow", "Go on with what comes.", func(q *query) *bool { return &q.follow }),
		flag("drain", "Move the host's replicas away too.", func(q *query) *bool { return &q.drain }),
	}
}

// decodeQuery reads a query that may have these parameters, each once.
func decodeQuery(raw string, allowed []param) (query, error) {
	q := query{tail: defaultTail}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return q, fmt.Errorf("%w: the query of the URL can't be read: %w", control.ErrInvalid, err)
	}
	for name, all := range values {
		i := slices.IndexFunc(allowed, func(p param) bool { return p.name == name })
		if i < 0 {
			return q, fmt.Errorf("%w: this route has no parameter %q", control.ErrInvalid, clip(name))
		}
		if len(all) > 1 {
			return q, fmt.Errorf("%w: %s: given %d times", control.ErrInvalid, name, len(all))
		}
		if err := allowed[i].read(&q, all[0]); err != nil {
			return q, fmt.Errorf("%w: %s: %w", control.ErrInvalid, name, err)
		}
	}
	return q, nil
}

// checkText refuses what must not reach logs and terminals.
func checkText(s string, limit int) error {
	switch {
	case len(s) > limit:
		return fmt.Errorf("want at most %d bytes, got %d", limit, len(s))
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("want text without control characters, got %q", clip(s))
	}
	return nil
}

// clip shortens a bad value for a message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// pathValue gives a name out of the path.
func pathValue(c *gin.Context, name string) (string, error) {
	value, err := url.PathUnescape(c.Param(name))
	if err == nil {
		err = checkText(value, maxName)
	}
	if err == nil && value == "" {
		err = fmt.Errorf("want the name of a %s", name)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", control.ErrInvalid, name, err)
	}
	return value, nil
}

// ginPath writes {name} as :name.
func ginPath(path string) string {
	return strings.NewReplacer("{", ":", "}", "").Replace(path)
}

const modelPrefix = "/v1/models/"

// foldModel lets a model's name have plain slashes: between the prefix and what is done all is the name.
func foldModel(r *http.Request) *http.Request {
	path := r.URL.EscapedPath()
	name, ok := strings.CutPrefix(path, modelPrefix)
	if !ok {
		return r
	}
	action := ""
	if r.Method != http.MethodDelete {
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return r
		}
		name, action = name[:i], name[i:]
	}
	if !strings.Contains(name, "/") {
		return r
	}
	folded := *r
	folded.URL = new(*r.URL)
	folded.URL.RawPath = modelPrefix + strings.ReplaceAll(name, "/", "%2F") + action
	return &folded
}

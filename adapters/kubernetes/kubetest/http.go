package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/kubernetes/scheme"
)

// maxBody bounds what a request may send.
const maxBody = 3 << 20

// call is one request as the API server takes it.
type call struct {
	Request
	table *table
	key   key
	query url.Values
	body  tree
	raw   []byte // the body as it came
	media string // its type
	// onlyMeta asks for PartialObjectMetadata in place of objects.
	onlyMeta bool
}

// serve answers one request.
func (c *Cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.serving.Add(1)
	slow := c.slow
	c.mu.Unlock()
	defer c.serving.Done()
	if slow > 0 && !sleep(r.Context(), slow) {
		return
	}
	if c.discovery(w, r) {
		return
	}
	q, err := c.parse(r)
	if err == nil {
		err = c.admit(q)
	}
	if err == nil {
		err = c.dispatch(w, r, q)
	}
	if err != nil {
		writeError(w, err)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Cluster) dispatch(w http.ResponseWriter, r *http.Request, q *call) error {
	switch {
	case q.Verb == "watch":
		return c.watch(w, r, q)
	case q.Verb == "list":
		return c.list(w, q)
	case q.Subresource == "log":
		return c.logs(w, r, q)
	}
	code, answer, err := c.write(q)
	if err != nil {
		return err
	}
	if q.onlyMeta {
		answer = onlyMetadata(answer)
	}
	writeJSON(w, code, answer)
	return nil
}

// write does what is answered at once with one object, and all that follows from it.
func (c *Cluster) write(q *call) (int, tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.settle()
	if q.table.Group == "authorization.k8s.io" && q.Verb == "create" {
		return http.StatusCreated, c.review(q), nil
	}
	switch q.Subresource {
	case "", "status":
	case "scale":
		answer, err := c.scale(q)
		return http.StatusOK, answer, err
	case "eviction", "binding":
		answer, err := c.podAction(q)
		return http.StatusCreated, answer, err
	}
	switch q.Verb {
	case "get":
		o, err := c.get(q)
		if err != nil {
			return 0, nil, err
		}
		return http.StatusOK, o.tree, nil
	case "create":
		answer, err := c.create(q, q.body)
		return http.StatusCreated, answer, err
	case "update":
		answer, err := c.update(q)
		return http.StatusOK, answer, err
	case "patch":
		return c.patch(q)
	case "delete":
		answer, err := c.remove(q)
		return http.StatusOK, answer, err
	case "deletecollection":
		answer, err := c.removeAll(q)
		return http.StatusOK, answer, err
	}
	return 0, nil, apierrors.NewMethodNotSupported(q.table.GroupResource(), q.Verb)
}

// parse reads a request. Its error is a Status.
func (c *Cluster) parse(r *http.Request) (*call, error) {
	gv, parts, ok := apiPath(r.URL.Path)
	if !ok || len(parts) == 0 {
		return nil, notServed()
	}
	q := &call{query: r.URL.Query(), media: mediaType(r.Header.Get("Content-Type"))}
	if parts[0] == "namespaces" && len(parts) > 1 {
		q.Namespace = parts[1]
		if len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
			parts = parts[2:]
		}
	}
	c.mu.Lock()
	q.table = c.store.tables[gv.WithResource(parts[0])]
	c.mu.Unlock()
	if q.table == nil {
		return nil, notServed()
	}
	if !q.table.Namespaced {
		q.Namespace = ""
	}
	if len(parts) > 1 {
		q.Name = parts[1]
	}
	if len(parts) > 2 {
		q.Subresource = strings.Join(parts[2:], "/")
		if !q.table.has(q.Subresource) {
			return nil, notServed()
		}
	}
	q.key = key{q.Namespace, q.Name}
	q.Resource = parts[0]
	q.Group = gv.Group
	q.Verb = verb(r.Method, q.Name, q.query)
	q.Manager = q.query.Get("fieldManager")
	if q.Manager == "" {
		q.Manager, _, _ = strings.Cut(r.UserAgent(), "/")
	}
	q.onlyMeta = strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	return q, q.read(r.Body)
}

// apiPath splits a path such as /apis/apps/v1/namespaces/default/deployments.
func apiPath(path string) (schema.GroupVersion, []string, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) >= 2 && parts[0] == "api":
		return schema.GroupVersion{Version: parts[1]}, parts[2:], true
	case len(parts) >= 3 && parts[0] == "apis":
		return schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:], true
	}
	return schema.GroupVersion{}, nil, false
}

func verb(method, name string, query url.Values) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		switch {
		case name != "":
			return "get"
		case query.Get("watch") == "true" || query.Get("watch") == "1":
			return "watch"
		}
		return "list"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return strings.ToLower(method)
}

func mediaType(contentType string) string {
	media, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(media)
}

// read takes in the body: JSON, or protobuf of the kinds that are built in. Patches are kept as they are.
func (q *call) read(body io.Reader) error {
	raw, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if len(raw) > maxBody {
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	}
	q.raw = raw
	if len(raw) == 0 || q.Verb == "patch" {
		return nil
	}
	if q.media == "application/vnd.kubernetes.protobuf" {
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
		if err == nil {
			raw, err = json.Marshal(o)
		}
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
	}
	if err := utiljson.Unmarshal(raw, &q.body); err != nil {
		return apierrors.NewBadRequest("the object provided is unrecognized (must be of type " + q.table.Kind + "): " + err.Error())
	}
	pruned(q.body)
	return nil
}

func (q *call) dry() bool {
	return slices.Contains(q.query["dryRun"], metav1.DryRunAll) || deleteOptions(q.body).dry
}

func notServed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
	}}
}

func writeError(w http.ResponseWriter, err error) {
	status := statusOf(err)
	if d := status.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", decimal(uint64(d.RetryAfterSeconds)))
	}
	writeJSON(w, int(status.Code), status)
}

// statusOf gives an error as clients get it.
func statusOf(err error) metav1.Status {
	status := metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
		Message: "Internal error occurred: " + err.Error(),
	}
	if known, ok := errors.AsType[*apierrors.StatusError](err); ok {
		status = known.Status()
	}
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	return status
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of JSON's own types, or a Status
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(encoded) // the client is gone
}

func onlyMetadata(o tree) tree {
	return tree{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]}
}

package kubetest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxRequests bounds the requests that Requests remembers, the latest ones.
const maxRequests = 20_000

// User is who all clients are, as refusals name them.
const User = "system:serviceaccount:default:mobula"

// Request is one that the API server got for a resource.
type Request struct {
	// Verb as roles have it: get, list, watch, create, update, patch, delete, deletecollection.
	Verb                         string
	Group, Resource, Subresource string
	Namespace, Name              string
	// Manager of the fields that it writes.
	Manager string
	// Apply tells that a patch is a server-side apply.
	Apply bool
}

// name gives the resource as roles have it: pods/log.
func (r Request) name() string {
	if r.Subresource == "" {
		return r.Resource
	}
	return r.Resource + "/" + r.Subresource
}

// rule is a verb of a resource, as Deny and Fail take them.
type rule struct{ verb, resource string }

type failure struct {
	rule
	code, times int
}

// faults is what a test has go wrong, and what it counts.
type faults struct {
	slow     time.Duration
	denied   map[rule]bool
	failures []failure
	logCuts  []int // after so many bytes, of the logs that come
	calls    map[string]int
	requests []Request
}

func newFaults() faults { return faults{denied: map[rule]bool{}, calls: map[string]int{}} }

// Down takes the API server away, connections are cut and refused, or brings it back. What is stored stays, and the cluster
// goes on: kubelets and controllers have another way in.
func (c *Cluster) Down(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || down == (c.server == nil):
	case down:
		c.down()
	default:
		c.transport.CloseIdleConnections() // one whose end has not been noticed yet would fail what can't be sent twice
		if err := c.listen(); err != nil {
			panic(fmt.Sprintf("kubetest: %v", err))
		}
	}
}

// DropWatches ends all watches, as an API server does from time to time.
func (c *Cluster) DropWatches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endWatches()
}

// DropLogs breaks the connections of all logs that are followed, as a kubelet that starts again does.
func (c *Cluster) DropLogs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.cutLogs)
	c.cutLogs = make(chan struct{})
}

// CutLogs breaks the connection of each of the next logs that are asked for once it has sent so many bytes, be it in a line.
func (c *Cluster) CutLogs(bytes ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logCuts = append(c.logCuts, bytes...)
}

// Compact forgets the history of all resources: to watch from a resourceVersion of before is answered with 410 Expired.
// Watches that run go on; DropWatches ends them.
func (c *Cluster) Compact() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.version++
	for _, t := range c.store.tables {
		t.first = c.store.version
	}
}

// Slow has each request wait.
func (c *Cluster) Slow(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = d
}

// Deny refuses a verb of a resource, pods or pods/log, as RBAC does, and Allow ends that. * is any verb or resource.
func (c *Cluster) Deny(verb, resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denied[rule{verb, resource}] = true
}

// Allow takes a Deny back.
func (c *Cluster) Allow(verb, resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.denied, rule{verb, resource})
}

// Fail has the next requests of a verb and resource fail with an HTTP status. * is any verb or resource.
func (c *Cluster) Fail(verb, resource string, code, times int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, failure{rule{verb, resource}, code, times})
}

// Calls gives how often each resource was asked for since the last ResetCalls, by "verb resource": "list pods", "patch models/status".
func (c *Cluster) Calls() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// Requests gives the requests since the last ResetCalls, the latest twenty thousand.
func (c *Cluster) Requests() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// ResetCalls has Calls and Requests begin anew.
func (c *Cluster) ResetCalls() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, c.requests = map[string]int{}, nil
}

// admit counts a request, and refuses it where the test says so.
func (c *Cluster) admit(q *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.Apply = q.Verb == "patch" && q.media == applyPatch
	c.calls[q.Verb+" "+q.name()]++
	if len(c.requests) >= 2*maxRequests {
		c.requests = slices.Clone(c.requests[maxRequests:])
	}
	c.requests = append(c.requests, q.Request)
	for i, f := range c.failures {
		if matches(f.rule, q.Verb, q.name()) {
			if c.failures[i].times--; c.failures[i].times <= 0 {
				c.failures = slices.Delete(c.failures, i, i+1)
			}
			return failed(f.code, q)
		}
	}
	if c.refuses(q.Verb, q.name()) {
		return refused(q)
	}
	return nil
}

func matches(r rule, verb, resource string) bool {
	return (r.verb == "*" || r.verb == verb) && (r.resource == "*" || r.resource == resource)
}

func (c *Cluster) refuses(verb, resource string) bool {
	for r := range c.denied {
		if matches(r, verb, resource) {
			return true
		}
	}
	return false
}

func refused(q *call) error {
	where := "at the cluster scope"
	if q.Namespace != "" {
		where = fmt.Sprintf("in the namespace %q", q.Namespace)
	}
	message := fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", User, q.Verb, q.name(), q.Group, where)
	gr := schema.GroupResource{Group: q.Group, Resource: q.name()}
	err := apierrors.NewForbidden(gr, q.Name, nil)
	err.ErrStatus.Message = fmt.Sprintf("%s is forbidden: %s", gr.String(), message)
	if q.Name != "" {
		err.ErrStatus.Message = fmt.Sprintf("%s %q is forbidden: %s", gr.String(), q.Name, message)
	}
	return err
}

// failed makes the error of a status that a test asked for.
func failed(code int, q *call) error {
	gr := q.table.GroupResource()
	switch code {
	case http.StatusTooManyRequests:
		return apierrors.NewTooManyRequests("the server has received too many requests and has asked us to try again later", 1)
	case http.StatusGone:
		return expired()
	case http.StatusConflict:
		return apierrors.NewConflict(gr, q.Name, errModified)
	case http.StatusUnprocessableEntity:
		return apierrors.NewInvalid(q.table.kind().GroupKind(), q.Name, nil)
	}
	return apierrors.NewGenericServerResponse(code, q.Verb, gr, q.Name, "the test says so", 0, true)
}

func expired() error {
	return apierrors.NewResourceExpired("too old resource version")
}

// review answers what a client may do.
func (c *Cluster) review(q *call) tree {
	out := copyTree(q.body)
	if q.table.Kind == "SelfSubjectRulesReview" {
		out["status"] = tree{"incomplete": false, "nonResourceRules": []any{}, "resourceRules": c.rules()}
		return out
	}
	asked := sub(q.body, "spec", "resourceAttributes")
	name := text(asked, "resource")
	if s := text(asked, "subresource"); s != "" {
		name += "/" + s
	}
	denied := c.refuses(text(asked, "verb"), name)
	out["status"] = tree{"allowed": !denied, "reason": map[bool]string{true: "", false: "RBAC: allowed by the test"}[denied]}
	return out
}

// rules lists what is allowed, resource by resource when something is not.
func (c *Cluster) rules() []any {
	all := []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
	if len(c.denied) == 0 {
		return []any{tree{"verbs": []any{"*"}, "apiGroups": []any{"*"}, "resources": []any{"*"}}}
	}
	var out []any
	for _, t := range c.store.tables {
		for _, name := range append([]string{""}, t.Subresources...) {
			resource := Request{Resource: t.GroupVersionResource.Resource, Subresource: name}.name()
			var verbs []any
			for _, v := range all {
				if !c.refuses(v, resource) {
					verbs = append(verbs, v)
				}
			}
			if len(verbs) > 0 {
				out = append(out, tree{"verbs": verbs, "apiGroups": []any{t.Group}, "resources": []any{resource}})
			}
		}
	}
	return out
}

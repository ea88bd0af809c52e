package kubetest

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
)

// maxLog bounds what is kept of a pod's log.
const maxLog = 1 << 20

// scale gives or changes the number of replicas alone.
func (c *Cluster) scale(q *call) (tree, error) {
	live, err := c.get(q)
	if err != nil {
		return nil, err
	}
	if q.Verb == "get" {
		return scaleOf(q.table, live.tree), nil
	}
	change := q.body
	switch {
	case q.Apply:
		if err := yamlInto(q.raw, &change); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	case q.Verb == "patch":
		if change, err = q.patched(scaleOf(q.table, live.tree)); err != nil {
			return nil, err
		}
	}
	if v := text(change, "metadata", "resourceVersion"); v != "" && v != decimal(live.version) {
		return nil, apierrors.NewConflict(q.table.GroupResource(), q.Name, errModified)
	}
	replicas := number(change, 0, "spec", "replicas")
	if replicas < 0 {
		return nil, apierrors.NewBadRequest("spec.replicas: Invalid value: " + strconv.FormatInt(replicas, 10) + ": must be greater than or equal to 0")
	}
	manager, err := c.manager(q.table.Resource, q.Subresource)
	if err != nil {
		return nil, err
	}
	var o tree
	if q.Apply {
		want := tree{
			"apiVersion": q.table.apiVersion(), "kind": q.table.Kind, "metadata": tree{"name": live.name, "namespace": live.namespace},
			"spec": tree{"replicas": replicas},
		}
		o, err = manager.apply(copyTree(live.tree), want, q.Manager, q.query.Get("force") == "true")
	} else {
		o, err = manager.update(copyTree(live.tree), with(copyTree(live.tree), replicas, "spec", "replicas"), q.Manager)
	}
	if err != nil {
		return nil, err
	}
	if o, err = c.commit(q, live, o); err != nil {
		return nil, err
	}
	return scaleOf(q.table, o), nil
}

func scaleOf(t *table, o tree) tree {
	meta := tree{}
	for _, name := range []string{"name", "namespace", "uid", "resourceVersion", "creationTimestamp"} {
		meta[name] = at(o, "metadata", name)
	}
	status := tree{"replicas": number(o, 0, "status", "replicas")}
	if selector := text(o, "status", "selector"); selector != "" {
		status["selector"] = selector
	} else if t.Group == "apps" {
		status["selector"] = labels.Set(texts(sub(o, "spec", "selector", "matchLabels"))).String()
	}
	return tree{
		"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta,
		"spec": tree{"replicas": number(o, 0, "spec", "replicas")}, "status": status,
	}
}

// podAction evicts a pod, disruption budgets are not looked at, or binds it to a node.
func (c *Cluster) podAction(q *call) (tree, error) {
	live, err := c.get(q)
	if err != nil {
		return nil, err
	}
	if q.Verb != "create" {
		return nil, apierrors.NewMethodNotSupported(q.table.GroupResource(), q.Verb)
	}
	if q.Subresource == "eviction" {
		if !q.dry() {
			c.erase(ref{q.table, live.key}, deleteOptions(sub(q.body, "deleteOptions")))
		}
	} else {
		if text(live.tree, "spec", "nodeName") != "" {
			return nil, apierrors.NewConflict(q.table.GroupResource(), q.Name, errors.New("pod "+q.Name+" is already assigned to node"))
		}
		c.bind(live, text(q.body, "target", "name"))
	}
	return tree{"kind": "Status", "apiVersion": "v1", "metadata": tree{}, "status": "Success"}, nil
}

// podLog is what the containers of one pod wrote.
type podLog struct {
	now, before []byte        // of the run there is, and of the one that ended
	changed     chan struct{} // closed when there is more
}

// Log appends to the log of a pod. Lines of the container that ran before a crash are kept apart, as previous.
func (c *Cluster) Log(namespace, pod, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.logOf(key{namespace, pod})
	l.now = append(l.now, text...)
	if more := len(l.now) - maxLog; more > 0 {
		l.now = bytes.Clone(l.now[more:])
	}
	l.wake()
}

func (l *podLog) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (p *play) logOf(at key) *podLog {
	if p.logged[at] == nil {
		p.logged[at] = &podLog{changed: make(chan struct{})}
	}
	return p.logged[at]
}

// logs answers with a pod's log, and follows it if asked to.
func (c *Cluster) logs(w http.ResponseWriter, r *http.Request, q *call) error {
	c.mu.Lock()
	pod, err := c.get(q)
	if err == nil {
		err = logProblem(pod, q.query.Get("container"), q.query.Get("previous") == "true")
	}
	var content []byte
	var changed <-chan struct{}
	cut := c.cut
	if err == nil {
		l := c.logOf(q.key)
		changed = l.changed
		content = bytes.Clone(l.now)
		if q.query.Get("previous") == "true" {
			content = bytes.Clone(l.before)
		}
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	shown := tail(content, q.query.Get("tailLines"))
	if limit, err := strconv.Atoi(q.query.Get("limitBytes")); err == nil && limit < len(shown) {
		shown = shown[:limit]
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write(shown) // the client is gone
	seen := len(content)
	flusher := http.NewResponseController(w)
	for q.query.Get("follow") == "true" {
		if flusher.Flush() != nil {
			return nil
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-cut:
			return nil
		case <-changed:
		}
		c.mu.Lock()
		l, there := c.logged[q.key]
		if there {
			content, changed = bytes.Clone(l.now), l.changed
		}
		c.mu.Unlock()
		if !there {
			return nil
		}
		seen = min(seen, len(content))
		_, _ = w.Write(content[seen:]) // the client is gone
		seen = len(content)
	}
	return nil
}

// logProblem tells why there is no log of a container.
func logProblem(pod *object, container string, previous bool) error {
	named := containers(sub(pod.tree, "spec"))
	if container == "" && len(list(pod.tree, "spec", "containers")) == 1 {
		container = text(named[0], "name")
	}
	if !slices.ContainsFunc(named, func(c tree) bool { return text(c, "name") == container }) {
		return apierrors.NewBadRequest("container " + container + " is not valid for pod " + pod.name)
	}
	for _, s := range trees(list(pod.tree, "status", "containerStatuses")) {
		if text(s, "name") != container {
			continue
		}
		if previous && sub(s, "lastState", "terminated") == nil {
			return apierrors.NewBadRequest("previous terminated container \"" + container + "\" in pod \"" + pod.name + "\" not found")
		}
		if reason := text(s, "state", "waiting", "reason"); reason == "" || reason == "CrashLoopBackOff" {
			return nil
		}
	}
	reason := "ContainerCreating"
	for _, s := range trees(list(pod.tree, "status", "containerStatuses")) {
		if text(s, "name") == container {
			reason = text(s, "state", "waiting", "reason")
		}
	}
	if reason == "ErrImagePull" || reason == "ImagePullBackOff" {
		return apierrors.NewBadRequest("container \"" + container + "\" in pod \"" + pod.name + "\" is waiting to start: trying and failing to pull image")
	}
	return apierrors.NewBadRequest("container \"" + container + "\" in pod \"" + pod.name + "\" is waiting to start: " + reason)
}

// tail gives the last lines of a log.
func tail(content []byte, lines string) []byte {
	n, err := strconv.Atoi(lines)
	switch {
	case err != nil:
		return content
	case n <= 0:
		return nil
	}
	begin := len(content)
	if bytes.HasSuffix(content, []byte("\n")) {
		begin--
	}
	for ; n > 0 && begin >= 0; n-- {
		begin = bytes.LastIndexByte(content[:begin], '\n')
	}
	return content[begin+1:]
}

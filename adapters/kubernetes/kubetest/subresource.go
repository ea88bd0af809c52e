package kubetest

import (
	"errors"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
)

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

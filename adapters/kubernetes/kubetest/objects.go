package kubetest

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// Add puts objects there as they are, status included, past the API server's checks; those that are there are replaced. Typed
// objects need no kind. Owners that are not there do no harm to them. It panics on objects of no resource.
func (c *Cluster) Add(objects ...runtime.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range objects {
		t, content := c.content(o)
		at := key{text(content, "metadata", "namespace"), text(content, "metadata", "name")}
		if !t.Namespaced {
			at.namespace = ""
		} else if at.namespace == "" {
			at.namespace = "default"
			sub(content, "metadata")["namespace"] = "default"
		}
		c.adopted[ref{t, at}] = true
		if live := t.objects[at]; live != nil {
			meta := sub(content, "metadata")
			for _, name := range []string{"uid", "creationTimestamp", "generation", "managedFields"} {
				set(meta, name, sub(live.tree, "metadata")[name])
			}
			c.store.put(t, pruned(content))
			continue
		}
		given := sub(content, "metadata")
		kept := maps.Clone(given)
		status := content["status"]
		c.store.stamp(t, content)
		for _, name := range []string{"uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"} {
			if v, ok := kept[name]; ok {
				given[name] = v
			}
		}
		if s, ok := status.(tree); ok && len(s) > 0 {
			content["status"] = status
		}
		c.store.put(t, content)
	}
	c.settle()
}

// content gives an object as a tree, and the table where it belongs.
func (c *Cluster) content(o runtime.Object) (*table, tree) {
	kind := o.GetObjectKind().GroupVersionKind()
	if kinds, _, err := scheme.Scheme.ObjectKinds(o); err == nil && kind.Empty() {
		kind = kinds[0]
	}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		panic(fmt.Sprintf("kubetest: add a %T: %v", o, err))
	}
	raw = pruned(copyTree(raw))
	for _, t := range c.store.tables {
		if t.kind() == kind {
			raw["apiVersion"], raw["kind"] = t.apiVersion(), t.Kind
			return t, raw
		}
	}
	panic(fmt.Sprintf("kubetest: add a %T: no resource has the kind %q", o, kind))
}

// Pod gives a pod, nil if it is not there.
func (c *Cluster) Pod(namespace, name string) *corev1.Pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.pods().objects[key{namespace, name}]
	if o == nil {
		return nil
	}
	return typedPod(o)
}

// Pods gives the pods of a namespace, all if it is empty, that a label selector takes, by name. It panics on a selector that is none.
func (c *Cluster) Pods(namespace, selector string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, o := range c.find("pods", namespace, selector) {
		out = append(out, typedPod(o))
	}
	return out
}

// Objects gives the objects of a resource, such as statefulsets, in a namespace, all if it is empty, that a label selector takes, by
// namespace and name.
func (c *Cluster) Objects(resource, namespace, selector string) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, o := range c.find(resource, namespace, selector) {
		out = append(out, &unstructured.Unstructured{Object: copyTree(o.tree)})
	}
	return out
}

func (c *Cluster) find(resource, namespace, selector string) []*object {
	chosen, err := labels.Parse(selector)
	if err != nil {
		panic(fmt.Sprintf("kubetest: %v", err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*object
	for gvr, t := range c.store.tables {
		if gvr.Resource != resource || gvr.Group == "events.k8s.io" {
			continue
		}
		for _, o := range t.objects {
			if (namespace == "" || namespace == o.namespace) && chosen.Matches(o.labels) {
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return a.compare(b.key) })
	return out
}

// Pause has controllers, scheduler and kubelets do nothing until it is called with false.
func (c *Cluster) Pause(pause bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = pause
	c.settle()
}

// AddNode adds a machine.
func (c *Cluster) AddNode(n Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node(n)
	c.settle()
}

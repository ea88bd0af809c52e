package kubetest

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// enqueueServices has the services that select a pod look.
func (c *Cluster) enqueueServices(pod *object) {
	if pod == nil || len(c.store.byLabel) == 0 {
		return
	}
	services := c.store.core("", "v1", "services")
	for k, v := range pod.labels {
		for at := range c.store.byLabel[key{pod.namespace, k + "=" + v}] {
			c.enqueue(ref{services, at})
		}
	}
}

// sliceOf keeps the EndpointSlice of a service; one of a service that is gone goes with it.
func (c *Cluster) sliceOf(at key, service *object) {
	kept := c.store.core("discovery.k8s.io", "v1", "endpointslices")
	where := key{at.namespace, at.name + "-slice"}
	selector := texts(sub(treeOrNil(service), "spec", "selector"))
	if service == nil || len(selector) == 0 {
		c.store.drop(kept, where)
		return
	}
	var endpoints []any
	ports := []any{}
	for _, p := range c.podsOf(at.namespace, selector) {
		endpoints = append(endpoints, tree{
			"addresses":  []any{text(p.tree, "status", "podIP")},
			"conditions": tree{"ready": ready(p) && !p.deleting() || flag(service.tree, "spec", "publishNotReadyAddresses"), "serving": ready(p), "terminating": p.deleting()},
			"nodeName":   text(p.tree, "spec", "nodeName"),
			"targetRef":  tree{"kind": "Pod", "name": p.name, "namespace": p.namespace, "uid": p.uid()},
		})
		if len(ports) == 0 {
			ports = portsOf(service, p)
		}
	}
	if endpoints == nil {
		endpoints = []any{}
	}
	content := tree{"addressType": "IPv4", "endpoints": endpoints, "ports": ports}
	named := tree{"kubernetes.io/service-name": at.name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
	for name, value := range service.labels { // the controller copies them
		named[name] = value
	}
	have := kept.objects[where]
	if have == nil {
		content["metadata"] = tree{
			"name": where.name, "namespace": where.namespace, "ownerReferences": ownedBy(c.store.core("", "v1", "services"), service),
			"labels": named,
		}
		c.add(kept, content)
		return
	}
	next := have.draft()
	maps.Copy(next, content)
	sub(next, "metadata")["labels"] = named
	if !same(generational(have.tree), generational(next)) || !same(sub(have.tree, "metadata", "labels"), named) {
		c.store.put(kept, next)
	}
}

func treeOrNil(o *object) tree {
	if o == nil {
		return nil
	}
	return o.tree
}

// podsOf gives the pods with an address that a selector takes, by name.
func (c *Cluster) podsOf(namespace string, selector map[string]string) []*object {
	var fewest map[key]bool
	for k, v := range selector {
		if some := c.store.labelled[key{namespace, k + "=" + v}]; fewest == nil || len(some) < len(fewest) {
			fewest = some
		}
	}
	chosen := labels.SelectorFromSet(selector)
	var out []*object
	for at := range fewest {
		o := c.pods().objects[at]
		if o != nil && chosen.Matches(o.labels) && text(o.tree, "status", "podIP") != "" && !ended(o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return a.compare(b.key) })
	return out
}

// portsOf gives the ports of a service as numbers of a pod.
func portsOf(service, pod *object) []any {
	var out []any
	for _, p := range trees(list(service.tree, "spec", "ports")) {
		target := p["targetPort"]
		if name, ok := target.(string); ok {
			target = nil
			for _, container := range trees(list(pod.tree, "spec", "containers")) {
				for _, have := range trees(list(container, "ports")) {
					if text(have, "name") == name {
						target = have["containerPort"]
					}
				}
			}
		}
		if target != nil {
			out = append(out, tree{"name": text(p, "name"), "port": target, "protocol": text(p, "protocol")})
		}
	}
	return out
}

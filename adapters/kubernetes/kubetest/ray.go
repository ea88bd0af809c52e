package kubetest

import (
	"fmt"
	"maps"
	"slices"
)

// rayCluster is the KubeRay operator, as far as the pods of a RayCluster go: a head, workers, a service for the head.
func (c *Cluster) rayCluster(rc *object) {
	if rc.deleting() {
		return
	}
	t := c.tableOf("ray.io", "rayclusters")
	pods := map[string][]*object{}
	for _, p := range c.store.dependents(rc.uid(), c.pods()) {
		group := text(p.tree, "metadata", "labels", "ray.io/group")
		if ended(p) && !p.deleting() {
			c.erase(ref{c.pods(), p.key}, deletion{grace: -1})
			continue
		}
		if !p.deleting() {
			pods[group] = append(pods[group], p)
		}
	}
	suspended := flag(rc.tree, "spec", "suspend")
	if _, says := sub(rc.tree, "spec")["suspend"]; !says && text(rc.tree, "status", "state") == "suspended" {
		suspended = true // it is resumed by false alone
	}
	c.headService(t, rc)
	heads, workers := 1, 0
	if suspended {
		heads = 0
	}
	c.group(t, rc, "headgroup", "head", sub(rc.tree, "spec", "headGroupSpec"), heads, pods["headgroup"])
	for _, g := range trees(list(rc.tree, "spec", "workerGroupSpecs")) {
		replicas := number(g, 0, "replicas")
		if replicas == 0 {
			replicas = number(g, 0, "minReplicas")
		}
		count := int(replicas * max(1, number(g, 1, "numOfHosts")))
		if suspended || flag(g, "suspend") {
			count = 0
		}
		workers += count
		name := text(g, "groupName")
		c.group(t, rc, name, "worker", g, count, pods[name])
	}
	c.rayStatus(t, rc, suspended, workers)
}

func (c *Cluster) tableOf(group, resource string) *table {
	for gvr, t := range c.store.tables {
		if gvr.Group == group && gvr.Resource == resource {
			return t
		}
	}
	return nil
}

// group has as many pods of one group as there should be.
func (c *Cluster) group(t *table, rc *object, name, kind string, spec tree, count int, pods []*object) {
	for _, p := range pods[min(count, len(pods)):] {
		c.erase(ref{c.pods(), p.key}, deletion{grace: -1})
	}
	base := rc.name[:min(len(rc.name), 50)]
	prefix, fixed := base+"-"+name+"-worker-", ""
	if kind == "head" {
		prefix, fixed = "", base+"-head"
		if c.pods().objects[key{rc.namespace, fixed}] != nil {
			return
		}
	}
	for range count - len(pods) {
		c.podFrom(t, rc, sub(spec, "template"), fixed, prefix, func(pod tree) {
			own := child(sub(pod, "metadata"), "labels")
			for k, v := range map[string]string{
				"ray.io/cluster": rc.name, "ray.io/node-type": kind, "ray.io/group": name, "ray.io/is-ray-node": "yes",
				"ray.io/identifier": rc.name + "-" + kind, "app.kubernetes.io/created-by": "kuberay-operator",
			} {
				own[k] = v
			}
			set(own, "app.kubernetes.io/name", "kuberay")
		})
	}
}

func (c *Cluster) headService(t *table, rc *object) {
	services := c.store.core("", "v1", "services")
	name := rc.name + "-head-svc"
	if services.objects[key{rc.namespace, name}] != nil {
		return
	}
	c.add(services, tree{
		"metadata": tree{"name": name, "namespace": rc.namespace, "ownerReferences": ownedBy(t, rc), "labels": tree{"ray.io/cluster": rc.name, "ray.io/node-type": "head"}},
		"spec": tree{
			"clusterIP": "None", "selector": tree{"ray.io/cluster": rc.name, "ray.io/node-type": "head"},
			"ports": []any{
				tree{"name": "dashboard", "port": int64(8265)},
				tree{"name": "gcs-server", "port": int64(6379)},
				tree{"name": "client", "port": int64(10001)},
				tree{"name": "serve", "port": int64(8000)},
			},
		},
	})
}

func (c *Cluster) rayStatus(t *table, rc *object, suspended bool, workers int) {
	status := maps.Clone(sub(rc.tree, "status"))
	if status == nil {
		status = tree{}
	}
	var head *object
	var readyWorkers, available, all int
	for _, p := range c.store.dependents(rc.uid(), c.pods()) {
		all++
		switch {
		case text(p.tree, "metadata", "labels", "ray.io/node-type") == "head":
			head = p
		case ready(p) && !p.deleting():
			readyWorkers++
			available++
		case text(p.tree, "status", "phase") == "Running":
			available++
		}
	}
	status["observedGeneration"] = number(rc.tree, 1, "metadata", "generation")
	status["desiredWorkerReplicas"] = int64(workers)
	status["readyWorkerReplicas"], status["availableWorkerReplicas"] = int64(readyWorkers), int64(available)
	status["head"] = tree{"serviceName": rc.name + "-head-svc"}
	headReady := head != nil && ready(head) && !head.deleting()
	if head != nil {
		status["head"] = tree{
			"serviceName": rc.name + "-head-svc", "podName": head.name,
			"podIP": text(head.tree, "status", "podIP"), "serviceIP": text(head.tree, "status", "podIP"),
		}
	}
	was := list(rc.tree, "status", "conditions")
	status["conditions"] = c.rayConditions(was, headReady, headReady && readyWorkers == workers, suspended, all)
	switch {
	case suspended && all == 0:
		status["state"] = "suspended"
	case headReady && readyWorkers == workers:
		status["state"] = "ready"
	case suspended:
	case status["state"] == "suspended":
		delete(status, "state")
	}
	c.status(t, rc, status)
}

func (c *Cluster) rayConditions(was []any, head, allReady, suspended bool, pods int) []any {
	provisioned := slices.ContainsFunc(trees(was), func(t tree) bool {
		return text(t, "type") == "RayClusterProvisioned" && text(t, "status") == "True"
	})
	headCondition := c.condition(was, "HeadPodReady", "False", "HeadPodNotFound", "Head Pod not found or not ready")
	if head {
		headCondition = c.condition(was, "HeadPodReady", "True", "HeadPodRunningAndReady", "")
	}
	done := c.condition(was, "RayClusterProvisioned", "False", "RayClusterPodsProvisioning", "RayCluster Pods are being provisioned for first time")
	if (allReady || provisioned) && !suspended {
		done = c.condition(was, "RayClusterProvisioned", "True", "AllPodRunningAndReadyFirstTime", "All Ray Pods are ready for the first time")
	}
	out := []any{headCondition, done}
	if c.podRefusal != "" && !suspended {
		out = append(out, c.condition(was, "ReplicaFailure", "True", "FailedCreateHeadPod", fmt.Sprintf("pods is forbidden: %s", c.podRefusal)))
	}
	state := func(yes bool) string {
		if yes {
			return "True"
		}
		return "False"
	}
	out = append(out,
		c.condition(was, "RayClusterSuspending", state(suspended && pods > 0), "RayClusterSuspending", ""),
		c.condition(was, "RayClusterSuspended", state(suspended && pods == 0), "RayClusterSuspended", ""))
	return out
}

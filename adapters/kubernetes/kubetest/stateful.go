package kubetest

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
)

// statefulSet has one pod for each of its ordinals, the first ones first.
func (c *Cluster) statefulSet(s *object) {
	if s.deleting() {
		return
	}
	t := c.store.core("apps", "v1", "statefulsets")
	revision := s.name + "-" + hashOf(sub(s.tree, "spec", "template"))
	begin := int(number(s.tree, 0, "spec", "ordinals", "start"))
	count := int(number(s.tree, 1, "spec", "replicas"))
	have := map[string]*object{}
	for _, p := range c.store.dependents(s.uid(), c.pods()) {
		have[p.name] = p
	}
	parallel := text(s.tree, "spec", "podManagementPolicy") == "Parallel"
	refused := false
	for i := begin; i < begin+count; i++ {
		name := s.name + "-" + strconv.Itoa(i)
		p := have[name]
		switch {
		case p == nil:
			refused = !c.ordinal(t, s, name, i, revision)
		case ended(p) && !p.deleting():
			c.erase(ref{c.pods(), p.key}, deletion{grace: 0})
		}
		if !parallel && (p == nil || !ready(p)) {
			break
		}
	}
	c.surplus(s, have, begin, count, revision)
	c.statefulStatus(t, s, revision, refused)
}

// surplus deletes the pods that should not be, the last ones first, and one of an earlier template when all of this one are ready.
func (c *Cluster) surplus(s *object, have map[string]*object, begin, count int, revision string) {
	ordered := slices.SortedFunc(maps.Values(have), func(a, b *object) int { return cmp.Compare(index(b), index(a)) })
	var stale *object
	waits := text(s.tree, "spec", "updateStrategy", "type") == "OnDelete"
	for _, p := range ordered {
		switch {
		case p.deleting():
			waits = true
		case index(p) < begin || index(p) >= begin+count:
			c.erase(ref{c.pods(), p.key}, deletion{grace: -1})
		case p.labels["controller-revision-hash"] == revision:
			waits = waits || !ready(p)
		case stale == nil:
			stale = p
		}
	}
	if stale != nil && !waits {
		c.erase(ref{c.pods(), stale.key}, deletion{grace: -1})
	}
}

// index gives the ordinal of a StatefulSet's pod, -1 if it has none.
func index(pod *object) int {
	i, err := strconv.Atoi(pod.labels["apps.kubernetes.io/pod-index"])
	if err != nil {
		return -1
	}
	return i
}

// ordinal makes one pod and its claims.
func (c *Cluster) ordinal(t *table, s *object, name string, i int, revision string) bool {
	claims := c.store.core("", "v1", "persistentvolumeclaims")
	var volumes []any
	for _, claim := range trees(list(s.tree, "spec", "volumeClaimTemplates")) {
		called := text(claim, "metadata", "name")
		volumes = append(volumes, tree{"name": called, "persistentVolumeClaim": tree{"claimName": called + "-" + name}})
		if claims.objects[key{s.namespace, called + "-" + name}] == nil {
			c.add(claims, tree{
				"metadata": tree{"name": called + "-" + name, "namespace": s.namespace, "labels": copied(sub(s.tree, "spec", "selector", "matchLabels"))},
				"spec":     copied(sub(claim, "spec")),
			})
		}
	}
	return c.podFrom(t, s, sub(s.tree, "spec", "template"), name, "", func(pod tree) {
		own := child(sub(pod, "metadata"), "labels")
		own["statefulset.kubernetes.io/pod-name"] = name
		own["apps.kubernetes.io/pod-index"] = strconv.Itoa(i)
		own["controller-revision-hash"] = revision
		spec := sub(pod, "spec")
		spec["hostname"] = name
		if service := text(s.tree, "spec", "serviceName"); service != "" {
			spec["subdomain"] = service
		}
		if len(volumes) > 0 {
			spec["volumes"] = append(volumes, list(spec, "volumes")...)
		}
	})
}

func (c *Cluster) statefulStatus(t *table, s *object, revision string, refused bool) {
	var total, isReady, updated int64
	for _, p := range c.store.dependents(s.uid(), c.pods()) {
		total++
		if ready(p) && !p.deleting() {
			isReady++
		}
		if text(p.tree, "metadata", "labels", "controller-revision-hash") == revision {
			updated++
		}
	}
	status := tree{
		"observedGeneration": number(s.tree, 1, "metadata", "generation"), "replicas": total, "availableReplicas": isReady,
		"updateRevision": revision, "currentRevision": text(s.tree, "status", "currentRevision"), "collisionCount": int64(0),
	}
	if updated == total || status["currentRevision"] == "" {
		status["currentRevision"] = revision
	}
	for name, n := range map[string]int64{"readyReplicas": isReady, "updatedReplicas": updated, "currentReplicas": updated} {
		if n > 0 {
			status[name] = n
		}
	}
	if refused {
		status["conditions"] = c.refusal(list(s.tree, "status", "conditions"))
	}
	c.status(t, s, status)
}

package kubetest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/util/rand"
)

func same(a, b tree) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

// hashOf names a pod template.
func hashOf(template tree) string {
	encoded, err := json.Marshal(template)
	if err != nil {
		panic(err) // it came from JSON
	}
	h := fnv.New32a()
	_, _ = h.Write(encoded) // never fails
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func ready(pod *object) bool {
	for _, t := range trees(list(pod.tree, "status", "conditions")) {
		if text(t, "type") == "Ready" {
			return text(t, "status") == "True"
		}
	}
	return false
}

// podFrom makes a pod of a template, for an owner. It tells whether it was let in.
func (c *Cluster) podFrom(t *table, owner *object, template tree, name, prefix string, change func(pod tree)) bool {
	if c.podRefusal != "" {
		return false
	}
	pod := tree{"metadata": tree{}, "spec": copied(sub(template, "spec"))}
	meta := sub(pod, "metadata")
	for _, field := range []string{"labels", "annotations"} {
		if m := sub(template, "metadata", field); m != nil {
			meta[field] = maps.Clone(m)
		}
	}
	for name == "" || c.pods().objects[key{owner.namespace, name}] != nil && prefix != "" {
		name = prefix + rand.String(5)
		meta["generateName"] = prefix
	}
	meta["name"], meta["namespace"], meta["ownerReferences"] = name, owner.namespace, ownedBy(t, owner)
	if change != nil {
		change(pod)
	}
	c.add(c.pods(), pod)
	return true
}

// refusal is the condition of an owner whose pods are refused, nil if they are not.
func (c *Cluster) refusal(was []any) []any {
	if c.podRefusal == "" {
		return nil
	}
	return []any{c.condition(was, "ReplicaFailure", "True", "FailedCreate", fmt.Sprintf("pods is forbidden: %s", c.podRefusal))}
}

// replicaSet has as many pods as it should.
func (c *Cluster) replicaSet(rs *object) {
	t := c.store.core("apps", "v1", "replicasets")
	var pods []*object
	for _, p := range c.store.dependents(rs.uid(), c.pods()) {
		if !p.deleting() && !ended(p) {
			pods = append(pods, p)
		}
	}
	want := int(number(rs.tree, 1, "spec", "replicas"))
	if rs.deleting() {
		want = len(pods)
	}
	missing := want - len(pods)
	made := 0
	for made < missing && c.podFrom(t, rs, sub(rs.tree, "spec", "template"), "", rs.name+"-", nil) {
		made++
	}
	if missing < 0 {
		slices.SortStableFunc(pods, first)
		for _, p := range pods[:-missing] {
			c.erase(ref{c.pods(), p.key}, deletion{grace: -1})
		}
		pods = pods[-missing:]
	}
	nReady := 0
	for _, p := range pods {
		if ready(p) {
			nReady++
		}
	}
	status := tree{"replicas": int64(len(pods) + made), "observedGeneration": number(rs.tree, 1, "metadata", "generation")}
	if nReady > 0 {
		status["readyReplicas"], status["availableReplicas"] = int64(nReady), int64(nReady)
		status["fullyLabeledReplicas"] = int64(len(pods) + made)
	}
	if made < missing {
		status["conditions"] = c.refusal(list(rs.tree, "status", "conditions"))
	}
	c.status(t, rs, status)
}

// first orders pods as a ReplicaSet deletes them: those without a node, not running, not ready, cheap to delete, often
// restarted and young before others.
func first(a, b *object) int {
	phases := map[string]int{"Pending": 0, "Unknown": 1, "Running": 2}
	truth := map[bool]int{true: 1}
	return cmp.Or(
		truth[text(a.tree, "spec", "nodeName") != ""]-truth[text(b.tree, "spec", "nodeName") != ""],
		phases[text(a.tree, "status", "phase")]-phases[text(b.tree, "status", "phase")],
		truth[ready(a)]-truth[ready(b)],
		cmp.Compare(cost(a), cost(b)),
		cmp.Compare(restarts(b), restarts(a)),
		cmp.Compare(b.born, a.born),
	)
}

func cost(pod *object) int {
	n, err := strconv.Atoi(text(pod.tree, "metadata", "annotations", "controller.kubernetes.io/pod-deletion-cost"))
	if err != nil {
		return 0
	}
	return n
}

func restarts(pod *object) int64 {
	var n int64
	for _, s := range trees(list(pod.tree, "status", "containerStatuses")) {
		n = max(n, number(s, 0, "restartCount"))
	}
	return n
}

// deployment has one ReplicaSet for its template; those of earlier templates give way as its pods become ready.
func (c *Cluster) deployment(d *object) {
	sets := c.store.core("apps", "v1", "replicasets")
	t := c.store.core("apps", "v1", "deployments")
	want := number(d.tree, 1, "spec", "replicas")
	hash := hashOf(sub(d.tree, "spec", "template"))
	var current *object
	var old []*object
	for _, rs := range c.store.dependents(d.uid(), sets) {
		if text(rs.tree, "metadata", "labels", "pod-template-hash") == hash {
			current = rs
		} else {
			old = append(old, rs)
		}
	}
	recreate := text(d.tree, "spec", "strategy", "type") == "Recreate"
	target := want
	left := int64(0)
	for _, rs := range old {
		left += int64(len(c.store.dependents(rs.uid(), c.pods())))
	}
	if recreate && left > 0 {
		target = 0
	}
	switch {
	case d.deleting():
		return
	case current == nil:
		c.firstSet(sets, t, d, hash, target, len(old))
		return // its status brings us back
	case number(current.tree, 0, "spec", "replicas") != target:
		c.resize(sets, current, target)
		return
	}
	isReady := number(current.tree, 0, "status", "readyReplicas")
	for _, rs := range old {
		keep := max(0, want-isReady)
		if recreate {
			keep = 0
		}
		if have := number(rs.tree, 0, "spec", "replicas"); have > keep {
			c.resize(sets, rs, keep)
		}
	}
	c.deploymentStatus(t, d, current, old)
}

func (c *Cluster) firstSet(sets, t *table, d *object, hash string, replicas int64, before int) {
	template := copyTree(sub(d.tree, "spec", "template"))
	child(child(template, "metadata"), "labels")["pod-template-hash"] = hash
	selector := copyTree(sub(d.tree, "spec", "selector"))
	child(selector, "matchLabels")["pod-template-hash"] = hash
	c.add(sets, tree{
		"metadata": tree{
			"name": d.name + "-" + hash, "namespace": d.namespace, "ownerReferences": ownedBy(t, d),
			"labels":      copied(sub(template, "metadata", "labels")),
			"annotations": tree{"deployment.kubernetes.io/revision": strconv.Itoa(before + 1)},
		},
		"spec": tree{"replicas": replicas, "selector": selector, "template": template},
	})
}

func (c *Cluster) resize(t *table, o *object, replicas int64) {
	next := with(o.draft(), replicas, "spec", "replicas")
	sub(next, "metadata")["generation"] = number(o.tree, 1, "metadata", "generation") + 1
	c.store.put(t, next)
}

func (c *Cluster) deploymentStatus(t *table, d, current *object, old []*object) {
	want := number(d.tree, 1, "spec", "replicas")
	updated := number(current.tree, 0, "status", "replicas")
	isReady := number(current.tree, 0, "status", "readyReplicas")
	total, allReady := updated, isReady
	for _, rs := range old {
		total += number(rs.tree, 0, "status", "replicas")
		allReady += number(rs.tree, 0, "status", "readyReplicas")
	}
	status := tree{"observedGeneration": number(d.tree, 1, "metadata", "generation")}
	for name, n := range map[string]int64{
		"replicas": total, "updatedReplicas": updated, "readyReplicas": allReady, "availableReplicas": allReady, "unavailableReplicas": max(0, want-allReady),
	} {
		if n > 0 {
			status[name] = n
		}
	}
	was := list(d.tree, "status", "conditions")
	available := c.condition(was, "Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	if allReady >= want-want/4 {
		available = c.condition(was, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
	}
	progress := c.condition(was, "Progressing", "True", "ReplicaSetUpdated", fmt.Sprintf("ReplicaSet %q is progressing.", current.name))
	if isReady >= want {
		progress = c.condition(was, "Progressing", "True", "NewReplicaSetAvailable", fmt.Sprintf("ReplicaSet %q has successfully progressed.", current.name))
	}
	conditions := []any{available, progress}
	if failing := list(current.tree, "status", "conditions"); len(failing) > 0 {
		conditions = append(conditions, failing...)
	}
	status["conditions"] = conditions
	c.status(t, d, status)
}

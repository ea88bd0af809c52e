package kubetest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
)

// node adds a machine.
func (c *Cluster) node(n Node) {
	counted := tree{"pods": "1000000"}
	for name, q := range n.Resources {
		counted[name] = q
	}
	if n.GPUs > 0 {
		name := n.Resource
		if name == "" {
			name = "nvidia.com/gpu"
		}
		counted[name] = strconv.Itoa(n.GPUs)
	}
	named := tree{"kubernetes.io/hostname": n.Name}
	for k, v := range n.Labels {
		named[k] = v
	}
	o := tree{
		"metadata": tree{"name": n.Name, "labels": named}, "spec": tree{},
		"status": tree{"capacity": counted, "allocatable": copied(counted), "conditions": []any{
			tree{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"},
		}},
	}
	var taints []any
	for _, t := range n.Taints {
		taints = append(taints, tree{"key": t.Key, "value": t.Value, "effect": string(t.Effect)})
	}
	if len(taints) > 0 {
		sub(o, "spec")["taints"] = taints
	}
	c.add(c.store.core("", "v1", "nodes"), o)
}

// requests gives what a pod asks for of each resource, in thousandths.
func requests(spec tree) map[string]int64 {
	out := map[string]int64{}
	for _, c := range trees(list(spec, "containers")) {
		for name, q := range sub(c, "resources", "requests") {
			out[name] += milli(q)
		}
	}
	for _, c := range trees(list(spec, "initContainers")) {
		for name, q := range sub(c, "resources", "requests") {
			if text(c, "restartPolicy") == "Always" {
				out[name] += milli(q)
			} else {
				out[name] = max(out[name], milli(q))
			}
		}
	}
	return out
}

func milli(quantity any) int64 {
	q, err := resource.ParseQuantity(fmt.Sprint(quantity))
	if err != nil {
		return 0
	}
	return q.MilliValue()
}

// takesRoom tells whether a pod uses its node's resources.
func takesRoom(o *object) bool {
	return o != nil && text(o.tree, "spec", "nodeName") != "" && !ended(o)
}

func ended(o *object) bool {
	phase := text(o.tree, "status", "phase")
	return phase == "Failed" || phase == "Succeeded"
}

// account keeps what is used of each node.
func (c *Cluster) account(old, now *object) {
	if takesRoom(old) == takesRoom(now) {
		return
	}
	o, sign := now, int64(1)
	if takesRoom(old) {
		o, sign = old, -1
		defer c.retry()
	}
	node := text(o.tree, "spec", "nodeName")
	if c.used[node] == nil {
		c.used[node] = map[string]int64{}
	}
	for name, n := range requests(sub(o.tree, "spec")) {
		c.used[node][name] += sign * n
	}
}

// retry has the scheduler look again at the pods that wait.
func (c *Cluster) retry() {
	for at := range c.waiting {
		c.enqueue(ref{c.pods(), at})
	}
}

// schedule gives a pod a node, or says why it can't.
func (c *Cluster) schedule(pod *object) {
	nodes := c.store.core("", "v1", "nodes")
	why := map[string]int{}
	best, free := "", int64(-1)
	for _, at := range slices.SortedFunc(maps.Keys(nodes.objects), key.compare) {
		reasons, room := c.fits(pod, nodes.objects[at])
		for _, r := range reasons {
			why[r]++
		}
		if len(reasons) == 0 && room > free {
			best, free = at.name, room
		}
	}
	if claim := c.missingClaim(pod); claim != "" {
		best, why = "", map[string]int{fmt.Sprintf("persistentvolumeclaim %q not found", claim): 0}
	}
	if best != "" {
		delete(c.waiting, pod.key)
		c.bind(pod, best)
		return
	}
	c.waiting[pod.key] = true
	status := maps.Clone(sub(pod.tree, "status"))
	status["conditions"] = []any{c.condition(list(status, "conditions"), "PodScheduled", "False", "Unschedulable", unschedulable(len(nodes.objects), why))}
	c.status(c.pods(), pod, status)
}

// unschedulable says why no node takes a pod, as the scheduler does.
func unschedulable(nodes int, why map[string]int) string {
	if nodes == 0 {
		return "no nodes available to schedule pods"
	}
	var reasons []string
	insufficient := 0
	for reason, n := range why {
		if n == 0 {
			reasons = append(reasons, reason)
			continue
		}
		reasons = append(reasons, fmt.Sprintf("%d %s", n, reason))
		if strings.HasPrefix(reason, "Insufficient") {
			insufficient = max(insufficient, n)
		}
	}
	slices.Sort(reasons)
	said := fmt.Sprintf("0/%d nodes are available: %s. ", nodes, strings.Join(reasons, ", "))
	var preempt []string
	if insufficient > 0 {
		preempt = append(preempt, fmt.Sprintf("%d No preemption victims found for incoming pod", insufficient))
	}
	if rest := nodes - insufficient; rest > 0 {
		preempt = append(preempt, fmt.Sprintf("%d Preemption is not helpful for scheduling", rest))
	}
	return said + fmt.Sprintf("preemption: 0/%d nodes are available: %s.", nodes, strings.Join(preempt, ", "))
}

func (c *Cluster) missingClaim(pod *object) string {
	claims := c.store.core("", "v1", "persistentvolumeclaims")
	for _, v := range trees(list(pod.tree, "spec", "volumes")) {
		if claim := text(v, "persistentVolumeClaim", "claimName"); claim != "" && claims.objects[key{pod.namespace, claim}] == nil {
			return claim
		}
	}
	return ""
}

// fits tells why a pod can't be on a node, and how many GPUs would be left of those that it can be on.
func (c *Cluster) fits(pod, node *object) (reasons []string, room int64) {
	spec := sub(pod.tree, "spec")
	switch {
	case flag(node.tree, "spec", "unschedulable"):
		return []string{"node(s) were unschedulable"}, 0
	case !selectsNode(spec, node):
		return []string{"node(s) didn't match Pod's node affinity/selector"}, 0
	}
	if c.lost[node.name] {
		return []string{"node(s) had untolerated taint {node.kubernetes.io/unreachable: }"}, 0
	}
	if t := untolerated(spec, node); t != nil {
		return []string{fmt.Sprintf("node(s) had untolerated taint {%s: %s}", text(t, "key"), text(t, "value"))}, 0
	}
	allocatable := sub(node.tree, "status", "allocatable")
	for name, n := range requests(spec) {
		has, counted := allocatable[name]
		if !counted && !strings.Contains(name, "/") {
			continue
		}
		left := milli(has) - c.used[node.name][name] - n
		if left < 0 {
			reasons = append(reasons, "Insufficient "+name)
		}
		if strings.Contains(name, "/") {
			room = max(room, left)
		}
	}
	return reasons, room
}

func untolerated(spec tree, node *object) tree {
	for _, taint := range trees(list(node.tree, "spec", "taints")) {
		if text(taint, "effect") == string(corev1.TaintEffectPreferNoSchedule) {
			continue
		}
		if !slices.ContainsFunc(trees(list(spec, "tolerations")), func(t tree) bool {
			return (text(t, "key") == "" || text(t, "key") == text(taint, "key")) &&
				(text(t, "effect") == "" || text(t, "effect") == text(taint, "effect")) &&
				(text(t, "operator") == "Exists" || text(t, "value") == text(taint, "value"))
		}) {
			return taint
		}
	}
	return nil
}

// selectsNode tells whether a pod's nodeSelector and required node affinity take a node.
func selectsNode(spec tree, node *object) bool {
	set := node.labels
	for k, v := range texts(sub(spec, "nodeSelector")) {
		if set[k] != v {
			return false
		}
	}
	required := sub(spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
	if required == nil {
		return true
	}
	var typed corev1.NodeSelector
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(required, &typed); err != nil {
		return false
	}
	return slices.ContainsFunc(typed.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		for _, e := range term.MatchExpressions {
			operators := map[corev1.NodeSelectorOperator]selection.Operator{
				"In": selection.In, "NotIn": selection.NotIn, "Exists": selection.Exists, "DoesNotExist": selection.DoesNotExist,
				"Gt": selection.GreaterThan, "Lt": selection.LessThan,
			}
			r, err := labels.NewRequirement(e.Key, operators[e.Operator], e.Values)
			if err != nil || !r.Matches(set) {
				return false
			}
		}
		return true
	})
}

// bind places a pod.
func (c *Cluster) bind(pod *object, node string) {
	next := with(pod.draft(), node, "spec", "nodeName")
	status := maps.Clone(sub(pod.tree, "status"))
	if status == nil {
		status = tree{}
	}
	status["conditions"] = []any{c.condition(list(status, "conditions"), "PodScheduled", "True", "", "")}
	next["status"] = status
	c.store.put(c.pods(), next)
}

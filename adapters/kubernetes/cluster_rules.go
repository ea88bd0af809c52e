package kubernetes

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/mobula-serve/mobula/kube"
)

// Rules are what a Cluster has to be allowed in the namespace of its engines: those of its own, and of the objects of these workloads.
// Default: Deployments and StatefulSets.
func Rules(workloads ...kube.Workload) []rbacv1.PolicyRule {
	if len(workloads) == 0 {
		workloads = []kube.Workload{Deployments{}, StatefulSets{}}
	}
	all := []rbacv1.PolicyRule{
		rule("", "pods", "get", "list", "watch", "patch", "delete"),
		rule("", "pods/log", "get"),
		rule("", "configmaps", "get", "list", "watch", "create", "update", "delete"),
		rule("", "persistentvolumeclaims", "create", "get"),
	}
	made := map[string]bool{}
	for _, gvr := range append(resourcesOf(workloads), budgets()) {
		if !made[gvr.String()] {
			made[gvr.String()] = true
			all = append(all, rule(gvr.Group, gvr.Resource, "get", "list", "watch", "create", "patch", "delete"))
		}
	}
	return all
}

// NodeRules are what it may be allowed in the whole cluster: to show the nodes, and to cordon them. It works without.
func NodeRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{rule("", "nodes", "get", "list", "watch", "patch")}
}

func rule(group, resource string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
}

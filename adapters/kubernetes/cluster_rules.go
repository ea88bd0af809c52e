package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
		rule("", "persistentvolumeclaims", "create"),
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

// Permitted fails unless all of the rules, of one resource and no more than one name each, are granted to us in the connection's namespace. It
// names what is not.
func Permitted(ctx context.Context, c *Connection, rules []rbacv1.PolicyRule) error {
	var (
		mu      sync.Mutex
		missing = map[string][]string{}
		g       errgroup.Group
	)
	g.SetLimit(workers)
	for _, r := range rules {
		for _, verb := range r.Verbs {
			resource, sub, _ := strings.Cut(r.Resources[0], "/")
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: c.Namespace, Verb: verb, Group: r.APIGroups[0], Resource: resource, Subresource: sub,
				},
			}}
			if len(r.ResourceNames) > 0 {
				review.Spec.ResourceAttributes.Name = r.ResourceNames[0]
			}
			g.Go(func() error {
				answer, err := c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
				if err != nil {
					return err
				}
				if !answer.Status.Allowed {
					mu.Lock()
					defer mu.Unlock()
					missing[resourceName(r)] = append(missing[resourceName(r)], verb)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return Explain(err)
	}
	if len(missing) == 0 {
		return nil
	}
	var all []string
	for name, verbs := range missing {
		slices.Sort(verbs)
		all = append(all, strings.Join(verbs, ", ")+" "+name)
	}
	slices.Sort(all)
	return fmt.Errorf("missing rights in namespace %s: %s: grant them by a Role and a RoleBinding there (the chart makes both with rbac.create; kubectl auth can-i --list shows what there is)",
		c.Namespace, strings.Join(all, "; "))
}

// resourceName is what people call a rule's resource.
func resourceName(r rbacv1.PolicyRule) string {
	name := r.Resources[0]
	if r.APIGroups[0] != "" {
		name += "." + r.APIGroups[0]
	}
	return strings.Join(append([]string{name}, r.ResourceNames...), "/")
}

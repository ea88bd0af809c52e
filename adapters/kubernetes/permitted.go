package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Permitted fails unless all of the rules, of one resource and no more than one name each, are granted to us in the connection's namespace. It
// names what is not.
func Permitted(ctx context.Context, c *Connection, rules []rbacv1.PolicyRule) error {
	granted, err := grantedRules(ctx, c)
	if err != nil {
		return Explain(err)
	}
	var (
		mu      sync.Mutex
		missing = map[string][]string{}
		g       errgroup.Group
	)
	g.SetLimit(workers)
	for _, r := range rules {
		for _, verb := range r.Verbs {
			if slices.ContainsFunc(granted, func(has authorizationv1.ResourceRule) bool { return grants(&has, &r, verb) }) {
				continue
			}
			g.Go(func() error {
				ok, err := allowed(ctx, c, &r, verb)
				if err == nil && !ok {
					mu.Lock()
					defer mu.Unlock()
					missing[resourceName(r)] = append(missing[resourceName(r)], verb)
				}
				return err
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

// grantedRules lists what we may in the connection's namespace, as far as the API server can list it: not all authorizers can, and what is not
// listed may be allowed all the same. The error is that of an API server that does not answer.
func grantedRules(ctx context.Context, c *Connection) ([]authorizationv1.ResourceRule, error) {
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: c.Namespace}}
	answer, err := c.Client.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, review, metav1.CreateOptions{})
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return answer.Status.ResourceRules, nil
}

// grants tells whether a rule that we have covers a verb of one that we need.
func grants(has *authorizationv1.ResourceRule, need *rbacv1.PolicyRule, verb string) bool {
	covers := func(all []string, one string) bool {
		return slices.Contains(all, one) || slices.Contains(all, rbacv1.ResourceAll)
	}
	resource := need.Resources[0]
	_, sub, _ := strings.Cut(resource, "/")
	return covers(has.Verbs, verb) && covers(has.APIGroups, need.APIGroups[0]) &&
		(covers(has.Resources, resource) || sub != "" && slices.Contains(has.Resources, "*/"+sub)) &&
		(len(has.ResourceNames) == 0 || len(need.ResourceNames) > 0 && slices.Contains(has.ResourceNames, need.ResourceNames[0]))
}

// allowed asks whether we have the right to one verb of a rule.
func allowed(ctx context.Context, c *Connection, r *rbacv1.PolicyRule, verb string) (bool, error) {
	resource, sub, _ := strings.Cut(r.Resources[0], "/")
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: c.Namespace, Verb: verb, Group: r.APIGroups[0], Resource: resource, Subresource: sub,
		},
	}}
	if len(r.ResourceNames) > 0 {
		review.Spec.ResourceAttributes.Name = r.ResourceNames[0]
	}
	answer, err := c.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}

// resourceName is what people call a rule's resource.
func resourceName(r rbacv1.PolicyRule) string {
	name := r.Resources[0]
	if r.APIGroups[0] != "" {
		name += "." + r.APIGroups[0]
	}
	return strings.Join(append([]string{name}, r.ResourceNames...), "/")
}

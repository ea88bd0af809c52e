package chart_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mobula-serve/mobula/adapters/kuberay"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/kube"
	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
)

// rights gives what rules allow: verbs by group/resource, those on named objects left out.
func rights(rules []rbacv1.PolicyRule) map[string][]string {
	all := map[string][]string{}
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				if len(r.ResourceNames) == 0 {
					key := group + "/" + resource
					all[key] = append(all[key], r.Verbs...)
					slices.Sort(all[key])
					all[key] = slices.Compact(all[key])
				}
			}
		}
	}
	return all
}

func roleOf(t *testing.T, out rendering, key string) []rbacv1.PolicyRule {
	t.Helper()
	require.Contains(t, out.Objects, key)
	var rules []rbacv1.PolicyRule
	for _, each := range at(out.Objects[key], "rules").([]any) {
		rules = append(rules, rbacv1.PolicyRule{
			APIGroups: words(at(each, "apiGroups")), Resources: words(at(each, "resources")),
			ResourceNames: words(at(each, "resourceNames")), Verbs: words(at(each, "verbs")),
		})
	}
	return rules
}

func words(list any) []string {
	var out []string
	all, _ := list.([]any)
	for _, each := range all {
		out = append(out, each.(string))
	}
	return out
}

// The control plane may do what the code asks for, and beside it what is listed here: not a right more.
func TestTheControlPlaneMayDoWhatItHasTo(t *testing.T) {
	read := []string{"get", "list", "watch"}
	more := map[string][]string{
		"discovery.k8s.io/endpointslices": read,
		"/services":                       read, // platform discover by services
		"/events":                         {"create", "patch"},
		"mobula.dev/fleets":               {"create", "delete", "get", "list", "patch", "watch"},
		"mobula.dev/models":               {"create", "delete", "get", "list", "patch", "watch"},
		"mobula.dev/loras":                {"create", "delete", "get", "list", "patch", "watch"},
		"mobula.dev/fleets/status":        {"patch"},
		"mobula.dev/models/status":        {"patch"},
		"mobula.dev/loras/status":         {"patch"},
	}
	for _, c := range []struct {
		name, values string
		workloads    []kube.Workload
	}{
		{"kubernetes", "platform: {kubernetes: {}}", nil},
		{"kuberay", "platform: {kuberay: {}}", []kube.Workload{kubernetes.Deployments{}, kubernetes.StatefulSets{}, kuberay.New()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := render(t, c.values)
			require.NoError(t, err)
			want := rights(kubernetes.Rules(c.workloads...))
			for key, verbs := range more {
				want[key] = append(want[key], verbs...)
				slices.Sort(want[key])
				want[key] = slices.Compact(want[key])
			}
			require.Empty(t, cmp.Diff(want, rights(roleOf(t, out, "Role/mobula-control"))))
			require.Empty(t, cmp.Diff(rights(kubernetes.NodeRules()), rights(roleOf(t, out, "ClusterRole/llm:mobula:nodes"))))
		})
	}
}

func TestTheRouterOnlyReads(t *testing.T) {
	out, err := render(t, "platform: {kuberay: {kubernetes: {discover: [{selector: a=b, namespaces: ['*']}]}}}")
	require.NoError(t, err)
	for _, key := range []string{"Role/mobula-router", "ClusterRole/llm:mobula:discover"} {
		for _, rule := range roleOf(t, out, key) {
			require.Subset(t, []string{"get", "list", "watch"}, rule.Verbs, key)
			if slices.Contains(rule.Resources, "secrets") {
				require.Equal(t, []string{"mobula-router"}, rule.ResourceNames, "not mobula-control: whoever has that may do all")
			}
		}
	}
}

// requireSecretsByName fails when a role lets anybody read Secrets as a whole.
func requireSecretsByName(t *testing.T, out rendering) {
	t.Helper()
	for key := range out.Objects {
		if kind, _, _ := strings.Cut(key, "/"); kind != "Role" && kind != "ClusterRole" {
			continue
		}
		for _, rule := range roleOf(t, out, key) {
			if slices.Contains(rule.Resources, "secrets") {
				require.NotEmpty(t, rule.ResourceNames, key)
			}
		}
	}
}

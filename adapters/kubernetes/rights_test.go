package kubernetes

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

// told waits for a problem that has these words.
func (l *lab) told(words string) {
	l.t.Helper()
	l.await("a problem: "+words, func() bool {
		return slices.ContainsFunc(l.Problems(), func(p string) bool { return strings.Contains(p, words) })
	})
}

func TestEachRightThatIsMissingIsNamed(t *testing.T) {
	cube := kubetest.New(kubetest.Options{Namespaces: []string{testSpace}})
	t.Cleanup(cube.Close)
	c, err := New(Options{Client: cube.Client(), Dynamic: cube.Dynamic(), Namespace: testSpace})
	require.NoError(t, err)
	configure := func() error { return c.Configure(t.Context(), testFleet, onKubernetes(), true) }
	require.NoError(t, configure())
	for _, r := range Rules() {
		for _, verb := range r.Verbs {
			t.Run(verb+" "+resourceName(r), func(t *testing.T) {
				cube.Deny(verb, r.Resources[0])
				defer cube.Allow(verb, r.Resources[0])
				err := configure()
				require.ErrorContains(t, err, "missing rights in namespace "+testSpace+": "+verb+" "+resourceName(r)+":")
				require.NotErrorIs(t, err, adapters.ErrUnavailable, "it is an answer, not an outage")
			})
		}
	}
	for _, r := range Rules() {
		cube.Deny("*", r.Resources[0])
	}
	err = configure()
	for _, r := range Rules() {
		all := slices.Sorted(slices.Values(r.Verbs))
		require.ErrorContains(t, err, strings.Join(all, ", ")+" "+resourceName(r))
	}
	for _, r := range append(Rules(), NodeRules()...) {
		require.NotContains(t, r.Verbs, rbacv1.VerbAll)
		require.NotContains(t, r.Resources, rbacv1.ResourceAll)
	}
}

// TestRightsAreAskedForAtOnce: one request lists what we may; only what it leaves open is asked for by itself.
func TestRightsAreAskedForAtOnce(t *testing.T) {
	const list, each = "create selfsubjectrulesreviews", "create selfsubjectaccessreviews"
	verbs := 0
	for _, r := range Rules() {
		verbs += len(r.Verbs)
	}
	for _, test := range []struct {
		name string
		with func(c *kubetest.Cluster)
		each int
		err  string
	}{
		{"all is granted", func(*kubetest.Cluster) {}, 0, ""},
		{"all is granted one by one", func(c *kubetest.Cluster) { c.Deny("get", "secrets") }, 0, ""},
		{"two rights are missing", func(c *kubetest.Cluster) { c.Deny("get", "pods/log"); c.Deny("list", "pods") }, 2, "get pods/log; list pods"},
		{"the list may not be asked for", func(c *kubetest.Cluster) { c.Deny("create", "selfsubjectrulesreviews") }, verbs, ""},
		{"there is no list", func(c *kubetest.Cluster) { c.Fail("create", "selfsubjectrulesreviews", http.StatusNotFound, 1) }, verbs, ""},
		{"lists are not supported", func(c *kubetest.Cluster) { c.Fail("create", "selfsubjectrulesreviews", http.StatusMethodNotAllowed, 1) }, verbs, ""},
		{"no list, and a right is missing", func(c *kubetest.Cluster) { c.Deny("create", "selfsubjectrulesreviews"); c.Deny("patch", "pods") }, verbs, "patch pods"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cube := kubetest.New(kubetest.Options{Namespaces: []string{testSpace}})
			t.Cleanup(cube.Close)
			test.with(cube)
			err := Permitted(t.Context(), &Connection{Client: cube.Client(), Namespace: testSpace}, Rules())
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, "missing rights in namespace "+testSpace+": "+test.err+":")
			}
			require.Equal(t, 1, cube.Calls()[list])
			require.Equal(t, test.each, cube.Calls()[each])
		})
	}
	cube := kubetest.New(kubetest.Options{})
	t.Cleanup(cube.Close)
	cube.Down(true)
	require.ErrorIs(t, Permitted(t.Context(), &Connection{Client: cube.Client(), Namespace: testSpace}, Rules()), adapters.ErrUnavailable)
}

func TestARuleGrantsWhatItCoversAndNoMore(t *testing.T) {
	need := rule("apps", "deployments", "get")
	named, log := rule("", "secrets", "get"), rule("", "pods/log", "get")
	named.ResourceNames = []string{"state"}
	has := func(verbs, groups, resources string, names ...string) authorizationv1.ResourceRule {
		split := func(s string) []string { return strings.Split(s, ",") }
		return authorizationv1.ResourceRule{Verbs: split(verbs), APIGroups: split(groups), Resources: split(resources), ResourceNames: names}
	}
	for _, test := range []struct {
		name string
		has  authorizationv1.ResourceRule
		need rbacv1.PolicyRule
		want bool
	}{
		{"the same", has("get", "apps", "deployments"), need, true},
		{"one of several", has("list,get", ",apps", "statefulsets,deployments"), need, true},
		{"everything", has("*", "*", "*"), need, true},
		{"another verb", has("list", "apps", "deployments"), need, false},
		{"another group", has("get", "", "deployments"), need, false},
		{"another resource", has("get", "apps", "statefulsets"), need, false},
		{"a subresource of it", has("get", "apps", "deployments/status"), need, false},
		{"one object of it", has("get", "apps", "deployments", "chat"), need, false},
		{"the object that is needed", has("get", "", "secrets", "other", "state"), named, true},
		{"another object", has("get", "", "secrets", "other"), named, false},
		{"all objects", has("get", "", "secrets"), named, true},
		{"the subresource", has("get", "", "pods/log"), log, true},
		{"that subresource of all", has("get", "", "*/log"), log, true},
		{"another one of all", has("get", "", "*/status"), log, false},
		{"the resource without it", has("get", "", "pods"), log, false},
		{"all of the group", has("get", "", "*"), log, true},
		{"nothing", authorizationv1.ResourceRule{}, need, false},
	} {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.want, grants(&test.has, &test.need, "get")) })
	}
}

// TestRightsThatAreTakenAway: what can no longer be done is said with the right that it needs, and done when the right is there again.
func TestRightsThatAreTakenAway(t *testing.T) {
	grow := func(l *lab) error { return l.Apply(l.t.Context(), deployment("chat", "r1", 2)) }
	other := func(l *lab) error { return l.Apply(l.t.Context(), deployment("chat", "r2", 1)) }
	removed := func(l *lab) error { return l.Remove(l.t.Context(), deployment("chat", "r1", 0).Key) }
	drained := func(l *lab) error { return l.Apply(l.t.Context(), deployment("chat", "r1", 1, l.pods()...)) }
	evicted := func(l *lab) error { return l.cube.Evict(testSpace, l.pods()[0]) }
	for _, test := range []struct {
		name, verb, resource string
		does                 func(l *lab) error
		refused              bool // at once: the wish could not be written down
		where                string
		done                 func(l *lab) bool
	}{
		{
			"a record that is new", "create", "configmaps", other, true, "configmaps", func(l *lab) bool { return len(l.replicas()) == 2 },
		},
		{
			"a record that changes", "update", "configmaps", grow, true, "configmaps", func(l *lab) bool { return len(l.replicas()) == 2 },
		},
		{
			"a Deployment that is new", "patch", "deployments", other, false, "deployments.apps", func(l *lab) bool { return len(l.replicas()) == 2 },
		},
		{
			"a Deployment that grows", "patch", "deployments", grow, false, "deployments.apps", func(l *lab) bool { return len(l.replicas()) == 2 },
		},
		{
			"a Deployment that goes", "delete", "deployments", removed, false, "deployments.apps", func(l *lab) bool { return len(l.pods()) == 0 },
		},
		{
			"a record that goes", "delete", "configmaps", removed, false, "configmaps",
			func(l *lab) bool { return len(l.cube.Objects("configmaps", testSpace, labelRecord)) == 0 },
		},
		{
			"a mark on a pod", "patch", "pods", drained, false, "pods", func(l *lab) bool { return l.draining(l.pods()[0]) },
		},
		{
			"a pod that has ended", "delete", "pods", evicted, false, "pods", func(l *lab) bool { return len(l.pods()) == 1 },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, _ := one(t, kubetest.Options{})
			l.quiet()
			l.cube.Deny(test.verb, test.resource)
			err := test.does(l)
			want := "service account default/mobula may not " + test.verb + " " + test.where + " in namespace " + testSpace
			if test.refused {
				require.ErrorContains(t, err, want)
				require.NotErrorIs(t, err, adapters.ErrUnavailable)
				l.cube.Allow(test.verb, test.resource)
				require.NoError(t, test.does(l))
			} else {
				require.NoError(t, err)
				l.told(want)
				l.cube.Allow(test.verb, test.resource)
			}
			l.await("it is done", func() bool { return test.done(l) })
			l.await("no problem any more", func() bool { return len(l.Problems()) == 0 })
		})
	}
}

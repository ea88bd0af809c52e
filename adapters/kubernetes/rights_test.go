package kubernetes

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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

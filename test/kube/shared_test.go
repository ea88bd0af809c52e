//go:build linux && kube

package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/ray"
)

// shared is a release whose engines run in a RayCluster of others: theirs, of real Ray, as KubeRay starts it.
type shared struct{ *release }

func (on *realSuite) testSharedRay(t *testing.T) {
	c := on.Cluster
	c.KubeRay(t)
	s := shared{&release{Cluster: c, namespace: c.Namespace(t), values: filepath.Join("testdata", "values-shared.yaml")}}
	s.addRayCluster(t, on)
	s.helm(t, "install")
	t.Cleanup(func() {
		if _, err := c.run(context.WithoutCancel(t.Context()), "", "helm", "uninstall", "mobula", "--namespace", s.namespace, "--ignore-not-found", "--no-hooks"); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	s.router = "http://" + c.Address(t, s.namespace, "mobula-router")
	t.Run("engines are actors on its nodes", func(t *testing.T) {
		s.runs(t, 2)
		st := s.state(t)
		require.Len(t, st.Nodes, 2)
		require.NotEqual(t, st.Actors[0].NodeID, st.Actors[1].NodeID)
		require.Empty(t, s.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name"), "there are no pods for them")
		require.Regexp(t, `(?m)^mobula-sim +mobula-sim +2/2 +Complete`, s.kubectl(t, "get", "models"))
	})
	t.Run("scaled under load", func(t *testing.T) {
		l := s.load(t, true)
		l.more(20)
		s.kubectl(t, "scale", "model/"+model, "--replicas", "1")
		s.runs(t, 1)
		s.kubectl(t, "scale", "model/"+model, "--replicas", "2")
		s.runs(t, 2)
		l.more(20)
		l.end()
	})
	t.Run("the head is made anew", s.testHeadLost)
	t.Run("the RayCluster outlives the release", s.testUninstalled)
}

// addRayCluster makes the RayCluster and waits for all of it.
func (s shared) addRayCluster(t *testing.T, on *realSuite) {
	t.Helper()
	mounts, volumes := machine(t, [2]string{on.python, on.python}, [2]string{on.ray, on.ray})
	text := func(v any) string {
		out, err := json.Marshal(v)
		require.NoError(t, err)
		return string(out)
	}
	content, err := os.ReadFile(filepath.Join("testdata", "raycluster-shared.yaml"))
	require.NoError(t, err)
	s.Apply(t, s.namespace, strings.NewReplacer("@IMAGE@", s.image, "@RAY@", on.ray, "@MOUNTS@", text(mounts), "@VOLUMES@", text(volumes)).Replace(string(content)))
	s.kubectl(t, "wait", "--for=jsonpath={.status.state}=ready", "raycluster/theirs", "--timeout", deadline.String())
}

// tryState asks the head that there is now, with the token that KubeRay has made, not the way Mobula does.
func (s shared) tryState(ctx context.Context) (*ray.State, error) {
	ip, err := s.TryKubectl(ctx, "--namespace", s.namespace, "get", "pods", "--selector", "ray.io/cluster=theirs,ray.io/node-type=head", "--output", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return nil, err
	}
	encoded, err := s.field(ctx, "secret/theirs", ".data.auth_token")
	if err != nil {
		return nil, err
	}
	token, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	d, err := ray.NewDashboard(ray.DashboardOptions{
		Address: "http://" + ip + ":8265",
		Token:   func() (mobula.Secret, error) { return mobula.Secret(token), nil },
	})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.State(ctx, "mobula")
}

func (s shared) state(t *testing.T) *ray.State {
	t.Helper()
	st, err := s.tryState(t.Context())
	require.NoError(t, err)
	return st
}

// runs waits until there are so many engines, as the Model and as Ray have it, and asks them.
func (s shared) runs(t *testing.T, replicas int) {
	t.Helper()
	s.Await(t, fmt.Sprintf("%d engines", replicas), func(ctx context.Context) error {
		said, err := s.field(ctx, "model/"+model, ".status.ready")
		if err != nil {
			return err
		}
		st, err := s.tryState(ctx)
		if err != nil {
			return err
		}
		waits := slices.ContainsFunc(st.Actors, func(a ray.Actor) bool { return a.State != "ALIVE" })
		if waits || said != fmt.Sprintf("%d/%[1]d", replicas) || len(st.Actors) != replicas || len(st.Groups) != replicas {
			return fmt.Errorf("ready are %s; Ray has actors %+v, groups %+v", said, st.Actors, st.Groups)
		}
		return nil
	})
	s.answered(t, model)
}

// testHeadLost deletes the head's pod: the operator makes another, which is another Ray cluster at another address.
func (s shared) testHeadLost(t *testing.T) {
	head := func() string {
		return s.kubectl(t, "get", "raycluster", "theirs", "--output", "jsonpath={.status.head}")
	}
	before, actors := head(), s.state(t).Actors
	s.kubectl(t, "delete", "pod", "--selector", "ray.io/cluster=theirs,ray.io/node-type=head", "--grace-period", "0", "--force")
	s.runs(t, 2)
	require.NotEqual(t, before, head())
	t.Logf("the head was %s and is %s", before, head())
	for _, a := range s.state(t).Actors {
		require.False(t, slices.ContainsFunc(actors, func(old ray.Actor) bool { return old.ID == a.ID }), "%s is of the old head's cluster", a.Name)
	}
}

// testUninstalled has the RayCluster be as it was before Mobula came.
func (s shared) testUninstalled(t *testing.T) {
	theirs := func() string {
		return s.kubectl(t, "get", "raycluster,secret,pod", "--selector", "ray.io/cluster=theirs", "--output", "jsonpath={.items[*].metadata.uid}") +
			s.kubectl(t, "get", "raycluster", "theirs", "--output", "jsonpath={.metadata.uid} {.spec}")
	}
	before := theirs()
	s.Helm(t, "uninstall", "mobula", "--namespace", s.namespace, "--wait", "--timeout", deadline.String())
	require.Equal(t, before, theirs())
	require.Empty(t, s.kubectl(t, "get", "models,fleets,deployments,leases", "--output", "name"))
	require.Empty(t, s.kubectl(t, "get", "pods", "--selector", "app.kubernetes.io/component=uninstall", "--output", "name"))
	st := s.state(t)
	require.Empty(t, st.Actors)
	require.Empty(t, st.Groups)
	require.Len(t, st.Nodes, 2)
}

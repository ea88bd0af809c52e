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

// shared is a release whose engines run in a RayCluster of others, of real Ray, as KubeRay starts it.
type shared struct {
	*release
	// theirs names the RayCluster that there is now.
	theirs func(ctx context.Context) (string, error)
}

func (on *realSuite) testSharedRay(t *testing.T) {
	s := on.shared(t, "values-shared.yaml")
	s.theirs = func(context.Context) (string, error) { return "theirs", nil }
	s.add(t, on, "raycluster-shared.yaml")
	s.kubectl(t, "wait", "--for=jsonpath={.status.state}=ready", "raycluster/theirs", "--timeout", deadline.String())
	s.installed(t)
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

// testSharedService is of a RayService, which makes another RayCluster at each change of what it is to be.
func (on *realSuite) testSharedService(t *testing.T) {
	s := on.shared(t, "values-shared-service.yaml")
	s.theirs = func(ctx context.Context) (string, error) {
		return s.field(ctx, "rayservice/theirs", ".status.activeServiceStatus.rayClusterName")
	}
	code, err := os.ReadFile(filepath.Join("testdata", "theirs.py"))
	require.NoError(t, err)
	file := filepath.Join(on.models, "theirs.py")
	require.NoError(t, os.WriteFile(file, code, 0o600))
	require.NoError(t, os.Chmod(file, 0o644))
	s.add(t, on, "rayservice-shared.yaml", "@EDITION@", "first")
	first := s.active(t, "")
	s.installed(t)
	s.runs(t, 1)
	l := s.load(t, false)
	s.add(t, on, "rayservice-shared.yaml", "@EDITION@", "second")
	second := s.active(t, first)
	s.runs(t, 1)
	s.kubectl(t, "wait", "--for=delete", "raycluster/"+first, "--timeout", deadline.String())
	l.more(20)
	l.end()
	t.Logf("the RayCluster was %s and is %s", first, second)
	s.uninstalled(t)
}

// active waits until the RayService has a RayCluster that serves, another than before.
func (s *shared) active(t *testing.T, before string) (name string) {
	t.Helper()
	s.Await(t, "the RayService serves", func(ctx context.Context) (err error) {
		if name, err = s.theirs(ctx); err == nil && (name == "" || name == before) {
			err = fmt.Errorf("it serves from %q", name)
		}
		return err
	})
	return name
}

func (on *realSuite) shared(t *testing.T, values string) *shared {
	t.Helper()
	on.KubeRay(t)
	return &shared{release: &release{Cluster: on.Cluster, namespace: on.Namespace(t), values: filepath.Join("testdata", values)}}
}

func (s *shared) installed(t *testing.T) {
	t.Helper()
	s.helm(t, "install")
	t.Cleanup(func() {
		if _, err := s.run(context.WithoutCancel(t.Context()), "", "helm", "uninstall", "mobula", "--namespace", s.namespace, "--ignore-not-found", "--no-hooks"); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	s.router = "http://" + s.Address(t, s.namespace, "mobula-router")
}

// add applies an object of theirs, whose pods run this machine's Ray; more are further words to put in.
func (s *shared) add(t *testing.T, on *realSuite, file string, more ...string) {
	t.Helper()
	mounts, volumes := machine(t, [2]string{on.python, on.python}, [2]string{on.ray, on.ray}, [2]string{on.models, "/models"})
	text := func(v any) string {
		out, err := json.Marshal(v)
		require.NoError(t, err)
		return string(out)
	}
	content, err := os.ReadFile(filepath.Join("testdata", file))
	require.NoError(t, err)
	words := append([]string{"@IMAGE@", s.image, "@RAY@", on.ray, "@MOUNTS@", text(mounts), "@VOLUMES@", text(volumes)}, more...)
	s.Apply(t, s.namespace, strings.NewReplacer(words...).Replace(string(content)))
}

// tryState asks the head that there is now, with the token that KubeRay has made, not the way Mobula does.
func (s *shared) tryState(ctx context.Context) (*ray.State, error) {
	cluster, err := s.theirs(ctx)
	if err != nil {
		return nil, err
	}
	ip, err := s.TryKubectl(ctx, "--namespace", s.namespace, "get", "pods", "--selector", "ray.io/node-type=head,ray.io/cluster="+cluster, "--output", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return nil, err
	}
	encoded, err := s.field(ctx, "secret/"+cluster, ".data.auth_token")
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

func (s *shared) state(t *testing.T) *ray.State {
	t.Helper()
	st, err := s.tryState(t.Context())
	require.NoError(t, err)
	return st
}

// runs waits until there are so many engines, as the Model and as Ray have it, and asks them.
func (s *shared) runs(t *testing.T, replicas int) {
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
func (s *shared) testHeadLost(t *testing.T) {
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
func (s *shared) testUninstalled(t *testing.T) {
	theirs := func() string {
		return s.kubectl(t, "get", "raycluster,secret,pod", "--selector", "ray.io/cluster=theirs", "--output", "jsonpath={.items[*].metadata.uid}") +
			s.kubectl(t, "get", "raycluster", "theirs", "--output", "jsonpath={.metadata.uid} {.spec}")
	}
	before := theirs()
	s.uninstalled(t)
	require.Equal(t, before, theirs())
	require.Len(t, s.state(t).Nodes, 2)
}

// uninstalled has nothing of ours be left, in Kubernetes and in Ray.
func (s *shared) uninstalled(t *testing.T) {
	t.Helper()
	s.Helm(t, "uninstall", "mobula", "--namespace", s.namespace, "--wait", "--timeout", deadline.String())
	require.Empty(t, s.kubectl(t, "get", "models,fleets,deployments,leases", "--output", "name"))
	require.Empty(t, s.kubectl(t, "get", "pods", "--selector", "app.kubernetes.io/component=uninstall", "--output", "name"))
	st := s.state(t)
	require.Empty(t, st.Actors)
	require.Empty(t, st.Groups)
}

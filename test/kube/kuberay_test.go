//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// testKubeRay has RayClusters on nodes that kwok makes up: the operator is real, and no engine runs.
func (c *Cluster) testKubeRay(t *testing.T) {
	c.FakeNodes(t, 2, 8)
	c.KubeRay(t)
	r := c.install(t, "--values", filepath.Join("testdata", "values-kuberay.yaml"))
	const big = "model/big"
	r.Await(t, "the RayCluster is ready", func(ctx context.Context) error {
		state, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", "rayclusters", "--output", "jsonpath={.items[*].status.state}")
		if err == nil && state != "ready" {
			err = fmt.Errorf("it is %q", state)
		}
		return err
	})
	require.Equal(t, "16", r.kubectl(t, "get", "rayclusters", "--output", "jsonpath={.items[*].status.desiredGPU}"))
	r.awaitField(t, big, ".status.ready", "1/1")
	require.Len(t, strings.Fields(r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name")), 1, "workers are no endpoints")
	r.kubectl(t, "scale", big, "--replicas", "0")
	r.awaitRayCluster(t, "suspended")
}

// rayClusters gives a line for each RayCluster: name, UID, state, whether it is suspended.
func (r *release) rayClusters(ctx context.Context) (string, error) {
	return r.TryKubectl(ctx, "--namespace", r.namespace, "get", "rayclusters", "--output",
		`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.state} {.spec.suspend}{"\n"}{end}`)
}

// awaitRayCluster waits until there is one RayCluster, in a state, and gives its name and UID.
func (r *release) awaitRayCluster(t *testing.T, state string) (name, uid string) {
	t.Helper()
	r.Await(t, "one RayCluster that is "+state, func(ctx context.Context) error {
		text, err := r.rayClusters(ctx)
		fields := strings.Fields(text)
		if err == nil && (strings.Count(strings.TrimSpace(text), "\n") != 0 || len(fields) < 3 || fields[2] != state) {
			err = fmt.Errorf("there is %q", text)
		}
		if err == nil {
			name, uid = fields[0], fields[1]
		}
		return err
	})
	return name, uid
}

// testKubeRaySleeps has a model go to zero and back: KubeRay's operator suspends its RayCluster, and resumes it.
func (c *Cluster) testKubeRaySleeps(t *testing.T) {
	c.KubeRay(t)
	r := c.install(t, "--values", filepath.Join("testdata", "values-kuberay-zero.yaml"))
	r.answered(t, model)
	name, uid := r.awaitRayCluster(t, "ready")
	replica := r.kubectl(t, "get", "raycluster", name, "--output", `jsonpath={.metadata.labels.mobula\.dev/replica}`)
	for range 2 {
		_, asleep := r.awaitRayCluster(t, "suspended")
		require.Equal(t, uid, asleep)
		require.Empty(t, r.kubectl(t, "get", "pods", "--selector", "ray.io/cluster="+name, "--output", "name"))
		require.Contains(t, r.kubectl(t, "get", "services", "--output", "name"), name+"-head-svc", "KubeRay keeps what it has made")
		r.awaitField(t, "model/"+model, ".status.replicas", "0")

		r.answered(t, model)
		_, awake := r.awaitRayCluster(t, "ready")
		require.Equal(t, uid, awake, "it is the same one")
		now := r.kubectl(t, "get", "raycluster", name, "--output", `jsonpath={.metadata.labels.mobula\.dev/replica}`)
		require.NotEqual(t, replica, now, "and another replica")
		replica = now
	}
	r.kubectl(t, "delete", "model", model)
	r.Await(t, "the RayCluster is gone", func(ctx context.Context) error {
		left, err := r.rayClusters(ctx)
		if err == nil && left != "" {
			err = fmt.Errorf("there is %s", left)
		}
		return err
	})
}

//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// testConverted installs what mobula convert makes of a production-stack's values. Kwok's nodes have the GPUs; no engine answers.
func (c *Cluster) testConverted(t *testing.T) {
	const converted, name = "facebook/opt-125m", "model/facebook-opt-125m"
	c.FakeNodes(t, 2, 1)
	file := filepath.Join(t.TempDir(), "mobula-values.yaml")
	said, err := c.run(t.Context(), "", c.binary, "convert", "production-stack", "--strict", filepath.Join("testdata", "production-stack-minimal.yaml"), "--output", file)
	require.NoError(t, err)
	require.Empty(t, said)
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(written), converted)

	r := c.installValues(t, file)
	client := c.client(t)
	r.awaitField(t, name, `.status.conditions[?(@.type=="Accepted")].status`, "True")
	r.awaitField(t, name, ".status.ready", "2/2")
	pods, err := r.pods(t.Context(), client, serving)
	require.NoError(t, err)
	require.Len(t, pods, 2)
	require.NotEqual(t, pods[0].Spec.NodeName, pods[1].Spec.NodeName, "there is one GPU on each")
	for i := range pods {
		engine := pods[i].Spec.Containers[0]
		require.Equal(t, "vllm/vllm-openai:v0.11.0", engine.Image)
		require.Subset(t, engine.Args, []string{"serve", converted, "--max-model-len", "1024", "--disable-log-requests"})
		for what, want := range map[corev1.ResourceName]string{"nvidia.com/gpu": "1", corev1.ResourceCPU: "6", corev1.ResourceMemory: "16Gi"} {
			has := engine.Resources.Requests[what]
			require.Zero(t, has.Cmp(resource.MustParse(want)), "%s: %s", what, has.String())
		}
	}
	r.noZombies(t, client)
	r.Await(t, "clients see the model", func(ctx context.Context) error {
		models, err := Get(ctx, r.router+"/v1/models")
		if err == nil && !strings.Contains(models, `"id":"`+converted+`"`) {
			err = fmt.Errorf("they see %s", models)
		}
		return err
	})
	r.removed(t)
}

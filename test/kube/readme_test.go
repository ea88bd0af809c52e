//go:build linux && kube

package kube

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/docpage"
)

// testReadme types in README's sections "Kubernetes" and "KubeRay" as they stand, but for `make`, whose binary is built here,
// and `make image`, whose image the cluster has.
func (c *Cluster) testReadme(t *testing.T) {
	c.KubeRay(t)
	dir := t.TempDir()
	for _, name := range []string{"charts", "examples"} {
		from, err := filepath.Abs(filepath.Join("..", "..", name))
		require.NoError(t, err)
		require.NoError(t, os.Symlink(from, filepath.Join(dir, name)))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o750))
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "bin", "mobula"), "../../cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
	// The reader changes the context, which is nobody else's to see.
	config, err := os.ReadFile(c.Kubeconfig())
	require.NoError(t, err)
	own := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(own, config, 0o600))
	env := []string{"KUBECONFIG=" + own}
	for _, kv := range c.environment() {
		for _, name := range []string{"PATH=", "KUBECACHEDIR=", "HELM_", "NO_PROXY=", "no_proxy="} {
			if strings.HasPrefix(kv, name) {
				env = append(env, kv)
			}
		}
	}
	reader := docpage.Reader{Dir: dir, Env: env, Patience: 2 * deadline}

	commands := docpage.Commands(t, "../../README.md", "## Kubernetes")
	require.Equal(t, []string{"make", "make image"}, commands[:2])
	said := reader.Type(t, commands[2:])
	require.Regexp(t, `(?m)^mobula-sim +mobula-sim +2/2`, said)
	require.Contains(t, said, "jq .data[].id\n\"mobula-sim\"\n")
	require.Contains(t, said, `"choices":[{"index":0,"message":{"role":"assistant","content":"`)
	require.Contains(t, said, "Phase:          Succeeded")
	require.Regexp(t, `(?m)^mobula-sim-\S+ +mobula-sim +Ready +node0`, said, "mobula get")

	said = reader.Type(t, docpage.Commands(t, "../../README.md", "## KubeRay"))
	require.Regexp(t, `(?m)^mobula-sim-\S+ .* ready `, said)
	require.Contains(t, said, `"choices":[{"index":0,"message":{"role":"assistant","content":"`)
	for _, namespace := range []string{"serving", "serving-ray"} {
		c.Kubectl(t, "delete", "namespace", namespace, "--wait=false")
	}
}

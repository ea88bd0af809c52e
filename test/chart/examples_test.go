package chart_test

import (
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// Each file under examples/kubernetes renders as it stands, and tells what it shows and how it is installed.
func TestExamplesRender(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(examplesPath, "values-*.yaml"))
	require.NoError(t, err)
	require.Greater(t, len(paths), 15)
	readme, err := os.ReadFile(filepath.Join(examplesPath, "README.md"))
	require.NoError(t, err)
	for _, path := range paths {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(raw), "# "), "it begins with what it shows")
			require.Contains(t, string(raw), "helm install mobula charts/mobula -f examples/kubernetes/"+name)
			require.Contains(t, string(readme), name)
			out, err := render(t, string(raw))
			require.NoError(t, err)
			for _, object := range out.Objects {
				requireKnown(t, object)
			}
			requireFleet(t, string(raw))
			enginePods(t, out)
		})
	}
}

func TestTheMinimalExampleSetsThreeValues(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(examplesPath, "values-01-minimal.yaml"))
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	require.Equal(t, []string{"models:", "- name: facebook/opt-125m", "replicas: 1", "resources: {gpus: 1}"}, lines)
}

// requireFleet fails unless what values say of the fleet is a fleet file that Mobula takes.
func requireFleet(t *testing.T, values string) {
	t.Helper()
	var given struct {
		Models   []map[string]any
		Platform map[string]any
		Fleet    map[string]any
	}
	require.NoError(t, yaml.Unmarshal([]byte(values), &given))
	file := map[string]any{"apiVersion": mobula.APIVersion, "kind": mobula.Kind, "platform": given.Platform, "models": given.Models}
	if len(given.Platform) == 0 {
		file["platform"] = map[string]any{"kubernetes": map[string]any{}}
	}
	maps.Copy(file, given.Fleet)
	raw, err := yaml.Marshal(file)
	require.NoError(t, err)
	_, err = mobula.Load(raw, "values")
	require.NoError(t, err)
}

// The time that a router has to stop is worked out from its timeouts, which the chart has twice.
func TestARouterHasTheTimeToDrain(t *testing.T) {
	out, err := render(t, "{}")
	require.NoError(t, err)
	sum := 15 * time.Second
	for _, name := range []string{"drain", "lameduck"} {
		d, err := time.ParseDuration(text(t, at(out.Objects["Fleet/default"], "spec router timeouts "+name)))
		require.NoError(t, err)
		sum += d
	}
	require.Equal(t, strconv.Itoa(int(sum/time.Second)), text(t, at(out.Objects[router], "spec template spec terminationGracePeriodSeconds")))
}

// What mobula apply writes is named by the same rule, so that one takes over from the other.
func TestModelObjectsAreNamedAsMobulaApplyNamesThem(t *testing.T) {
	for _, name := range []string{
		"facebook/opt-125m", "--A..b--", "RedHatAI/DeepSeek-R1-Distill-Llama-70B-quantized.w4a16", "RedHatAI/DeepSeek-R1-Distill-Llama-70B-quantized.w8a8",
		strings.Repeat("a", 50), strings.Repeat("a", 51), strings.Repeat("a", 40) + "/" + strings.Repeat("b", 20),
	} {
		out, err := render(t, "models: [{name: "+strconv.Quote(name)+"}]")
		require.NoError(t, err)
		require.Contains(t, out.Objects, "Model/"+resources.ObjectName(name), name)
	}
}

// Names that YAML takes for numbers stay text.
func TestAFleetMayBeNamedByANumber(t *testing.T) {
	out, err := render(t, "{fleet: {name: '2'}, podMonitor: {enabled: true}}")
	require.NoError(t, err)
	require.Equal(t, "2", at(out.Objects["Fleet/2"], "metadata name"))
	require.Equal(t, "2", at(out.Objects[router], "metadata labels mobula.dev/fleet"))
	require.Equal(t, "2", at(out.Objects["PodMonitor/mobula-engines"], "spec selector matchLabels mobula.dev/fleet"))
}

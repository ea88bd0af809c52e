package resources

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
)

// hard are values that YAML 1.1, JSON and Kubernetes' own decoders each have another mind about.
const hard = `apiVersion: mobula/v1
kind: Fleet
platform: {kubernetes: {namespace: llm, context: on}}
models:
  - {name: n, source: off, replicas: 2, engine: {kind: sim, args: [yes, "1", 'no', --a=1e3, 2026-01-02, "12:30"], env: {A: y, B: "007", C: 'true', D: "0o17", E: "~", F: ""}}}
  - {name: y, replicas: "0-4", kubernetes: {memory: 1Gi, cpu: 0.5, pod: {spec: {hostPID: false, priority: 1000000, hostname: off, schedulerName: "1e3"}}}}
  - {name: "007", replicas: "3"}
  - {name: 1.0.0, engine: {kind: sim}}
`

func TestObjectsOfAFileAreTheFileAgain(t *testing.T) {
	files := map[string][]byte{"hard": []byte(hard)}
	for _, name := range []string{"good-kubernetes.yaml", "good-kuberay-shared.yaml"} {
		file, err := os.ReadFile(filepath.Join("../../../testdata/fleet", name))
		require.NoError(t, err)
		files[name] = file
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			want, err := mobula.Load(file, name)
			require.NoError(t, err)
			doc, models, err := split(file)
			require.NoError(t, err)
			objects := Objects{Fleet: stored(t, KindFleet, DefaultFleet, doc)}
			for _, m := range want.Models {
				objects.Models = append(objects.Models, stored(t, KindModel, ObjectName(m.Name), models[ObjectName(m.Name)]))
			}
			c := Compose(objects, nil, nil)
			require.Empty(t, c.Bad)
			got, err := mobula.Load(c.File, "objects")
			require.NoError(t, err)
			require.ElementsMatch(t, want.Models, got.Models)
			require.Equal(t, want.Router, got.Router)
		})
	}
}

// stored gives an object as it comes back from an API server.
func stored(t *testing.T, kind, name string, spec map[string]any) *unstructured.Unstructured {
	t.Helper()
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "mobula.dev/" + Version, "kind": kind, "metadata": map[string]any{"name": name, "namespace": "llm"}, "spec": spec,
	})
	require.NoError(t, err)
	u := &unstructured.Unstructured{}
	require.NoError(t, u.UnmarshalJSON(raw))
	return u
}

package resources

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
)

// object reads one from YAML, made so many seconds after the epoch.
func object(t *testing.T, age int, text string) *unstructured.Unstructured {
	t.Helper()
	var o map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(text), &o))
	u := &unstructured.Unstructured{Object: o}
	u.SetAPIVersion("mobula.dev/v1alpha1")
	require.NoError(t, unstructured.SetNestedField(u.Object, time.Unix(int64(age), 0).UTC().Format(time.RFC3339), "metadata", "creationTimestamp"))
	return u
}

func TestCompose(t *testing.T) {
	const (
		fleet = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {router: {policy: {name: prefix}}}"
		chat  = "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat, fleet: default, replicas: 2, engine: {kind: sim}, loras: [{name: a, source: /a}]}"
		auto  = "kind: Model\nmetadata: {name: auto, namespace: n}\nspec: {range: {min: 0, max: 4}, engine: {kind: sim}}"
		bad   = "kind: Model\nmetadata: {name: bad, namespace: n}\nspec: {replicas: 1, engine: {kind: simm}}"
		twice = "kind: Model\nmetadata: {name: twice, namespace: n}\nspec: {name: org/chat, replicas: 1}"
		lora  = "kind: LoRA\nmetadata: {name: b, namespace: n}\nspec: {model: chat, source: /b}"
		same  = "kind: LoRA\nmetadata: {name: a, namespace: n}\nspec: {model: chat, source: /other}"
		lost  = "kind: LoRA\nmetadata: {name: c, namespace: n}\nspec: {model: nobody, source: /b}"
	)
	var veto Veto
	compose := func(t *testing.T, good Good, texts ...string) (Composed, *mobula.Fleet) {
		t.Helper()
		c := Compose(objectsOf(t, texts...), good, veto)
		if c.File == nil {
			return c, nil
		}
		f, err := mobula.Load(c.File, "composed")
		require.NoError(t, err)
		return c, f
	}
	names := func(f *mobula.Fleet) (all []string) {
		for _, m := range f.Models {
			all = append(all, m.Name+" "+m.Replicas.String())
		}
		return all
	}
	t.Run("a fleet", func(t *testing.T) {
		c, f := compose(t, nil, fleet, chat, auto, lora)
		require.Empty(t, c.Bad)
		require.Equal(t, []string{"org/chat 2", "auto 0-4"}, names(f))
		require.NotNil(t, f.Platform.Kubernetes)
		require.Equal(t, "prefix", f.Router.Policy.Name)
		require.Equal(t, []mobula.LoRA{{Name: "a", Source: "/a"}, {Name: "b", Source: "/b"}}, f.Models[0].LoRAs)
		require.Equal(t, "org/chat", c.Names["Model/chat"])
	})
	t.Run("no fleet object", func(t *testing.T) {
		c, _ := compose(t, nil, chat)
		require.Nil(t, c.File)
	})
	t.Run("one that is wrong is left out", func(t *testing.T) {
		c, f := compose(t, nil, fleet, bad, chat)
		require.Equal(t, []string{"org/chat 2"}, names(f))
		require.Contains(t, c.Bad["Model/bad"], "spec.engine.kind: ")
		require.Len(t, c.Bad, 1)
	})
	t.Run("one that has become wrong is as it was", func(t *testing.T) {
		before, _ := compose(t, nil, fleet, "kind: Model\nmetadata: {name: bad, namespace: n}\nspec: {replicas: 3, engine: {kind: sim}}")
		c, f := compose(t, before.Good, fleet, bad, chat)
		require.Equal(t, []string{"bad 3", "org/chat 2"}, names(f))
		require.Contains(t, c.Bad["Model/bad"], "simm")
		again, _ := compose(t, c.Good, fleet, bad, chat)
		require.Equal(t, c.File, again.File)
	})
	t.Run("the older of two with one name", func(t *testing.T) {
		c, f := compose(t, nil, fleet, chat, twice)
		require.Equal(t, []string{"org/chat 2"}, names(f))
		require.Contains(t, c.Bad["Model/twice"], "spec.name: ")
	})
	t.Run("a LoRA that is wrong is its own problem", func(t *testing.T) {
		c, f := compose(t, nil, fleet, chat, same, lost, lora)
		require.Equal(t, []string{"org/chat 2"}, names(f))
		require.Len(t, f.Models[0].LoRAs, 2)
		require.Contains(t, c.Bad["LoRA/c"], `there is no Model object "nobody"`)
		require.NotEmpty(t, c.Bad["LoRA/a"])
	})
	t.Run("one that is vetoed is as it was", func(t *testing.T) {
		veto = Veto{"Model/chat": {why: "no node has 64 GPUs"}}
		defer func() { veto = nil }()
		c, f := compose(t, nil, fleet, chat, auto)
		require.Equal(t, []string{"auto 0-4"}, names(f))
		require.Equal(t, "no node has 64 GPUs", c.Bad["Model/chat"])
		good := Good{"Model/chat": {"name": "org/chat", "replicas": int64(1), "engine": map[string]any{"kind": "sim"}}}
		_, f = compose(t, good, fleet, chat, auto)
		require.Equal(t, []string{"org/chat 1", "auto 0-4"}, names(f))
	})
	t.Run("a fleet that is wrong is as it was", func(t *testing.T) {
		const wrong = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {router: {policy: {name: prefixx}}}"
		c, _ := compose(t, nil, wrong, chat)
		require.Nil(t, c.File)
		require.Contains(t, c.Bad["Fleet/default"], "spec.router.policy.name: ")
		before, _ := compose(t, nil, fleet, chat)
		c, f := compose(t, before.Good, wrong, chat)
		require.Equal(t, "prefix", f.Router.Policy.Name)
		require.Contains(t, c.Bad["Fleet/default"], "prefixx")
	})
	t.Run("many that are wrong", func(t *testing.T) {
		texts := []string{fleet, chat}
		for i := range 100 {
			texts = append(texts, "kind: Model\nmetadata: {name: bad"+string(rune('a'+i%26))+string(rune('a'+i/26))+", namespace: n}\nspec: {replicas: 1, engine: {kind: simm}}")
		}
		c, f := compose(t, nil, texts...)
		require.Equal(t, []string{"org/chat 2"}, names(f))
		require.Len(t, c.Bad, 100)
	})
}

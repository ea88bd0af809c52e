package resources

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

// objectsOf reads objects, the first the oldest.
func objectsOf(t *testing.T, texts ...string) (o Objects) {
	t.Helper()
	for i, text := range texts {
		switch u := object(t, i, text); u.GetKind() {
		case KindFleet:
			o.Fleet = u
		case KindModel:
			o.Models = append(o.Models, u)
		default:
			o.LoRAs = append(o.LoRAs, u)
		}
	}
	return o
}

// served are the names that a fleet file has, each model's LoRAs after it.
func served(t require.TestingT, file []byte) (all []string) {
	f, err := mobula.Load(file, "composed")
	require.NoError(t, err)
	for _, m := range f.Models {
		all = append(all, m.Name)
		for _, l := range m.LoRAs {
			all = append(all, m.Name+"/"+l.Name)
		}
	}
	return all
}

func TestWhatWasGoodMakesRoomForNobody(t *testing.T) {
	const (
		fleet = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {}"
		ray   = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {platform: {kuberay: {}}}"
		chat  = "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat, aliases: [gpt], replicas: 1, engine: {kind: sim}, kubernetes: {memory: 8Gi}}"
		lora  = "kind: LoRA\nmetadata: {name: l, namespace: n}\nspec: {model: chat, source: /l}"
	)
	for name, c := range map[string]struct {
		before, now []string
		want        []string
		bad         map[string]string // whole messages
	}{
		"a model of an alias's name": {
			before: []string{fleet, chat},
			now:    []string{fleet, chat, "kind: Model\nmetadata: {name: gpt, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}"},
			want:   []string{"org/chat"},
			bad:    map[string]string{"Model/gpt": `spec.name: "gpt" is a name of Model chat already`},
		},
		"an older model takes an alias": {
			before: []string{fleet, "kind: Model\nmetadata: {name: old, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}", chat},
			now:    []string{fleet, "kind: Model\nmetadata: {name: old, namespace: n}\nspec: {replicas: 1, aliases: [a, gpt], engine: {kind: sim}}", chat},
			want:   []string{"old", "org/chat"},
			bad:    map[string]string{"Model/old": `spec.aliases[1]: "gpt" is a name of Model chat already`},
		},
		"the older of two new ones has its alias": {
			now:  []string{fleet, chat, "kind: Model\nmetadata: {name: gpt, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}"},
			want: []string{"org/chat"},
			bad:  map[string]string{"Model/gpt": `spec.name: "gpt" is a name of Model chat already`},
		},
		"what is out for itself takes no name": {
			now: []string{
				fleet, "kind: Model\nmetadata: {name: b, namespace: n}\nspec: {name: org/chat, replicas: 1, engine: {kind: simm}}", chat,
			},
			want: []string{"org/chat"},
			bad:  map[string]string{"Model/b": `spec.engine.kind: want vllm or sim, got "simm"`},
		},
		"a LoRA of another model's alias": {
			before: []string{fleet, "kind: Model\nmetadata: {name: a, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}", chat},
			now: []string{
				fleet, "kind: Model\nmetadata: {name: a, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}", chat,
				"kind: LoRA\nmetadata: {name: l, namespace: n}\nspec: {name: gpt, model: a, source: /l}",
			},
			want: []string{"a", "org/chat"},
			bad:  map[string]string{"LoRA/l": `spec.name: "gpt" is a name of Model chat already`},
		},
		"the fleet's limit": {
			before: []string{fleet, chat, lora},
			now:    []string{"kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {platform: {kubernetes: {pods: {memoryLimit: 4Gi}}}}", chat, lora},
			want:   []string{"org/chat", "org/chat/l"},
			bad:    map[string]string{"Fleet/default": "with it Model chat would be wrong: spec.kubernetes.memoryLimit: want at least what is asked for (8Gi), got 4Gi"},
		},
		"the fleet's limit, and a new model beside": {
			before: []string{fleet, chat},
			now: []string{
				"kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {platform: {kubernetes: {pods: {memoryLimit: 4Gi}}}}", chat,
				"kind: Model\nmetadata: {name: new, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}, kubernetes: {memory: 8Gi}}",
			},
			want: []string{"org/chat", "new"},
			bad:  map[string]string{"Fleet/default": "with it Model chat would be wrong: spec.kubernetes.memoryLimit: want at least what is asked for (8Gi), got 4Gi"},
		},
		"the fleet is on KubeRay no more": {
			before: []string{ray, "kind: Model\nmetadata: {name: r, namespace: n}\nspec: {replicas: 1, kubernetes: {workload: RayCluster}}"},
			now:    []string{fleet, "kind: Model\nmetadata: {name: r, namespace: n}\nspec: {replicas: 1, kubernetes: {workload: RayCluster}}"},
			want:   []string{"r"},
			bad:    map[string]string{"Fleet/default": "with it Model r would be wrong: spec.kubernetes.workload: want platform kuberay for a RayCluster"},
		},
		"LoRAs on a model without replicas": {
			before: []string{fleet, "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat}"},
			now:    []string{fleet, "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat}", lora, strings.ReplaceAll(lora, "name: l", "name: k")},
			want:   []string{"org/chat"},
			bad: map[string]string{
				"LoRA/l": "with it Model chat would be wrong: spec.loras: want replicas for a model with LoRAs: only engines of the control plane get them",
				"LoRA/k": "with it Model chat would be wrong: spec.loras: want replicas for a model with LoRAs: only engines of the control plane get them",
			},
		},
		"a new LoRA on a new model without replicas": {
			now:  []string{fleet, "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat}", lora},
			want: []string{"org/chat"},
			bad:  map[string]string{"LoRA/l": "with it Model chat would be wrong: spec.loras: want replicas for a model with LoRAs"},
		},
		"a LoRA of a model that is wrong": {
			now: []string{fleet, strings.ReplaceAll(chat, "sim", "simm"), lora},
			bad: map[string]string{"Model/chat": `spec.engine.kind: want vllm or sim, got "simm"`, "LoRA/l": "spec.model: Model object chat is not in use"},
		},
		"a model with a LoRA loses its replicas": {
			before: []string{fleet, chat, lora},
			now:    []string{fleet, "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat}", lora},
			want:   []string{"org/chat", "org/chat/l"},
			bad:    map[string]string{"Model/chat": "spec.loras: want replicas for a model with LoRAs: only engines of the control plane get them"},
		},
		"a LoRA that becomes wrong is as it was": {
			before: []string{fleet, chat, lora},
			now:    []string{fleet, chat, "kind: LoRA\nmetadata: {name: l, namespace: n}\nspec: {model: nobody, source: /l}"},
			want:   []string{"org/chat", "org/chat/l"},
			bad:    map[string]string{"LoRA/l": `spec.model: there is no Model object "nobody" in namespace `},
		},
		"nobody can tell which it is": {
			before: []string{fleet, chat},
			now: []string{
				fleet, chat, "kind: Model\nmetadata: {name: deep, namespace: n}\nspec: {replicas: 1, kubernetes: {pod: {spec: " +
					strings.Repeat("{a: ", 60) + "1" + strings.Repeat("}", 60) + "}}}",
			},
			want: []string{"org/chat"},
			bad:  map[string]string{"Model/deep": "with it Fleet default would be wrong: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			good := Good{}
			if c.before != nil {
				before := Compose(objectsOf(t, c.before...), nil, nil)
				require.Empty(t, before.Bad)
				good = before.Good
			}
			got := Compose(objectsOf(t, c.now...), good, nil)
			require.Equal(t, c.want, served(t, got.File))
			require.Equal(t, slices.Sorted(maps.Keys(c.bad)), slices.Sorted(maps.Keys(got.Bad)), "%v", got.Bad)
			for key, want := range c.bad {
				require.True(t, strings.HasPrefix(got.Bad[key], want), "%s: %s", key, got.Bad[key])
			}
			again := Compose(objectsOf(t, c.now...), got.Good, nil)
			require.Equal(t, string(got.File), string(again.File), "it stays so")
		})
	}
}

func TestOnlyTheWrongLoRAsAreOut(t *testing.T) {
	texts := []string{
		"kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {}",
		"kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}, loras: [{name: own, source: /own}]}",
		"kind: LoRA\nmetadata: {name: a, namespace: n}\nspec: {model: chat, source: ''}",
		"kind: LoRA\nmetadata: {name: b, namespace: n}\nspec: {model: chat, source: 'ftp://b', replicas: -1}",
		"kind: LoRA\nmetadata: {name: c, namespace: n}\nspec: {model: chat, source: /c}",
	}
	for _, good := range []Good{nil, Compose(objectsOf(t, texts[0], texts[1], texts[4]), nil, nil).Good} {
		c := Compose(objectsOf(t, texts...), good, nil)
		require.Equal(t, []string{"chat", "chat/own", "chat/c"}, served(t, c.File))
		require.Len(t, c.Bad, 2)
		require.Contains(t, c.Bad["LoRA/a"], "spec.source: ")
		require.Contains(t, c.Bad["LoRA/b"], "spec.source: ")
		require.Contains(t, c.Bad["LoRA/b"], "spec.replicas: ")
	}
}

func TestNothingIsForgottenWhileThereIsNoFleet(t *testing.T) {
	const (
		fleet = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {}"
		gpt   = "kind: Model\nmetadata: {name: gpt, namespace: n}\nspec: {replicas: 1, engine: {kind: sim}}"
		chat  = "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {replicas: 1, aliases: [gpt], engine: {kind: sim}}"
		wrong = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {router: {policy: {name: prefixx}}}"
	)
	before := Compose(objectsOf(t, fleet, chat), nil, nil)
	delete(before.Good, "Fleet/default")
	without := Compose(objectsOf(t, wrong, gpt, chat), before.Good, nil)
	require.Nil(t, without.File)
	c := Compose(objectsOf(t, fleet, gpt, chat), without.Good, nil)
	require.Equal(t, []string{"chat"}, served(t, c.File))
}

func TestOnlyTheOlderOfTwoIsWhatWasApplied(t *testing.T) {
	const (
		fleet = "kind: Fleet\nmetadata: {name: default, namespace: n}\nspec: {}"
		chat  = "kind: Model\nmetadata: {name: chat, namespace: n}\nspec: {name: org/chat, range: {min: 1, max: 3}, engine: {kind: sim}, resources: {gpus: 8}}"
		twice = "kind: Model\nmetadata: {name: twice, namespace: n}\nspec: {name: org/chat, replicas: 1}"
		other = "kind: Model\nmetadata: {name: other, namespace: n}\nspec: {replicas: 1}"
	)
	good := goodOf(Compose(objectsOf(t, fleet, chat), nil, nil).File, DefaultFleet)
	c := Compose(objectsOf(t, fleet, chat, twice, other), good, nil)
	require.Equal(t, []string{"org/chat", "other"}, served(t, c.File))
	require.Equal(t, map[string]string{"Model/twice": `spec.name: "org/chat" is a name of Model chat already`}, c.Bad)
	o := objectsOf(t, fleet, chat)
	require.False(t, changed(o.Models[0], specOf(o.Models[0]), good.of(o.Models[0])), "a file's numbers are those of its object")
}

// TestAnyHistoryKeepsWhatWasAccepted changes objects at random: what nobody touches and was in use stays so.
func TestAnyHistoryKeepsWhatWasAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live, age := map[string]*unstructured.Unstructured{}, 0
		put := func(kind, name string, spec map[string]any) {
			o := &unstructured.Unstructured{Object: map[string]any{"kind": kind, "spec": spec}}
			o.SetName(name)
			o.SetNamespace("n")
			age++
			made := age
			if is := live[goodKey(o)]; is != nil {
				o.SetCreationTimestamp(is.GetCreationTimestamp())
			} else {
				o.Object["metadata"].(map[string]any)["creationTimestamp"] = fmt.Sprintf("2026-01-01T%02d:%02d:00Z", made/60, made%60)
			}
			live[goodKey(o)] = o
		}
		put(KindFleet, "default", map[string]any{})
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		source := rapid.SampledFrom([]string{"/x", "/y", ""})
		good := Good{"Fleet/default": {}}
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			touched := map[string]bool{}
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				kind := rapid.SampledFrom([]string{KindModel, KindModel, KindModel, KindLoRA, KindLoRA, KindFleet}).Draw(t, "kind")
				n := name.Draw(t, "object")
				spec := map[string]any{}
				switch kind {
				case KindFleet:
					n = "default"
					spec["platform"] = rapid.SampledFrom([]map[string]any{
						{"kuberay": map[string]any{}},
						{"kubernetes": map[string]any{}},
						{"kubernetes": map[string]any{"pods": map[string]any{"memoryLimit": "4Gi"}}},
						{"kubernetes": map[string]any{"pods": map[string]any{"memoryLimit": "none"}}},
					}).Draw(t, "platform")
				case KindModel:
					spec["engine"] = map[string]any{"kind": rapid.SampledFrom([]string{"sim", "sim", "sim", "simm"}).Draw(t, "engine")}
					if rapid.Bool().Draw(t, "placed") {
						spec["replicas"] = int64(1)
					}
					if rapid.Bool().Draw(t, "named") {
						spec["name"] = name.Draw(t, "name")
					}
					if rapid.Bool().Draw(t, "alias") {
						spec["aliases"] = []any{name.Draw(t, "alias")}
					}
					if rapid.IntRange(0, 3).Draw(t, "loras") == 0 {
						spec["loras"] = []any{map[string]any{"name": name.Draw(t, "own"), "source": source.Draw(t, "of own")}}
					}
					spec["kubernetes"] = rapid.SampledFrom([]map[string]any{{}, {"memory": "8Gi"}, {"workload": "RayCluster"}}).Draw(t, "pods")
				default:
					spec["model"], spec["source"] = name.Draw(t, "model"), source.Draw(t, "source")
				}
				key := kind + "/" + n
				touched[key] = true
				if kind != KindFleet && rapid.IntRange(0, 3).Draw(t, "gone") == 0 {
					delete(live, key)
				} else {
					put(kind, n, spec)
				}
			}
			o := Objects{Fleet: live["Fleet/default"]}
			for key, u := range live {
				if strings.HasPrefix(key, KindModel) {
					o.Models = append(o.Models, u)
				} else if strings.HasPrefix(key, KindLoRA) {
					o.LoRAs = append(o.LoRAs, u)
				}
			}
			c := Compose(o, good, nil)
			require.NotNil(t, c.File, "%v", c.Bad)
			for key, spec := range good {
				u := live[key]
				if u == nil || u.GetKind() == KindLoRA && live["Model/"+spec["model"].(string)] == nil {
					continue
				}
				require.Contains(t, c.Good, key, "what was in use falls back at worst: %v", c.Bad)
				if is := specOf(u); !touched[key] && !changed(u, is, spec) {
					require.Equal(t, is, c.Good[key], "%s was good and nobody has touched it: %v", key, c.Bad)
					require.NotContains(t, c.Bad, key)
				}
			}
			names := served(t, c.File)
			for key := range c.Good {
				if u := live[key]; u.GetKind() == KindModel && c.Bad[key] == "" {
					require.Contains(t, names, modelID(u))
				}
			}
			for key, u := range live { // who is not in use is told why
				if c.Good[key] == nil && u.GetKind() == KindModel {
					require.NotEmpty(t, c.Bad[key])
				}
			}
			again := Compose(o, c.Good, nil)
			require.Equal(t, string(c.File), string(again.File), "it stays so")
			good = c.Good
		}
	})
}

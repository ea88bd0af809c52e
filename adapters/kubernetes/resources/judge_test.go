package resources

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// said are the conditions of a status as "reason" by type, of those that are False as "!reason".
func said(status map[string]any) map[string]string {
	all := map[string]string{}
	for _, each := range status["conditions"].([]any) {
		c := each.(map[string]any)
		all[c["type"].(string)] = map[any]string{"True": "", "False": "!"}[c["status"]] + c["reason"].(string)
	}
	return all
}

func TestConditionsOfModels(t *testing.T) {
	model := objectsOf(t, "kind: Model\nmetadata: {name: dup, namespace: n, generation: 7}\nspec: {name: chat, replicas: 1}").Models[0]
	healthy := ModelStatus{Wanted: 3, Replicas: 3, Ready: 3, Revision: "r", Phase: "Complete"}
	before := Good{"Model/dup": {"name": "own", "replicas": int64(1)}}
	for name, c := range map[string]struct {
		judge judge
		chat  ModelStatus // of the model whose name the object has
		own   ModelStatus // of the one whose name it had
		phase string
		ready string
		says  map[string]string
	}{
		"serves": {
			judge{upToDate: true},
			healthy,
			ModelStatus{},
			"Complete", "3/3",
			map[string]string{"Accepted": "Applied", "Ready": "AllReady", "Progressing": "!Complete"},
		},
		"changed, and not applied yet": {
			judge{},
			healthy,
			ModelStatus{},
			"Complete", "3/3",
			map[string]string{"Accepted": "!Pending", "Ready": "AllReady", "Progressing": "!Complete"},
		},
		"rolled while the former revision serves": {
			judge{upToDate: true},
			ModelStatus{Wanted: 3, Ready: 3, Phase: "Progressing", Message: "1 of 3"},
			ModelStatus{},
			"Progressing", "3/3",
			map[string]string{"Accepted": "Applied", "Ready": "AllReady", "Progressing": "Progressing", "Reconciling": "Progressing"},
		},
		"rolled back": {
			judge{upToDate: true},
			ModelStatus{Wanted: 3, Ready: 3, Phase: "RolledBack", Message: "it crashed"},
			ModelStatus{},
			"RolledBack", "3/3",
			map[string]string{"Accepted": "Applied", "Ready": "AllReady", "Progressing": "!RolledBack", "Stalled": "RolledBack"},
		},
		"failed": {
			judge{upToDate: true},
			ModelStatus{Wanted: 3, Phase: "Failed"},
			ModelStatus{},
			"Failed", "0/3",
			map[string]string{"Accepted": "Applied", "Ready": "!ReplicasMissing", "Progressing": "!Failed", "Stalled": "Failed"},
		},
		"another object has its name": {
			judge{upToDate: true, bad: map[string]string{"Model/dup": "taken"}},
			healthy,
			ModelStatus{},
			"Invalid", "0/0",
			map[string]string{"Accepted": "!Invalid", "Ready": "!NotInUse", "Progressing": "!None", "Stalled": "Invalid"},
		},
		"another object has the name that it was given": {
			judge{upToDate: true, bad: map[string]string{"Model/dup": "taken"}, good: before},
			healthy,
			ModelStatus{Wanted: 1, Ready: 1, Phase: "Complete"},
			"Invalid", "1/1",
			map[string]string{"Accepted": "!Invalid", "Ready": "AllReady", "Progressing": "!Complete", "Stalled": "Invalid"},
		},
		"the fleet is gone": {
			judge{why: "there is no Fleet"},
			healthy,
			ModelStatus{},
			"NoFleet", "3/3",
			map[string]string{"Accepted": "!NoFleet", "Ready": "AllReady", "Progressing": "!Complete"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.judge.status = &Status{Models: map[string]ModelStatus{"chat": c.chat, "own": c.own}}
			status := c.judge.model(model)
			require.Equal(t, c.phase, status["phase"])
			require.Equal(t, c.ready, status["ready"])
			require.Equal(t, c.says, said(status))
			if says := c.says["Accepted"]; says != "Applied" && says != "!Pending" {
				require.NotEmpty(t, status["message"])
			}
			require.Equal(t, name == "another object has its name", status["selector"] == nil, "its pods are another object's")
		})
	}
}

func TestAFleetIsReadyWithoutItsModels(t *testing.T) {
	fleet := objectsOf(t, "kind: Fleet\nmetadata: {name: default, namespace: n, generation: 2}\nspec: {}").Fleet
	j := judge{upToDate: true, status: &Status{Models: map[string]ModelStatus{"a": {Wanted: 1, Ready: 1}, "b": {Wanted: 1}}}}
	status := j.fleet(fleet, 2)
	require.Equal(t, map[string]string{"Accepted": "Applied", "Ready": "Applied", "ModelsReady": "!ModelsNotReady"}, said(status))
	require.Equal(t, "1/2", status["ready"])
	j.status.Models["b"] = ModelStatus{Wanted: 1, Ready: 1}
	require.Equal(t, map[string]string{"Accepted": "Applied", "Ready": "Applied", "ModelsReady": "AllReady"}, said(j.fleet(fleet, 2)))
	j.upToDate = false
	require.Equal(t, "!Pending", said(j.fleet(fleet, 2))["Ready"])
}

// TestAStatusIsOfWhatWasApplied: a change counts as seen when there is a report of it, else who waits would see how it was before.
func TestAStatusIsOfWhatWasApplied(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), "kind: Fleet\nmetadata: {name: default}\nspec: {}")
	w.create(Models(), "kind: Model\nmetadata: {name: chat, generation: 1}\nspec: {replicas: 1, engine: {kind: sim}}")
	state, _ := w.until(w.Source, models(1))
	report := func(generation int64, phase string) {
		w.Report(&Status{Generation: generation, Models: map[string]ModelStatus{"chat": {Wanted: 1, Ready: 1, Phase: phase}}})
	}
	accepted := func(reason string) {
		w.known(KindModel, "chat", func(u *unstructured.Unstructured) bool {
			status, _, _ := unstructured.NestedMap(u.Object, "status")
			return status["conditions"] != nil && maps.Equal(said(status), map[string]map[string]string{
				"!Pending": {"Accepted": "!Pending", "Ready": "AllReady", "Progressing": "!Complete"},
				"Applied":  {"Accepted": "Applied", "Ready": "AllReady", "Progressing": "Progressing", "Reconciling": "Progressing"},
			}[reason])
		})
	}
	report(4, "Complete")
	accepted("!Pending")
	w.Took(state.Version, 5, nil)
	report(4, "Complete")
	require.True(t, w.writeRound(t.Context()))
	require.Equal(t, "False Pending", is(w.status(Models(), "chat"), ConditionAccepted))
	report(5, "Progressing")
	accepted("Applied")
}

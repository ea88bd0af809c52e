package resources

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
)

func TestModelsOfNoFleetAreToldSo(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Models(), "kind: Model\nmetadata: {name: early}\nspec: {fleet: other, replicas: 1, engine: {kind: sim}}")
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	state, _ := w.until(w.Source, models(1))
	w.Took(state.Version, 0, nil)
	w.Report(&Status{})
	w.eventually("it is told", func() bool { return is(w.status(Models(), "early"), ConditionAccepted) == "False NoFleet" })
	const why = `there is no Fleet object "other" in namespace n; it has default: name one in the Models' spec.fleet, or make that Fleet`
	status := w.status(Models(), "early")
	require.Equal(t, why, status["message"])
	require.Equal(t, "NoFleet", status["phase"])
	w.eventually("an event", func() bool {
		select {
		case e := <-w.wrong:
			return e.Reason == "NoFleet" && e.Object == "fleet" && e.Message == "Model early is nobody's: "+why
		default:
			return false
		}
	})
	require.NotContains(t, w.Rejected(), "early", "it is not one of ours")

	// What a control plane of that fleet says is not touched.
	_, err := w.Dynamic().Resource(Models()).Namespace("n").Patch(t.Context(), "early", "application/merge-patch+json",
		[]byte(`{"status":{"phase":"Pending","conditions":[{"type":"Accepted","status":"False","reason":"Pending","message":"soon","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`),
		metav1.PatchOptions{}, "status")
	require.NoError(t, err)
	w.patch(Models(), "chat", `{"spec":{"replicas":1}}`)
	state, _ = w.until(w.Source, func(f *mobula.Fleet) bool { return f.Models[0].Replicas.Max == 1 })
	w.Took(state.Version, 0, nil)
	w.Report(&Status{Models: map[string]ModelStatus{"org/chat": {Wanted: 1, Revision: "later"}}})
	w.eventually("the next round of statuses", func() bool { return w.status(Models(), "chat")["revision"] == "later" })
	require.Equal(t, "False Pending", is(w.status(Models(), "early"), ConditionAccepted))

	w.create(Fleets(), "kind: Fleet\nmetadata: {name: other}\nspec: {}")
	w.patch(Models(), "early", `{"spec":{"fleet":null}}`)
	w.until(w.Source, models(2))
}

func TestModelsOfTwoFleetsMayHaveOneName(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), "kind: Model\nmetadata: {name: theirs}\nspec: {name: org/chat, fleet: other, replicas: 1, engine: {kind: sim}}")
	w.create(Models(), chatText)
	w.until(w.Source, models(1))
	for range 20 { // as maps come
		require.Equal(t, "chat", w.Owner("org/chat").Name, "another fleet's object owns nothing of ours")
	}
}

func TestRejectedSaysWhyAModelIsNotAsItsObject(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Models(), chatText)
	w.eventually("there is no Fleet", func() bool {
		return w.Rejected()["org/chat"] == `the Model object chat is not in use: there is no Fleet object "default" in namespace n`
	})
	w.create(Fleets(), fleetText)
	w.create(Models(), "kind: Model\nmetadata: {name: new}\nspec: {replicas: 1, engine: {kind: simm}}")
	w.until(w.Source, models(1))
	w.eventually("the new one is not", func() bool { return strings.Contains(w.Rejected()["new"], "simm") })
	require.Regexp(t, `^the Model object new is not in use: spec.engine.kind: .*simm`, w.Rejected()["new"])
	require.NotContains(t, w.Rejected(), "org/chat")
	w.patch(Models(), "chat", `{"spec":{"engine":{"kind":"simm"}}}`)
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: l}\nspec: {model: chat, source: ''}")
	w.eventually("both say so", func() bool { return w.Rejected()["org/chat"] != "" })
	w.eventually("the LoRA too", func() bool {
		said := w.Rejected()["org/chat"]
		return strings.Contains(said, "the Model object chat is not in use as it is now, what it was before stays: spec.engine.kind: ") &&
			strings.Contains(said, "; the LoRA object l is not in use: ")
	})
	w.patch(Models(), "chat", `{"spec":{"engine":{"kind":"sim"}}}`)
	require.NoError(t, w.Dynamic().Resource(LoRAs()).Namespace("n").Delete(t.Context(), "l", metav1.DeleteOptions{}))
	w.eventually("it is in use", func() bool { return w.Rejected()["org/chat"] == "" })

	state, _ := w.until(w.Source, models(1))
	w.Took(state.Version, 0, errors.New("missing rights"))
	require.Contains(t, w.Rejected()["org/chat"], "missing rights")
}

package resources

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
)

func TestLongMessagesAreWrittenOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: l}\nspec: {model: chat, source: /l}")
	state, _ := w.until(w.Source, func(f *mobula.Fleet) bool { return len(f.Models) == 1 && len(f.Models[0].LoRAs) == 1 })
	w.Took(state.Version, 0, nil)
	long := "!" + strings.Repeat("é", maxMessage) + "\xff" // a character's first half is the last byte that has room
	w.Report(&Status{Routers: 1, Stale: long, Models: map[string]ModelStatus{"org/chat": {
		Wanted: 2, Ready: 1, Revision: "r", Phase: "Progressing", Message: long, Problem: "\xff" + long, LoRAs: []LoRAStatus{{Name: "l", Wanted: 2, Error: long}},
	}}})
	accepted := func(u *unstructured.Unstructured) bool {
		status, _, _ := unstructured.NestedMap(u.Object, "status")
		return is(status, ConditionAccepted) == "True Applied"
	}
	w.known(KindFleet, "default", accepted)
	w.known(KindModel, "chat", accepted)
	w.known(KindLoRA, "l", accepted)
	w.ResetCalls()
	require.True(t, w.writeRound(t.Context()))
	for _, call := range []string{"patch fleets/status", "patch models/status", "patch loras/status"} {
		require.Zero(t, w.Calls()[call], call)
	}
	message := w.status(Models(), "chat")["message"].(string)
	require.Greater(t, len(message), maxMessage-3)
	require.NotContains(t, message, "\ufffd")
}

package resources

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
)

func TestForceLeavesEachObjectItsOwner(t *testing.T) {
	file := func(models ...string) []byte {
		var text strings.Builder
		text.WriteString("apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {namespace: n}}\nmodels:\n")
		for _, m := range models {
			text.WriteString("  - {name: " + m + ", replicas: 1, engine: {kind: sim}}\n")
		}
		return []byte(text.String())
	}
	by := func(w *world, name string) string {
		o, err := w.Dynamic().Resource(Models()).Namespace("n").Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		return o.GetLabels()[labelManagedBy]
	}
	for name, forced := range map[string][]bool{"in between": {false, true, false}, "first": {true, false}, "always": {true, true, true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.Next(t.Context(), 0)
			for _, force := range forced {
				require.NoError(t, w.Write(t.Context(), file("a", "b"), force))
				w.until(w.Source, models(2))
				require.Equal(t, byApply, by(w, "a"))
			}
			require.NoError(t, w.Write(t.Context(), file("b"), true))
			w.until(w.Source, models(1))
			require.NoError(t, w.Delete(t.Context(), ""), "they are ours")
		})
	}
	t.Run("what is another fleet's", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Next(t.Context(), 0)
		w.create(Models(), "kind: Model\nmetadata: {name: a, labels: {app.kubernetes.io/managed-by: "+byApply+"}}\nspec: {fleet: depot, replicas: 3, engine: {kind: sim}}")
		w.known(KindModel, "a", func(*unstructured.Unstructured) bool { return true })
		for _, force := range []bool{false, true} {
			err := w.Write(t.Context(), file("a"), force)
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, "the Model object a is of the fleet depot")
		}
	})
	t.Run("what is another's", func(t *testing.T) {
		w := newWorld(t, nil)
		w.Next(t.Context(), 0)
		w.create(Models(), "kind: Model\nmetadata: {name: helms, labels: {app.kubernetes.io/managed-by: Helm}}\nspec: {replicas: 3, engine: {kind: sim}}")
		w.create(Models(), "kind: Model\nmetadata: {name: bare}\nspec: {replicas: 3, engine: {kind: sim}}")
		for _, name := range []string{"helms", "bare"} {
			w.known(KindModel, name, func(*unstructured.Unstructured) bool { return true })
		}
		for range 2 {
			require.NoError(t, w.Write(t.Context(), file("helms", "bare", "own"), true))
			w.until(w.Source, models(3))
			require.Equal(t, []string{"Helm", "", byApply}, []string{by(w, "helms"), by(w, "bare"), by(w, "own")})
		}
		require.NoError(t, w.Write(t.Context(), file(), true))
		w.until(w.Source, models(2))
	})
}

func TestWhatOthersAddToAFile(t *testing.T) {
	w := newWorld(t, nil)
	w.Next(t.Context(), 0)
	file := []byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {}}\nmodels:\n" +
		"  - {name: org/own, replicas: 1, engine: {kind: sim}, loras: [{name: inner, source: /l}]}\n")
	require.NoError(t, w.Write(t.Context(), file, false))
	w.create(Models(), "kind: Model\nmetadata: {name: helms, labels: {app.kubernetes.io/managed-by: Helm}}\nspec: {replicas: 3, engine: {kind: sim}}")
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: one}\nspec: {model: org-own, name: org/one, source: /l}")
	w.until(w.Source, func(f *mobula.Fleet) bool {
		return len(f.Models) == 2 && len(f.Models[0].LoRAs)+len(f.Models[1].LoRAs) == 2
	})
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: astray}\nspec: {model: nobody, source: /l}") // of no Model, so not in use
	w.known(KindLoRA, "astray", func(*unstructured.Unstructured) bool { return true })
	whole, err := w.Whole(file)
	require.NoError(t, err)
	f, err := mobula.Load(whole, "whole")
	require.NoError(t, err)
	require.Len(t, f.Models, 2)
	require.Equal(t, []mobula.LoRA{{Name: "inner", Source: "/l", Replicas: f.Models[0].LoRAs[0].Replicas}, {Name: "org/one", Source: "/l", Replicas: f.Models[0].LoRAs[1].Replicas}}, f.Models[0].LoRAs)
	require.Equal(t, "helms", f.Models[1].Name)

	whole, err = w.Whole([]byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {}}\n"))
	require.NoError(t, err)
	f, err = mobula.Load(whole, "whole")
	require.NoError(t, err)
	require.Len(t, f.Models, 1, "what Write has made goes with the file's entry")
	_, err = w.Whole([]byte("\t"))
	require.Error(t, err)
}

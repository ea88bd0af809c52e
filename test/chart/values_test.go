package chart_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// want is one thing to be found in a rendering.
type want struct {
	object string // kind/name
	path   string // empty: that the object is there
	value  string // as text gives it
}

const router, control = "Deployment/mobula-router", "Deployment/mobula-control"

func TestValues(t *testing.T) {
	for _, c := range valueCases() {
		t.Run(c.name, func(t *testing.T) {
			out, err := render(t, c.values)
			require.NoError(t, err)
			for _, w := range c.want {
				require.Contains(t, slices.Sorted(maps.Keys(out.Objects)), w.object)
				if w.path != "" {
					require.Equal(t, w.value, text(t, at(out.Objects[w.object], w.path)), "%s: %s", w.object, w.path)
				}
			}
			for _, key := range c.absent {
				object, path, _ := strings.Cut(key, " ")
				if path == "" {
					require.NotContains(t, out.Objects, object)
				} else {
					require.Contains(t, out.Objects, object)
					require.Nil(t, at(out.Objects[object], path), key)
				}
			}
			for _, note := range c.notes {
				require.Contains(t, out.Notes, note)
			}
			for _, object := range out.Objects {
				requireKnown(t, object)
			}
			requireSecretsByName(t, out)
		})
	}
}

func TestWhatCantBeMeantIsRefused(t *testing.T) {
	for name, c := range refusedCases() {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, c.values)
			require.ErrorContains(t, err, c.message)
			requireSentence(t, err)
		})
	}
}

// requireSentence fails for an error that Go's templates made up, with no word of what to do.
func requireSentence(t *testing.T, err error) {
	t.Helper()
	for _, ugly := range []string{"nil pointer", "wrong type for value", "can't evaluate field", "invalid value; expected", "YAML parse error", "executing "} {
		require.NotContains(t, err.Error(), ugly)
	}
}

func TestNamesFollowTheRelease(t *testing.T) {
	for _, c := range []struct{ release, values, router string }{
		{"mobula", "{}", "mobula-router"},
		{"my-mobula", "{}", "my-mobula-router"},
		{"prod", "{}", "prod-mobula-router"},
		{"prod", "nameOverride: llm", "prod-llm-router"},
		{"prod", "fullnameOverride: chat", "chat-router"},
		{strings.Repeat("a", 53), "{}", strings.Repeat("a", 40) + "-router"},
	} {
		t.Run(c.router, func(t *testing.T) {
			out, err := renderAs(t, c.release, c.values)
			require.NoError(t, err)
			require.Contains(t, out.Objects, "Service/"+c.router)
			for key, object := range out.Objects {
				require.LessOrEqual(t, len(at(object, "metadata name").(string)), 63, key)
				for k, v := range at(object, "metadata labels").(map[string]any) {
					require.LessOrEqual(t, len(v.(string)), 63, "%s: %s", key, k)
				}
			}
		})
	}
}

// The Deployment's selector must be in its pods' labels whatever is laid over them, and the Service's too.
func TestSelectorsFindThePods(t *testing.T) {
	out, err := render(t, `
router: {pod: {metadata: {labels: {team: a}, annotations: {b: c}}}}
cacheServer: {enabled: true, image: {repository: lm, tag: v1}}
redis: {enabled: true}
commonLabels: {cost: "42"}`)
	require.NoError(t, err)
	for _, component := range []string{"Deployment/mobula-router", "Deployment/mobula-control", "Deployment/mobula-cache-server", "StatefulSet/mobula-redis"} {
		labels := at(out.Objects[component], "spec template metadata labels").(map[string]any)
		_, name, _ := strings.Cut(component, "/")
		for _, selector := range []any{at(out.Objects[component], "spec selector matchLabels"), at(out.Objects["Service/"+name], "spec selector")} {
			require.NotEmpty(t, selector)
			for k, v := range selector.(map[string]any) {
				if k == "mobula.dev/leader" {
					continue // the control plane that leads labels itself
				}
				require.Equal(t, v, labels[k], component)
			}
		}
	}
}

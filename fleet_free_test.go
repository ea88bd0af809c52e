package mobula_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

// onRay is a fleet on Ray, up to the value of its runtime environment.
const onRay = header + "models: [{name: m, replicas: 1}]\nplatform:\n  ray:\n    address: http://ray:8265\n    runtimeEnv:\n"

func freeValue(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.StringMatching(`[ -~äß日]{0,12}`).AsAny(),
		rapid.StringMatching(`[ -~ä\n\t]{0,12}`).AsAny(),
		rapid.SampledFrom([]string{"true", "null", "~", "1", "1.5", "1e3", "0x1f", ".inf", ".nan", "2001-01-01", "<<", "- a", "a: b", "#", "*a", "&a", "yes", "|", "'", `"`, "=", "1_0", "0o7"}).AsAny(),
		rapid.Bool().AsAny(),
		rapid.Map(rapid.IntRange(1-1<<53, 1<<53-1), func(n int) any { return float64(n) }),
		rapid.Float64Range(-1e6, 1e6).AsAny(),
		rapid.Just[any](nil),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(freeValue(depth-1), 0, 4).AsAny(),
		rapid.MapOfN(rapid.StringMatching(`[ -~äß]{1,8}`), freeValue(depth-1), 0, 4).AsAny())...)
}

// What is free in the file goes to others as it was written: it comes through YAML and JSON as it is.
func TestFreeFormRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOfN(rapid.StringMatching(`[ -~äß]{1,8}`), freeValue(3), 1, 4).Draw(t, "config")
		fleet := mobula.Default()
		fleet.Platform.Ray = &mobula.Ray{
			Address: "http://ray:8265", Namespace: "mobula", Mode: "actors", Poll: 1e9,
			RuntimeEnv: map[string]any{"config": want},
			Serve:      []mobula.RayServe{{Name: "s"}},
		}
		file, err := fleet.YAML()
		require.NoError(t, err)
		got, err := mobula.Load(file, "fleet.yaml")
		require.NoError(t, err, "%s", file)
		require.Empty(t, cmp.Diff(&fleet, got), "%s", file)

		file, err = json.Marshal(got.Platform.Ray)
		require.NoError(t, err)
		var again mobula.Ray
		require.NoError(t, json.Unmarshal(file, &again))
		require.Empty(t, cmp.Diff(got.Platform.Ray, &again))
	})
}

func TestFreeFormIsBounded(t *testing.T) {
	const wide = 60
	var bomb strings.Builder
	bomb.WriteString("      config:\n        l0: &l0 [" + strings.Repeat("a,", wide) + "]\n")
	for i := range 6 {
		fmt.Fprintf(&bomb, "        l%d: &l%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*l%d,", i), wide))
	}
	for name, c := range map[string]struct{ file, want string }{
		"an alias bomb":             {bomb.String(), "aliases expand to too much"},
		"an alias to itself":        {"      config: &a {b: *a}\n", "nested too deep: more than 16 levels"},
		"a list of itself":          {"      config: {a: &a [*a, *a]}\n", "more problems"},
		"deeper than a file may be": {"      config: " + strings.Repeat("{a: ", 60) + "1" + strings.Repeat("}", 60) + "\n", "nested too deep"},
		"beyond what floats keep":   {"      config: {a: -9007199254740993}\n", "at most 9007199254740991"},
		"beyond that by far":        {"      config: {a: 1" + strings.Repeat("0", 40) + ".5}\n", "config.a: want a number of at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mobula.Load([]byte(onRay+c.file), "fleet.yaml")
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWithoutValueMeansNone(t *testing.T) {
	for _, value := range []string{"      {}\n", "      null\n", ""} {
		fleet, err := mobula.Load([]byte(onRay+value), "fleet.yaml")
		require.NoError(t, err)
		require.Nil(t, fleet.Platform.Ray.RuntimeEnv)
	}
}

func TestAFleetOnRayNeedsSomethingToServe(t *testing.T) {
	const bare = header + "platform: {ray: {address: http://ray:8265}}\n"
	for more, ok := range map[string]bool{
		"":                                   false,
		"models: [{name: m}]\n":              false,
		"models: [{name: m, replicas: 0}]\n": true,
		"providers: [{name: p, url: http://p/v1, models: [{name: m}]}]\n": true,
	} {
		_, err := mobula.Load([]byte(bare+more), "fleet.yaml")
		require.Equal(t, ok, err == nil, "%s: %v", more, err)
	}
}

func TestTheFormsOfADashboardsAddress(t *testing.T) {
	for address, want := range map[string]string{
		"http://ray-head:8265": "", "https://ray.example.org": "", "http://10.0.0.7:8265": "", "http://[::1]:8265": "",
		"":                          "got nothing",
		"ray-head:8265":             "scheme http or https",
		"ray://ray-head:10001":      "scheme http or https",
		"http://ray-head:8265/":     "without a path",
		"http://ray-head:8265/a":    "without a path",
		"http://ray-head:8265?a=b":  "without a path",
		"http://:8265":              "host name",
		"http://ray-head:0":         "port from 1",
		"http://me:hunter2@h:8265":  "see tokenFile",
		"http://ray-head:8265#here": "fragment",
	} {
		file := header + "models: [{name: m, replicas: 1}]\nplatform: {ray: {address: \"" + address + "\"}}\n"
		_, err := mobula.Load([]byte(file), "fleet.yaml")
		if want == "" {
			require.NoError(t, err, address)
			continue
		}
		require.ErrorContains(t, err, want, address)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

const stackValues = "../../convert/testdata/"

func TestConvertPrintsValuesAndNotes(t *testing.T) {
	got := execute(t, "", "convert", "production-stack", stackValues+"two-pods.yaml")
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "models:\n  - name: facebook/opt-125m")
	require.Contains(t, got.stderr, "changed  routerSpec.repository  the router is Mobula's own")
	require.NotContains(t, got.stdout, "changed ")
}

func TestConvertMergesFilesAsHelmDoes(t *testing.T) {
	over := filepath.Join(t.TempDir(), "over.yaml")
	require.NoError(t, os.WriteFile(over, []byte("routerSpec: {replicaCount: 5, routingLogic: null}\n"), 0o600))
	got := execute(t, "", "convert", "production-stack", stackValues+"two-pods.yaml", over)
	require.Equal(t, exitOK, got.code, got.stderr)
	require.Contains(t, got.stdout, "replicas: 5")
	require.NotContains(t, got.stdout, "roundrobin")
}

func TestConvertReadsStandardInputAndWritesAFile(t *testing.T) {
	values, err := os.ReadFile(stackValues + "minimal.yaml")
	require.NoError(t, err)
	out := filepath.Join(t.TempDir(), "values.yaml")
	require.Equal(t, result{exitOK, "", ""}, execute(t, string(values), "convert", "production-stack", "-", "-o", out))
	written, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Contains(t, string(written), "name: facebook/opt-125m")
}

func TestConvertStrictFailsOnWhatIsDropped(t *testing.T) {
	got := execute(t, "", "convert", "production-stack", "--strict", stackValues+"secured.yaml")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "models:")
	require.Contains(t, got.stderr, "dropped  routerSpec.hf_token  ")
	require.Contains(t, got.stderr, "error: values were dropped, which --strict forbids\n")
	require.Equal(t, exitOK, execute(t, "", "convert", "production-stack", "--strict", stackValues+"two-pods.yaml").code)
}

func TestConvertWithoutASourceListsThem(t *testing.T) {
	got := execute(t, "", "convert")
	require.Equal(t, exitOK, got.code)
	require.Contains(t, got.stdout, "production-stack Convert values of the vLLM Production Stack's chart")
}

func TestWrongValuesToConvert(t *testing.T) {
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		code  int
		want  string
	}{
		"no file":      {"", nil, exitUsage, "error: which values? give their file\nhint: mobula convert production-stack --help\n"},
		"no such file": {"", []string{"/nowhere.yaml"}, exitFailed, "error: /nowhere.yaml: there is no such file\nhint: helm get values RELEASE prints the values of a release\n"},
		"no YAML":      {"a: b: c", []string{"-"}, exitFailed, "error: standard input:1:1: not YAML: mapping values are not allowed in this context\n"},
		"wrong type":   {"routerSpec:\n  replicaCount: many\n", []string{"-"}, exitFailed, "error: standard input:2:3: routerSpec.replicaCount: want a whole number from 0 on, got \"many\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := execute(t, tc.stdin, append([]string{"convert", "production-stack"}, tc.args...)...)
			require.Equal(t, tc.code, got.code)
			require.Equal(t, tc.want, got.stderr)
		})
	}
}

func TestConvertOfAnUnknownSource(t *testing.T) {
	got := execute(t, "", "convert", "kserve", "values.yaml")
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, `unknown command "kserve" for "mobula convert"`)
}

// TestConvertedModelsMakePods: what comes out is not only a fleet file, Kubernetes' types take its pods too.
func TestConvertedModelsMakePods(t *testing.T) {
	files, err := filepath.Glob(stackValues + "*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got := execute(t, "", "convert", "production-stack", file)
			require.Equal(t, exitOK, got.code, got.stderr)
			var values yaml.MapSlice
			require.NoError(t, yaml.Unmarshal([]byte(got.stdout), &values))
			fleet := yaml.MapSlice{{Key: "apiVersion", Value: mobula.APIVersion}, {Key: "kind", Value: "Fleet"}}
			platform := yaml.MapItem{Key: "platform", Value: yaml.MapSlice{{Key: "kubernetes", Value: yaml.MapSlice{}}}}
			for _, item := range values {
				switch item.Key {
				case "platform":
					platform = item
				case "models":
					fleet = append(fleet, item)
				}
			}
			text, err := yaml.Marshal(append(fleet, platform))
			require.NoError(t, err)
			loaded, err := mobula.Load(text, file)
			require.NoError(t, err)
			for _, m := range loaded.Models {
				e := kube.Engine{Fleet: "default", Model: loaded.Engine(m), Revision: "r1", KubeRay: loaded.Platform.KubeRay}
				if m.Resources.Hosts > 1 {
					_, err = e.Member(kube.Member{Replica: "a", Rank: 0, Master: "a"})
				} else {
					_, err = e.Pod()
				}
				require.NoError(t, err)
			}
			if strings.Contains(file, "several") {
				require.Len(t, loaded.Models, 2)
			}
		})
	}
}

// TestThePageOnMovingIsRight: the commands for mobula that it shows parse, with their flags.
func TestThePageOnMovingIsRight(t *testing.T) {
	page, err := os.ReadFile("../../docs/migrating-from-production-stack.md")
	require.NoError(t, err)
	shown := 0
	for line := range strings.Lines(string(page)) {
		at := strings.Index(line, "mobula convert ")
		if at < 0 {
			continue
		}
		command, _, _ := strings.Cut(line[at+len("mobula "):], "`")
		root := (&app{}).root()
		cmd, args, err := root.Find(strings.Fields(command))
		require.NoError(t, err, line)
		require.Equal(t, "production-stack", cmd.Name(), line)
		require.NoError(t, cmd.ParseFlags(args), line)
		require.NotEmpty(t, cmd.Flags().Args(), line)
		shown++
	}
	require.Equal(t, 2, shown)
}

package convert_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/convert"
)

var update = flag.Bool("update", false, "write the golden files")

// told writes a result as the golden files have it: the values, then the notes.
func told(r convert.Result) []byte {
	var b bytes.Buffer
	b.Write(r.Values)
	b.WriteString("---\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "# %-8s %s: %s\n", n.Severity, n.Path, n.Text)
	}
	return b.Bytes()
}

func inputs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

func TestGoldenValues(t *testing.T) {
	for _, file := range inputs(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			result, err := convert.ProductionStack(convert.File{Name: file, Data: data})
			require.NoError(t, err)
			got, golden := told(result), strings.TrimSuffix(file, ".yaml")+".golden"
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(string(want), string(got)))
		})
	}
}

func convertText(text string) (convert.Result, error) {
	return convert.ProductionStack(convert.File{Name: "values.yaml", Data: []byte(text)})
}

func TestWrongValuesAreNamedWithTheirLine(t *testing.T) {
	for _, tc := range []struct{ name, values, want string }{
		{"no mapping", "- a", "values.yaml:1:1: want values, which are a mapping, got a list"},
		{"no YAML", "a:\n  - b\n c: d", "values.yaml:2:1: not YAML: did not find expected key"},
		{"section", "routerSpec: yes please", `values.yaml:1:1: routerSpec: want a mapping, got "yes please"`},
		{"number", "servingEngineSpec:\n  modelSpec:\n    - name: m\n      modelURL: a\n      replicaCount: [1]", "values.yaml:5:7: servingEngineSpec.modelSpec[0].replicaCount: want a whole number from 0 on, got a list"},
		{"less than none", "routerSpec: {replicaCount: -1}", "values.yaml:1:14: routerSpec.replicaCount: want a whole number from 0 on, got -1"},
		{"flag", "routerSpec: {ingress: {enabled: maybe}}", `values.yaml:1:24: routerSpec.ingress.enabled: want true or false, got "maybe"`},
		{"items", "servingEngineSpec: {modelSpec: [opt]}", `values.yaml:1:33: servingEngineSpec.modelSpec[0]: want a mapping, got "opt"`},
		{"list of one", "servingEngineSpec: {modelSpec: {name: opt}}", "values.yaml:1:21: servingEngineSpec.modelSpec: want a list, got a mapping"},
		{"secrets are not shown", "servingEngineSpec: {vllmApiKey: [abc]}", "values.yaml:1:21: servingEngineSpec.vllmApiKey: want text, or a mapping with secretName and secretKey, got something else"},
		{"choice", "routerSpec: {routingLogic: fastest}", `values.yaml:1:14: routerSpec.routingLogic: want roundrobin, session, prefixaware, kvaware, disaggregated_prefill or disaggregated_prefill_orchestrated, got "fastest"`},
		{"no model", "servingEngineSpec: {modelSpec: [{name: a}]}", "values.yaml:1:33: servingEngineSpec.modelSpec[0].modelURL: want the model, such as facebook/opt-125m, got nothing"},
		{"variable", "routerSpec: {env: [A]}", "values.yaml:1:20: routerSpec.env[0]: want a variable: a mapping with name, and value or valueFrom"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := convertText(tc.values)
			require.EqualError(t, err, tc.want)
			var file *mobula.FileError
			require.ErrorAs(t, err, &file)
		})
	}
}

func TestTooLargeFileIsRefused(t *testing.T) {
	_, err := convertText(strings.Repeat("#", convert.MaxFileSize+1))
	require.ErrorIs(t, err, convert.ErrTooLarge)
	_, err = convertText("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n")
	require.Error(t, err)
}

func TestErrorsOfAllFilesAreTold(t *testing.T) {
	_, err := convert.ProductionStack(
		convert.File{Name: "a.yaml", Data: []byte("routerSpec: {replicaCount: x}")},
		convert.File{Name: "b.yaml", Data: []byte("\ncacheserverSpec: {enabled: 3}")},
	)
	require.EqualError(t, err, "a.yaml:1:14: routerSpec.replicaCount: want a whole number from 0 on, got \"x\"\nb.yaml:2:19: cacheserverSpec.enabled: want true or false, got 3")
}

func TestFilesAreMergedAsHelmDoes(t *testing.T) {
	r, err := convert.ProductionStack(
		convert.File{Name: "a.yaml", Data: []byte("servingEngineSpec: {runtimeClassName: '', imagePullPolicy: Never, modelSpec: [{name: a, modelURL: a, repository: r, tag: t}]}\nrouterSpec: {replicaCount: 2, routingLogic: session, sessionKey: x}")},
		convert.File{Name: "b.yaml", Data: []byte("servingEngineSpec: {imagePullPolicy: null, modelSpec: [{name: b, modelURL: b}]}\nrouterSpec: {replicaCount: 3}")},
	)
	require.NoError(t, err)
	require.Empty(t, r.Notes)
	require.Equal(t, `# Values of charts/mobula, made by mobula convert from those of a vLLM Production Stack.
models:
  - name: b
    replicas: 1
    resources: {gpus: 0}
fleet:
  router: {policy: {name: session, sessionHeader: x, sessionField: x}}
router:
  replicas: 3
`, string(r.Values))
}

func TestUnknownValuesAreToldWithWhatWasMeant(t *testing.T) {
	r, err := convertText("servingEngineSpec: {modelSpec: [{name: a, modelURL: a, requestGpu: 1, flavour: x}]}\nrouterSpecs: {}\ncacheserverSpec: {tag: v1}")
	require.NoError(t, err)
	var got []string
	for _, n := range r.Notes {
		require.Equal(t, convert.Dropped, n.Severity)
		got = append(got, n.Path+": "+n.Text)
	}
	const unknown = "unknown to production-stack's chart too"
	require.Equal(t, []string{
		"servingEngineSpec.modelSpec[0].flavour: " + unknown,
		"servingEngineSpec.modelSpec[0].requestGpu: " + unknown + "; did you mean requestGPU?",
		"cacheserverSpec.tag: " + unknown + "; did you mean image.tag?",
		"routerSpecs: " + unknown + "; did you mean routerSpec?",
	}, got)
}

func TestDefaultsOfTheirChartNeedNoNotes(t *testing.T) {
	r, err := convertText(`
servingEngineSpec: {containerPort: 8000, servicePort: 80, sidecar: {image: "lmcache/lmstack-sidecar:latest"}, labels: {environment: test, release: test}, readinessProbe: {periodSeconds: 5}}
routerSpec: {repository: lmcache/lmstack-router, tag: latest, requestStatsWindow: 60, livenessProbe: {httpGet: {path: /health}}, otel: {endpoint: "", serviceName: vllm-router, secure: false}}
loraController: {enableLoraController: false, replicaCount: 4}
cacheserverSpec: {enabled: false, containerPort: 7}
kube-prometheus-stack: {enabled: false}`)
	require.NoError(t, err)
	require.Empty(t, r.Notes)
}

func TestSecretsAreNotCopied(t *testing.T) {
	data, err := os.ReadFile("testdata/secured.yaml")
	require.NoError(t, err)
	for _, secret := range []string{"notARealKeyOfAnybody", "notARealSecret", "notARealKeyEither", "hf_notARealTokenOfAnybody"} {
		require.Contains(t, string(data), secret)
	}
	r, err := convertText(string(data))
	require.NoError(t, err)
	require.NotContains(t, string(told(r)), "notAReal")
	r, err = convertText(`servingEngineSpec: {modelSpec: [{name: a, modelURL: a, vllmConfig: {extraArgs: [--api-key, notAReal1, --hf-token=notAReal2, --port, "1", --dtype, half]}}, {name: b, modelURL: b, hf_token: notAReal3}]}`)
	require.NoError(t, err)
	require.NotContains(t, string(told(r)), "notAReal")
	require.Contains(t, string(told(r)), "kubectl create secret generic hf-token-2 --from-literal=token=VALUE")
	require.Contains(t, string(r.Values), "args: [--dtype, half]")
}

func TestSubchartsAreTurnedOnWithoutTheirValues(t *testing.T) {
	r, err := convertText("kube-prometheus-stack: {enabled: true, grafana: {adminPassword: notARealPassword}}\nprometheus-adapter: {enabled: false, logLevel: 4}")
	require.NoError(t, err)
	require.Contains(t, string(r.Values), "kube-prometheus-stack:\n  enabled: true\n")
	require.NotContains(t, string(r.Values), "prometheus-adapter")
	require.NotContains(t, string(told(r)), "notARealPassword")
	require.Contains(t, string(told(r)), "kube-prometheus-stack: its other values are not copied")
}

func TestWhatMobulaRefusesIsTold(t *testing.T) {
	r, err := convertText("servingEngineSpec: {modelSpec: [{name: a, modelURL: a, requestCPU: 4, limitCPU: 2, requestMemory: plenty}]}")
	require.NoError(t, err)
	require.Contains(t, string(told(r)), `# action   converted models[0].kubernetes.memory: put it right: want a quantity such as 512Mi or 16Gi, got "plenty"`)
}

func TestChatTemplateKeepsItsBraces(t *testing.T) {
	r, err := convertText("servingEngineSpec: {modelSpec: [{name: a, modelURL: a, chatTemplate: t.jinja, chatTemplateConfigMap: \"{% if x %}\\n{{ x }}\\n{% endif %}\\n\"}]}")
	require.NoError(t, err)
	require.Contains(t, string(r.Values), "{{`{{`}} x }}") // Helm makes {{ x }} of it
	require.Contains(t, string(r.Values), "--chat-template, /templates/t.jinja")
}

func FuzzProductionStack(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := convert.ProductionStack(convert.File{Name: "values.yaml", Data: data})
		if err != nil {
			return
		}
		var values map[string]any
		require.NoError(t, yaml.Unmarshal(r.Values, &values), "%s", r.Values)
		again, err := convert.ProductionStack(convert.File{Name: "values.yaml", Data: data})
		require.NoError(t, err)
		require.Equal(t, told(r), told(again))
		for _, n := range r.Notes {
			require.NotEmpty(t, n.Path)
			require.NotEmpty(t, n.Text)
		}
	})
}

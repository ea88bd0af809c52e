package convert

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var updateDocs = flag.Bool("update-docs", false, "write the tables of docs/migrating-from-production-stack.md")

const (
	page       = "../docs/migrating-from-production-stack.md"
	firstTable = "<!-- values: written by go test ./convert -update-docs -->\n"
	lastTable  = "<!-- end -->\n"
)

// TestPageHasEveryValue: the tables in the documentation are those that are converted by.
func TestPageHasEveryValue(t *testing.T) {
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), firstTable)
	require.True(t, ok)
	_, after, ok := strings.Cut(rest, lastTable)
	require.True(t, ok)
	want := before + firstTable + tables() + lastTable + after
	if *updateDocs {
		require.NoError(t, os.WriteFile(page, []byte(want), 0o644))
		return
	}
	require.Empty(t, cmp.Diff(want, string(text)), "go test ./convert -update-docs")
}

func tables() string {
	var b strings.Builder
	b.WriteString("\n| production-stack | Mobula | |\n|---|---|---|\n")
	section := ""
	for _, r := range stackRows() {
		if top, _, _ := strings.Cut(r.theirs, "."); top != section {
			section = top
			fmt.Fprintf(&b, "| **%s** | | |\n", top)
		}
		line(&b, r)
	}
	b.WriteString("\nFlags of its router, in `routerSpec.extraArgs`:\n\n| production-stack | Mobula | |\n|---|---|---|\n")
	for _, r := range flagRows() {
		line(&b, r)
	}
	b.WriteString("\n")
	return b.String()
}

func line(b *strings.Builder, r row) {
	var ours []string
	for o := range strings.SplitSeq(r.ours, ", ") {
		if o != "" {
			ours = append(ours, "`"+o+"`")
		}
	}
	text := strings.NewReplacer("|", "\\|", "<", "&lt;").Replace(r.text)
	switch r.fate {
	case later:
		text = "**not there yet**: " + text
	case dropped:
		text = "dropped: " + text
	}
	_, theirs, nested := strings.Cut(r.theirs, ".")
	if !nested {
		theirs = r.theirs
	}
	fmt.Fprintf(b, "| `%s` | %s | %s |\n", theirs, strings.Join(ours, ", "), text)
}

func TestRowsAreNamedOnce(t *testing.T) {
	for _, rows := range [][]row{stackRows(), flagRows()} {
		seen := map[string]bool{}
		for _, r := range rows {
			require.False(t, seen[r.theirs], r.theirs)
			seen[r.theirs] = true
			require.True(t, r.fate == mapped || r.text != "", r.theirs)
			require.False(t, r.fate == mapped && r.ours == "" && r.text == "", "%s goes nowhere and nothing says why", r.theirs)
			if r.std != "" {
				standard(r.std)
			}
		}
	}
}

// bases are values in which some value has an effect.
func bases() []string {
	const models = "servingEngineSpec: {runtimeClassName: '', modelSpec: [{name: m, modelURL: org/m, repository: r, tag: t, requestGPU: 2, replicaCount: 4"
	const rest = "cacheserverSpec: {enabled: true}\nsharedPvcStorage: {enabled: true}\nloraController: {enableLoraController: true}\ngrafanaDashboards: {enabled: true}\n"
	const lora = "loraAdapters: [{name: l, baseModel: m, adapterSource: {type: http, adapterName: l, adapterPath: /p}}]\n"
	const router = "routerSpec: {autoscaling: {enabled: true}, pdb: {enabled: true}, ingress: {enabled: true, hosts: [{host: h, paths: [{path: /, pathType: Prefix}]}]}, serviceMonitor: {enabled: true}}\n"
	return []string{
		models + ", lmcacheConfig: {enabled: true}, keda: {enabled: true, minReplicaCount: 0}, pdb: {enabled: true, maxUnavailable: 2}}], serviceMonitor: {enabled: true}}\n" + rest + lora + router,
		models + ", keda: {enabled: true, minReplicaCount: 1, triggers: [{type: cpu}]}, pdb: {enabled: true}, pvcStorage: 5Gi, pvcAccessMode: [ReadWriteMany]}], tolerations: [{key: a}]}\nsharedPvcStorage: {enabled: true, nfs: {server: s}}\nrouterSpec: {routingLogic: session, serviceType: NodePort}\n",
		models + ", raySpec: {enabled: true, headNode: {requestGPU: 2}}}]}\n",
		models + ", chatTemplate: c, tolerations: [{key: b}], vllmConfig: {dtype: half}}], tolerations: [{key: a}], vllmApiKey: k}\nrouterSpec: {serviceDiscovery: static}\n",
	}
}

// samples of a row: each is tried in all bases.
func samples(r row) []string {
	byPath := map[string]string{
		"servingEngineSpec.startupProbe":                                      `{"failureThreshold":1000}`,
		"servingEngineSpec.strategy":                                          `{"rollingUpdate":{"maxSurge":3}}`,
		"servingEngineSpec.modelSpec[].vllmConfig.v0":                         `"1"`,
		"servingEngineSpec.modelSpec[].vllmConfig.v1":                         `"0"`,
		"servingEngineSpec.modelSpec[].tolerationsPolicy":                     `"override"`,
		"servingEngineSpec.modelSpec[].resources":                             `{"limits":{"cpu":"3"}}`,
		"servingEngineSpec.modelSpec[].pvcStorage":                            `"9Gi"`,
		"servingEngineSpec.modelSpec[].pvcAccessMode":                         `["ReadWriteOnce"]`,
		"servingEngineSpec.modelSpec[].envFromSecret":                         `{"name":"x"}`,
		"servingEngineSpec.modelSpec[].initContainer":                         `{"name":"i","image":"i"}`,
		"servingEngineSpec.modelSpec[].raySpec.headNode.initContainer":        `{"name":"i","image":"i"}`,
		"servingEngineSpec.modelSpec[].raySpec.headNode.resources":            `{"limits":{"nvidia.com/gpu":1}}`,
		"servingEngineSpec.modelSpec[].keda.idleReplicaCount":                 `0`,
		"routerSpec.serviceDiscovery":                                         `"static"`,
		"routerSpec.k8sServiceDiscoveryType":                                  `"service-name"`,
		"routerSpec.serviceType":                                              `"LoadBalancer"`,
		"routerSpec.routingLogic":                                             `"roundrobin"`,
		"routerSpec.route":                                                    `{"main":{"enabled":true,"parentRefs":[{"name":"g"}]}}`,
		"routerSpec.imagePullPolicy":                                          `"Never"`,
		"routerSpec.staticModels":                                             `"m"`,
		"kube-prometheus-stack":                                               `{"enabled":true}`,
		"prometheus-adapter":                                                  `{"enabled":true}`,
		"servingEngineSpec.modelSpec[].keda.fallback":                         `{"replicas":2}`,
		"servingEngineSpec.modelSpec[].pdb.minAvailable":                      `3`,
		"servingEngineSpec.modelSpec[].storageClass":                          `"fast"`,
		"servingEngineSpec.modelSpec[].lmcacheConfig.cpuOffloadingBufferSize": `7`,
		"servingEngineSpec.modelSpec[].nodeSelectorTerms":                     `[{"matchExpressions":[]}]`,
		"loraAdapters[].adapterSource.type":                                   `"local"`,
		"servingEngineSpec.modelSpec[].vllmConfig.pipelineParallelSize":       `2`,
		"servingEngineSpec.modelSpec[].raySpec.enabled":                       `true`,
		"servingEngineSpec.modelSpec[].chatTemplateConfigMap":                 `"{{ x }}"`,
		"routerSpec.extraArgs":                                                `["--log-level","debug"]`,
	}
	if s, ok := byPath[r.theirs]; ok {
		return []string{s}
	}
	switch r.kind {
	case whole, number:
		return []string{"7"}
	case flagged:
		return []string{"true", "false"}
	case on, off:
		return []string{"true", "false"}
	case list:
		return []string{`[{"name":"x","value":"y"}]`}
	case texts:
		return []string{`["--x"]`}
	case mapping:
		return []string{`{"a":{"b":"c"}}`}
	case labels:
		return []string{`{"a":"b"}`}
	case secretly:
		return []string{`"s3cr3t"`, `{"secretName":"n","secretKey":"k"}`}
	case some:
		return []string{`[{"type":"memory"}]`}
	}
	return []string{`"7"`, `"x"`}
}

// TestEveryValueIsConvertedOrTold: a value of theirs changes what comes out, or what is said.
func TestEveryValueIsConvertedOrTold(t *testing.T) {
	for _, r := range stackRows() {
		t.Run(r.theirs, func(t *testing.T) {
			for _, base := range bases() {
				for _, sample := range samples(r) {
					var tree map[string]any
					require.NoError(t, yaml.Unmarshal([]byte(base), &tree))
					without := outcome(t, tree)
					put(tree, strings.Split(r.theirs, "."), standard(sample))
					if !bytes.Equal(without, outcome(t, tree)) {
						return
					}
				}
			}
			t.Fatal("it makes no difference")
		})
	}
}

func put(tree map[string]any, path []string, value any) {
	name, isList := strings.CutSuffix(path[0], "[]")
	switch {
	case len(path) == 1:
		tree[name] = value
	case isList:
		items, _ := tree[name].([]any)
		if len(items) == 0 {
			items = []any{map[string]any{}}
			tree[name] = items
		}
		put(items[0].(map[string]any), path[1:], value) //nolint:forcetypeassert // of these values it is one
	default:
		below, ok := tree[name].(map[string]any)
		if !ok {
			below = map[string]any{}
			tree[name] = below
		}
		put(below, path[1:], value)
	}
}

func outcome(t *testing.T, tree map[string]any) []byte {
	t.Helper()
	data, err := json.Marshal(tree)
	require.NoError(t, err)
	r, err := ProductionStack(File{Name: "values.yaml", Data: data})
	require.NoError(t, err, "%s", data)
	require.NotContains(t, string(r.Values), "s3cr3t")
	for _, n := range r.Notes {
		require.NotContains(t, n.Text, "s3cr3t")
		r.Values = fmt.Appendf(r.Values, "%s %s %s\n", n.Severity, n.Path, n.Text)
	}
	return r.Values
}

// TestEveryFlagIsKnown: flags are read with their values, and none that is mapped is forgotten.
func TestEveryFlagIsConvertedOrTold(t *testing.T) {
	values := map[string]string{"--static-aliases": "a:org/m", "--log-level": "debug", "--log-format": "json", "--routing-logic": "roundrobin"}
	for _, r := range flagRows() {
		t.Run(r.theirs, func(t *testing.T) {
			args := []string{r.theirs}
			if r.kind != flagged {
				value := "7"
				if v, ok := values[r.theirs]; ok {
					value = v
				}
				args = append(args, value)
			}
			tree := map[string]any{"servingEngineSpec": map[string]any{"modelSpec": []any{map[string]any{"name": "m", "modelURL": "org/m"}}}, "routerSpec": map[string]any{"routingLogic": "session"}}
			without := outcome(t, tree)
			tree["routerSpec"] = map[string]any{"routingLogic": "session", "extraArgs": args}
			require.NotEqual(t, string(without), string(outcome(t, tree)))
		})
	}
	require.True(t, slices.ContainsFunc(flagRows(), func(r row) bool { return r.fate == mapped }))
}

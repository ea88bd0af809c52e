package app

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func TestAFleetInALine(t *testing.T) {
	for platform, want := range map[string]string{
		"static: {endpoints: [{url: http://127.0.0.1:1}]}":    "1 endpoint",
		"ray: {address: http://ray:8265}":                     "Ray cluster at http://ray:8265",
		"ray: {address: http://ray:8265, serve: [{name: a}]}": "Ray cluster at http://ray:8265 with 1 Serve application",
		"kubernetes: {}": "Kubernetes",
		"kubernetes: {namespace: llm, discover: [{selector: app=a}]}": "Kubernetes in namespace llm with 1 selector for engines of others",
		"kuberay: {kubernetes: {namespace: llm}}":                     "KubeRay in namespace llm",
		"kuberay: {shared: {cluster: big}}":                           "KubeRay, in RayCluster big",
		"kuberay: {shared: {service: llm}}":                           "KubeRay, in RayService llm",
	} {
		model := "{name: a, replicas: 1, engine: {kind: sim}}"
		if strings.HasPrefix(platform, "static") { // which places none
			model = "{name: a}"
		}
		fleet, err := mobula.Load([]byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {"+platform+"}\nmodels: ["+model+"]\n"), "fleet.yaml")
		require.NoError(t, err, platform)
		require.Equal(t, want+", 1 model, policy cost", describe(fleet))
	}
}

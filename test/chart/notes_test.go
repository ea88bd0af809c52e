package chart_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is shown after an install are commands that a new user types in as they stand.
func TestNotesShowTheNextCommands(t *testing.T) {
	const forward, ask = "kubectl -n llm port-forward svc/mobula-router 30080:80 &", "curl localhost:30080/v1/models"
	for _, c := range []struct {
		name, values string
		want, absent []string
	}{
		{"no models", "{}", []string{"There is no model yet", forward, ask, "describe fleet default", "logs deploy/mobula-control"}, []string{"helm test", "chat/completions", "wait model"}},
		{"a model", "{models: [{name: Org/M, replicas: 1}, {name: b, replicas: 0-2}], fleet: {name: f}}", []string{
			"kubectl -n llm get models -w", "wait model/org-m --for=condition=Ready", "wait model/b ", forward, ask, `"model": "Org/M"`, "helm test mobula -n llm",
			"describe model org-m", "get pods -l mobula.dev/fleet=f",
		}, []string{"Look at these again"}},
		{"engines of others", "{control: {enabled: false}, platform: {kubernetes: {discover: [{selector: 'app=vllm,tier in (prod)', namespaces: [a, '*']}, {selector: x=y, by: services}]}}}", []string{
			"It makes no engines.", "kubectl get pods -l 'app=vllm,tier in (prod)' -n a", "kubectl get pods -l 'app=vllm,tier in (prod)' --all-namespaces", "kubectl get services -l 'x=y' -n llm",
			forward, ask, "logs deploy/mobula-router",
		}, []string{"There is no model yet", "get models"}},
		{"a model that can't chat first", "{models: [{name: a, replicas: 1, engine: {args: [--runner, pooling]}}, {name: b, replicas: 1}]}", []string{`"model": "b"`}, nil},
		{"models that nobody runs", "{models: [{name: a}]}", []string{"It makes no engines: no model has replicas"}, []string{"There is no model yet"}},
		{"an Ingress", "{models: [{name: a, replicas: 1}], router: {ingress: {enabled: true, hosts: [x.example, y.example], tls: [{secretName: s}]}}}", []string{"curl https://x.example/v1/models"}, []string{forward}},
		{"an Ingress without a certificate", "{router: {ingress: {enabled: true, hosts: [x.example]}}}", []string{"curl http://x.example/v1/models"}, []string{forward}},
		{"an Ingress for all hosts", "{router: {ingress: {enabled: true}}}", []string{forward}, []string{"http://"}},
		{"a load balancer", "{router: {service: {type: LoadBalancer, port: 8080}}}", []string{"ADDRESS=$(kubectl -n llm get svc mobula-router", "curl $ADDRESS:8080/v1/models"}, []string{"port-forward"}},
		{"keys of engines", "{models: [{name: a, replicas: 1, engine: {env: {VLLM_API_KEY: x}}}]}", []string{"a: engine.env has VLLM_API_KEY in clear"}, nil},
		{"no router", "{router: {enabled: false}}", nil, []string{"curl", "Ask:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := render(t, c.values)
			require.NoError(t, err)
			for _, text := range c.want {
				require.Contains(t, out.Notes, text)
			}
			for _, text := range c.absent {
				require.NotContains(t, out.Notes, text)
			}
			for line := range strings.Lines(out.Notes) {
				require.Equal(t, strings.TrimRight(line, " \n"), strings.TrimRight(line, "\n"), "no blanks at ends of lines")
			}
			require.NotContains(t, out.Notes, "\n\n\n")
		})
	}
}

package chart_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	kubescheme "k8s.io/client-go/kubernetes/scheme"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// requireKnown fails unless an object is one that its API takes.
func requireKnown(t *testing.T, object map[string]any) {
	t.Helper()
	raw, err := json.Marshal(object)
	require.NoError(t, err)
	require.NoError(t, known(t, raw), "%s", raw)
}

// known tells what an API would not take: fields that it doesn't have, values of the wrong type, and for custom resources all that their
// definition says.
func known(t *testing.T, raw []byte) error {
	t.Helper()
	var kind struct {
		APIVersion, Kind string
	}
	require.NoError(t, json.Unmarshal(raw, &kind))
	group, _, _ := strings.Cut(kind.APIVersion, "/")
	switch group {
	case "mobula.dev", "keda.sh":
		return definitionOf(t, kind.Kind).check(t, raw)
	case "gateway.networking.k8s.io":
		if err := definitionOf(t, kind.Kind).check(t, raw); err != nil {
			return err
		}
	}
	types := typesOf(t)
	strict := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, types, types, serializer.SerializerOptions{Strict: true})
	object, _, err := strict.Decode(raw, nil, nil)
	if rules, is := object.(*monitoringv1.PrometheusRule); is && err == nil {
		return checkRules(rules)
	}
	return err
}

// typesOf gives the types that objects are decoded into: Kubernetes' own, the Prometheus operator's and the Gateway API's.
func typesOf(t *testing.T) *runtime.Scheme {
	t.Helper()
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubescheme.AddToScheme, monitoringv1.AddToScheme, gatewayv1.Install} {
		require.NoError(t, add(types))
	}
	return types
}

// checkRules is what the operator's webhook asks of rules beside their form: each is an alert or a recording, with a query.
func checkRules(rules *monitoringv1.PrometheusRule) error {
	for _, group := range rules.Spec.Groups {
		for i, rule := range group.Rules {
			if (rule.Alert == "") == (rule.Record == "") || rule.Expr.StrVal == "" {
				return fmt.Errorf("group %s, rule %d: want an alert or a recording, and a query", group.Name, i)
			}
		}
	}
	return nil
}

// The check itself: it must see what is wrong.
func TestWhatAnAPIWouldNotTakeIsSeen(t *testing.T) {
	for _, c := range []struct{ name, object, want string }{
		{"a field that Kubernetes doesn't have", "{apiVersion: v1, kind: Pod, spec: {containrs: []}}", "containrs"},
		{"a kind that nobody has", "{apiVersion: v1, kind: Pot}", "no kind"},
		{"a field that the operator doesn't have", "{apiVersion: monitoring.coreos.com/v1, kind: ServiceMonitor, spec: {endpoint: []}}", "endpoint"},
		{"a rule without a query", "{apiVersion: monitoring.coreos.com/v1, kind: PrometheusRule, spec: {groups: [{name: a, rules: [{alert: b}]}]}}", "rule 0"},
		{"a field that KEDA doesn't have", "{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, spec: {scaleTargetRef: {name: a}, triggers: [{type: cron, metadata: {}}], minReplica: 1}}", "spec.minReplica: unknown"},
		{"a type that KEDA doesn't take", "{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, spec: {scaleTargetRef: {name: a}, triggers: [{type: cron, metadata: {threshold: 8}}]}}", "threshold"},
		{"a field that a route doesn't have", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, spec: {hosts: [a]}}", "spec.hosts: unknown"},
		{"a rule of the Gateway API", "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, spec: {rules: [{timeouts: {request: 1s, backendRequest: 2s}}]}}", "backendRequest timeout cannot be longer than request timeout"},
		{"a field that a Model doesn't have", "{apiVersion: mobula.dev/v1alpha1, kind: Model, spec: {replcas: 1}}", "spec.replcas: unknown"},
		{"a type that a Model doesn't take", "{apiVersion: mobula.dev/v1alpha1, kind: Model, spec: {replicas: many}}", "spec.replicas"},
		{"a rule of a Model", "{apiVersion: mobula.dev/v1alpha1, kind: Model, spec: {replicas: 1, range: {min: 1, max: 2}}}", "both"},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := yaml.YAMLToJSON([]byte(c.object))
			require.NoError(t, err)
			require.ErrorContains(t, known(t, raw), c.want)
		})
	}
}

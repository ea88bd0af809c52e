package raycluster

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula/kube"
)

// TestRowH4AGangHasOneEndpointAndProbesThatTell is of docs/production-stack.md: the RayClusters of its chart are found by no
// Service and no monitor, their workers are probed as if they served, and their liveness probe is an echo.
func TestRowH4AGangHasOneEndpointAndProbesThatTell(t *testing.T) {
	e := bigModel()
	rc, err := Cluster(e, "llama-1")
	require.NoError(t, err)
	head := rc.Spec.HeadGroupSpec.Template
	require.Equal(t, "true", head.Labels[kube.LabelServes])
	require.Equal(t, kube.AppEngine, head.Labels[kube.LabelName], "what the chart's PodMonitor selects by")
	engine := head.Spec.Containers[0]
	for name, probe := range map[string]*corev1.Probe{"startup": engine.StartupProbe, "readiness": engine.ReadinessProbe, "liveness": engine.LivenessProbe} {
		require.NotNil(t, probe, name)
		require.NotNil(t, probe.HTTPGet, name)
		require.Equal(t, "/health", probe.HTTPGet.Path, name)
	}
	require.Positive(t, *head.Spec.TerminationGracePeriodSeconds, "streams end before the pod does")
	for _, g := range rc.Spec.WorkerGroupSpecs {
		require.NotContains(t, g.Template.Labels, kube.LabelServes)
		probe := g.Template.Spec.Containers[0].ReadinessProbe
		require.NotContains(t, []string{kube.PortName, strconv.Itoa(kube.Port)}, probe.HTTPGet.Port.String(), "a worker has no engine to ask for")
	}
	for _, v := range engine.Env {
		require.NotEqual(t, "VLLM_USE_V1", v.Name)
	}
}

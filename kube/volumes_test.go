package kube_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

func TestClaim(t *testing.T) {
	sized := func(m *mobula.Model) { m.Kubernetes.Data.Size = 100 << 30 }
	for _, tc := range []struct {
		name   string
		change func(*mobula.Model)
		pods   int
		mode   corev1.PersistentVolumeAccessMode
	}{
		{"of one pod", sized, 1, corev1.ReadWriteOnce},
		{"of several", sized, 2, corev1.ReadWriteMany},
		{"of several hosts", func(m *mobula.Model) { sized(m); m.Resources.Hosts = 2 }, 1, corev1.ReadWriteMany},
		{"as asked for", func(m *mobula.Model) { sized(m); m.Kubernetes.Data.AccessMode = "ReadOnlyMany" }, 1, corev1.ReadOnlyMany},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := engineOf("org/chat", tc.change)
			claim, ok := e.Claim(tc.pods)
			require.True(t, ok)
			require.Equal(t, []corev1.PersistentVolumeAccessMode{tc.mode}, claim.Spec.AccessModes)
			require.Equal(t, "100Gi", claim.Spec.Resources.Requests.Storage().String())
			require.Nil(t, claim.Spec.StorageClassName, "the cluster's default")
			require.NotContains(t, claim.Labels, kube.LabelRevision, "it outlives revisions")
			pod, err := e.Pod()
			if e.Workload() == kube.KindStatefulSet {
				pod, err = e.Member(kube.Member{})
			}
			require.NoError(t, err)
			require.Equal(t, claim.Name, pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName)
		})
	}
	_, ok := engineOf("chat", func(m *mobula.Model) { m.Kubernetes.Data.Claim = "mine" }).Claim(1)
	require.False(t, ok, "that of another is not made")
}

func TestBudgetHoldsForAllRevisions(t *testing.T) {
	e := engineOf("org/chat", nil)
	budget, ok := e.Budget()
	require.True(t, ok)
	require.Equal(t, 1, budget.Spec.MaxUnavailable.IntValue())
	pod, err := e.Pod()
	require.NoError(t, err)
	require.NotContains(t, budget.Spec.Selector.MatchLabels, kube.LabelRevision)
	for name, value := range budget.Spec.Selector.MatchLabels {
		require.Equal(t, value, pod.Labels[name])
	}
	e.Model.Kubernetes.MaxUnavailable = "25%"
	budget, _ = e.Budget()
	require.Equal(t, "25%", budget.Spec.MaxUnavailable.String())
	e.KubeRay, e.Model.Kubernetes.Workload = &mobula.KubeRay{}, "RayCluster"
	_, ok = e.Budget()
	require.False(t, ok)
}

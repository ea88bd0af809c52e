package kube_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

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

// volume gives the volumes of that name.
func volume(pod *corev1.PodTemplateSpec, name string) []corev1.Volume {
	var all []corev1.Volume
	for _, v := range pod.Spec.Volumes {
		if v.Name == name {
			all = append(all, v)
		}
	}
	return all
}

func TestEnginesThatMayNotWriteTheirImage(t *testing.T) {
	const readOnly = "{containers: [{name: engine, securityContext: {readOnlyRootFilesystem: true}}]}"
	for _, tc := range []struct {
		name, spec       string
		temp, home, user string // where /tmp comes from, and the variables
	}{
		{"root, as vLLM's image has it", "{priorityClassName: low}", "", "", ""},
		{"a read-only root", readOnly, "tmp", "/tmp", "vllm"},
		{"another user", "{securityContext: {runAsUser: 2000}}", "", "/tmp", "vllm"},
		{"any other user", "{securityContext: {runAsNonRoot: true}}", "", "/tmp", "vllm"},
		{"root, and the container another user", "{securityContext: {runAsUser: 0}, containers: [{name: engine, securityContext: {runAsUser: 2000}}]}", "", "/tmp", "vllm"},
		{"another user, and the container root", "{securityContext: {runAsUser: 2000}, containers: [{name: engine, securityContext: {runAsUser: 0}}]}", "", "", ""},
		{
			"all of it is given", "{volumes: [{name: mine, emptyDir: {}}], containers: [{name: engine, securityContext: {readOnlyRootFilesystem: true, runAsUser: 1}, " +
				"env: [{name: HOME, value: /data}, {name: USER, value: me}], volumeMounts: [{name: mine, mountPath: /tmp/}]}]}",
			"mine", "/data", "me",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod, err := engineOf("chat", func(m *mobula.Model) {
				require.NoError(t, yaml.Unmarshal([]byte("spec: "+tc.spec), &m.Kubernetes.Pod))
			}).Pod()
			require.NoError(t, err)
			c, temp := &pod.Spec.Containers[0], ""
			for _, m := range c.VolumeMounts {
				if strings.TrimRight(m.MountPath, "/") == "/tmp" {
					temp = m.Name
				}
			}
			require.Equal(t, tc.temp, temp)
			if temp != "" {
				require.Len(t, volume(&pod, temp), 1)
			}
			for name, want := range map[string]string{"HOME": tc.home, "USER": tc.user} {
				got := ""
				for _, v := range c.Env {
					if v.Name == name {
						got = v.Value
					}
				}
				require.Equal(t, want, got, name)
			}
		})
	}
}

func TestSharedMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*mobula.Model)
		want   string
	}{
		"one GPU":   {nil, "8Gi"},
		"a CPU":     {func(m *mobula.Model) { m.Resources.GPUs = new(0) }, "8Gi"},
		"as given":  {func(m *mobula.Model) { m.Kubernetes.SharedMemory = 1 << 30 }, "1Gi"},
		"simulated": {simulated, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := engineOf("chat", tc.change).Pod()
			require.NoError(t, err)
			got := ""
			for _, v := range volume(&pod, "shm") {
				got = v.EmptyDir.SizeLimit.String()
			}
			require.Equal(t, tc.want, got)
		})
	}
}

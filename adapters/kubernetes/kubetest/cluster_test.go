package kubetest_test

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(tb testing.TB, opts kubetest.Options) *kubetest.Cluster {
	tb.Helper()
	c := kubetest.New(opts)
	tb.Cleanup(c.Close)
	return c
}

func within(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	tb.Cleanup(cancel)
	return ctx
}

func podSpec(gpus string) corev1.PodSpec {
	spec := corev1.PodSpec{Containers: []corev1.Container{{
		Name: "engine", Image: "engine:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8000}},
	}}}
	if gpus != "" {
		spec.Containers[0].Resources.Limits = corev1.ResourceList{"nvidia.com/gpu": resource.MustParse(gpus)}
	}
	return spec
}

func deployment(name string, replicas int32, gpus string) *appsv1.Deployment {
	set := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(replicas), Selector: &metav1.LabelSelector{MatchLabels: set},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(set)}, Spec: podSpec(gpus)},
		},
	}
}

func TestDeploymentHasReadyPods(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	_, err := c.Client().AppsV1().Deployments("default").Create(ctx, deployment("a", 3, "1"), metav1.CreateOptions{})
	require.NoError(t, err)
	d, err := c.Client().AppsV1().Deployments("default").Get(ctx, "a", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, int32(3), d.Status.ReadyReplicas)
	require.Len(t, c.Pods("default", "app=a"), 3)
}

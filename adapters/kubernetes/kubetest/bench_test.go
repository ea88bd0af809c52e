package kubetest_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

const manyPods = 10_000

func crowded(b *testing.B) *kubetest.Cluster {
	b.Helper()
	c := start(b, kubetest.Options{})
	for i := range manyPods / 100 {
		_, err := c.Client().AppsV1().Deployments("default").Create(b.Context(), deployment(fmt.Sprintf("d%d", i), 100, "1"), metav1.CreateOptions{})
		require.NoError(b, err)
	}
	return c
}

func BenchmarkListPods(b *testing.B) {
	c := crowded(b)
	client := c.Client()
	b.ReportAllocs()
	for b.Loop() {
		pods, err := client.CoreV1().Pods("default").List(b.Context(), metav1.ListOptions{})
		require.NoError(b, err)
		require.Len(b, pods.Items, manyPods)
	}
}

func BenchmarkWatchPods(b *testing.B) {
	c := crowded(b)
	client := c.Client()
	b.ReportAllocs()
	for b.Loop() {
		w, err := client.CoreV1().Pods("default").Watch(b.Context(), metav1.ListOptions{
			SendInitialEvents: new(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		})
		require.NoError(b, err)
		n := 0
		for e := range w.ResultChan() {
			if e.Type == watch.Bookmark {
				break
			}
			n++
		}
		w.Stop()
		require.Equal(b, manyPods, n)
	}
}

// BenchmarkDeployments makes and deletes deployments of a hundred pods that are ready at once.
func BenchmarkDeployments(b *testing.B) {
	c := start(b, kubetest.Options{})
	client := c.Client().AppsV1().Deployments("default")
	b.ReportAllocs()
	for b.Loop() {
		_, err := client.Create(b.Context(), deployment("d", 100, "1"), metav1.CreateOptions{})
		require.NoError(b, err)
		require.NoError(b, client.Delete(b.Context(), "d", metav1.DeleteOptions{}))
	}
}

package kubetest_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

func configMap(name string, set map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: set}}
}

func TestListsSelectAndPage(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	maps := c.Client().CoreV1().ConfigMaps("default")
	for i := range 7 {
		_, err := maps.Create(ctx, configMap(fmt.Sprintf("m%d", i), map[string]string{"odd": strconv.FormatBool(i%2 == 1)}), metav1.CreateOptions{})
		require.NoError(t, err)
	}
	odd, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "odd=true"})
	require.NoError(t, err)
	require.Len(t, odd.Items, 3)
	one, err := maps.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=m4"})
	require.NoError(t, err)
	require.Len(t, one.Items, 1)
	_, err = maps.List(ctx, metav1.ListOptions{FieldSelector: "spec.color=red"})
	require.True(t, apierrors.IsBadRequest(err), "%v", err)

	first, err := maps.List(ctx, metav1.ListOptions{Limit: 3})
	require.NoError(t, err)
	require.Len(t, first.Items, 3)
	require.Equal(t, int64(4), *first.RemainingItemCount)
	// A page that follows shows what was there at the first.
	require.NoError(t, maps.Delete(ctx, "m5", metav1.DeleteOptions{}))
	_, err = maps.Create(ctx, configMap("m8", nil), metav1.CreateOptions{})
	require.NoError(t, err)
	rest, err := maps.List(ctx, metav1.ListOptions{Limit: 10, Continue: first.Continue})
	require.NoError(t, err)
	var names []string
	for _, m := range rest.Items {
		names = append(names, m.Name)
	}
	require.Equal(t, []string{"m3", "m4", "m5", "m6"}, names)
	require.Equal(t, first.ResourceVersion, rest.ResourceVersion)
	c.Compact()
	_, err = maps.List(ctx, metav1.ListOptions{Limit: 10, Continue: first.Continue})
	require.True(t, apierrors.IsResourceExpired(err), "%v", err)
	err = c.Client().CoreV1().RESTClient().Get().Resource("configmaps").Param("resourceVersion", "999999999").MaxRetries(0).Do(ctx).Error()
	require.True(t, apierrors.IsTimeout(err), "%v", err)
}

func TestWatchShowsWhatComesToMatch(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	maps := c.Client().CoreV1().ConfigMaps("default")
	begin, err := maps.List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	w, err := maps.Watch(ctx, metav1.ListOptions{LabelSelector: "in=yes", ResourceVersion: begin.ResourceVersion})
	require.NoError(t, err)
	defer w.Stop()

	m, err := maps.Create(ctx, configMap("m", nil), metav1.CreateOptions{})
	require.NoError(t, err)
	m.Labels = map[string]string{"in": "yes"}
	m, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	m.Data = map[string]string{"a": "b"}
	m, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	m.Labels = nil
	m, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	m.Labels = map[string]string{"in": "yes"}
	_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NoError(t, maps.Delete(ctx, "m", metav1.DeleteOptions{}))

	last := ""
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted, watch.Added, watch.Deleted} {
		e := <-w.ResultChan()
		require.Equal(t, want, e.Type)
		got := e.Object.(*corev1.ConfigMap)
		require.NotEqual(t, last, got.ResourceVersion)
		last = got.ResourceVersion
	}
	c.Compact()
	old, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: begin.ResourceVersion})
	require.NoError(t, err)
	defer old.Stop()
	e := <-old.ResultChan()
	require.Equal(t, watch.Error, e.Type)
	require.True(t, apierrors.IsResourceExpired(apierrors.FromObject(e.Object)), "%v", e.Object)
}

func TestInformersSeeEverything(t *testing.T) {
	for name, disturb := range map[string]func(c *kubetest.Cluster){
		"calm":            func(*kubetest.Cluster) {},
		"watches dropped": func(c *kubetest.Cluster) { c.DropWatches() },
		"history lost":    func(c *kubetest.Cluster) { c.Compact(); c.DropWatches() },
		"server restarts": func(c *kubetest.Cluster) { c.Down(true); c.Down(false) },
		"server restarts and forgets": func(c *kubetest.Cluster) {
			c.Down(true)
			c.Compact()
			c.Down(false)
		},
		"lists fail for a while": func(c *kubetest.Cluster) {
			c.Fail("watch", "pods", http.StatusInternalServerError, 1)
			c.Fail("list", "pods", http.StatusInternalServerError, 1)
			c.Compact()
			c.DropWatches()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, kubetest.Options{})
			ctx := within(t)
			factory := informers.NewSharedInformerFactoryWithOptions(c.Client(), 0)
			pods := factory.Core().V1().Pods()
			_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{})
			require.NoError(t, err)
			stop := make(chan struct{})
			factory.Start(stop)
			defer factory.Shutdown()
			defer close(stop)
			require.True(t, cache.WaitForCacheSync(ctx.Done(), pods.Informer().HasSynced))

			_, err = c.Client().AppsV1().Deployments("default").Create(ctx, deployment("a", 20, ""), metav1.CreateOptions{})
			require.NoError(t, err)
			disturb(c)
			require.Eventually(t, func() bool { // a connection whose end was not noticed yet fails what can't be sent twice
				err := c.Client().AppsV1().Deployments("default").Delete(ctx, "a", metav1.DeleteOptions{})
				return err == nil || apierrors.IsNotFound(err)
			}, time.Minute, 10*time.Millisecond)
			_, err = c.Client().AppsV1().Deployments("default").Create(ctx, deployment("b", 5, ""), metav1.CreateOptions{})
			require.NoError(t, err)
			want := map[string]bool{}
			for _, p := range c.Pods("default", "") {
				want[p.Name] = true
			}
			require.Len(t, want, 5)
			require.Eventually(t, func() bool {
				have, err := pods.Lister().List(labels.Everything())
				if err != nil || len(have) != len(want) {
					return false
				}
				for _, p := range have {
					if !want[p.Name] || p.Status.PodIP == "" {
						return false
					}
				}
				return true
			}, time.Minute, 10*time.Millisecond)
		})
	}
}

func TestDownRefusesConnections(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	c.Down(true)
	_, err := c.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.ErrorContains(t, err, "connection refused")
	c.Down(false)
	_, err = c.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
}

func TestDiscovery(t *testing.T) {
	c := start(t, kubetest.Options{})
	groups, err := restmapper.GetAPIGroupResources(c.Client().Discovery())
	require.NoError(t, err)
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for kind, want := range map[schema.GroupKind]string{
		{Kind: "Pod"}:                                  "pods",
		{Group: "apps", Kind: "StatefulSet"}:           "statefulsets",
		{Group: "ray.io", Kind: "RayCluster"}:          "rayclusters",
		{Group: "mobula.dev", Kind: "LoRA"}:            "loras",
		{Group: "policy", Kind: "PodDisruptionBudget"}: "poddisruptionbudgets",
	} {
		m, err := mapper.RESTMapping(kind)
		require.NoError(t, err)
		require.Equal(t, want, m.Resource.Resource)
	}
	version, err := c.Client().Discovery().ServerVersion()
	require.NoError(t, err)
	require.Equal(t, "1", version.Major)
	fleets := schema.GroupVersionResource{Group: "mobula.dev", Version: "v1alpha1", Resource: "fleets"}
	c.Unregister(fleets)
	_, err = c.Dynamic().Resource(fleets).Namespace("default").List(within(t), metav1.ListOptions{})
	require.ErrorContains(t, err, "the server could not find the requested resource")
	require.True(t, apierrors.IsNotFound(err))
	c.Register(fleets, "Fleet", true, "status")
	_, err = c.Dynamic().Resource(fleets).Namespace("default").List(within(t), metav1.ListOptions{})
	require.NoError(t, err)
}

func TestMetadataAlone(t *testing.T) {
	c := start(t, kubetest.Options{})
	c.Add(configMap("m", map[string]string{"a": "b"}))
	client, err := metadata.NewForConfig(c.Config())
	require.NoError(t, err)
	found, err := client.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace("default").List(within(t), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, found.Items, 1)
	require.Equal(t, map[string]string{"a": "b"}, found.Items[0].Labels)
}

func TestProtobufClientsGetJSON(t *testing.T) {
	c := start(t, kubetest.Options{})
	config := c.Config()
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	ctx := within(t)
	m := configMap("m", nil)
	m.Data = map[string]string{"k": "v"}
	_, err = client.CoreV1().ConfigMaps("default").Create(ctx, m, metav1.CreateOptions{})
	require.NoError(t, err)
	got, err := client.CoreV1().ConfigMaps("default").Get(ctx, "m", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, m.Data, got.Data)
	require.NoError(t, client.CoreV1().ConfigMaps("default").Delete(ctx, "m", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}))
}

func TestRefusalsAndFailures(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	c.Deny("list", "pods")
	_, err := c.Client().CoreV1().Pods("serving").List(ctx, metav1.ListOptions{})
	require.True(t, apierrors.IsForbidden(err))
	require.ErrorContains(t, err, `pods is forbidden: User "system:serviceaccount:default:mobula" cannot list resource "pods" in API group "" in the namespace "serving"`)
	_, err = c.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.ErrorContains(t, err, "at the cluster scope")
	c.Allow("list", "pods")
	_, err = c.Client().CoreV1().Pods("serving").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)

	c.Fail("get", "pods", http.StatusServiceUnavailable, 1)
	_, err = c.Client().CoreV1().Pods("serving").Get(ctx, "x", metav1.GetOptions{})
	require.True(t, apierrors.IsServiceUnavailable(err), "%v", err)
	_, err = c.Client().CoreV1().Pods("serving").Get(ctx, "x", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err), "%v", err)
	require.EqualError(t, err, `pods "x" not found`)

	c.ResetCalls()
	_, err = c.Client().CoreV1().Pods("serving").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"list pods": 1}, c.Calls())
	require.Len(t, c.Requests(), 1)
	require.Equal(t, "serving", c.Requests()[0].Namespace)
}

func TestTooManyRequestsAreTriedAgain(t *testing.T) {
	c := start(t, kubetest.Options{})
	c.Fail("list", "pods", http.StatusTooManyRequests, 1)
	_, err := c.Client().CoreV1().Pods("").List(within(t), metav1.ListOptions{})
	require.NoError(t, err)
	require.Equal(t, 2, c.Calls()["list pods"])
}

func TestUnstructuredKindsAreWatched(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	models := c.Dynamic().Resource(schema.GroupVersionResource{Group: "mobula.dev", Version: "v1alpha1", Resource: "models"}).Namespace("default")
	w, err := models.Watch(ctx, metav1.ListOptions{SendInitialEvents: new(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	require.NoError(t, err)
	defer w.Stop()
	e := <-w.ResultChan()
	require.Equal(t, watch.Bookmark, e.Type)
	require.Equal(t, "true", e.Object.(*unstructured.Unstructured).GetAnnotations()[metav1.InitialEventsAnnotationKey])
	_, err = models.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "mobula.dev/v1alpha1", "kind": "Model", "metadata": map[string]any{"name": "m"}, "spec": map[string]any{"name": "x"},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, watch.Added, (<-w.ResultChan()).Type)
}

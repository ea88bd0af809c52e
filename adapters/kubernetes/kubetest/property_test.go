package kubetest_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

// versions gives the resourceVersion of each object.
func versions(l *corev1.ConfigMapList) map[string]string {
	out := map[string]string{}
	for _, m := range l.Items {
		out[m.Name] = m.ResourceVersion
	}
	return out
}

// TestHistoryIsConsistent: whatever is written, a list and the events after it give what a later list gives, and lists of the past show what was.
func TestHistoryIsConsistent(t *testing.T) {
	c := start(t, kubetest.Options{})
	client := c.Client()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		ctx := t.Context()
		records := client.CoreV1().ConfigMaps(fmt.Sprintf("run-%d", run))
		type moment struct {
			version string
			objects map[string]string
		}
		var past []moment
		look := func() moment {
			l, err := records.List(ctx, metav1.ListOptions{})
			require.NoError(rt, err)
			return moment{l.ResourceVersion, versions(l)}
		}
		past = append(past, look())
		for i := range rapid.IntRange(1, 12).Draw(rt, "writes") {
			name := fmt.Sprintf("m%d", rapid.IntRange(0, 3).Draw(rt, "object"))
			switch rapid.SampledFrom([]string{"create", "update", "delete"}).Draw(rt, "verb") {
			case "create":
				_, _ = records.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}) // it may be there
			case "update":
				_, _ = records.Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"i": strconv.Itoa(i)}}, metav1.UpdateOptions{}) // it may not be there
			case "delete":
				_ = records.Delete(ctx, name, metav1.DeleteOptions{}) // it may not be there
			}
			past = append(past, look())
		}
		_, err := records.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "end"}}, metav1.CreateOptions{})
		require.NoError(rt, err)
		begin := rapid.SampledFrom(past).Draw(rt, "begin")
		now := maps.Clone(begin.objects)
		w, err := records.Watch(ctx, metav1.ListOptions{ResourceVersion: begin.version})
		require.NoError(rt, err)
		defer w.Stop()
		for e := range w.ResultChan() {
			m := e.Object.(*corev1.ConfigMap)
			_, there := now[m.Name]
			require.Equal(rt, e.Type == watch.Added, !there, "%s of %s", e.Type, m.Name)
			if now[m.Name] = m.ResourceVersion; e.Type == watch.Deleted {
				delete(now, m.Name)
			}
			if m.Name == "end" {
				break
			}
		}
		require.Empty(rt, cmp.Diff(look().objects, now))
		for _, was := range past {
			l, err := records.List(ctx, metav1.ListOptions{ResourceVersion: was.version, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
			require.NoError(rt, err)
			require.Empty(rt, cmp.Diff(was.objects, versions(l)))
		}
	})
}

// TestControllersHold: whatever happens to a deployment's pods, as many as it wants are ready in the end, and GPUs are never given twice.
func TestControllersHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := kubetest.New(kubetest.Options{Nodes: []kubetest.Node{{Name: "a", GPUs: 4}, {Name: "b", GPUs: 4}}})
		defer c.Close()
		ctx := t.Context()
		client := c.Client().AppsV1().Deployments("default")
		d, err := client.Create(ctx, deployment("a", 3, "1"), metav1.CreateOptions{})
		require.NoError(rt, err)
		for range rapid.IntRange(1, 10).Draw(rt, "steps") {
			pods := c.Pods("default", "")
			switch what := rapid.SampledFrom([]string{"scale", "crash", "evict", "delete", "lose", "find"}).Draw(rt, "step"); {
			case what == "scale":
				d.Spec.Replicas = new(rapid.Int32Range(0, 8).Draw(rt, "replicas"))
				d.ResourceVersion = ""
				d, err = client.Update(ctx, d, metav1.UpdateOptions{})
				require.NoError(rt, err)
			case what == "lose":
				c.NodeLost("a")
			case what == "find":
				c.NodeBack("a")
			case len(pods) == 0:
			default:
				p := rapid.SampledFrom(pods).Draw(rt, "pod")
				switch {
				case what == "delete":
					require.NoError(rt, c.Client().CoreV1().Pods("default").Delete(ctx, p.Name, metav1.DeleteOptions{}))
				case p.Status.Phase != corev1.PodRunning:
				case what == "crash":
					require.NoError(rt, c.Crash("default", p.Name, 1, ""))
					require.NoError(rt, c.Ready("default", p.Name))
				case what == "evict":
					require.NoError(rt, c.Evict("default", p.Name))
				}
			}
			used := map[string]int{}
			for _, p := range c.Pods("default", "") {
				if p.Spec.NodeName != "" && p.Status.Phase != corev1.PodFailed {
					used[p.Spec.NodeName]++
				}
			}
			require.LessOrEqual(rt, used["a"], 4)
			require.LessOrEqual(rt, used["b"], 4)
		}
		c.NodeBack("a")
		require.Len(rt, ready(c, ""), int(*d.Spec.Replicas))
		require.NoError(rt, client.Delete(ctx, "a", metav1.DeleteOptions{}))
		require.Empty(rt, c.Pods("default", ""))
	})
}

// FuzzRequests: no request breaks the server or gets an answer that is none.
func FuzzRequests(f *testing.F) {
	for _, seed := range [][4]string{
		{"GET", "/api/v1/pods?limit=1&continue=e30", "", ""},
		{"GET", "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1&resourceVersion=1", "", ""},
		{"POST", "/api/v1/namespaces/default/pods", "application/json", `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`},
		{"POST", "/api/v1/namespaces/default/configmaps", "application/json", `{"metadata":{"generateName":"p"},"data":[1]}`},
		{"PATCH", "/api/v1/namespaces/default/configmaps/m", "application/json-patch+json", `[{"op":"move","from":"/metadata","path":"/data/-"}]`},
		{"PATCH", "/api/v1/namespaces/default/configmaps/m", "application/json-patch+json", `[{"op":"add","path":"","value":null}]`},
		{"PATCH", "/api/v1/namespaces/default/configmaps/m", "application/strategic-merge-patch+json", `{"metadata":{"$patch":"delete"}}`},
		{"PATCH", "/api/v1/namespaces/default/configmaps/m", "application/merge-patch+json", `{"metadata":null}`},
		{"PATCH", "/apis/apps/v1/namespaces/default/deployments/d?fieldManager=m&force=true", "application/apply-patch+yaml", "apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: -1}"},
		{"PATCH", "/apis/apps/v1/namespaces/default/deployments/d/scale", "application/merge-patch+json", `{"spec":{"replicas":"x"}}`},
		{"PUT", "/apis/mobula.dev/v1alpha1/namespaces/default/models/m/status", "application/json", `{"status":3,"metadata":[]}`},
		{"DELETE", "/api/v1/namespaces/default/configmaps/m?propagationPolicy=Orphan", "application/json", `{"preconditions":{"uid":3}}`},
		{"POST", "/api/v1/namespaces/default/pods/p/eviction", "application/json", `{"deleteOptions":[]}`},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	c := kubetest.New(kubetest.Options{})
	f.Cleanup(c.Close)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	f.Fuzz(func(t *testing.T, method, path, media, body string) {
		if !strings.HasPrefix(path, "/") || strings.Contains(path, "watch") || strings.Contains(path, "follow") {
			return
		}
		c.Add(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Annotations: map[string]string{"a": "b"}}})
		request, err := http.NewRequestWithContext(t.Context(), method, c.Config().Host+path, bytes.NewReader([]byte(body)))
		if err != nil {
			return
		}
		request.Header.Set("Content-Type", media)
		answer, err := client.Do(request)
		if err != nil {
			if strings.Contains(err.Error(), "EOF") || strings.Contains(err.Error(), "reset") {
				t.Fatalf("%s %s %s: %v", method, path, body, err)
			}
			return
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		require.NoError(t, err)
		require.NotEqual(t, http.StatusInternalServerError, answer.StatusCode, "%s %s %s", method, path, body)
	})
}

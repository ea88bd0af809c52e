//go:build linux && kube

package kube

import (
	"context"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// lastSent is after how long the last request was sent to a pod, of those that are sent one after the other for a while.
func (r *release) lastSent(t *testing.T, pod string) (last time.Duration) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for begin := time.Now(); time.Since(begin) < 2*time.Second; {
		sent := time.Since(begin)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.router+"/v1/chat/completions",
			strings.NewReader(`{"model":"`+model+`","stream":true,"max_tokens":1,"messages":[{"role":"user","content":"`+sent.String()+`"}]}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		if resp.Header.Get("X-Mobula-Endpoint") == pod {
			last = time.Since(begin)
		}
	}
	return last
}

// testTimes measures how soon the router uses a pod that has started, and leaves one that is being deleted. It asserts none of it, and
// runs only when MOBULA_KUBE_TIMES is set.
func (c *Cluster) testTimes(t *testing.T) {
	if os.Getenv("MOBULA_KUBE_TIMES") == "" {
		t.Log("not run: set MOBULA_KUBE_TIMES=1 to measure")
		return
	}
	r := c.install(t)
	r.ready(t, 2)
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	require.NoError(t, err)
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	watch := func() watch.Interface {
		w, err := client.CoreV1().Pods(r.namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: "mobula.dev/serves=true", ResourceVersion: "0"})
		require.NoError(t, err)
		return w
	}
	pods := watch()
	defer func() { pods.Stop() }()
	// In service: a request may be sent there.
	serving := func(pod string) bool {
		page, err := Get(t.Context(), r.router+"/metrics")
		require.NoError(t, err)
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, "mobula_router_endpoint_up{") && strings.Contains(line, pod) {
				return strings.HasSuffix(strings.TrimSpace(line), " 1")
			}
		}
		return false
	}
	until := func(what string, ok func() bool) time.Duration {
		begin := time.Now()
		for !ok() {
			require.Less(t, time.Since(begin), deadline, what)
		}
		return time.Since(begin)
	}
	var used, left []time.Duration
	known := map[string]bool{}
	ctx, stop := context.WithTimeout(t.Context(), 2*deadline)
	defer stop()
	for len(left) < 20 {
		select {
		case <-ctx.Done():
			require.FailNow(t, "too slow")
		case e, more := <-pods.ResultChan():
			pod, ok := e.Object.(*corev1.Pod)
			switch {
			case !more:
				pods = watch() // the API server ends watches
			case !ok:
				t.Logf("%s: %v", e.Type, e.Object)
			case pod.DeletionTimestamp != nil && known[pod.Name]:
				delete(known, pod.Name)
				left = append(left, r.lastSent(t, pod.Name))
			case pod.DeletionTimestamp == nil && !known[pod.Name] && len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].Ready:
				known[pod.Name] = true
				used = append(used, until("used", func() bool { return serving(pod.Name) }))
				r.kubectl(t, "delete", "pod", pod.Name, "--wait=false", "--grace-period", "5")
			}
		}
	}
	for name, all := range map[string][]time.Duration{"pod ready, until the router uses it": used, "pod deleted, until nothing new goes there": left} {
		slices.Sort(all)
		t.Logf("%s: n %d, p50 %s, max %s", name, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
	}
}

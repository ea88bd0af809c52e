//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testOthersPods has thousands of pods that are none of ours.
func (c *Cluster) testOthersPods(t *testing.T) {
	const count = 5000
	c.FakeNodes(t, 1, 0)
	r := c.install(t)
	r.ready(t, 2)
	other := c.alongside(t, r.namespace+"-other")
	audit := c.audit(t)
	before := r.footprints(t)
	begin := time.Now()
	c.crowd(t, count, r.namespace, other)
	crowded := r.footprints(t)
	t.Logf("%d pods run after %s", count, time.Since(begin).Round(time.Second))
	asked := audit.since(t, r.namespace)
	audit = c.audit(t)
	time.Sleep(time.Minute)
	quiet, after := audit.since(t, r.namespace), r.footprints(t)
	for _, component := range slices.Sorted(maps.Keys(before)) {
		was, then, now := before[component], crowded[component], after[component]
		t.Logf("%s: resident %.1f MiB before, %.1f with them, %.1f a minute later; received meanwhile %.2f MiB", component, was.resident, then.resident, now.resident, then.received-was.received)
		require.Less(t, max(then.resident, now.resident)-was.resident, 32.0, "MiB that %s has grown", component)
		require.Less(t, then.received-was.received, 10.0, "MiB that %s has received: each of the pods is 4 KiB, and changes twice", component)
	}
	t.Logf("asked of the API server meanwhile: %v; in a quiet minute: %v", asked, quiet)
	for what := range asked {
		require.NotContains(t, what, " list pods")
	}
	for what, n := range quiet {
		if !strings.Contains(what, " watch ") && !strings.HasSuffix(what, " leases") {
			require.LessOrEqual(t, n, 5, what)
		}
	}
	r.answered(t, model)
	r.ready(t, 2)
}

// footprint is what a process takes, in MiB.
type footprint struct{ resident, received float64 }

// footprints are those of routers and control planes, by the names of their pods.
func (r *release) footprints(t *testing.T) map[string]footprint {
	t.Helper()
	out := map[string]footprint{}
	for component, port := range map[string]string{"router": "http:%s:8000", "control": "https:%s:8100"} {
		pods := r.kubectl(t, "get", "pods", "--selector", "app.kubernetes.io/component="+component, "--output", "jsonpath={.items[*].metadata.name}")
		for pod := range strings.FieldsSeq(pods) {
			page := r.kubectl(t, "get", "--raw", "/api/v1/namespaces/"+r.namespace+"/pods/"+fmt.Sprintf(port, pod)+"/proxy/metrics")
			out[pod] = footprint{sum(page, "process_resident_memory_bytes") / (1 << 20), sum(page, "process_network_receive_bytes_total") / (1 << 20)}
		}
	}
	require.Len(t, out, 2)
	return out
}

// sum adds up a metric of a page.
func sum(page, metric string) (total float64) {
	for line := range strings.Lines(page) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil && (name == metric || strings.HasPrefix(name, metric+"{")) {
			total += n
		}
	}
	return total
}

// alongside makes a second namespace for the test.
func (c *Cluster) alongside(t *testing.T, name string) string {
	t.Helper()
	c.Kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		_, err := c.TryKubectl(context.WithoutCancel(t.Context()), "delete", "namespace", name, "--wait=false")
		require.NoError(t, err)
	})
	return name
}

// crowd has so many pods of 4 KiB run on a node of kwok's, and end with the test.
func (c *Cluster) crowd(t *testing.T, count int, namespaces ...string) {
	t.Helper()
	client := c.client(t)
	t.Cleanup(func() {
		var all errgroup.Group // they don't end with their namespaces: kwok and the node go before
		for _, namespace := range namespaces {
			all.Go(func() error {
				return client.CoreV1().Pods(namespace).DeleteCollection(context.WithoutCancel(t.Context()),
					metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}, metav1.ListOptions{LabelSelector: "app=crowd"})
			})
		}
		require.NoError(t, all.Wait())
	})
	all, ctx := errgroup.WithContext(t.Context())
	all.SetLimit(8)
	for i := range count {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("crowd-%d", i), Labels: map[string]string{"app": "crowd"},
				Annotations: map[string]string{"text": strings.Repeat("pods of others ", 4<<10/15)},
			},
			Spec: corev1.PodSpec{NodeName: "fake-0", Containers: []corev1.Container{{Name: "a", Image: "none"}}},
		}
		all.Go(func() error {
			_, err := client.CoreV1().Pods(namespaces[i%len(namespaces)]).Create(ctx, pod, metav1.CreateOptions{})
			return err
		})
	}
	require.NoError(t, all.Wait())
	for _, namespace := range namespaces {
		c.Await(t, "all run", func(ctx context.Context) error {
			wait, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=crowd", FieldSelector: "status.phase!=Running", Limit: 1})
			if err == nil && len(wait.Items) > 0 {
				err = fmt.Errorf("%s does not", wait.Items[0].Name)
			}
			return err
		})
	}
}

// audit is the API server's log of what pods ask it, from some time on.
type audit struct {
	file string
	from int64
}

func (c *Cluster) audit(t *testing.T) audit {
	t.Helper()
	file := filepath.Join(state, "logs", "audit.log")
	info, err := os.Stat(file)
	require.NoError(t, err, "the cluster that is up is one of an older cluster.sh")
	return audit{file, info.Size()}
}

// since counts what the release of a namespace has asked, as in "control update leases".
func (a audit) since(t *testing.T, namespace string) map[string]int {
	t.Helper()
	file, err := os.Open(a.file)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.Seek(a.from, io.SeekStart)
	require.NoError(t, err)
	all, err := io.ReadAll(file)
	require.NoError(t, err)
	asked := map[string]int{}
	for line := range strings.Lines(string(all)) {
		e := gjson.Parse(line)
		who, ours := strings.CutPrefix(e.Get("user.username").String(), "system:serviceaccount:"+namespace+":mobula-")
		verb, stage := e.Get("verb").String(), e.Get("stage").String()
		if ours && (stage == "ResponseComplete") == (verb != "watch") { // a watch counts when it begins
			what := e.Get("objectRef.resource").String()
			if sub := e.Get("objectRef.subresource").String(); sub != "" {
				what += "/" + sub
			}
			asked[who+" "+verb+" "+what]++
		}
	}
	return asked
}

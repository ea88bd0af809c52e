//go:build linux && kube

package kube

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Kubectl runs kubectl and gives what it prints.
func (c *Cluster) Kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(t.Context(), args...)
	require.NoError(t, err)
	return out
}

// TryKubectl is Kubectl where a failure is an answer, as in conditions of Await.
func (c *Cluster) TryKubectl(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, "", "kubectl", args...)
}

// Helm runs helm and gives what it prints.
func (c *Cluster) Helm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.run(t.Context(), "", "helm", args...)
	require.NoError(t, err)
	return out
}

// Apply applies objects, given as YAML, to a namespace.
func (c *Cluster) Apply(t *testing.T, namespace, objects string) {
	t.Helper()
	_, err := c.run(t.Context(), objects, "kubectl", "apply", "--server-side", "--namespace", namespace, "--filename", "-")
	require.NoError(t, err)
}

// Await waits until the condition holds, for minutes at most; its error says what is missing yet.
func (c *Cluster) Await(t *testing.T, what string, holds func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		err := holds(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			require.FailNow(t, "not within "+deadline.String()+": "+what, "%v", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Namespace makes one for the test, which goes with it. When the test fails, it tells all that happened there.
func (c *Cluster) Namespace(t *testing.T) string {
	t.Helper()
	name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
	name = strings.TrimLeft(name[max(0, len(name)-50):], "-")
	c.Kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended
		defer cancel()
		if t.Failed() {
			t.Log(c.describe(ctx, name))
		}
		if _, err := c.TryKubectl(ctx, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Errorf("delete the namespace: %v", err)
		}
	})
	return name
}

// describe tells what a person would look up after a failure.
func (c *Cluster) describe(ctx context.Context, namespace string) string {
	var b strings.Builder
	tell := func(args ...string) {
		out, err := c.TryKubectl(ctx, append([]string{"--namespace", namespace}, args...)...)
		if err != nil {
			out += err.Error()
		}
		fmt.Fprintf(&b, "\n# kubectl %s\n%s", strings.Join(args, " "), out[max(0, len(out)-20_000):])
	}
	tell("get", "all,configmaps,secrets,leases", "--output", "wide")
	tell("describe", "pods")
	tell("get", "events", "--sort-by", ".lastTimestamp")
	pods, _ := c.TryKubectl(ctx, "--namespace", namespace, "get", "pods", "--output", "name")
	for pod := range strings.FieldsSeq(pods) {
		tell("logs", pod, "--all-containers", "--ignore-errors", "--tail", "100")
	}
	return b.String()
}

// Address gives a Service's IP address and its first port. It answers on this machine as it does in pods.
func (c *Cluster) Address(t *testing.T, namespace, service string) string {
	t.Helper()
	return c.Kubectl(t, "--namespace", namespace, "get", "service", service, "--output", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")
}

// PodIPs gives the addresses of the pods with these labels. They answer on this machine too, but those of kwok's nodes.
func (c *Cluster) PodIPs(t *testing.T, namespace, labels string) []string {
	t.Helper()
	return strings.Fields(c.Kubectl(t, "--namespace", namespace, "get", "pods", "--selector", labels, "--output", "jsonpath={.items[*].status.podIP}"))
}

// PortForward runs `kubectl port-forward` until the test ends and gives the address on this machine. Target is
// svc/NAME or pod/NAME.
func (c *Cluster) PortForward(t *testing.T, namespace, target string, port int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(c.dir, "bin", "kubectl"), "--namespace", namespace, "port-forward", target, fmt.Sprintf(":%d", port))
	cmd.Env = c.environment()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "kubectl port-forward %s", target)
	found := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	require.NotEmpty(t, found, line)
	return found
}

// Get asks for a page and gives its body; another status than 200 is an error.
func Get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	dial := func(_ context.Context, network, addr string) (net.Conn, error) { // net/http's context would outlive the call
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}} // and no proxy
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return string(body), err
}

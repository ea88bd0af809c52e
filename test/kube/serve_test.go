//go:build linux && kube

package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// chart and values are what README's section "Kubernetes" installs.
const (
	chart  = "../../charts/mobula"
	values = "../../examples/kubernetes/values-sim.yaml"
	model  = "mobula-sim"
)

// release is an installation of the chart.
type release struct {
	*Cluster
	namespace string
	values    string // file
	router    string // URL of its Service
}

func (c *Cluster) install(t *testing.T, args ...string) *release {
	t.Helper()
	return c.installValues(t, values, args...)
}

func (c *Cluster) installValues(t *testing.T, values string, args ...string) *release {
	t.Helper()
	r := &release{Cluster: c, namespace: c.Namespace(t), values: values}
	r.helm(t, "install", args...)
	t.Cleanup(func() { // owners first, while somebody listens
		if _, err := c.run(context.WithoutCancel(t.Context()), "", "helm", "uninstall", "mobula", "--namespace", r.namespace, "--ignore-not-found"); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	r.router = "http://" + c.Address(t, r.namespace, "mobula-router")
	return r
}

func (r *release) helm(t *testing.T, verb string, args ...string) string {
	t.Helper()
	repository, tag, _ := strings.Cut(r.image, ":")
	return r.Helm(t, append([]string{
		verb, "mobula", chart, "--namespace", r.namespace, "--values", r.values, "--wait", "--timeout", deadline.String(),
		"--set", "image.repository=" + repository, "--set", "image.tag=" + tag,
	}, args...)...)
}

func (r *release) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return r.Kubectl(t, append([]string{"--namespace", r.namespace}, args...)...)
}

// field reads one of an object's by a JSON path.
func (r *release) field(ctx context.Context, object, path string) (string, error) {
	return r.TryKubectl(ctx, "--namespace", r.namespace, "get", object, "--output", "jsonpath={"+path+"}")
}

// awaitField waits until a field is so.
func (r *release) awaitField(t *testing.T, object, path, want string) {
	t.Helper()
	r.Await(t, object+" has "+path+" "+want, func(ctx context.Context) error {
		got, err := r.field(ctx, object, path)
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// ready waits until a model has so many replicas, all of them ready.
func (r *release) ready(t *testing.T, replicas int) {
	t.Helper()
	r.awaitField(t, "model/"+model, ".status.ready", fmt.Sprintf("%d/%d", replicas, replicas))
	r.Await(t, "as many pods", func(ctx context.Context) error {
		pods, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name")
		if err == nil && len(strings.Fields(pods)) != replicas {
			err = fmt.Errorf("there are %s", pods)
		}
		return err
	})
}

// removed uninstalls the release and waits until nothing is left of it.
func (r *release) removed(t *testing.T) {
	t.Helper()
	r.Helm(t, "uninstall", "mobula", "--namespace", r.namespace, "--wait", "--timeout", deadline.String())
	r.Await(t, "nothing is left", func(ctx context.Context) error {
		left, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", "all,configmaps,secrets,leases,serviceaccounts,roles,rolebindings,poddisruptionbudgets,fleets,models,loras", "--output", "name")
		left = strings.NewReplacer("configmap/kube-root-ca.crt\n", "", "serviceaccount/default\n", "").Replace(left)
		if err == nil && left != "" {
			err = fmt.Errorf("there are %s", left)
		}
		return err
	})
}

// ask is a chat request. An engine takes 5 ms for each token of the answer (values).
type ask struct {
	model  string
	stream bool
	tokens int
	// alone has a connection of its own, which kube-proxy brings to any of the routers.
	alone bool
}

// chat asks once for a short answer; one that is not whole is an error.
func chat(ctx context.Context, client *http.Client, url, model string, stream bool) error {
	return ask{model: model, stream: stream, tokens: 40}.of(ctx, client, url, func(string) {})
}

// of asks once; an answer that is not whole is an error. begun hears which engine has begun to answer.
func (a ask) of(ctx context.Context, client *http.Client, url string, begun func(endpoint string)) error {
	body, err := json.Marshal(map[string]any{
		"model": a.model, "stream": a.stream, "max_tokens": a.tokens, "ignore_eos": true,
		"messages": []any{map[string]any{"role": "user", "content": "Hello!"}},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = a.alone
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	begun(resp.Header.Get("X-Mobula-Endpoint"))
	answer, err := io.ReadAll(resp.Body)
	switch text := string(answer); {
	case err != nil:
		return fmt.Errorf("%s, after %d bytes: %w", resp.Header.Get("X-Mobula-Endpoint"), len(answer), err)
	case resp.StatusCode != http.StatusOK, !strings.Contains(text, `"finish_reason":"length"`),
		a.stream && (!strings.HasSuffix(strings.TrimSpace(text), "data: [DONE]") || strings.Contains(text, `"error"`)):
		return fmt.Errorf("%s, of %q: %s", resp.Status, resp.Header.Get("X-Mobula-Endpoint"), text[max(0, len(text)-500):])
	}
	return nil
}

// answered asks until there is an answer.
func (r *release) answered(t *testing.T, model string) {
	t.Helper()
	r.Await(t, model+" answers", func(ctx context.Context) error {
		return chat(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, r.router, model, false)
	})
}

// load asks again and again from several sides.
type load struct {
	t    *testing.T
	stop context.CancelFunc
	done sync.WaitGroup
	good atomic.Int64
	mu   sync.Mutex
	bad  []string
	// Answers that have begun, and those that have not ended, by engine.
	begun, running map[string]int
}

// load asks for short answers, half of them as streams if there may be some.
func (r *release) load(t *testing.T, streams bool) *load {
	t.Helper()
	short, stream := ask{model: model, tokens: 40}, ask{model: model, tokens: 40, stream: streams}
	return r.loadOf(t, stream, short, stream, short)
}

// loadOf asks each of them again and again.
func (r *release) loadOf(t *testing.T, asks ...ask) *load {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	l := &load{t: t, stop: stop, begun: map[string]int{}, running: map[string]int{}}
	for _, a := range asks {
		l.done.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: deadline}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				l.once(context.WithoutCancel(ctx), client, r.router, a)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		l.done.Wait()
	})
	return l
}

func (l *load) once(ctx context.Context, client *http.Client, url string, a ask) {
	var by string
	err := a.of(ctx, client, url, func(endpoint string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		by = endpoint
		l.begun[by]++
		l.running[by]++
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if by != "" {
		l.running[by]--
	}
	if err == nil {
		l.good.Add(1)
		return
	}
	l.bad = append(l.bad, time.Now().Format(time.TimeOnly)+" "+err.Error())
}

// of is how many answers an engine has begun, and how many of them it has not ended.
func (l *load) of(endpoint string) (begun, running int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.begun[endpoint], l.running[endpoint]
}

// more waits for further answers.
func (l *load) more(n int64) {
	l.t.Helper()
	until := l.good.Load() + n
	for end := time.Now().Add(deadline); l.good.Load() < until; time.Sleep(50 * time.Millisecond) {
		require.True(l.t, time.Now().Before(end), "the load stands still")
	}
}

// end stops asking: nothing may have failed.
func (l *load) end() {
	l.t.Helper()
	l.stop()
	l.done.Wait()
	require.Empty(l.t, l.bad)
	require.Positive(l.t, l.good.Load())
	l.t.Logf("%d answers", l.good.Load())
}

func (c *Cluster) testServing(t *testing.T) {
	r := c.install(t)
	r.answered(t, model)
	r.ready(t, 2)
	t.Run("what people look at", func(t *testing.T) {
		require.Regexp(t, `(?m)^mobula-sim +mobula-sim +2/2 +Complete`, r.kubectl(t, "get", "models"))
		require.Regexp(t, `(?m)^default +1 +1/1 +Ready`, r.kubectl(t, "get", "fleets"))
		require.Contains(t, r.kubectl(t, "describe", "model", model), "RolloutComplete")
		require.Contains(t, r.Helm(t, "test", "mobula", "--namespace", r.namespace, "--timeout", deadline.String()), "Succeeded")
		models, err := Get(t.Context(), "http://"+c.PortForward(t, r.namespace, "svc/mobula-router", 80)+"/v1/models")
		require.NoError(t, err)
		require.Contains(t, models, model)
	})
	step := func(name string, streams bool, do func(t *testing.T, l *load)) {
		require.True(t, t.Run(name, func(t *testing.T) {
			l := r.load(t, streams)
			l.more(20)
			do(t, l)
			l.more(40)
			l.end()
		}))
	}
	step("scaled up and down", true, func(t *testing.T, _ *load) {
		t.Helper()
		r.kubectl(t, "scale", "model/"+model, "--replicas", "3")
		r.ready(t, 3)
		r.kubectl(t, "scale", "model/"+model, "--replicas", "2")
		r.ready(t, 2)
	})
	step("an upgrade keeps the scale, and replaces router and control plane", true, func(t *testing.T, _ *load) {
		t.Helper()
		before := r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "jsonpath={.items[*].metadata.uid}")
		r.kubectl(t, "scale", "model/"+model, "--replicas", "3")
		r.ready(t, 3)
		notes := r.helm(t, "upgrade", "--set-string", "router.pod.metadata.annotations.again=1", "--set-string", "control.pod.metadata.annotations.again=1")
		require.Contains(t, notes, "keeps 3 replicas")
		for _, component := range []string{"router", "control"} {
			r.kubectl(t, "rollout", "status", "deployment/mobula-"+component, "--timeout", deadline.String())
		}
		for uid := range strings.FieldsSeq(before) { // while there are three: whichever has the fewest requests goes
			require.Contains(t, r.kubectl(t, "get", "pods", "--output", "jsonpath={.items[*].metadata.uid}"), uid, "no engine was restarted")
		}
		r.kubectl(t, "scale", "model/"+model, "--replicas", "2")
		r.ready(t, 2)
	})
	step("a pod is deleted", true, func(t *testing.T, l *load) {
		t.Helper()
		pod, _, _ := strings.Cut(r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name"), "\n")
		r.kubectl(t, "delete", pod)
		l.more(20)
		r.ready(t, 2)
	})
	step("a pod is killed", false, func(t *testing.T, l *load) {
		t.Helper()
		pod, _, _ := strings.Cut(r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name"), "\n")
		r.kubectl(t, "delete", pod, "--grace-period", "0", "--force")
		l.more(20)
		r.ready(t, 2)
	})
	step("rolled", true, func(t *testing.T, _ *load) {
		t.Helper()
		was, err := r.field(t.Context(), "model/"+model, ".status.revision")
		require.NoError(t, err)
		r.helm(t, "upgrade", "--set", "models[0].name="+model, "--set", "models[0].replicas=2", "--set", "models[0].engine.kind=sim", "--set", "models[0].engine.env.A=b")
		now, err := r.field(t.Context(), "model/"+model, ".status.revision")
		require.NoError(t, err)
		require.NotEqual(t, was, now)
		ready := r.kubectl(t, "get", "pods", "--selector", "mobula.dev/revision="+now, "--output", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		require.Equal(t, "True True", ready, "Helm waits for the rollout")
		r.ready(t, 2)
	})
	t.Run("a LoRA comes and goes", func(t *testing.T) {
		r.Apply(t, r.namespace, "apiVersion: mobula.dev/v1alpha1\nkind: LoRA\nmetadata: {name: tuned}\nspec: {model: "+model+", source: /tuned}\n")
		r.awaitField(t, "lora/tuned", ".status.ready", "2/2")
		r.answered(t, "tuned")
		r.kubectl(t, "delete", "lora/tuned")
	})
	t.Run("the control plane is away", func(t *testing.T) {
		r.kubectl(t, "scale", "deployment/mobula-control", "--replicas", "0")
		r.kubectl(t, "wait", "--for=delete", "pod", "--selector", "app.kubernetes.io/component=control", "--timeout", deadline.String())
		l := r.load(t, false)
		pod, _, _ := strings.Cut(r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true", "--output", "name"), "\n")
		r.kubectl(t, "delete", pod, "--wait=false") // its Deployment makes another, and routers find it by themselves
		l.more(100)
		l.end()
		r.kubectl(t, "scale", "deployment/mobula-control", "--replicas", "1")
		r.ready(t, 2)
	})
	t.Run("to zero and back", func(t *testing.T) {
		r.kubectl(t, "patch", "model", model, "--type", "merge", "--patch", `{"spec":{"replicas":null,"range":{"min":0,"max":2},"scaling":{"zeroAfter":"2s","downAfter":"1s","heldFor":"5m"}}}`)
		r.awaitField(t, "model/"+model, ".status.ready", "0/0")
		require.NoError(t, chat(t.Context(), &http.Client{Timeout: deadline, Transport: &http.Transport{DisableKeepAlives: true}}, r.router, model, false), "it waits for an engine")
	})
	t.Run("what is wrong is said, and disturbs nobody", func(t *testing.T) {
		r.Apply(t, r.namespace, `
apiVersion: mobula.dev/v1alpha1
kind: Model
metadata: {name: pulled}
spec: {replicas: 1, engine: {kind: sim}, kubernetes: {image: "localhost/none:1", pullPolicy: Never}}
---
apiVersion: mobula.dev/v1alpha1
kind: Model
metadata: {name: crashing}
spec: {replicas: 1, engine: {kind: sim, args: [--no-such-flag]}}
---
apiVersion: mobula.dev/v1alpha1
kind: Model
metadata: {name: gpus}
spec: {replicas: 1, resources: {gpus: 8}}
---
apiVersion: mobula.dev/v1alpha1
kind: Model
metadata: {name: misspelt}
spec: {replicas: 1, engine: {kind: sim}, kubernetes: {pod: {spec: {tolerationz: []}}}}
`)
		for name, want := range map[string]string{
			"pulled": "localhost/none:1", "crashing": "no-such-flag", "gpus": "nvidia.com/gpu", "misspelt": "tolerationz",
		} {
			r.Await(t, "model "+name+" says "+want, func(ctx context.Context) error {
				said, err := r.TryKubectl(ctx, "--namespace", r.namespace, "describe", "model", name)
				if err == nil && !strings.Contains(said[strings.Index(said, "Status:")+1:], want) {
					err = fmt.Errorf("it says %s", said)
				}
				return err
			})
		}
		_, err := c.run(t.Context(), "apiVersion: mobula.dev/v1alpha1\nkind: Model\nmetadata: {name: both}\nspec: {replicas: 1, range: {min: 0, max: 2}}", "kubectl", "apply", "--namespace", r.namespace, "--filename", "-")
		require.ErrorContains(t, err, "replicas")
		r.kubectl(t, "delete", "models", "pulled", "crashing", "gpus", "misspelt")
		r.answered(t, model)
	})
	t.Run("nothing is left", r.removed)
}

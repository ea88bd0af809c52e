//go:build linux && kube

package kube

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// realSuite is real vLLM and Ray, which make test-real has installed on this machine, in pods: a static image has nothing but
// Mobula, and Python with all that it needs comes by hostPath.
type realSuite struct {
	*Cluster
	vllm, ray, lmcache, python, models string
}

// gang is a simulated engine that takes vLLM's arguments.
const gang = `#!/bin/sh
echo "vllm $*"
while [ $# -gt 0 ]; do
	case $1 in --host) host=$2 ;; --port) port=$2 ;; --served-model-name) name=$2 ;; esac
	shift
done
exec /mobula sim --host "$host" --port "$port" --model "$name" --itl 5ms --drain-timeout 1m
`

// real gives what test/real/setup.sh has installed, in the folder that MOBULA_REAL_DIR names, or nil when it does not.
func (c *Cluster) real(t *testing.T) *realSuite {
	t.Helper()
	dir := os.Getenv("MOBULA_REAL_DIR")
	if dir == "" {
		t.Log("NOT RUN: real vLLM, LMCache and Ray in pods, for MOBULA_REAL_DIR is not set: run test/real/setup.sh and have it name what that prints")
		return nil
	}
	s := &realSuite{Cluster: c, models: t.TempDir(), vllm: filepath.Join(dir, "venv")}
	for into, args := range map[*string][]string{&s.ray: {"../real/ray.sh", "2.60.0"}, &s.lmcache: {"../real/lmcache.sh", dir}} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).Output()
		require.NoError(t, err)
		*into = strings.TrimSpace(string(out))
	}
	s.ray = filepath.Join(s.ray, "venv")
	prefix, err := exec.CommandContext(t.Context(), filepath.Join(s.vllm, "bin", "python"), "-c", "import sys; print(sys.base_prefix)").Output()
	require.NoError(t, err)
	s.python = strings.TrimSpace(string(prefix))
	require.NoError(t, os.CopyFS(filepath.Join(s.models, "tiny"), os.DirFS(filepath.Join(dir, "models", "tiny"))))
	files, err := filepath.Glob(filepath.Join(s.models, "tiny", "*"))
	require.NoError(t, err)
	fake := filepath.Join(s.models, "vllm")
	require.NoError(t, os.WriteFile(fake, []byte(gang), 0o600))
	for _, file := range append(files, fake, s.models, filepath.Join(s.models, "tiny")) {
		require.NoError(t, os.Chmod(file, 0o755)) // the engine's user is nobody here
	}
	return s
}

type object = map[string]any

// machine gives pods this machine's programs, and further folders of it: what each is there, and what in the pod.
func machine(t *testing.T, more ...[2]string) (mounts, volumes []any) {
	t.Helper()
	seen := map[string]bool{}
	for _, f := range append([][2]string{{"/usr", "/usr"}, {"/bin", "/bin"}, {"/lib", "/lib"}, {"/lib64", "/lib64"}}, more...) {
		from, err := filepath.EvalSymlinks(f[0])
		if os.IsNotExist(err) || seen[f[1]] { // /lib64 is not everywhere; Python may be the system's
			continue
		}
		require.NoError(t, err)
		seen[f[1]] = true
		volume := fmt.Sprintf("machine-%d", len(volumes))
		volumes = append(volumes, object{"name": volume, "hostPath": object{"path": from}})
		mounts = append(mounts, object{"name": volume, "mountPath": f[1], "readOnly": true})
	}
	return mounts, volumes
}

// values writes the values of testdata with the folders of this machine, and those by which all engines have them: as a
// user that the image does not know, on a read-only root.
func (s *realSuite) values(t *testing.T, name, path string) (args []string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	models, pods := filepath.Join(t.TempDir(), name), filepath.Join(t.TempDir(), "pods.json")
	require.NoError(t, os.WriteFile(models, []byte(strings.NewReplacer("@VLLM@", s.vllm, "@LMCACHE@", s.lmcache).Replace(string(content))), 0o600))

	var env []any
	mounts, volumes := machine(t, [2]string{s.python, s.python}, [2]string{s.vllm, s.vllm}, [2]string{s.ray, s.ray}, [2]string{s.lmcache, s.lmcache}, [2]string{s.models, "/models"})
	for _, kv := range []string{
		"PATH=" + s.ray + "/bin:/usr/bin:/bin", "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1",
		"VLLM_TARGET_DEVICE=cpu", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=1", "VLLM_CPU_CI_ENV=1",
	} {
		key, value, _ := strings.Cut(kv, "=")
		env = append(env, object{"name": key, "value": value})
	}
	var values any = object{"pods": object{
		"image": s.image, "pullPolicy": "Never", "cpu": "200m", "memory": "512Mi", "memoryLimit": "8Gi",
		"pod": object{"spec": object{
			"securityContext": object{"runAsNonRoot": true, "runAsUser": 2000, "runAsGroup": 2000, "fsGroup": 2000},
			"containers":      []any{object{"name": "engine", "securityContext": object{"readOnlyRootFilesystem": true}, "volumeMounts": mounts, "env": env}},
			"volumes":         volumes,
		}},
	}}
	for _, key := range slices.Backward(strings.Split(path, ".")) {
		values = object{key: values}
	}
	text, err := json.Marshal(values)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(pods, text, 0o600))
	return []string{"--values", models, "--values", pods}
}

// serves waits until a model has so many replicas, and no other pods that take requests. An engine may need minutes.
func (r *release) serves(t *testing.T, name string, replicas int) {
	t.Helper()
	for range 3 { // that long has a start on a busy machine
		if _, err := r.TryKubectl(t.Context(), "--namespace", r.namespace, "wait", "model/"+name,
			fmt.Sprintf("--for=jsonpath={.status.ready}=%d/%d", replicas, replicas), "--timeout", (deadline / 2).String()); err == nil {
			break
		}
	}
	r.awaitField(t, "model/"+name, ".status.ready", fmt.Sprintf("%d/%d", replicas, replicas))
	r.Await(t, "as many pods", func(context.Context) error {
		if pods := r.serving(t, name); len(pods) != replicas {
			return fmt.Errorf("there are %s", pods)
		}
		return nil
	})
}

// serving are the pods of a model that take requests, those that end too.
func (r *release) serving(t *testing.T, name string) []string {
	t.Helper()
	return strings.Fields(r.kubectl(t, "get", "pods", "--selector", "mobula.dev/serves=true,mobula.dev/model="+name, "--output", "jsonpath={.items[*].metadata.name}"))
}

// mobula builds the command, and gives what runs it against the release's control plane.
func (r *release) mobula(t *testing.T) func(args ...string) string {
	t.Helper()
	dir := t.TempDir()
	binary, config := filepath.Join(dir, "mobula"), filepath.Join(dir, "client.json")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/mobula").CombinedOutput()
	require.NoError(t, err, "%s", out)
	content, err := base64.StdEncoding.DecodeString(r.kubectl(t, "get", "secret", "mobula-control", "--output", `jsonpath={.data.client\.json}`))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, content, 0o600))
	control := "https://" + r.PortForward(t, r.namespace, "svc/mobula-control", 8100)
	return func(args ...string) string {
		out, err := r.run(t.Context(), "", binary, append(args, "--config", config, "--control", control)...)
		require.NoError(t, err)
		return out
	}
}

// usage is what an engine says that it has done.
type usage struct {
	Prompt    int `json:"prompt_tokens"`
	Completed int `json:"completion_tokens"`
	Total     int `json:"total_tokens"`
}

// stream asks for a stream of so many tokens, tells when it has begun, and gives the usage at its end.
func (r *release) stream(ctx context.Context, model, text string, tokens int, begun func()) (u usage, err error) {
	body := fmt.Sprintf(`{"model":%q,"stream":true,"stream_options":{"include_usage":true},"max_tokens":%d,"ignore_eos":true,"messages":[{"role":"user","content":%q}]}`, model, tokens, text)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.router+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return u, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return u, fmt.Errorf("%s: %s", resp.Status, said)
	}
	last, lines := "", bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if last = lines.Text(); strings.Contains(last, `"content"`) && begun != nil {
			begun()
			begun = nil
		}
		if data, ok := strings.CutPrefix(last, "data: {"); ok && strings.Contains(data, `"usage":{`) {
			var chunk struct{ Usage usage }
			if err := json.Unmarshal([]byte("{"+data), &chunk); err != nil {
				return u, err
			}
			u = chunk.Usage
		}
		if last == "data: [DONE]" {
			return u, nil
		}
	}
	return u, fmt.Errorf("it broke off after %q: %w", last, lines.Err())
}

func (s *realSuite) testVLLM(t *testing.T) {
	const name = "tiny"
	r := s.install(t, s.values(t, "values-vllm.yaml", "platform.kubernetes")...)
	r.serves(t, name, 1)
	pod := r.serving(t, name)[0]
	t.Run("it starts once, within its budget", func(t *testing.T) {
		require.Contains(t, r.kubectl(t, "get", "events", "--field-selector", "involvedObject.name="+pod), "Startup probe failed")
		require.Equal(t, "0", r.kubectl(t, "get", "pod", pod, "--output", "jsonpath={.status.containerStatuses[0].restartCount}"))
	})
	t.Run("it answers", func(t *testing.T) {
		r.answered(t, name)
		models, err := Get(t.Context(), r.router+"/v1/models")
		require.NoError(t, err)
		require.Contains(t, models, `"root":"/models/tiny"`)
		u, err := r.stream(t.Context(), name, "Hello!", 100, nil)
		require.NoError(t, err)
		require.Positive(t, u.Prompt)
		require.Equal(t, usage{Prompt: u.Prompt, Completed: 100, Total: u.Prompt + 100}, u)
	})
	t.Run("what people look at", func(t *testing.T) {
		const line = "Application startup complete"
		mobula := r.mobula(t)
		require.Contains(t, r.kubectl(t, "logs", pod), line)
		require.Contains(t, mobula("logs", pod, "--tail", "5000"), line)
		require.Regexp(t, `(?m)^ *`+name+` .*1/1`, mobula("top", "--once"))
		r.Await(t, "the engine's own metrics are with the router", func(ctx context.Context) error {
			page, err := Get(ctx, r.router+"/metrics")
			for line := range strings.Lines(page) {
				if strings.HasPrefix(line, "vllm:gpu_prefix_cache_queries_total{") && strings.Contains(line, pod) && !strings.HasSuffix(line, " 0\n") {
					return err
				}
			}
			return fmt.Errorf("%w: %s", err, page)
		})
	})
	t.Run("as nobody, with a root that can't be written", func(t *testing.T) {
		said := r.kubectl(t, "exec", pod, "--", "/bin/sh", "-c", "id -u; touch /x 2>&1; touch /tmp/x /data/x /dev/shm/x && echo written")
		require.Contains(t, said, "2000\n")
		require.Contains(t, said, "Read-only file system")
		require.Contains(t, said, "written\n")
	})
	require.True(t, t.Run("scaled under load", func(t *testing.T) {
		end := r.lightLoad(t, name)
		r.kubectl(t, "scale", "model/"+name, "--replicas", "2")
		r.serves(t, name, 2)
		r.kubectl(t, "scale", "model/"+name, "--replicas", "1")
		r.serves(t, name, 1)
		end()
	}))
	t.Run("streams outlive their pod", func(t *testing.T) { r.testStreamsOutlive(t, name) })
}

// lightLoad asks for one stream after the other, and leaves the engines time to start: they have few CPUs. The function that it
// gives ends it: no stream may have failed.
func (r *release) lightLoad(t *testing.T, name string) (end func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	var good int
	var bad []error
	done.Go(func() {
		for ctx.Err() == nil {
			if _, err := r.stream(context.WithoutCancel(ctx), name, strings.Repeat(fmt.Sprintf("number %d ", good), 60), 20, nil); err != nil {
				bad = append(bad, err)
			} else {
				good++
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	end = func() {
		stop()
		done.Wait()
		require.Empty(t, bad)
		require.Positive(t, good)
		t.Logf("%d streams", good)
	}
	t.Cleanup(func() { stop(); done.Wait() })
	return end
}

// testStreamsOutlive deletes a pod in the middle of long streams: vLLM is told to end before they are at theirs.
func (r *release) testStreamsOutlive(t *testing.T, name string) {
	t.Helper()
	pod := r.serving(t, name)[0]
	const streams, tokens = 8, 1900
	var all, begun sync.WaitGroup
	begun.Add(streams)
	used, errs := make([]usage, streams), make([]error, streams)
	for i := range streams {
		all.Go(func() {
			first := sync.OnceFunc(begun.Done)
			defer first()
			used[i], errs[i] = r.stream(t.Context(), name, fmt.Sprintf("tell %d", i), tokens, first)
		})
	}
	begun.Wait()
	var log string
	var logged error
	all.Go(func() {
		log, logged = r.run(context.WithoutCancel(t.Context()), "", "kubectl", "--namespace", r.namespace, "logs", "--follow", "--tail", "1", pod)
	})
	r.kubectl(t, "delete", "pod", pod, "--wait=false")
	all.Wait()
	require.NoError(t, logged)
	for i := range streams {
		require.NoError(t, errs[i])
		require.Equal(t, tokens, used[i].Completed)
	}
	require.Contains(t, log, "draining in-flight requests count=", "it was told to end while streams ran")
}

func (s *realSuite) testRay(t *testing.T) {
	s.KubeRay(t)
	r := s.install(t, s.values(t, "values-vllm-ray.yaml", "platform.kuberay.kubernetes")...)
	r.serves(t, "gang", 1)
	head := r.serving(t, "gang")[0]
	t.Run("a gang is a head and a worker", func(t *testing.T) {
		r.answered(t, "gang")
		require.Equal(t, "headgroup", r.kubectl(t, "get", "pod", head, "--output", `jsonpath={.metadata.labels.ray\.io/group}`))
		log := r.kubectl(t, "logs", head)
		require.Contains(t, log, "mobula: all nodes are there: 2")
		require.Contains(t, log, "--distributed-executor-backend ray")
		r.Await(t, "the RayCluster is ready", func(ctx context.Context) error {
			said, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", "rayclusters", "--selector", "mobula.dev/model=gang", "--output", "jsonpath={.items[*].status.state} {.items[*].status.readyWorkerReplicas}")
			if err == nil && said != "ready 1" {
				err = fmt.Errorf("it is %q", said)
			}
			return err
		})
		page, err := Get(t.Context(), r.router+"/metrics")
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(page, `mobula_router_endpoint_up{endpoint="gang-`), "the worker is no endpoint")
	})
	t.Run("nobody gets in without the token", func(t *testing.T) {
		ip := r.kubectl(t, "get", "pod", head, "--output", "jsonpath={.status.podIP}")
		_, err := Get(t.Context(), "http://"+ip+":8265/api/v0/nodes")
		require.ErrorContains(t, err, "401")
		require.Contains(t, r.kubectl(t, "exec", head, "--", "/bin/sh", "-c", "ray status"), "Active:")
	})
	for _, victim := range []string{"mobula sim", "gcs_server"} {
		require.True(t, t.Run(victim+" is killed", func(t *testing.T) { r.testGangKilled(t, victim) }))
	}
	t.Run("vLLM beside Ray's head", func(t *testing.T) {
		r.serves(t, "tiny", 1)
		u, err := r.stream(t.Context(), "tiny", "Hello!", 100, nil)
		require.NoError(t, err)
		require.Equal(t, 100, u.Completed)
		log := r.kubectl(t, "logs", r.serving(t, "tiny")[0])
		require.Contains(t, log, "mobula: all nodes are there: 1")
		require.Contains(t, log, "Application startup complete")
	})
	t.Run("nothing is left", func(t *testing.T) { r.nothingLeft(t, "rayclusters") })
}

// nothingLeft uninstalls it, and waits until nothing is left of these kinds and of those that all have.
func (r *release) nothingLeft(t *testing.T, kinds ...string) {
	t.Helper()
	r.Helm(t, "uninstall", "mobula", "--namespace", r.namespace, "--wait", "--timeout", deadline.String())
	r.Await(t, "nothing is left", func(ctx context.Context) error {
		left, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", strings.Join(append(kinds, "pods", "services", "secrets", "configmaps", "models"), ","), "--output", "name")
		left = strings.ReplaceAll(left, "configmap/kube-root-ca.crt\n", "")
		if err == nil && left != "" {
			err = fmt.Errorf("there are %s", left)
		}
		return err
	})
}

// testGangKilled kills a process of the head: its container ends, and all of the gang starts anew.
func (r *release) testGangKilled(t *testing.T, victim string) {
	t.Helper()
	starts := func(ctx context.Context) (map[string]string, error) {
		said, err := r.TryKubectl(ctx, "--namespace", r.namespace, "get", "pods", "--selector", "mobula.dev/model=gang", "--output",
			`jsonpath={range .items[*]}{.metadata.labels.ray\.io/node-type}={.metadata.name}:{.status.containerStatuses[0].state.running.startedAt}{"\n"}{end}`)
		out := map[string]string{}
		for line := range strings.Lines(said) {
			node, start, _ := strings.Cut(strings.TrimSpace(line), "=")
			out[node] = start
		}
		return out, err
	}
	before, err := starts(t.Context())
	require.NoError(t, err)
	require.Len(t, before, 2)
	// The shell that runs this must not be what it finds.
	_, err = r.TryKubectl(t.Context(), "--namespace", r.namespace, "exec", r.serving(t, "gang")[0], "--", "/bin/sh", "-c",
		fmt.Sprintf("kill -KILL $(pgrep -f '[%s]%s')", victim[:1], victim[1:]))
	t.Logf("killed: %v", err) // the container's end may be sooner than that of the command
	r.Await(t, "head and worker have started anew", func(ctx context.Context) error {
		now, err := starts(ctx)
		if err == nil && (len(now) != 2 || now["head"] == before["head"] || now["worker"] == before["worker"]) {
			err = fmt.Errorf("they were %v and are %v", before, now)
		}
		return err
	})
	r.serves(t, "gang", 1)
	r.answered(t, "gang")
}

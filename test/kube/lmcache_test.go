//go:build linux && kube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// redisImage is what this machine's Redis is called in the cluster.
const redisImage = "localhost/redis"

// poolValues writes the values by which LMCache's servers find this machine's programs, and Redis its image.
func (s *realSuite) poolValues(t *testing.T) string {
	t.Helper()
	repository, tag, _ := strings.Cut(s.image, ":")
	image := object{"repository": repository, "tag": tag, "pullPolicy": "Never"}
	env := []any{
		object{"name": "PATH", "value": s.lmcache + "/bin:/usr/bin:/bin"},
		object{"name": "PYTHONPATH", "value": s.lmcache},
		object{"name": "OMP_NUM_THREADS", "value": "1"},
	}
	mounts, volumes := machine(t, [2]string{s.python, s.python}, [2]string{s.vllm, s.vllm}, [2]string{s.lmcache, s.lmcache})
	text, err := json.Marshal(object{
		"lmcache": object{
			"image": image, "env": env,
			"extraVolumes":      append(slices.Clone(volumes), object{"name": "tmp", "emptyDir": object{}}),
			"extraVolumeMounts": append(slices.Clone(mounts), object{"name": "tmp", "mountPath": "/tmp"}),
		},
		"cacheServer": object{"image": image, "env": env, "extraVolumes": volumes, "extraVolumeMounts": mounts},
		"redis":       object{"image": object{"repository": redisImage, "tag": "test", "pullPolicy": "Never"}},
	})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "pool.json")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	return file
}

// pooled is a model whose engines share their KV blocks by LMCache: what one has computed, the next one loads.
type pooled struct {
	*release
	name string
}

// testLMCache is of engines that come and go, and of a server of LMCache that does.
func (s *realSuite) testLMCache(t *testing.T) {
	programs := make([]string, 2)
	for i, name := range []string{"redis-server", "redis-cli"} {
		var err error
		if programs[i], err = exec.LookPath(name); err != nil {
			t.Logf("NOT RUN: real LMCache over Redis in pods, for %s is not installed", name)
			return
		}
	}
	s.ImportPrograms(t, redisImage+":test", programs...)
	p := &pooled{s.install(t, append(s.values(t, "values-vllm-lmcache.yaml", "platform.kubernetes"), "--values", s.poolValues(t))...), "pooled"}
	p.serves(t, p.name, 1)
	var text string
	require.True(t, t.Run("what an engine has computed the next one loads", func(t *testing.T) {
		text = p.stored(t)
		p.loadedByAnother(t, text)
	}))
	t.Run("a server starts anew under load", func(t *testing.T) {
		end := p.lightLoad(t, p.name)
		before := p.server(t)
		p.kubectl(t, "delete", "pod", before)
		p.kubectl(t, "rollout", "status", "daemonset/mobula-lmcache", "--timeout", deadline.String())
		require.NotEqual(t, before, p.server(t))
		tries := 1000
		p.Await(t, "the engine has found the new one", func(ctx context.Context) error {
			tries++
			if err := p.ask(ctx, p.text(tries)); err != nil {
				return err
			}
			said, err := p.status(ctx)
			if err == nil && said.StorageManager.L1.Objects == 0 {
				err = errors.New("it stores nothing there")
			}
			return err
		})
		end()
	})
	t.Run("what a server has lost is in Redis", func(t *testing.T) {
		p.loadedByAnother(t, text)
		require.Positive(t, p.metric(t, p.podIP(t, p.server(t))+":8080", `lmcache_mp_lookup_hit_l2_tokens_total`))
	})
	t.Run("nothing is left", func(t *testing.T) { p.nothingLeft(t) })
}

// testCacheServer is of LMCache's server of before its multiprocess mode: what is stored there, at the address that engines are told of,
// is there for others.
func (s *realSuite) testCacheServer(t *testing.T) {
	r := s.install(t, append(s.values(t, "values-cache-server.yaml", "platform.kubernetes"), "--values", s.poolValues(t))...)
	r.kubectl(t, "rollout", "status", "deployment/mobula-cache-server", "--timeout", deadline.String())
	r.serves(t, "pooled", 1)
	r.answered(t, "pooled")
	script, err := os.ReadFile(filepath.Join("testdata", "pool.py"))
	require.NoError(t, err)
	require.Contains(t, r.kubectl(t, "exec", r.serving(t, "pooled")[0], "--", s.vllm+"/bin/python", "-c", string(script)), "stored and read 1048576")
	r.nothingLeft(t)
}

// chunks is how many of 256 tokens a text has at least.
const chunks = 4

// text is a prompt that has no chunk in common with that of another number.
func (p *pooled) text(number int) string {
	words := []string{fmt.Sprintf("number %d:", number)}
	for i := range 340 {
		words = append(words, fmt.Sprintf("f%d", i))
	}
	return strings.Join(words, " ")
}

// ask asks for a short answer.
func (p *pooled) ask(ctx context.Context, text string) error {
	u, err := p.stream(ctx, p.name, text, 5, nil)
	if err == nil && u.Prompt <= chunks*256 {
		err = fmt.Errorf("the prompt has %d tokens", u.Prompt)
	}
	return err
}

// stored gives a prompt whose chunks are in Redis. An engine that waits too long for the server stores nothing, and does not try again.
func (p *pooled) stored(t *testing.T) (text string) {
	t.Helper()
	tries := 0
	p.Await(t, "a prompt is stored", func(ctx context.Context) error {
		before, err := p.keys(ctx)
		if err != nil {
			return err
		}
		tries++
		text = p.text(tries)
		if err := p.ask(ctx, text); err != nil {
			return err
		}
		now := 0
		for range 20 {
			if now, err = p.keys(ctx); err != nil || now >= before+chunks {
				return err
			}
			time.Sleep(500 * time.Millisecond)
		}
		return fmt.Errorf("Redis had %d keys and has %d", before, now) //nolint:staticcheck // a name
	})
	return text
}

// loadedByAnother replaces the engine, and asks the next one, which has computed nothing: it loads all chunks. One that waits too long
// for the server computes them itself.
func (p *pooled) loadedByAnother(t *testing.T, text string) {
	t.Helper()
	hits := 0
	for range 3 {
		p.kubectl(t, "delete", "pod", p.serving(t, p.name)[0])
		p.serves(t, p.name, 1)
		require.NoError(t, p.ask(t.Context(), text))
		if hits = p.metric(t, p.podIP(t, p.serving(t, p.name)[0])+":8000", "vllm:external_prefix_cache_hits_total"); hits >= chunks*256 {
			return
		}
	}
	require.FailNow(t, "the engine computes what another one has stored", "it has loaded %d tokens", hits)
}

func (p *pooled) server(t *testing.T) string {
	t.Helper()
	return p.kubectl(t, "get", "pods", "--selector", "app.kubernetes.io/component=lmcache", "--output", "jsonpath={.items[*].metadata.name}")
}

func (p *pooled) podIP(t *testing.T, pod string) string {
	t.Helper()
	return p.kubectl(t, "get", "pod", pod, "--output", "jsonpath={.status.podIP}")
}

// lmcacheStatus is what matters of what LMCache's server says of itself.
type lmcacheStatus struct {
	StorageManager struct {
		L1 struct {
			Objects int `json:"total_object_count"`
		} `json:"l1_manager"`
	} `json:"storage_manager"`
}

func (p *pooled) status(ctx context.Context) (said lmcacheStatus, err error) {
	ip, err := p.TryKubectl(ctx, "--namespace", p.namespace, "get", "pods", "--selector", "app.kubernetes.io/component=lmcache", "--output", "jsonpath={.items[0].status.podIP}")
	if err != nil {
		return said, err
	}
	body, err := Get(ctx, "http://"+ip+":8080/status")
	if err != nil {
		return said, err
	}
	return said, json.Unmarshal([]byte(body), &said)
}

// keys counts what Redis has.
func (p *pooled) keys(ctx context.Context) (int, error) {
	said, err := p.TryKubectl(ctx, "--namespace", p.namespace, "exec", "mobula-redis-0", "--", "redis-cli", "-a", "open-sesame", "dbsize")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(said))
}

// metric is the sum of a counter, from the page at an address.
func (p *pooled) metric(t *testing.T, address, name string) int {
	t.Helper()
	page, err := Get(t.Context(), "http://"+address+"/metrics")
	require.NoError(t, err)
	all := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(page, -1)
	require.NotEmpty(t, all, "%s is not in\n%s", name, page)
	sum := 0.0
	for _, match := range all {
		n, err := strconv.ParseFloat(match[1], 64)
		require.NoError(t, err)
		sum += n
	}
	return int(sum)
}

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/test/fleet"
)

// archiveServer serves one archive of a LoRA, and nothing else.
func archiveServer(t *testing.T) string {
	t.Helper()
	const config = `{"peft_type":"LORA","r":8}`
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	files := tar.NewWriter(zipped)
	require.NoError(t, files.WriteHeader(&tar.Header{Name: "adapter_config.json", Mode: 0o600, Size: int64(len(config))}))
	_, err := files.Write([]byte(config))
	require.NoError(t, err)
	require.NoError(t, files.Close())
	require.NoError(t, zipped.Close())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/archive.tar.gz" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(archive.Bytes())
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestLoRAsFollowTheirReplicas(t *testing.T) {
	t.Parallel()
	const model = "org/chat"
	url := archiveServer(t)
	file := func(env string, loras ...string) string {
		return fleetHead + fmt.Sprintf(`
models:
  - name: %s
    replicas: 2
    engine: {kind: sim, args: [--itl, 2ms], env: {A: %s}}
    loras:
      - {name: all, source: /loras/all}
%s`, model, env, strings.Join(loras, ""))
	}
	one := "      - {name: one, source: /loras/one, replicas: 1}\n"
	more := "      - {name: archive, source: " + url + "/archive.tar.gz}\n      - {name: broken, source: " + url + "/missing.tar.gz}\n"
	f := oneHost(t, file("a", one, more))
	loaded := func(name string) []string {
		for _, l := range f.Status(model).LoRAs {
			if l.Name == name {
				return l.Loaded
			}
		}
		return nil
	}
	// complete tells that the LoRAs are where they are wanted, on replicas that serve.
	complete := func() bool {
		ready := f.Ready(model)
		if len(ready) != 2 || len(f.Replicas()) != 2 || len(loaded("one")) != 1 {
			return false
		}
		on := func(name string) (n int) {
			for _, r := range ready {
				if slices.Contains(r.LoRAs, name) {
					n++
				}
			}
			return n
		}
		return on("all") == 2 && on("archive") == 2 && on("one") == 1 && len(loaded("all")) == 2 && len(loaded("archive")) == 2
	}
	f.Await("the LoRAs are loaded", complete)
	for _, name := range []string{model, "all", "one", "archive"} {
		a, err := f.Chat(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, a.Status, a.Body)
		require.Equal(t, name, gjson.Get(a.Body, "model").String())
	}
	cards := f.Get("/v1/models")
	for _, name := range []string{"all", "one", "archive"} {
		require.Equal(t, model, gjson.Get(cards, `data.#(id="`+name+`").parent`).String(), cards)
	}
	t.Run("what is fetched is on the host", func(t *testing.T) {
		r := f.Ready(model)[0]
		engine := gjson.Get(page(t, r.URL+"/v1/models"), `data.#(id="archive").root`).String()
		config, err := os.ReadFile(filepath.Join(engine, "adapter_config.json"))
		require.NoError(t, err)
		require.Contains(t, string(config), "LORA")
	})
	t.Run("one that fails says why, and holds up no other", func(t *testing.T) {
		f.Await("its error", func() bool {
			i := slices.IndexFunc(f.Status(model).LoRAs, func(l control.LoRAStatus) bool { return l.Name == "broken" })
			return strings.Contains(f.Status(model).LoRAs[i].Error, "404")
		})
		require.Regexp(t, `broken .*missing\.tar\.gz.*404`, f.Run("get", "loras"))
		require.Regexp(t, `broken .*404`, f.Run("describe", "model", model))
		require.Contains(t, f.Run("events"), "LoRAFailed")
	})

	var traffic []*fleet.Traffic
	for _, name := range []string{model, "all", "one"} {
		traffic = append(traffic, f.Traffic(name, 2, false))
	}
	// settled waits for all of them, and gives the replica that holds "one".
	settled := func() (holder control.ReplicaStatus) {
		f.Await("the LoRAs are where they are wanted", func() bool {
			ready, on := f.Ready(model), loaded("one")
			i := slices.IndexFunc(ready, func(r control.ReplicaStatus) bool { return len(on) == 1 && r.ID == on[0] })
			if i < 0 || !complete() {
				return false
			}
			holder = ready[i]
			return true
		})
		return holder
	}
	step := func(name string, do func(t *testing.T)) {
		require.True(t, t.Run(name, do))
		for _, load := range traffic {
			load.More(20)
		}
	}
	step("they are loaded again into an engine that was killed", func(t *testing.T) {
		t.Helper()
		one := settled()
		holder := one.ID
		require.NoError(t, syscall.Kill(f.Engine(one), syscall.SIGKILL))
		f.Await("the engine is back with its LoRAs", func() bool {
			ready := f.Ready(model)
			return complete() && slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.ID == holder && r.Restarts == 1 })
		})
	})
	step("they move when their replica goes", func(*testing.T) {
		holder := settled().ID
		f.Run("drain", holder)
		f.Await("another replica in its place, with its LoRAs", func() bool {
			return complete() && !slices.ContainsFunc(f.Replicas(), func(r control.ReplicaStatus) bool { return r.ID == holder })
		})
	})
	step("they are there after a roll", func(*testing.T) {
		before := settled().Revision
		f.Apply(file("b", one, more))
		f.Await("another revision with its LoRAs", func() bool {
			return complete() && !slices.ContainsFunc(f.Ready(model), func(r control.ReplicaStatus) bool { return r.Revision == before })
		})
	})
	step("one that fewer replicas are to have is asked for where it stays", func(*testing.T) {
		fewer := strings.Replace(file("b", one, more), "/loras/all}", "/loras/all, replicas: 1}", 1)
		f.Apply(fewer)
		f.Await("one replica has it", func() bool { return len(loaded("all")) == 1 })
	})
	for _, load := range traffic {
		load.End()
	}
	t.Run("one that the file has no more is unloaded", func(t *testing.T) {
		before := f.Ready(model)[0].Revision
		f.Apply(file("b", more))
		f.Await("it is gone", func() bool {
			return !slices.ContainsFunc(f.Ready(model), func(r control.ReplicaStatus) bool { return slices.Contains(r.LoRAs, "one") })
		})
		f.Await("the router has noticed", func() bool {
			a, err := f.Chat(t.Context(), "one")
			return err == nil && a.Status == http.StatusNotFound
		})
		f.Await("it is not listed any more", func() bool { return !strings.Contains(f.Get("/v1/models"), `"one"`) })
		require.Equal(t, before, f.Ready(model)[0].Revision, "no engine was started again")
	})
}

// page gives a page of an engine's.
func page(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

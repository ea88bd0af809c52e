package mobula_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

const header = "apiVersion: mobula/v1\nkind: Fleet\n"

func TestLoadFileNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "my-fleet.yaml")
	_, err := mobula.LoadFile(path)
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, os.WriteFile(path, []byte(header+"nam: x\n"), 0o600))
	_, err = mobula.LoadFile(path)
	require.ErrorContains(t, err, path+`:3:1: nam: unknown field, did you mean "name"?`)

	require.NoError(t, os.WriteFile(path, []byte(header+platform), 0o600))
	fleet, err := mobula.LoadFile(path)
	require.NoError(t, err)
	require.Equal(t, "http://vllm:8000", fleet.Platform.Static.Endpoints[0].URL)

	_, err = mobula.LoadFile(filepath.Dir(path))
	require.Error(t, err)
}

const platform = "platform:\n  static:\n    endpoints:\n      - url: http://vllm:8000\n"

func TestLoadKeepsDefaultsOfWhatIsNotGiven(t *testing.T) {
	got, err := mobula.Load([]byte(header+platform+"router:\n  timeouts:\n    idle: 5s\n  log:\nkv: {}\n"), "fleet.yaml")
	require.NoError(t, err)
	want := mobula.Default()
	want.Platform.Static = &mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://vllm:8000"}}, HostTimeout: 60e9}
	want.Router.Timeouts.Idle = 5e9
	require.Empty(t, cmp.Diff(&want, got))
}

func TestDefaultLoadsOnceItHasAPlatform(t *testing.T) {
	want := mobula.Default()
	want.Platform.Static = &mobula.Static{Endpoints: []mobula.StaticEndpoint{{URL: "http://vllm:8000"}}, HostTimeout: 60e9}
	data, err := want.YAML()
	require.NoError(t, err)
	got, err := mobula.Load(data, "fleet.yaml")
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(&want, got))
}

// What no fleet needs is refused before it costs time or memory.
func TestLoadRefusesHugeFiles(t *testing.T) {
	lines := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct{ file, want string }{
		"bytes":       {header + "#" + strings.Repeat("x", mobula.MaxFileSize), "1:1: want at most 4MiB"},
		"tokens":      {header + "name: [" + strings.Repeat("a,", 500_000) + "]", "1:1: too long"},
		"flow depth":  {header + "name: " + strings.Repeat("[", 1000), "nested too deep"},
		"block depth": {header + "name:\n  " + strings.Repeat("- ", 1000) + "a", "nested too deep"},
		"keys":        {header + lines(3000, "k%d: 1\n"), "too many keys in one place"},
		"inner keys":  {header + "router:\n" + lines(3000, "  k%d: 1\n"), "too many keys in one place"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mobula.Load([]byte(c.file), "fleet.yaml")
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestLoadTakesThousandsOfEndpoints(t *testing.T) {
	fleet, err := mobula.Load(manyEndpoints(5000), "fleet.yaml")
	require.NoError(t, err)
	require.Len(t, fleet.Platform.Static.Endpoints, 5000)
}

func TestLoadTakesEveryFormOfAddress(t *testing.T) {
	for _, url := range []string{
		"http://vllm", "http://vllm:8000", "https://vllm.example.org:8443", "http://10.0.0.7:8000", "http://[::1]:8000",
		"https://[2001:db8::1]", "http://[fe80::1%25eth0]:8000", "http://vllm_1.ns.svc.cluster.local.:80", "http://LOCALHOST:65535", "http://8b",
	} {
		file := strings.Replace(header+platform, "http://vllm:8000", `"`+url+`"`, 1)
		_, err := mobula.Load([]byte(file), "fleet.yaml")
		require.NoError(t, err, url)
	}
	for _, listen := range []string{":8000", ":0", "127.0.0.1:8000", "[::1]:8000", "localhost:8000", "0.0.0.0:80", "[::]:1"} {
		_, err := mobula.Load([]byte(header+platform+"router: {listen: \""+listen+"\"}\n"), "fleet.yaml")
		require.NoError(t, err, listen)
	}
	for _, listen := range []string{"", "8000", "127.0.0.1", "::1:8000", ":http", ":65536", ":-1", "a b:80", "http://a:80"} {
		_, err := mobula.Load([]byte(header+platform+"router: {listen: \""+listen+"\"}\n"), "fleet.yaml")
		require.ErrorContains(t, err, "router.listen: want host:port", listen)
	}
}

// A key or password that is in the wrong place must not end up in a log.
func TestProblemsShowNoSecret(t *testing.T) {
	for _, field := range []string{
		"url: http://me:hunter2@vllm:8000", "url: http://me:hunter2@vl lm:8000", "url: http://v\n        apiKeyEnv: sk-hunter2", "apiKey: hunter2",
	} {
		_, err := mobula.Load([]byte(header+"platform:\n  static:\n    endpoints:\n      - "+field+"\n"), "fleet.yaml")
		require.Error(t, err)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{2, 1000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			data := manyEndpoints(n)
			b.ReportAllocs()
			for b.Loop() {
				_, err := mobula.Load(data, "fleet.yaml")
				require.NoError(b, err)
			}
		})
	}
}

func manyEndpoints(n int) []byte {
	var b strings.Builder
	b.WriteString(header + "platform:\n  static:\n    endpoints:\n")
	for i := range n {
		fmt.Fprintf(&b, "      - url: http://vllm-%d:8000\n        models: [tiny]\n        role: decode\n        labels: {zone: eu}\n", i)
	}
	return []byte(b.String())
}

package engine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func TestServeCommand(t *testing.T) {
	for name, tc := range map[string]struct {
		serve     Serve
		environ   []string
		argv, env []string
	}{
		"defaults": {
			serve: Serve{Model: "m", Port: 8701},
			argv:  []string{"vllm", "serve", "m", "--host", "127.0.0.1", "--port", "8701", "--enable-prompt-tokens-details"},
			env:   []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=127.0.0.1"},
		},
		"user arguments come last": {
			serve: Serve{Path: "/opt/vllm", Model: "org/m", Port: 1, Args: []string{"--dtype", "float32"}},
			argv:  []string{"/opt/vllm", "serve", "org/m", "--host", "127.0.0.1", "--port", "1", "--enable-prompt-tokens-details", "--dtype", "float32"},
			env:   []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=127.0.0.1"},
		},
		"devices replace the inherited ones": {
			serve:   Serve{Model: "m", Port: 1, Devices: []string{"2", "GPU-ab"}},
			environ: []string{"HOME=/h", "CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES_X=kept"},
			argv:    []string{"vllm", "serve", "m", "--host", "127.0.0.1", "--port", "1", "--enable-prompt-tokens-details"},
			env:     []string{"HOME=/h", "CUDA_VISIBLE_DEVICES_X=kept", "PYTHONUNBUFFERED=1", "VLLM_HOST_IP=127.0.0.1", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=2,GPU-ab"},
		},
		"another host keeps the inherited address": {
			serve:   Serve{Model: "m", Host: "0.0.0.0", Port: 1},
			environ: []string{"VLLM_HOST_IP=10.0.0.1"},
			argv:    []string{"vllm", "serve", "m", "--host", "0.0.0.0", "--port", "1", "--enable-prompt-tokens-details"},
			env:     []string{"VLLM_HOST_IP=10.0.0.1", "PYTHONUNBUFFERED=1"},
		},
		"an address of the host is the engine's own": {
			serve:   Serve{Model: "m", Host: "10.0.0.7", Port: 1},
			environ: []string{"VLLM_HOST_IP=10.0.0.1"},
			argv:    []string{"vllm", "serve", "m", "--host", "10.0.0.7", "--port", "1", "--enable-prompt-tokens-details"},
			env:     []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=10.0.0.7"},
		},
		"a command of one's own, a name, LoRAs and sleep": {
			serve: Serve{Prefix: []string{"/venv/python", "-m", "vllm"}, Path: "vllm", Model: "/w", ServedName: "m", Port: 1, LoRAs: true, Sleep: true},
			argv: []string{
				"/venv/python", "-m", "vllm", "serve", "/w", "--host", "127.0.0.1", "--port", "1", "--served-model-name", "m",
				"--enable-prompt-tokens-details", "--enable-lora", "--enable-sleep-mode",
			},
			env: []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=127.0.0.1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "VLLM_SERVER_DEV_MODE=1"},
		},
		"LoRAs beside data parallelism": {
			serve: Serve{Model: "m", Port: 1, LoRAs: true, Args: []string{"-dp", "2"}},
			argv: []string{
				"vllm", "serve", "m", "--host", "127.0.0.1", "--port", "1",
				"--enable-prompt-tokens-details", "--enable-lora", "--api-server-count", "1", "-dp", "2",
			},
			env: []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=127.0.0.1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"},
		},
		"the user's environment wins, but not over the devices": {
			serve: Serve{
				Model: "m", Port: 1, Devices: []string{},
				Env: map[string]string{"VLLM_HOST_IP": "10.0.0.2", "CUDA_VISIBLE_DEVICES": "7", "A": "1"},
			},
			environ: []string{"A=0"},
			argv:    []string{"vllm", "serve", "m", "--host", "127.0.0.1", "--port", "1", "--enable-prompt-tokens-details"},
			env:     []string{"PYTHONUNBUFFERED=1", "A=1", "VLLM_HOST_IP=10.0.0.2", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES="},
		},
		"the first of two hosts": {
			serve: Serve{Model: "m", Host: "10.0.0.7", Port: 1, Nodes: 2, MasterAddr: "10.0.0.7", MasterPort: 29500, Args: []string{"-tp", "16"}},
			argv: []string{
				"vllm", "serve", "m", "--host", "10.0.0.7", "--port", "1", "--enable-prompt-tokens-details",
				"--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.7", "--master-port", "29500", "-tp", "16",
			},
			env: []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=10.0.0.7"},
		},
		"the second of two hosts": {
			serve: Serve{Model: "m", Host: "10.0.0.8", Port: 1, Nodes: 2, NodeRank: 1, MasterAddr: "10.0.0.7", MasterPort: 29500},
			argv: []string{
				"vllm", "serve", "m", "--host", "10.0.0.8", "--port", "1", "--enable-prompt-tokens-details",
				"--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.7", "--master-port", "29500", "--headless",
			},
			env: []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=10.0.0.8"},
		},
		"IPv6 loopback": {
			serve: Serve{Model: "m", Host: "::1", Port: 1},
			argv:  []string{"vllm", "serve", "m", "--host", "::1", "--port", "1", "--enable-prompt-tokens-details"},
			env:   []string{"PYTHONUNBUFFERED=1", "VLLM_HOST_IP=::1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := strings.Join(tc.environ, "\n")
			argv, env := tc.serve.Command(tc.environ)
			require.Empty(t, cmp.Diff(tc.argv, argv))
			require.Empty(t, cmp.Diff(tc.env, env))
			require.Equal(t, before, strings.Join(tc.environ, "\n"), "environ was changed")
		})
	}
	require.Equal(t, "[::1]:9", Serve{Host: "::1", Port: 9}.Addr())
}

func TestTemplate(t *testing.T) {
	at := Place{Host: "{host}", Port: "{port}", Master: "{master}", MasterPort: "{masterPort}"}
	head := []string{"vllm", "serve", "m", "--host", "{host}", "--port", "{port}", "--enable-prompt-tokens-details"}
	for name, tc := range map[string]struct {
		serve Serve
		argv  [][]string
		env   map[string]string
	}{
		"one host": {
			serve: Serve{Model: "m", Sleep: true, Args: []string{"-tp", "2"}, Env: map[string]string{"A": "1", "PYTHONUNBUFFERED": "0"}},
			argv:  [][]string{append(slices.Clone(head), "--enable-sleep-mode", "-tp", "2")},
			env:   map[string]string{"A": "1", "PYTHONUNBUFFERED": "0", "VLLM_HOST_IP": "{host}", "VLLM_SERVER_DEV_MODE": "1"},
		},
		"two hosts": {
			serve: Serve{Model: "m", Nodes: 2, Args: []string{"-pp", "2"}},
			argv: [][]string{
				append(slices.Clone(head), "--nnodes", "2", "--node-rank", "0", "--master-addr", "{master}", "--master-port", "{masterPort}", "-pp", "2"),
				append(slices.Clone(head), "--nnodes", "2", "--node-rank", "1", "--master-addr", "{master}", "--master-port", "{masterPort}", "--headless", "-pp", "2"),
			},
			env: map[string]string{"PYTHONUNBUFFERED": "1", "VLLM_HOST_IP": "{host}"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			argv, env := tc.serve.Template(at)
			require.Empty(t, cmp.Diff(tc.argv, argv))
			require.Empty(t, cmp.Diff(tc.env, env))
		})
	}
}

func TestSpreads(t *testing.T) {
	require.True(t, Spreads([]string{"-tp", "2", "--distributed_executor_backend=ray"}))
	require.False(t, Spreads([]string{"--distributed-executor-backend", "mp"}))
	require.False(t, Spreads(nil))
}

func TestServeForModel(t *testing.T) {
	m := mobula.Model{
		Name: "m", Source: "org/m",
		Engine:  mobula.Engine{Command: []string{"v"}, Args: []string{"--dtype", "auto"}, Env: map[string]string{"A": "1"}},
		LoRAs:   []mobula.LoRA{{Name: "l"}},
		Scaling: mobula.Scaling{Sleep: true},
	}
	want := Serve{
		Prefix: []string{"v"}, Model: "org/m", ServedName: "m", LoRAs: true, Sleep: true,
		Args: []string{"--dtype", "auto"}, Env: map[string]string{"A": "1"},
	}
	require.Empty(t, cmp.Diff(want, ForModel(m)))
	require.Empty(t, cmp.Diff(Serve{Model: "m", ServedName: "m"}, ForModel(mobula.Model{Name: "m"})))
}

func TestDevicesOfArguments(t *testing.T) {
	for args, want := range map[string]int{
		"":                                  1,
		"--dtype float32":                   1,
		"--tensor-parallel-size 2":          2,
		"--tensor_parallel_size=4":          4,
		"-tp 2 --pipeline-parallel-size=3":  6,
		"-tp 2 -tp 8":                       8,
		"-tp 2 -dp 2 -pp 2":                 8,
		"--tensor-parallel-size":            1,
		"--tensor-parallel-size two":        1,
		"--tensor-parallel-size -3":         1,
		"--tensor-parallel-size 4294967296": 1,
	} {
		require.Equal(t, want, Devices(strings.Fields(args)), args)
	}
}

func TestTailKeepsTheLastLines(t *testing.T) {
	for name, tc := range map[string]struct {
		writes []string
		want   []string
	}{
		"nothing":             {},
		"fewer than kept":     {[]string{"a\nb\n"}, []string{"a", "b"}},
		"more than kept":      {[]string{"a\nb\nc\nd\ne\n"}, []string{"c", "d", "e"}},
		"in pieces":           {[]string{"a", "a\nb", "b\n"}, []string{"aa", "bb"}},
		"unfinished line":     {[]string{"a\nhalf"}, []string{"a", "half"}},
		"progress bar":        {[]string{"10%\r50%\r100%\n"}, []string{"10%", "50%", "100%"}},
		"empty lines":         {[]string{"\n\n a \r\n\n"}, []string{" a"}},
		"not UTF-8":           {[]string{"a\xffb\n"}, []string{"a?b"}},
		"line without an end": {[]string{strings.Repeat("x", 3*maxTailLine), "y\nz\n"}, []string{strings.Repeat("x", maxTailLine), "z"}},
	} {
		t.Run(name, func(t *testing.T) {
			tail := newTail(3)
			for _, w := range tc.writes {
				n, err := tail.Write([]byte(w))
				require.NoError(t, err)
				require.Equal(t, len(w), n)
			}
			require.Empty(t, cmp.Diff(tc.want, tail.Lines()))
			tail.Reset()
			require.Empty(t, tail.Lines())
		})
	}
}

func TestTailIsTheEndOfAllLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOf(rapid.StringMatching(`[a-z]{1,9}`)).Draw(t, "lines")
		n := rapid.IntRange(1, 5).Draw(t, "kept")
		text := strings.Join(lines, "\n")
		tail := newTail(n)
		for len(text) > 0 {
			cut := rapid.IntRange(1, len(text)).Draw(t, "cut")
			_, _ = tail.Write([]byte(text[:cut]))
			text = text[cut:]
		}
		_, _ = tail.Write([]byte("\n"))
		got := tail.Lines()
		want := lines[max(0, len(lines)-n):]
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Fatalf("kept %q of %q", got, lines)
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "engine.log")
	l, err := OpenLog(path, 10)
	require.NoError(t, err)
	for _, s := range []string{"12345", "67890", "abc", "this is longer than the limit", "x"} {
		n, err := l.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
	}
	require.NoError(t, l.Close())
	require.Equal(t, "x", read(t, path))
	require.Equal(t, "this is longer than the limit", read(t, path+".1"))

	l, err = OpenLog(path, 10)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.Empty(t, read(t, path))
	require.Equal(t, "x", read(t, path+".1"), "the earlier log is kept")
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

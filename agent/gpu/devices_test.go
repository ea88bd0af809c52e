package gpu

import (
	"encoding/json"
	"flag"
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

var update = flag.Bool("update", false, "write the golden files anew")

// recorded reads a recording of what NVML said.
func recorded(tb testing.TB, name string) snapshot {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	require.NoError(tb, err)
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	var s snapshot
	require.NoError(tb, decoder.Decode(&s))
	return s
}

// recordings gives the names of all recordings.
func recordings(tb testing.TB) []string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	require.NoError(tb, err)
	var names []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(filepath.Base(f), ".json"); ok && !strings.HasSuffix(name, ".golden") {
			names = append(names, name)
		}
	}
	require.NotEmpty(tb, names)
	return names
}

func TestDevices(t *testing.T) {
	for _, name := range recordings(t) {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(devices(recorded(t, name), nil), "", " ")
			require.NoError(t, err)
			golden := filepath.Join("testdata", name+".golden.json")
			if *update {
				require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(strings.TrimSpace(string(want)), string(got)))
		})
	}
}

func TestNeighbours(t *testing.T) {
	group := func(d mobula.Device) string { return d.Group }
	for name, want := range map[string][]string{
		"h100-sxm-8":  slices.Repeat([]string{"nvlink-0"}, 8),
		"a100-pcie-8": {"nvlink-0", "nvlink-0", "nvlink-2", "nvlink-2", "nvlink-4", "nvlink-4", "nvlink-6", "nvlink-6"},
		"h200-1":      {""},
		"a100-mig":    {"", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, want, collect(devices(recorded(t, name), nil), group))
		})
	}
}

// TestGroupsAreConnectedSets compares with a walk from each GPU.
func TestGroupsAreConnectedSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 10).Draw(t, "gpus")
		gpus := make([]gpuInfo, n)
		for i := range gpus {
			gpus[i] = gpuInfo{Index: i, Peers: rapid.SliceOfN(rapid.IntRange(0, 12), 0, 2).Draw(t, "peers")}
		}
		var reach func(i int, seen map[int]bool)
		reach = func(i int, seen map[int]bool) {
			seen[i] = true
			for j := range gpus {
				if !seen[j] && (slices.Contains(gpus[i].Peers, j) || slices.Contains(gpus[j].Peers, i)) {
					reach(j, seen)
				}
			}
		}
		groups := groupsOf(gpus)
		for i := range gpus {
			seen := map[int]bool{}
			reach(i, seen)
			for j := range gpus {
				same := i == j || groups[i] != "" && groups[i] == groups[j]
				require.Equal(t, seen[j], same, "%d and %d", i, j)
			}
		}
	})
}

func TestUnhealthy(t *testing.T) {
	const uuid = "GPU-1"
	for name, tc := range map[string]struct {
		gpu  gpuInfo
		xid  int
		want []string // empty: well
	}{
		"well":                                      {},
		"well, and the driver says so":              {gpu: gpuInfo{Recovery: new(0)}},
		"a critical XID":                            {xid: 48, want: []string{"XID 48", "double-bit ECC", "reset the GPU"}},
		"an XID that the driver has got over":       {xid: 48, gpu: gpuInfo{Recovery: new(0)}},
		"an XID that wants a reset":                 {xid: 95, gpu: gpuInfo{Recovery: new(1)}, want: []string{"XID 95", "nvidia-smi --gpu-reset"}},
		"an XID that wants a reboot":                {xid: 119, gpu: gpuInfo{Recovery: new(2)}, want: []string{"XID 119", "reboot"}},
		"a reset is due from before the agent":      {gpu: gpuInfo{Recovery: new(4)}, want: []string{"driver asks", "reset"}},
		"peers are to be drained":                   {gpu: gpuInfo{Recovery: new(3)}},
		"an action that is not known":               {gpu: gpuInfo{Recovery: new(99)}},
		"rows could not be remapped":                {gpu: gpuInfo{RemapFailed: true, Recovery: new(0)}, want: []string{"row remapping failed"}},
		"lost":                                      {gpu: gpuInfo{Lost: "GPU is lost"}, want: []string{"GPU is lost", "reboot the host"}},
		"lost, and the XID that says so":            {xid: 79, gpu: gpuInfo{Lost: "GPU is lost", Recovery: new(0)}, want: []string{"XID 79", "fallen off the bus", "reboot the host"}},
		"an XID of another GPU, this one's unknown": {gpu: gpuInfo{UUID: "-"}, xid: 79},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.gpu.UUID == "" {
				tc.gpu.UUID = uuid
			}
			xids := map[string]int{}
			if tc.xid != 0 {
				xids[uuid] = tc.xid
			}
			got := unhealthy(tc.gpu, xids)
			require.Equal(t, len(tc.want) > 0, got != "", got)
			for _, words := range tc.want {
				require.Contains(t, got, words)
			}
		})
	}
}

func TestCriticalXIDs(t *testing.T) {
	for _, xid := range []int{48, 62, 64, 74, 79, 95, 119, 120, 140} {
		require.NotEmpty(t, critical(xid), xid)
	}
	for _, xid := range []int{0, 13, 31, 43, 45, 63, 68, 92, 94, 109, 154} {
		require.Empty(t, critical(xid), xid)
	}
}

func TestALostGPUKeepsItsName(t *testing.T) {
	before := recorded(t, "fallen-off-the-bus")
	before.GPUs[1] = gpuInfo{Index: 1, UUID: "GPU-x", Name: "NVIDIA H100 80GB HBM3", Memory: 7, Used: 5, Utilization: 90, Peers: []int{0}}
	after := recorded(t, "fallen-off-the-bus").remember(before)
	require.Empty(t, cmp.Diff(gpuInfo{Index: 1, UUID: "GPU-x", Name: "NVIDIA H100 80GB HBM3", Memory: 7, Lost: "ERROR_GPU_IS_LOST", Peers: []int{0}}, after.GPUs[1]))
	require.Equal(t, before.GPUs[0], after.GPUs[0])
	require.Equal(t, after, recorded(t, "fallen-off-the-bus").remember(after), "remembered only once")
}

func collect[T any](all []mobula.Device, f func(mobula.Device) T) []T {
	var got []T
	for _, d := range all {
		got = append(got, f(d))
	}
	return got
}

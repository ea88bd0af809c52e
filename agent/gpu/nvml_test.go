//go:build cgo && linux

package gpu

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// play makes an NVML that gives a recording's values, and the GPUs that it hands out.
func play(s snapshot) (*mock.Interface, []*mock.Device) {
	gpus := make([]*mock.Device, len(s.GPUs))
	for i, g := range s.GPUs {
		gpus[i] = playGPU(g, gpus)
	}
	set := &mock.EventSet{
		FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		WaitFunc: func(uint32) (nvml.EventData, nvml.Return) { return nvml.EventData{}, nvml.ERROR_TIMEOUT },
	}
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return s.Driver, nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return len(gpus), nvml.SUCCESS },
		EventSetCreateFunc:         func() (nvml.EventSet, nvml.Return) { return set, nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) {
			if s.GPUs[i].Lost != "" {
				return nil, nvml.ERROR_GPU_IS_LOST
			}
			return gpus[i], nvml.SUCCESS
		},
	}, gpus
}

func playGPU(g gpuInfo, all []*mock.Device) *mock.Device {
	return &mock.Device{
		GetUUIDFunc: func() (string, nvml.Return) { return g.UUID, nvml.SUCCESS },
		GetNameFunc: func() (string, nvml.Return) { return g.Name, nvml.SUCCESS },
		GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
			return nvml.Memory{Total: g.Memory, Used: g.Used}, nvml.SUCCESS
		},
		GetUtilizationRatesFunc: func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: g.Utilization}, nvml.SUCCESS
		},
		GetRemappedRowsFunc: func() (int, int, bool, bool, nvml.Return) {
			return 0, 0, false, g.RemapFailed, nvml.SUCCESS
		},
		GetFieldValuesFunc: func(values []nvml.FieldValue) nvml.Return {
			if g.Recovery == nil {
				values[0].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
				return nvml.SUCCESS
			}
			binary.NativeEndian.PutUint32(values[0].Value[:], uint32(*g.Recovery))
			return nvml.SUCCESS
		},
		GetMigModeFunc: func() (int, int, nvml.Return) {
			if g.MIG {
				return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS
			}
			return 0, 0, nvml.ERROR_NOT_SUPPORTED
		},
		GetMaxMigDeviceCountFunc: func() (int, nvml.Return) { return 7, nvml.SUCCESS },
		GetMigDeviceHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) {
			if i >= len(g.Instances) {
				return nil, nvml.ERROR_NOT_FOUND
			}
			in := g.Instances[i]
			return &mock.Device{
				GetUUIDFunc: func() (string, nvml.Return) { return in.UUID, nvml.SUCCESS },
				GetNameFunc: func() (string, nvml.Return) { return in.Name, nvml.SUCCESS },
				GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
					return nvml.Memory{Total: in.Memory, Used: in.Used}, nvml.SUCCESS
				},
			}, nvml.SUCCESS
		},
		GetP2PStatusFunc: func(other nvml.Device, _ nvml.GpuP2PCapsIndex) (nvml.GpuP2PStatus, nvml.Return) {
			peer := slices.IndexFunc(all, func(d *mock.Device) bool { return nvml.Device(d) == other })
			if slices.Contains(g.Peers, peer) {
				return nvml.P2P_STATUS_OK, nvml.SUCCESS
			}
			return nvml.P2P_STATUS_NOT_SUPPORTED, nvml.SUCCESS
		},
		GetSupportedEventTypesFunc: func() (uint64, nvml.Return) { return nvml.EventTypeXidCriticalError, nvml.SUCCESS },
		RegisterEventsFunc:         func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS },
	}
}

func TestNVMLGivesWhatWasRecorded(t *testing.T) {
	for _, name := range recordings(t) {
		t.Run(name, func(t *testing.T) {
			want := recorded(t, name)
			api, _ := play(want)
			lib, err := startNVML(api)
			require.NoError(t, err)
			got, err := lib.read()
			require.NoError(t, err)
			for i := range got.GPUs {
				if got.GPUs[i].Lost != "" {
					want.GPUs[i].Lost = got.GPUs[i].Lost // its words are the library's
				}
			}
			require.Empty(t, cmp.Diff(want, got))
			events, err := lib.wait(eventTimeout)
			require.NoError(t, err)
			require.Empty(t, events)
			require.NoError(t, lib.close())
			require.Len(t, api.ShutdownCalls(), 1)
		})
	}
}

func TestNVMLEvents(t *testing.T) {
	s := recorded(t, "a100-pcie-8")
	api, gpus := play(s)
	var next nvml.EventData
	ret := nvml.SUCCESS
	set := &mock.EventSet{
		FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		WaitFunc: func(uint32) (nvml.EventData, nvml.Return) { return next, ret },
	}
	api.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return set, nvml.SUCCESS }
	lib, err := startNVML(api)
	require.NoError(t, err)

	next = nvml.EventData{Device: gpus[4], EventType: nvml.EventTypeXidCriticalError, EventData: 79}
	got, err := lib.wait(eventTimeout)
	require.NoError(t, err)
	require.Equal(t, []xidEvent{{s.GPUs[4].UUID, 79}}, got)

	next.EventType = nvml.EventTypeDoubleBitEccError
	got, err = lib.wait(eventTimeout)
	require.NoError(t, err)
	require.Empty(t, got)

	next = nvml.EventData{Device: &mock.Device{}, EventType: nvml.EventTypeXidCriticalError, EventData: 79}
	got, err = lib.wait(eventTimeout)
	require.NoError(t, err)
	require.Len(t, got, 8, "of nobody known, so of all")

	ret = nvml.ERROR_GPU_IS_LOST
	_, err = lib.wait(eventTimeout)
	require.ErrorIs(t, err, ErrNVML)
	require.NoError(t, lib.close())
}

func TestNVMLWithoutEvents(t *testing.T) {
	api, _ := play(recorded(t, "h200-1"))
	api.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }
	lib, err := startNVML(api)
	require.NoError(t, err)
	_, err = lib.wait(eventTimeout)
	require.ErrorIs(t, err, ErrNVML)
	_, err = lib.read()
	require.NoError(t, err)
	require.NoError(t, lib.close())
}

func TestNVMLFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		ret  nvml.Return
		want error
		says string
	}{
		"no library":          {nvml.ERROR_LIBRARY_NOT_FOUND, errNoLibrary, ""},
		"no driver":           {nvml.ERROR_DRIVER_NOT_LOADED, errNoLibrary, ""},
		"driver and module":   {nvml.ERROR_LIB_RM_VERSION_MISMATCH, ErrNVML, "reboot the host"},
		"no permission":       {nvml.ERROR_NO_PERMISSION, ErrNVML, "/dev/nvidia"},
		"something else":      {nvml.ERROR_UNKNOWN, ErrNVML, "nvidia-smi"},
		"fallen off at start": {nvml.ERROR_GPU_IS_LOST, ErrNVML, "reboot the host"},
	} {
		t.Run(name, func(t *testing.T) {
			api, _ := play(snapshot{})
			api.InitFunc = func() nvml.Return { return tc.ret }
			_, err := startNVML(api)
			require.ErrorIs(t, err, tc.want)
			require.ErrorContains(t, err, tc.says)
		})
	}
	t.Run("counting", func(t *testing.T) {
		api, _ := play(snapshot{})
		api.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNKNOWN }
		_, err := startNVML(api)
		require.ErrorIs(t, err, ErrNVML)
		require.Len(t, api.ShutdownCalls(), 1)
	})
}

// TestNVMLMemory: a GPU that fails in the middle of being read is lost; one without memory of its own is not.
func TestNVMLMemory(t *testing.T) {
	api, gpus := play(recorded(t, "h200-1"))
	lib, err := startNVML(api)
	require.NoError(t, err)
	for ret, lost := range map[nvml.Return]bool{nvml.ERROR_GPU_IS_LOST: true, nvml.ERROR_RESET_REQUIRED: true, nvml.ERROR_NOT_SUPPORTED: false} {
		gpus[0].GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, ret }
		s, err := lib.read()
		require.NoError(t, err)
		require.Equal(t, lost, s.GPUs[0].Lost != "")
	}
	require.NoError(t, lib.close())
}

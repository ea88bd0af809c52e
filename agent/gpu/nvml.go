//go:build cgo && linux

package gpu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// nvmlLibrary is NVIDIA's library itself.
type nvmlLibrary struct {
	api    nvml.Interface
	driver string
	peers  map[int][]int // NVLink doesn't change while a driver runs
	events nvml.EventSet
	uuids  map[nvml.Device]string // of what is registered for events, since a lost GPU doesn't tell its UUID
}

func openNVML() (library, error) {
	lib, err := startNVML(nvml.New())
	if err != nil {
		return nil, err // not lib: an interface with a nil pointer in it is not nil
	}
	return lib, nil
}

func startNVML(api nvml.Interface) (*nvmlLibrary, error) {
	switch ret := api.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return nil, fmt.Errorf("%w: %s", errNoLibrary, name(ret))
	default:
		return nil, failed("start NVML", ret)
	}
	l := &nvmlLibrary{api: api, peers: map[int][]int{}, uuids: map[nvml.Device]string{}}
	l.driver, _ = api.SystemGetDriverVersion()
	handles, err := l.handles()
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	for i, a := range handles {
		for j, b := range handles {
			if i != j && a != nil && b != nil && linked(a, b) {
				l.peers[i] = append(l.peers[i], j)
			}
		}
	}
	l.register(handles)
	return l, nil
}

// linked tells whether two GPUs reach each other over NVLink, by bridges or switches.
func linked(a, b nvml.Device) bool {
	status, ret := a.GetP2PStatus(b, nvml.P2P_CAPS_INDEX_NVLINK)
	return ret == nvml.SUCCESS && status == nvml.P2P_STATUS_OK
}

// register asks for XID errors. A driver that has none to tell (WSL's) is no failure.
func (l *nvmlLibrary) register(handles []nvml.Device) {
	events, ret := l.api.EventSetCreate()
	if ret != nvml.SUCCESS {
		return
	}
	l.events = events
	for _, d := range handles {
		if d == nil {
			continue
		}
		supported, ret := d.GetSupportedEventTypes()
		if ret != nvml.SUCCESS || supported&nvml.EventTypeXidCriticalError == 0 {
			continue // virtual and old GPUs don't tell
		}
		if d.RegisterEvents(nvml.EventTypeXidCriticalError, events) == nvml.SUCCESS {
			l.uuids[d], _ = d.GetUUID()
		}
	}
}

// handles gives the GPUs by index, nil for one that is lost.
func (l *nvmlLibrary) handles() ([]nvml.Device, error) {
	n, ret := l.api.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, failed("count GPUs", ret)
	}
	all := make([]nvml.Device, n)
	for i := range all {
		if d, ret := l.api.DeviceGetHandleByIndex(i); ret == nvml.SUCCESS {
			all[i] = d
		}
	}
	return all, nil
}

func (l *nvmlLibrary) read() (snapshot, error) {
	n, ret := l.api.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return snapshot{}, failed("count GPUs", ret)
	}
	s := snapshot{Driver: l.driver}
	for i := range n {
		d, ret := l.api.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			s.GPUs = append(s.GPUs, gpuInfo{Index: i, Lost: name(ret)})
			continue
		}
		g := readGPU(i, d)
		g.Peers = l.peers[i]
		s.GPUs = append(s.GPUs, g)
	}
	return s, nil
}

func readGPU(index int, d nvml.Device) gpuInfo {
	g := gpuInfo{Index: index}
	var ret nvml.Return
	if g.UUID, ret = d.GetUUID(); ret != nvml.SUCCESS {
		g.Lost = name(ret)
		return g
	}
	g.Name, _ = d.GetName()
	memory, ret := d.GetMemoryInfo()
	switch {
	case ret == nvml.SUCCESS:
		g.Memory, g.Used = memory.Total, memory.Used
	case ret != nvml.ERROR_NOT_SUPPORTED: // GPUs that share the host's memory (GB10) have none of their own
		g.Lost = name(ret)
		return g
	}
	if use, ret := d.GetUtilizationRates(); ret == nvml.SUCCESS {
		g.Utilization = use.Gpu
	}
	if _, _, _, bad, ret := d.GetRemappedRows(); ret == nvml.SUCCESS {
		g.RemapFailed = bad
	}
	g.Recovery = recovery(d)
	if current, _, ret := d.GetMigMode(); ret == nvml.SUCCESS && current == nvml.DEVICE_MIG_ENABLE {
		g.MIG, g.Instances = true, readInstances(d)
	}
	return g
}

// recovery gives what the driver wants done with the GPU, nil when it doesn't tell.
func recovery(d nvml.Device) *int {
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if ret := d.GetFieldValues(values); ret != nvml.SUCCESS || nvml.Return(values[0].NvmlReturn) != nvml.SUCCESS {
		return nil
	}
	return new(int(binary.NativeEndian.Uint32(values[0].Value[:4])))
}

func readInstances(d nvml.Device) []migInstance {
	n, ret := d.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var all []migInstance
	for i := range n {
		m, ret := d.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // no instance in this place
		}
		var in migInstance
		if in.UUID, ret = m.GetUUID(); ret != nvml.SUCCESS {
			continue
		}
		in.Name, _ = m.GetName()
		if memory, ret := m.GetMemoryInfo(); ret == nvml.SUCCESS {
			in.Memory, in.Used = memory.Total, memory.Used
		}
		all = append(all, in)
	}
	return all
}

func (l *nvmlLibrary) wait(timeout time.Duration) ([]xidEvent, error) {
	if l.events == nil {
		return nil, failed("wait for GPU events", nvml.ERROR_NOT_SUPPORTED)
	}
	data, ret := l.events.Wait(uint32(timeout.Milliseconds()))
	switch {
	case ret == nvml.ERROR_TIMEOUT:
		return nil, nil
	case ret != nvml.SUCCESS:
		return nil, failed("wait for GPU events", ret)
	case data.EventType != nvml.EventTypeXidCriticalError:
		return nil, nil
	}
	if uuid := l.uuids[data.Device]; uuid != "" {
		return []xidEvent{{uuid, int(data.EventData)}}, nil
	}
	// Nobody says whose it is, so that it may be any's.
	var all []xidEvent
	for _, uuid := range l.uuids {
		all = append(all, xidEvent{uuid, int(data.EventData)})
	}
	return all, nil
}

func (l *nvmlLibrary) close() error {
	var err error
	if l.events != nil {
		if ret := l.events.Free(); ret != nvml.SUCCESS {
			err = failed("free the event set", ret)
		}
	}
	if ret := l.api.Shutdown(); ret != nvml.SUCCESS {
		err = errors.Join(err, failed("shut NVML down", ret))
	}
	return err
}

// failed says what to do about the failures that people meet.
func failed(what string, ret nvml.Return) error {
	hint := "see nvidia-smi and dmesg"
	switch ret {
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		hint = "the driver has been updated beneath its kernel module: reboot the host"
	case nvml.ERROR_NO_PERMISSION:
		hint = "the agent's user must be able to open /dev/nvidia*"
	case nvml.ERROR_GPU_IS_LOST:
		hint = "a GPU has fallen off the bus: reboot the host"
	case nvml.ERROR_IRQ_ISSUE:
		hint = "the kernel has an interrupt problem with a GPU: reboot the host"
	}
	return fmt.Errorf("%w: %s: %s: %s", ErrNVML, what, name(ret), hint)
}

// name gives the words of NVML's own, which need no library for the common ones.
func name(ret nvml.Return) string { return nvml.ErrorString(ret) }

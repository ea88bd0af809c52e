package gpu

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/mobula-serve/mobula"
)

// snapshot is what NVML says at one moment. Recordings of it, as JSON, are in testdata.
type snapshot struct {
	Driver string    `json:"driver"`
	GPUs   []gpuInfo `json:"gpus"`
}

// gpuInfo is one GPU. Memory is in bytes, Utilization in percent.
type gpuInfo struct {
	Index       int    `json:"index"`
	UUID        string `json:"uuid"`
	Name        string `json:"name"`
	Memory      uint64 `json:"memory"`
	Used        uint64 `json:"used"`
	Utilization uint32 `json:"utilization"`
	// Peers are the indices of the GPUs that it reaches over NVLink.
	Peers []int `json:"peers,omitempty"`
	// MIG tells that it is partitioned: it serves by its Instances only.
	MIG       bool          `json:"mig,omitempty"`
	Instances []migInstance `json:"instances,omitempty"`
	// Recovery is what NVML wants done with it (nvmlDeviceGpuRecoveryAction_t); nil for drivers that don't tell.
	Recovery *int `json:"recovery,omitempty"`
	// RemapFailed tells that bad memory rows could not be replaced by spare ones.
	RemapFailed bool `json:"remapFailed,omitempty"`
	// Lost is why NVML can't read it at all.
	Lost string `json:"lost,omitempty"`
}

type migInstance struct {
	UUID   string `json:"uuid"`
	Name   string `json:"name"`
	Memory uint64 `json:"memory"`
	Used   uint64 `json:"used"`
}

// wants says what a recovery action asks for; it is empty for one that leaves a GPU of use: none (0), draining its
// peers (3), and what is unknown.
func wants(recovery *int) string {
	if recovery == nil {
		return ""
	}
	switch *recovery {
	case 1, 4:
		return "a reset of the GPU (nvidia-smi --gpu-reset)"
	case 2, 7:
		return "a reboot of the host"
	case 6:
		return "a reset of the GPU's bus, which a reboot of the host is"
	}
	return ""
}

// remember fills in what a GPU that can't be read any more was known to be, so that it keeps its name and memory.
func (s snapshot) remember(last snapshot) snapshot {
	gpus := slices.Clone(s.GPUs)
	for i, g := range gpus {
		if g.Lost == "" {
			continue
		}
		known := slices.IndexFunc(last.GPUs, func(l gpuInfo) bool { return l.Index == g.Index })
		if known < 0 {
			continue
		}
		gpus[i] = last.GPUs[known]
		gpus[i].Lost, gpus[i].Used, gpus[i].Utilization = g.Lost, 0, 0
	}
	s.GPUs = gpus
	return s
}

// devices gives what engines can be given: GPUs, and of partitioned ones their instances.
func devices(s snapshot, xids map[string]int) []mobula.Device {
	groups := groupsOf(s.GPUs)
	var all []mobula.Device
	for _, g := range s.GPUs {
		reason := unhealthy(g, xids)
		if !g.MIG {
			all = append(all, mobula.Device{
				ID: strconv.Itoa(g.Index), UUID: g.UUID, Name: cmp.Or(g.Name, "GPU"),
				Memory: mobula.Size(g.Memory), Used: mobula.Size(g.Used), Utilization: float64(min(g.Utilization, 100)) / 100,
				Group: groups[g.Index], Unhealthy: reason,
			})
			continue
		}
		// Partitioned GPUs reach nobody over NVLink, and NVML doesn't tell their utilization.
		for _, in := range g.Instances {
			all = append(all, mobula.Device{
				ID: in.UUID, UUID: in.UUID, Name: in.Name,
				Memory: mobula.Size(in.Memory), Used: mobula.Size(in.Used), Unhealthy: reason,
			})
		}
	}
	return all
}

// unhealthy says why a GPU must not be used, for people. Of an XID error that lies back, a driver that knows (R565
// and later) says whether it still matters.
func unhealthy(g gpuInfo, xids map[string]int) string {
	xid, reported := xids[g.UUID]
	reported = reported && g.UUID != ""
	what := fmt.Sprintf("XID %d: %s", xid, critical(xid))
	switch {
	case g.Lost != "" && reported:
		return fmt.Sprintf("%s (NVML: %s); reboot the host", what, g.Lost)
	case g.Lost != "":
		return fmt.Sprintf("the GPU can't be read (NVML: %s); it may have fallen off the bus: see `dmesg | grep -i xid`, then reboot the host", g.Lost)
	case wants(g.Recovery) != "" && reported:
		return fmt.Sprintf("%s; it needs %s", what, wants(g.Recovery))
	case wants(g.Recovery) != "":
		return "the driver asks for " + wants(g.Recovery)
	case g.RemapFailed:
		return "memory errors could not be repaired (row remapping failed): reset the GPU, and have it replaced if that stays"
	case g.Recovery == nil && reported:
		return what + "; reset the GPU (nvidia-smi --gpu-reset), or reboot the host, then start the agent again"
	}
	return ""
}

// groupsOf names, by GPU, the sets of GPUs that reach each other over NVLink: nvlink-N, N being the lowest of them.
func groupsOf(gpus []gpuInfo) map[int]string {
	gpus = slices.DeleteFunc(slices.Clone(gpus), func(g gpuInfo) bool { return g.MIG })
	lowest := map[int]int{}
	for _, g := range gpus {
		lowest[g.Index] = g.Index
	}
	// A pass may carry a number only one step, and there are no more steps than GPUs.
	for range gpus {
		for _, g := range gpus {
			for _, peer := range g.Peers {
				if _, ok := lowest[peer]; ok {
					low := min(lowest[g.Index], lowest[peer])
					lowest[g.Index], lowest[peer] = low, low
				}
			}
		}
	}
	sizes := map[int]int{}
	for _, low := range lowest {
		sizes[low]++
	}
	groups := map[int]string{}
	for index, low := range lowest {
		if sizes[low] > 1 {
			groups[index] = "nvlink-" + strconv.Itoa(low)
		}
	}
	return groups
}

package gpu

import (
	"bufio"
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
)

// visible is what a CUDA_VISIBLE_DEVICES allows.
type visible struct {
	set bool
	ids []string
}

// visibleIn reads an environment: CUDA stops at the first invalid entry, and -1 is one. Of a variable that is set twice the last counts.
func visibleIn(environ []string) visible {
	var v visible
	for _, kv := range environ {
		list, ok := strings.CutPrefix(kv, "CUDA_VISIBLE_DEVICES=")
		if !ok {
			continue
		}
		v = visible{set: true}
		for id := range strings.SplitSeq(list, ",") {
			id = strings.TrimSpace(id)
			if id == "" || strings.HasPrefix(id, "-") || slices.Contains(v.ids, id) {
				break
			}
			v.ids = append(v.ids, id)
		}
	}
	return v
}

// filter leaves out what the variable does; what it names and is not there ends it, as for CUDA.
func (v visible) filter(all []mobula.Device) []mobula.Device {
	if !v.set {
		return all
	}
	var kept []mobula.Device
	for _, id := range v.ids {
		i := slices.IndexFunc(all, func(d mobula.Device) bool { return names(id, d) })
		if i < 0 {
			break
		}
		kept = append(kept, all[i])
	}
	return kept
}

// names tells whether an entry means a device: by index, UUID or the beginning of a UUID.
func names(id string, d mobula.Device) bool {
	_, err := strconv.Atoi(id)
	isUUID := strings.HasPrefix(id, "GPU-") || strings.HasPrefix(id, "MIG-")
	return err == nil && id == d.ID || isUUID && strings.HasPrefix(d.UUID, id)
}

// bare gives the GPUs of a host without NVML, by their IDs only: what CUDA_VISIBLE_DEVICES allows when it is set, else
// the device files under dev, else what nvidia-smi lists.
func bare(v visible, dev string, listed func() []string) []mobula.Device {
	ids := v.ids
	if !v.set {
		files, _ := filepath.Glob(filepath.Join(dev, "nvidia[0-9]*"))
		// CUDA counts the devices that it sees from 0, whatever the files' numbers are.
		for i := range files {
			ids = append(ids, strconv.Itoa(i))
		}
		if len(files) == 0 {
			ids = listed()
		}
	}
	var all []mobula.Device
	for _, id := range ids {
		all = append(all, mobula.Device{ID: id, Name: "GPU"})
	}
	return all
}

// listed asks nvidia-smi: some containers have the driver but other device files.
func listed(ctx context.Context) func() []string {
	return func() []string {
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, "nvidia-smi", "-L")
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		if err != nil {
			return nil
		}
		return parseList(out)
	}
}

// parseList reads lines like "GPU 0: NVIDIA L4 (UUID: GPU-...)".
func parseList(out []byte) []string {
	gpu := regexp.MustCompile(`^GPU (\d+):`)
	var ids []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if m := gpu.FindStringSubmatch(lines.Text()); m != nil {
			ids = append(ids, m[1])
		}
	}
	return ids
}

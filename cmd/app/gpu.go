package app

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
)

// gpuList says which GPUs this machine has, as CUDA_VISIBLE_DEVICES names them: what that
// variable itself allows when it is set, else the device files under dev, else what
// nvidia-smi lists. It is empty when there is none.
func gpuList(ctx context.Context, dev string, environ []string) []string {
	for _, kv := range environ {
		if list, ok := strings.CutPrefix(kv, "CUDA_VISIBLE_DEVICES="); ok {
			return visible(list)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dev, "nvidia[0-9]*"))
	if len(files) == 0 {
		return listedGPUs(ctx)
	}
	// CUDA counts the devices that it sees from 0, whatever the files' numbers are.
	gpus := make([]string, len(files))
	for i := range files {
		gpus[i] = strconv.Itoa(i)
	}
	return gpus
}

// visible reads a CUDA_VISIBLE_DEVICES: CUDA stops at the first invalid entry, and -1 is one.
func visible(list string) []string {
	var gpus []string
	for gpu := range strings.SplitSeq(list, ",") {
		gpu = strings.TrimSpace(gpu)
		if gpu == "" || strings.HasPrefix(gpu, "-") || slices.Contains(gpus, gpu) {
			break
		}
		gpus = append(gpus, gpu)
	}
	return gpus
}

// listedGPUs asks nvidia-smi: some containers have the driver but other device files.
func listedGPUs(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nvidia-smi", "-L").Output()
	if err != nil {
		return nil
	}
	return parseGPUs(out)
}

// parseGPUs reads lines like "GPU 0: NVIDIA L4 (UUID: GPU-...)".
func parseGPUs(out []byte) []string {
	gpu := regexp.MustCompile(`^GPU (\d+):`)
	var gpus []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if m := gpu.FindStringSubmatch(lines.Text()); m != nil {
			gpus = append(gpus, m[1])
		}
	}
	return gpus
}

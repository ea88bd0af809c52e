package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tree returns pid and all its descendants.
func tree(pid int) []int {
	kids := map[int][]int{}
	m, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range m {
		if s := statFields(f); s != nil {
			p, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pp, _ := strconv.Atoi(s[1])
			kids[pp] = append(kids[pp], p)
		}
	}
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		out = append(out, kids[out[i]]...)
	}
	return out
}

// statFields returns the fields of /proc/PID/stat from field 3 (state) on.
func statFields(f string) []string {
	b, err := os.ReadFile(f)
	if err != nil {
		return nil
	}
	s := string(b)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
}

// cpuSeconds sums user+system time of the process tree (10 ms resolution).
func cpuSeconds(pid int) (sec float64) {
	if pid <= 0 {
		return 0
	}
	for _, p := range tree(pid) {
		if s := statFields(fmt.Sprintf("/proc/%d/stat", p)); len(s) > 12 {
			u, _ := strconv.Atoi(s[11])
			k, _ := strconv.Atoi(s[12])
			sec += float64(u+k) / 100
		}
	}
	return
}

// peakRSS and rss sum VmHWM and VmRSS of the process tree in MiB.
func peakRSS(pid int) float64 { return memory(pid, "VmHWM:") }
func rss(pid int) float64     { return memory(pid, "VmRSS:") }

func memory(pid int, field string) (mib float64) {
	if pid <= 0 {
		return 0
	}
	for _, p := range tree(pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(l, field); ok {
				k, _ := strconv.Atoi(strings.Fields(v)[0])
				mib += float64(k) / 1024
			}
		}
	}
	return
}

// busySeconds is the non-idle CPU time of the whole machine.
func busySeconds() (sec float64) {
	b, _ := os.ReadFile("/proc/stat")
	l, _, _ := strings.Cut(string(b), "\n")
	for i, v := range strings.Fields(l)[1:9] {
		if i != 3 && i != 4 { // idle, iowait
			n, _ := strconv.Atoi(v)
			sec += float64(n) / 100
		}
	}
	return
}

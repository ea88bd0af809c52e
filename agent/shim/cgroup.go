//go:build unix

package shim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const removeWait = time.Second

// cgroup is the folder of an engine's cgroup, empty for none. It holds an engine together even when the
// shim is gone and its processes hide their environment; it limits nothing.
type cgroup string

// mounts are where cgroup hierarchies are by convention: version 2 alone, version 2 beside version 1, and version 1's.
func mounts() []struct{ controller, path string } {
	return []struct{ controller, path string }{
		{"", "/sys/fs/cgroup"},
		{"", "/sys/fs/cgroup/unified"},
		{"pids", "/sys/fs/cgroup/pids"},
		{"freezer", "/sys/fs/cgroup/freezer"},
	}
}

// newCgroup makes a cgroup below our own in the first hierarchy that lets us; empty when none does.
func newCgroup(name string) cgroup {
	for _, group := range places(name) {
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			continue
		}
		if isCgroup(group) {
			return cgroup(group)
		}
		_ = os.Remove(group) // a folder like any other
	}
	return ""
}

// findCgroup gives the cgroup that newCgroup has made before; empty when there is none.
func findCgroup(name string) cgroup {
	for _, group := range places(name) {
		if isCgroup(group) {
			return cgroup(group)
		}
	}
	return ""
}

// places are where a cgroup of ours may be.
func places(name string) []string {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var all []string
	for _, m := range mounts() {
		if below, ok := ownCgroup(string(own), m.controller); ok {
			all = append(all, filepath.Join(m.path, below, "mobula-"+name))
		}
	}
	return all
}

func isCgroup(path string) bool {
	_, err := os.Stat(filepath.Join(path, "cgroup.procs"))
	return err == nil
}

// ownCgroup finds the path of a hierarchy in /proc/self/cgroup: lines of id:controllers:path.
func ownCgroup(file, controller string) (string, bool) {
	for line := range strings.Lines(file) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == controller && (controller != "" || fields[0] == "0") {
			return fields[2], true
		}
	}
	return "", false
}

// openCgroup takes a cgroup out of a status file, if it can be one of ours.
func openCgroup(path string) cgroup {
	if !strings.HasPrefix(path, "/sys/fs/cgroup/") || !strings.HasPrefix(filepath.Base(path), "mobula-") {
		return ""
	}
	return cgroup(filepath.Clean(path))
}

// add moves a process into the cgroup; what it forks from then on is born there.
func (c cgroup) add(pid int) error {
	if c == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(string(c), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600)
}

// processes gives the ids in the cgroup, none when it does not exist. Version 2's cgroup.kill takes along what
// is being forked meanwhile.
func (c cgroup) processes() []int {
	if c == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.procs"))
	if err != nil {
		return nil
	}
	var all []int
	for line := range strings.Lines(string(b)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			all = append(all, pid)
		}
	}
	return all
}

// kill kills all processes of the cgroup in one step, where the kernel can (version 2, Linux 5.14).
func (c cgroup) kill() {
	if c != "" {
		_ = os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0o600)
	}
}

// remove removes the cgroup as soon as the kernel has let go of its processes. One that stays busy stays; the
// next shim of the task takes it.
func (c cgroup) remove() {
	if c == "" {
		return
	}
	for end := time.Now().Add(removeWait); ; time.Sleep(pause) {
		if err := os.Remove(string(c)); !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			return
		}
	}
}

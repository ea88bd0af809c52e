package shim

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// becomeSubreaper has the kernel give us the orphans among our descendants, in place of process 1.
func becomeSubreaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// process is one line of /proc.
type process struct {
	pid, parent int
	zombie      bool
}

// processes lists all processes that can be seen. The children files of /proc would be shorter, but the
// kernel promises them only for processes that stand still.
func processes() []process {
	var all []process
	for _, pid := range pids() {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state ppid …, and a comm may hold anything.
		_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
		fields := bytes.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(string(fields[1]))
		if err != nil {
			continue
		}
		all = append(all, process{pid, parent, fields[0][0] == 'Z' || fields[0][0] == 'X'})
	}
	return all
}

func pids() []int {
	folder, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = folder.Close() }()
	names, _ := folder.Readdirnames(-1)
	var all []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// descendants gives the living processes below this one, whatever their group or session.
func descendants() []int {
	children := map[int][]process{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p)
	}
	var living []int
	seen := map[int]bool{}
	for next := []int{os.Getpid()}; len(next) > 0; {
		pid := next[0]
		next = next[1:]
		if seen[pid] {
			continue // ids may be used again between two reads
		}
		seen[pid] = true
		for _, child := range children[pid] {
			next = append(next, child.pid)
			if !child.zombie {
				living = append(living, child.pid)
			}
		}
	}
	return living
}

// deadChildren gives our children that have ended and that nobody has waited for.
func deadChildren() []int {
	var dead []int
	for _, p := range processes() {
		if p.parent == os.Getpid() && p.zombie {
			dead = append(dead, p.pid)
		}
	}
	return dead
}

// marked gives the living processes, but for this one, whose mark is wanted. Those of other users can't be seen.
func marked(wanted func(mark string) bool) []int {
	var all []int
	for _, pid := range pids() {
		if pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil {
			continue
		}
		for kv := range bytes.SplitSeq(environ, []byte{0}) {
			if mark, ok := strings.CutPrefix(string(kv), markVariable+"="); ok && wanted(mark) {
				all = append(all, pid)
				break
			}
		}
	}
	return all
}

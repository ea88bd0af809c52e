//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds every wait.
const patience = 2 * time.Minute

// proc is a process of mobula.
type proc struct {
	cmd  *exec.Cmd
	done chan struct{}
	line string // the first that it printed
}

func (o *options) command(args ...string) *exec.Cmd {
	cmd := exec.Command(o.mobula, args...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(o.dir, "config"), "XDG_CACHE_HOME="+filepath.Join(o.dir, "cache"))
	return cmd
}

// start starts mobula and waits for the first line that it prints.
func (o *options) start(args ...string) (*proc, error) {
	cmd := o.command(args...)
	log, err := os.OpenFile(filepath.Join(o.dir, args[0]+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proc{cmd: cmd, done: make(chan struct{})}
	first := make(chan string, 1)
	go func() {
		defer close(p.done)
		r := bufio.NewReader(out)
		line, _ := r.ReadString('\n')
		first <- strings.TrimSpace(line)
		_, _ = io.Copy(io.Discard, r)
		_ = cmd.Wait()
	}()
	if p.line = <-first; p.line == "" {
		<-p.done
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("mobula %s ended: %s", args[0], text)
	}
	return p, nil
}

// address is the last word of the first line.
func (p *proc) address() string { return p.line[strings.LastIndexByte(p.line, ' ')+1:] }

// stop ends it in order, or at once when that takes too long.
func (p *proc) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// ctl runs a command against the control plane.
func (o *options) ctl(args ...string) (string, error) {
	cmd := o.command(append(args, "--config", filepath.Join(o.dir, "control", "client.json"))...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("mobula %s: %w: %s", strings.Join(args, " "), err, problem.String())
	}
	return out.String(), nil
}

// await waits until ok.
func await(what string, ok func() bool) error {
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("never %s", what)
		}
	}
	return nil
}

// cpu is the user and system time of a process in seconds, in steps of 10 ms.
func cpu(pid int) float64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return float64(user+system) / 100
}

// memory is what a process has in memory in MiB: all of it, and what it shares with no file.
func memory(pid int) (all, own float64) {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			all = kib / 1024
		case "RssAnon:":
			own = kib / 1024
		}
	}
	return all, own
}

func mib(pid int) string {
	all, own := memory(pid)
	return fmt.Sprintf("%.0f MiB, %.1f of it its own", all, own)
}

// shims are the processes that are parents of engines below this run's folder.
func (o *options) shims() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, _ := os.ReadFile(file)
		if args := strings.Split(string(raw), "\x00"); len(args) > 2 && args[1] == "shim" && strings.HasPrefix(args[2], o.dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

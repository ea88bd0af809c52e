//go:build unix

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// File descriptors that a shim inherits.
const (
	lockFD     = 3
	lifelineFD = 4
)

// Bounds on waiting for the kernel.
const (
	lockWait  = time.Second
	killWait  = 10 * time.Second
	pause     = 10 * time.Millisecond
	maxOwnLog = 1 << 20 // bytes of shim.log
)

// StartOptions say how to start a shim.
type StartOptions struct {
	// Exe is the mobula command: `Exe shim DIR` is run.
	Exe string
	// Environ of the shim itself.
	Environ []string
	// Lifeline is the reading end of a pipe that ends with the agent; needed if the task has one.
	Lifeline *os.File
}

// Start makes t the folder's task and starts a shim for it, in a session of its own. What an earlier shim has
// left there is killed first. It fails with ErrRunning when a shim has the folder. The shim is a child of this
// process: Reap it when it is no longer Alive.
func (d Dir) Start(ctx context.Context, t Task, o StartOptions) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	// The lock goes from us to the shim without ever being free.
	lock, err := d.lock()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := d.sweep(ctx); err != nil {
		return err
	}
	// An old status would name processes that are not ours any more.
	if err := os.Remove(d.path(statusFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := d.SetTask(t); err != nil {
		return err
	}
	out, err := d.openOwnLog()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(o.Exe, "shim", string(d))
	cmd.Env = append(slices.Clone(o.Environ), markVariable+"="+d.mark())
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lock}
	if t.Lifeline {
		cmd.ExtraFiles = append(cmd.ExtraFiles, o.Lifeline)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	// The shim writes its own as its first step; until then this one tells whom to stop.
	d.writeFirst(cmd.Process.Pid)
	_ = cmd.Process.Release()
	return nil
}

// writeFirst writes the first status, unless the shim was faster. When it can't, the shim is found by its mark.
func (d Dir) writeFirst(pid int) {
	const first = "." + statusFile
	if d.write(first, Status{State: Running, Since: time.Now(), Shim: pid}, false) == nil {
		_ = os.Link(d.path(first), d.path(statusFile))
		_ = os.Remove(d.path(first))
	}
}

func (d Dir) openOwnLog() (*os.File, error) {
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(d.path(shimLog)); err == nil && info.Size() > maxOwnLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(d.path(shimLog), flags, 0o600)
}

// lock takes the folder's lock.
func (d Dir) lock() (*os.File, error) { return Lock(d.path(lockFile)) }

// Lock takes the lock that the file at path stands for; it is held until the file is closed. It fails with ErrRunning
// when another process has it for longer than the moment in which somebody looks whether it is held, or in
// which a process that was just started has not let go of what it inherited.
func Lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(pause) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(end):
			_ = f.Close()
			return nil, fmt.Errorf("%s: %w", filepath.Dir(path), ErrRunning)
		}
	}
}

// Alive tells whether a shim has the folder.
func (d Dir) Alive() bool {
	f, err := os.Open(d.path(lockFile))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// Reap takes notice of the end of a shim that this process started. For others it does nothing.
func (d Dir) Reap() {
	if s, err := d.Status(); err == nil && s.Shim > 0 {
		_, _ = unix.Wait4(s.Shim, nil, unix.WNOHANG, nil)
	}
}

// Stop sends the shim a SIGTERM. It fails with ErrNotRunning when there is none.
func (d Dir) Stop() error {
	_, err := d.signal(func(s Status) int { return s.Shim }, syscall.SIGTERM)
	return err
}

// KillEngine kills the engine's process; its shim takes that for a crash. It tells whether one was there.
func (d Dir) KillEngine() (bool, error) {
	return d.signal(func(s Status) int { return s.PID }, syscall.SIGKILL)
}

// signal sends sig to a process that the status names. The handle is taken before the look at the lock:
// a living shim's status names living processes, and so the handle can't be of a successor in the same id.
func (d Dir) signal(which func(Status) int, sig os.Signal) (bool, error) {
	s, err := d.Status()
	if err != nil {
		return false, err
	}
	pid := which(s)
	if pid <= 0 {
		return false, nil
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return false, err
	}
	defer func() { _ = p.Release() }()
	again, err := d.Status()
	if err != nil || which(again) != pid {
		return false, err
	}
	if !d.Alive() {
		return false, fmt.Errorf("%s: %w", string(d), ErrNotRunning)
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false, err
	}
	return true, nil
}

// Kill kills the shim and all that is left of its engine. When it returns without an error nothing of the
// task runs, and no shim has the folder.
func (d Dir) Kill(ctx context.Context) error {
	// A shim whose status is lost is found by its mark, too.
	_, _ = d.signal(func(s Status) int { return s.Shim }, syscall.SIGKILL)
	if err := d.sweep(ctx); err != nil {
		return err
	}
	d.Reap()
	lock, err := d.lock()
	if err != nil {
		return err
	}
	return lock.Close()
}

// Fail leaves in the folder of a dead shim that its task has failed, and why, so that whoever looks next
// knows. It fails with ErrRunning when a shim has the folder.
func (d Dir) Fail(reason string) error {
	lock, err := d.lock()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	s, _ := d.Status() // restarts are worth keeping, but not more
	return d.write(statusFile, Status{State: Failed, Since: time.Now(), Restarts: s.Restarts, Reason: reason}, false)
}

// Remove kills what is left of the task and removes its folder. It fails with ErrRunning when a shim has it.
func (d Dir) Remove(ctx context.Context) error {
	lock, err := d.lock()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := d.sweep(ctx); err != nil {
		return err
	}
	return os.RemoveAll(string(d))
}

// sweep kills all processes of the task that are found by their cgroup or their mark.
func (d Dir) sweep(ctx context.Context) error {
	mark := d.mark()
	group := findCgroup(mark) // where it is unless the agent has moved
	if s, err := d.Status(); err == nil && s.Cgroup != "" {
		group = openCgroup(s.Cgroup)
	}
	err := killAll(ctx, func() []int {
		return append(group.processes(), marked(func(m string) bool { return m == mark })...)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", string(d), err)
	}
	group.remove()
	return nil
}

// SweepStrays kills the processes of tasks whose folder was in parent, but for those that keep has by the
// name of their folder. It is for what nothing else remembers.
func SweepStrays(ctx context.Context, parent string, keep func(task string) bool) error {
	suffix := "@" + MarkOf(parent)
	groups := map[cgroup]bool{}
	err := killAll(ctx, func() []int {
		return marked(func(mark string) bool {
			task, ours := strings.CutSuffix(mark, suffix)
			if !ours || keep(task) {
				return false
			}
			groups[findCgroup(mark)] = true
			return true
		})
	})
	for group := range groups {
		group.remove()
	}
	return err
}

// killAll sends SIGKILL to all that find gives until it gives nothing, at most for killWait.
func killAll(ctx context.Context, find func() []int) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	for {
		left := find()
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %v", ErrLeft, left)
		case <-time.After(pause):
		}
	}
}

//go:build unix

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// ErrGaveUp is returned when a process has died too often in a row.
var ErrGaveUp = errors.New("died too often")

// errStuck is returned when even SIGKILL does not end a process: it hangs in the kernel.
var errStuck = errors.New("still there after SIGKILL")

// Bounds on what follows the end of a process, which the kernel normally does at once.
const (
	killWait   = 10 * time.Second // for SIGKILL to work
	outputWait = 2 * time.Second  // for the last output of a killed group
)

// ProcessOptions say what to run and how to keep it running.
type ProcessOptions struct {
	// Name of the process in logs.
	Name string
	// Argv is the command with its arguments, Env its whole environment.
	Argv, Env []string
	// Output gets what the process prints. Its errors are ignored: a full disk must not
	// stop an engine. Default: nowhere.
	Output io.Writer
	// Lines kept for Tail. Default 40.
	Lines int
	// StopTimeout is the time from SIGTERM to SIGKILL. Default 30s.
	StopTimeout time.Duration
	// Restarts allowed in a row. Default 0: never.
	Restarts int
	// Backoff before the first restart, doubled for each further one up to MaxBackoff. Default 1s, 30s.
	Backoff, MaxBackoff time.Duration
	// Stable is how long a run must last for the restarts to count from zero again. Default 1m.
	Stable time.Duration
	// Command, if not nil, is asked before each start for what takes the place of Argv and Env. Its
	// error counts as an end of the process.
	Command func() (argv, env []string, err error)
	// Started, if not nil, is told the process's id after each start.
	Started func(pid int)
	// Sweep, if not nil, is called after each end, before anything else: it kills what has left the group.
	Sweep func()
	// Exited, if not nil, is told of each end that nobody asked for.
	Exited func(Exit)
	// Kill, once closed, makes a stop SIGKILL at once. Nil never does.
	Kill <-chan struct{}
	// Logger. Default: none.
	Logger *slog.Logger
}

// Exit is an end that nobody asked for.
type Exit struct {
	Err     error    // how it ended, or why it could not start
	Tail    []string // the last lines it printed
	Restart bool     // it will be started again, after Backoff
	Backoff time.Duration
}

// Process keeps one command running in a process group of its own. When the command
// ends, whatever is left of the group is killed: vLLM's API server leaves its engine core
// behind, with the GPU's memory.
type Process struct {
	o    ProcessOptions
	tail *tail
}

// NewProcess prepares a process; Run runs it.
func NewProcess(o ProcessOptions) *Process {
	o.Lines = orDefault(o.Lines, 40)
	o.StopTimeout = orDefault(o.StopTimeout, 30*time.Second)
	o.Backoff = orDefault(o.Backoff, time.Second)
	o.MaxBackoff = max(o.Backoff, orDefault(o.MaxBackoff, 30*time.Second))
	o.Stable = orDefault(o.Stable, time.Minute)
	if o.Output == nil {
		o.Output = io.Discard
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Logger = o.Logger.With("engine", o.Name)
	return &Process{o: o, tail: newTail(o.Lines)}
}

func orDefault[T int | time.Duration](v, def T) T {
	if v > 0 {
		return v
	}
	return def
}

// Tail gives the last lines of the run that is on or was the last, oldest first. It may be called at any time.
func (p *Process) Tail() []string { return p.tail.Lines() }

// Run starts the process and starts it again when it ends, until ctx ends; then it stops
// the whole group, SIGTERM first, and returns nil. It returns an error that wraps ErrGaveUp
// when the restarts are used up. No process of the group is left when it returns. It may be called once.
func (p *Process) Run(ctx context.Context) error {
	// The kernel takes the end of the thread that forked for the parent's death (see
	// groupAttr), and Go ends threads as it likes unless they are held.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for failures := 0; ; {
		started := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			if errors.Is(err, errStuck) {
				return err
			}
			return nil
		}
		if err == nil {
			err = errors.New("exit status 0")
		}
		if time.Since(started) >= p.o.Stable {
			failures = 0
		}
		failures++
		exit := Exit{Err: err, Tail: p.Tail(), Restart: failures <= p.o.Restarts}
		if exit.Restart {
			exit.Backoff = min(p.o.Backoff<<min(failures-1, 16), p.o.MaxBackoff)
		}
		if p.o.Exited != nil {
			p.o.Exited(exit)
		}
		if !exit.Restart {
			return fmt.Errorf("%s: %w: %w", p.o.Name, ErrGaveUp, err)
		}
		p.o.Logger.Warn("engine ended, will be started again", "cause", err, "backoff", exit.Backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(exit.Backoff):
		}
	}
}

// once runs the command one time. Its error is how the command ended, or, when ctx has
// ended, why it could not be stopped.
func (p *Process) once(ctx context.Context) error {
	p.tail.Reset()
	argv, env := p.o.Argv, p.o.Env
	if p.o.Command != nil {
		var err error
		if argv, env, err = p.o.Command(); err != nil {
			return err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("output of %s: %w", p.o.Name, err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, w, w
	cmd.SysProcAttr = groupAttr()
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return fmt.Errorf("start: %w", err)
	}
	p.o.Logger.Info("engine started", "pid", cmd.Process.Pid)
	if p.o.Started != nil {
		p.o.Started(cmd.Process.Pid)
	}

	copied := make(chan struct{})
	go func() {
		defer close(copied)
		p.copyOutput(r)
	}()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	select {
	case err = <-exited:
	case <-ctx.Done():
		err = p.stop(cmd.Process.Pid, exited)
	}
	signalGroup(cmd.Process.Pid, syscall.SIGKILL)
	if p.o.Sweep != nil {
		p.o.Sweep()
	}
	// The pipe ends when all that could write to it are dead.
	select {
	case <-copied:
	case <-time.After(outputWait):
	}
	_ = r.Close()
	<-copied
	return err
}

// stop ends the group and waits for its leader.
func (p *Process) stop(pid int, exited <-chan error) error {
	signalGroup(pid, syscall.SIGTERM)
	select {
	case <-exited:
		return nil
	case <-p.o.Kill:
	case <-time.After(p.o.StopTimeout):
		p.o.Logger.Warn("engine did not stop in time, killing it", "timeout", p.o.StopTimeout)
	}
	signalGroup(pid, syscall.SIGKILL)
	select {
	case <-exited:
		return nil
	case <-time.After(killWait):
		return fmt.Errorf("%s: process %d: %w", p.o.Name, pid, errStuck)
	}
}

// copyOutput reads to the end whatever becomes of what was read: a process whose pipe is
// full stands still.
func (p *Process) copyOutput(r io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		_, _ = p.tail.Write(buf[:n])
		_, _ = p.o.Output.Write(buf[:n])
		if err != nil {
			return
		}
	}
}

// signalGroup signals all that is left of the group that pid leads. An error only says
// that nothing is.
func signalGroup(pid int, s syscall.Signal) { _ = syscall.Kill(-pid, s) }

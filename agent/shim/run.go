//go:build unix

package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mobula-serve/mobula/engine"
)

// defaultLogSize bounds engine.log unless the task says otherwise.
const defaultLogSize = 32 << 20

// starting stands for the id of an engine that is being started.
const starting = -1

// Run is a shim: it keeps the engine of the task in dir running until ctx ends, SIGTERM comes, the lifeline
// is cut or the engine has died too often. It takes over this process: its signals, all orphans below it, and the
// folder's lock until the process ends. Nothing of the engine is left when it returns, which is without an error unless it
// could not do its work.
func Run(ctx context.Context, dir string) error {
	d := Dir(dir)
	if err := holdLock(d); err != nil {
		return err
	}
	task, err := d.Task()
	if err != nil {
		return err
	}
	s := &shim{dir: d, logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("task", task.ID)}
	return s.run(ctx, task)
}

// holdLock holds the lock that the agent passed on, or takes one. Nothing gives it back but the end of this
// process: whoever sees the lock free can be sure of that.
func holdLock(d Dir) error {
	var ours, given unix.Stat_t
	if unix.Stat(d.path(lockFile), &ours) == nil && unix.Fstat(lockFD, &given) == nil && ours.Ino == given.Ino && ours.Dev == given.Dev {
		unix.CloseOnExec(lockFD)
		return nil
	}
	lock, err := d.lock()
	if err != nil {
		return err
	}
	// A bare descriptor, which the garbage collector does not know.
	_, err = unix.FcntlInt(lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return errors.Join(err, lock.Close())
}

type shim struct {
	dir    Dir
	logger *slog.Logger
	group  cgroup
	// engine is the id of the engine's own process, 0 when none runs: it is waited for elsewhere.
	engine atomic.Int64

	mu     sync.Mutex
	status Status
}

func (s *shim) run(ctx context.Context, task Task) error {
	if err := becomeSubreaper(); err != nil {
		s.logger.Warn("processes that leave the engine can't be adopted", "cause", err)
	}
	if s.group = newCgroup(s.dir.mark()); s.group == "" {
		s.logger.Info("no cgroup for the engine, its processes are found by their parents", "cause", "no cgroup hierarchy can be written")
	}
	s.update(func(st *Status) {
		*st = Status{State: Running, Shim: os.Getpid(), Cgroup: string(s.group)}
	})
	ctx, stop := context.WithCancel(ctx)
	kill := make(chan struct{})
	var helpers sync.WaitGroup
	done := make(chan struct{})
	defer helpers.Wait()
	defer close(done)
	defer stop()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	helpers.Go(func() { s.obey(ctx, signals, done, stop, kill) })
	helpers.Go(func() { s.reap(died, done) })
	if task.Lifeline {
		line, err := openLifeline()
		if err != nil {
			return fmt.Errorf("lifeline: %w", err)
		}
		helpers.Go(func() {
			_, _ = line.Read(make([]byte, 1)) // nobody ever writes
			stop()
		})
		defer func() { _ = line.Close() }()
	}
	err := s.keep(ctx, task, kill)
	if left := killAll(context.WithoutCancel(ctx), s.find); left != nil {
		err = errors.Join(err, left)
	}
	s.group.remove()
	s.update(func(st *Status) {
		st.PID = 0
		switch {
		case err == nil:
			st.State, st.Reason = Ended, ""
		case errors.Is(err, engine.ErrGaveUp): // Exited has said it
		default:
			st.State, st.Reason = Failed, err.Error()
		}
	})
	if errors.Is(err, engine.ErrGaveUp) {
		return nil
	}
	return err
}

// openLifeline opens the pipe that ends with the agent, so that closing it ends a Read.
func openLifeline() (*os.File, error) {
	if err := unix.SetNonblock(lifelineFD, true); err != nil {
		return nil, err
	}
	unix.CloseOnExec(lifelineFD)
	return os.NewFile(lifelineFD, "lifeline"), nil
}

// obey stops at the first signal and kills at the second one. A hang-up is not for us.
func (s *shim) obey(ctx context.Context, signals <-chan os.Signal, done <-chan struct{}, stop func(), kill chan<- struct{}) {
	ended := ctx.Done()
	for count := 0; ; {
		select {
		case <-done:
			return
		case <-ended:
			ended = nil
			s.update(func(st *Status) {
				if st.State == Running || st.State == Waiting {
					st.State, st.Reason = Stopping, ""
				}
			})
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				continue
			}
			switch count++; count {
			case 1:
				stop()
			case 2:
				close(kill)
			}
		}
	}
}

// reap waits for the orphans that we have adopted. The engine's own process is not for us: while one
// is being started, or another one has taken its place meanwhile, the next signal will do.
func (s *shim) reap(died <-chan os.Signal, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-died:
		}
		main := s.engine.Load()
		dead := deadChildren()
		if main == starting || main != s.engine.Load() {
			continue
		}
		for _, pid := range dead {
			if int64(pid) != main {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}
}

// keep runs the engine.
func (s *shim) keep(ctx context.Context, task Task, kill <-chan struct{}) error {
	var output io.Writer
	size := int64(task.LogSize)
	if size <= 0 {
		size = defaultLogSize
	}
	if log, err := engine.OpenLog(s.dir.LogPath(), size); err == nil {
		output = log
		defer func() { _ = log.Close() }()
	} else {
		s.logger.Warn("the engine's output is lost", "cause", err)
	}
	return engine.NewProcess(engine.ProcessOptions{
		Name:        task.ID,
		Command:     s.command,
		Started:     s.started,
		Sweep:       s.sweep,
		Exited:      s.exited,
		Output:      output,
		StopTimeout: time.Duration(task.StopTimeout),
		Restarts:    task.Restarts,
		Backoff:     time.Duration(task.Backoff),
		MaxBackoff:  time.Duration(task.MaxBackoff),
		Stable:      time.Duration(task.Stable),
		Kill:        kill,
		Logger:      s.logger,
	}).Run(ctx)
}

// command reads what to run anew: the agent may have chosen another port meanwhile.
func (s *shim) command() (argv, env []string, err error) {
	task, err := s.dir.Task()
	if err != nil {
		return nil, nil, err
	}
	s.engine.Store(starting)
	env = slices.DeleteFunc(slices.Clone(task.Env), func(kv string) bool { return strings.HasPrefix(kv, markVariable+"=") })
	// Python's setproctitle, which vLLM uses, writes over the environment that /proc shows, and so over the mark, unless told not to.
	argv = slices.Clone(task.Argv)
	argv[0] = lookPath(argv[0], env)
	return argv, append(env, markVariable+"="+s.dir.mark(), "SPT_NOENV=1"), nil
}

// lookPath finds a command as the engine's own PATH does, which need not be ours. What it does not find stays
// as it is, for the error of its start.
func lookPath(name string, env []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, kv := range slices.Backward(env) {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, folder := range filepath.SplitList(list) {
			path := filepath.Join(folder, name)
			if info, err := os.Stat(path); folder != "" && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path
			}
		}
		break
	}
	return name
}

func (s *shim) started(pid int) {
	s.engine.Store(int64(pid))
	if err := s.group.add(pid); err != nil {
		s.logger.Warn("engine is not in its cgroup", "cgroup", string(s.group), "cause", err)
	}
	s.update(func(st *Status) {
		st.PID, st.Started = pid, time.Now()
		if st.State != Stopping {
			st.State, st.Reason = Running, ""
		}
	})
}

func (s *shim) exited(e engine.Exit) {
	s.engine.Store(0)
	reason := e.Err.Error()
	if line := engine.FailureReason(e.Tail); line != "" {
		reason += ": " + line
	}
	s.update(func(st *Status) {
		st.PID = 0
		if st.State == Stopping {
			return
		}
		st.State, st.Reason = Failed, reason
		if e.Restart {
			st.State = Waiting
			st.Restarts++
		}
	})
}

// find gives what is left of the engine.
func (s *shim) find() []int { return append(descendants(), s.group.processes()...) }

// sweep ends what has left the engine's group, when its main process is gone.
func (s *shim) sweep() {
	s.engine.Store(0)
	s.group.kill()
	if err := killAll(context.Background(), s.find); err != nil {
		s.logger.Error("engine is not gone", "cause", err)
	}
}

// update changes the status and writes it down. A disk that is full must not end an engine.
func (s *shim) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.status.State
	change(&s.status)
	if s.status.State != before {
		s.status.Since = time.Now()
	}
	if err := s.dir.write(statusFile, s.status, false); err != nil {
		s.logger.Warn("status is not written", "cause", err)
	}
}

// Package shim is the parent of one engine. It is a process of its own, so that an engine outlives the
// agent that wanted it, and so that nothing of an engine outlives its end: the shim adopts whatever the
// engine's processes leave behind, and kills it.
//
// A shim and its agent speak through a folder, the task's:
//
//	lock         held as long as the shim lives; whoever holds it may write the other files
//	task.json    what to run; read again before each start of the engine
//	status.json  how that goes
//	engine.log   what the engine prints, engine.log.1 what it printed before
//	shim.log     what the shim itself has to say
//
// and through signals: SIGTERM stops the engine and then the shim, another one kills the engine at once.
package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mobula-serve/mobula"
)

// Errors of a task's folder.
var (
	// ErrRunning: a shim has the folder already.
	ErrRunning = errors.New("a shim runs there already")
	// ErrNotRunning: no shim has the folder.
	ErrNotRunning = errors.New("no shim runs there")
	// ErrLeft: processes of a task are still there after SIGKILL.
	ErrLeft = errors.New("processes are left after SIGKILL")
)

// Names of the files in a task's folder.
const (
	lockFile   = "lock"
	taskFile   = "task.json"
	statusFile = "status.json"
	engineLog  = "engine.log"
	shimLog    = "shim.log"
)

// markVariable is the environment variable that every process of a task carries.
const markVariable = "MOBULA_TASK"

// maxFileBytes bounds what is read of a file; an environment may be long.
const maxFileBytes = 16 << 20

// Task is what a shim runs. Zero durations and sizes have engine.ProcessOptions' defaults.
type Task struct {
	ID   string   `json:"id"`
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// StopTimeout is the time from SIGTERM to SIGKILL.
	StopTimeout mobula.Duration `json:"stopTimeout"`
	// Restarts in a row before it has failed, with Backoff before the first one, doubled up to MaxBackoff.
	// A run of at least Stable ends the row.
	Restarts   int             `json:"restarts"`
	Backoff    mobula.Duration `json:"backoff"`
	MaxBackoff mobula.Duration `json:"maxBackoff"`
	Stable     mobula.Duration `json:"stable"`
	// LogSize bounds engine.log; twice that with engine.log.1. Default 32 MiB.
	LogSize mobula.Size `json:"logSize"`
	// Lifeline has the shim stop when the agent that started it is gone.
	Lifeline bool `json:"lifeline"`
	// Owner is the agent's own; the shim leaves it alone.
	Owner json.RawMessage `json:"owner,omitempty"`
}

// State of a shim.
type State string

// States of a shim.
const (
	Running  State = "running"  // the engine's process runs, or is about to
	Waiting  State = "waiting"  // it died, and starts again after a back-off
	Stopping State = "stopping" // it was told to stop
	Failed   State = "failed"   // it has died too often; the shim ends
	Ended    State = "ended"    // it was stopped; the shim ends
)

// Status is how a shim and its engine fare.
type Status struct {
	State State     `json:"state"`
	Since time.Time `json:"since"`
	// Shim and PID are the ids of the shim's process and the engine's, which has run since Started. PID is 0 when none runs.
	Shim    int       `json:"shim"`
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started,omitzero"`
	// Restarts since the shim began.
	Restarts int `json:"restarts"`
	// Reason of waiting and failed: how the engine ended, and the line of its log that says why.
	Reason string `json:"reason,omitempty"`
	// Cgroup is the folder of the engine's cgroup, empty without one.
	Cgroup string `json:"cgroup,omitempty"`
}

// Dir is the folder of a task. Its name is the task's.
type Dir string

// LogPath is where the engine's output is; what was before it is in the same path with ".1".
func (d Dir) LogPath() string { return d.path(engineLog) }

// Task reads what is to run there.
func (d Dir) Task() (t Task, err error) {
	err = d.read(taskFile, &t)
	if err == nil && len(t.Argv) == 0 {
		err = fmt.Errorf("%s: no command", d.path(taskFile))
	}
	return t, err
}

// SetTask replaces what is to run there, durably. A running shim reads it before the next start of its engine.
func (d Dir) SetTask(t Task) error { return d.write(taskFile, t, true) }

// Status reads how it goes there; what it says of processes holds only while Alive.
func (d Dir) Status() (s Status, err error) {
	err = d.read(statusFile, &s)
	return s, err
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

func (d Dir) read(name string, v any) error {
	b, err := readFile(d.path(name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", d.path(name), err)
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s: %d bytes, more than %d", path, info.Size(), maxFileBytes)
	}
	return os.ReadFile(path)
}

// write replaces a file at once. Only a durable one outlives a loss of power: the status of processes need not.
func (d Dir) write(name string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s: %w", d.path(name), err)
	}
	return WriteFile(d.path(name), b, durable)
}

// WriteFile replaces the file at path in one step, readable by the user only. A durable write is on the
// disk when it returns. An error leaves the old file as it was.
func WriteFile(path string, b []byte, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	if !durable {
		return nil
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// mark is what all processes of the task carry in markVariable: the task and, since agents of one
// machine may have tasks of the same name, which folder it is in.
func (d Dir) mark() string {
	return filepath.Base(string(d)) + "@" + MarkOf(filepath.Dir(string(d)))
}

// MarkOf is the part of the mark that all tasks with their folders in parent share.
func MarkOf(parent string) string {
	if abs, err := filepath.Abs(parent); err == nil {
		parent = abs
	}
	if target, err := filepath.EvalSymlinks(parent); err == nil {
		parent = target
	}
	sum := sha256.Sum256([]byte(parent))
	return hex.EncodeToString(sum[:8])
}

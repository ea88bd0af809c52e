//go:build unix

package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
	"github.com/mobula-serve/mobula/engine"
)

// Defaults for a model that does not say; the fleet file has the same.
const (
	startTimeout = 30 * time.Minute
	stopTimeout  = 45 * time.Second
)

const logSize = 32 << 20 // bytes of an engine's log, and as much for the older half

// record is what the daemon keeps in a shim.Task, to know after a restart what it has started.
type record struct {
	Task agent.Task `json:"task"`
	Port int        `json:"port"`
}

// readRecord gives what was started in a folder last.
func readRecord(dir shim.Dir) (record, error) {
	st, err := dir.Task()
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(st.Owner, &r); err != nil {
		return record{}, fmt.Errorf("task in %s: %w", string(dir), err)
	}
	return r, nil
}

// same tells whether an engine that runs as a is what b wants. Revision stands for all of the model that
// needs another engine when it changes.
func same(a, b *agent.Task) bool {
	return a.Revision == b.Revision && a.Round == b.Round && slices.Equal(a.Devices, b.Devices) &&
		a.Rank == b.Rank && a.Parts == b.Parts && a.Master == b.Master && a.MasterPort == b.MasterPort
}

// shimTask says how a shim runs t on port.
func (d *Daemon) shimTask(t *agent.Task, port int) (shim.Task, error) {
	owner, err := json.Marshal(record{*t, port})
	if err != nil {
		return shim.Task{}, err
	}
	argv, env := d.command(t, port)
	return shim.Task{
		ID: t.ID, Argv: argv, Env: env, Owner: owner,
		StopTimeout: mobula.Duration(stopTimeoutOf(t)),
		Restarts:    d.pace.restarts,
		Backoff:     mobula.Duration(d.pace.backoff),
		MaxBackoff:  mobula.Duration(d.pace.maxBackoff),
		Stable:      mobula.Duration(d.pace.stable),
		LogSize:     logSize,
		Lifeline:    d.o.Lifeline,
	}, nil
}

// command gives the argv and the environment of an engine.
func (d *Daemon) command(t *agent.Task, port int) (argv, env []string) {
	m, environ := t.Model, d.o.Environ
	s := engine.ForModel(m)
	s.Host, s.Port = d.o.Host, port
	// A task without devices must not find those of others.
	s.Devices = append([]string{}, t.Devices...)
	s.Nodes, s.NodeRank, s.MasterAddr, s.MasterPort = t.Parts, t.Rank, t.Master, t.MasterPort
	if !slices.ContainsFunc(environ, func(kv string) bool { return strings.HasPrefix(kv, "HF_HOME=") }) {
		environ = append(slices.Clone(environ), "HF_HOME="+filepath.Join(d.o.DataDir, "models"))
	}
	argv, env = s.Command(environ)
	if m.Engine.Kind == "sim" {
		program := m.Engine.Command
		if len(program) == 0 {
			program = []string{d.o.Exe}
		}
		argv = slices.Concat(program, []string{"sim", "--model", m.Name, "--host", d.o.Host, "--port", strconv.Itoa(port)}, m.Engine.Args)
	}
	return argv, env
}

func stopTimeoutOf(t *agent.Task) time.Duration {
	return cmp.Or(time.Duration(t.Model.Engine.StopTimeout), stopTimeout)
}

func startTimeoutOf(t *agent.Task) time.Duration {
	return cmp.Or(time.Duration(t.Model.Engine.StartTimeout), startTimeout)
}

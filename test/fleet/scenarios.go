//go:build linux

package fleet

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/control"
)

// Model is what the scenarios' fleets serve.
const Model = "org/chat"

// HostTimeout is theirs.
const HostTimeout = 3 * time.Second

// File is a fleet file with one simulated model.
func File(replicas, more string) string {
	return fmt.Sprintf(`apiVersion: mobula/v1
kind: Fleet
platform: {static: {hostTimeout: %s}}
models:
  - name: %s
    aliases: [chat]
    replicas: %s
    engine: {kind: sim, args: [--itl, 5ms]%s
`, HostTimeout, Model, replicas, more)
}

// Plain is File without anything special.
func Plain(replicas string) string { return File(replicas, "}") }

// Life starts a fleet of three hosts and does to it what happens to fleets. No request fails.
func Life(t *testing.T, o Options) {
	t.Helper()
	o.File = Plain("3")
	f := New(t, o)
	f.AwaitReady(Model, 3)
	load := f.Traffic("chat", 4, true)
	load.More(50)

	step := func(name string, do func(t *testing.T)) {
		if !t.Run(name, do) {
			t.FailNow()
		}
		load.More(20)
	}
	step("an agent is killed and takes its engines over again", func(t *testing.T) {
		t.Helper()
		before := f.urls()
		for _, h := range o.Hosts {
			f.Kill(h.Name)
		}
		load.More(50)
		for _, h := range o.Hosts {
			f.StartAgent(h.Name)
		}
		f.AwaitReady(Model, 3)
		require.Equal(t, before, f.urls(), "no engine was started again")
	})
	step("the control plane is killed and finds everything as it was", func(t *testing.T) {
		t.Helper()
		before := f.urls()
		f.Kill("control")
		load.More(50)
		f.StartControl()
		f.AwaitReady(Model, 3)
		require.Equal(t, before, f.urls())
		require.Len(t, f.Processes("sim"), 3, "nothing runs twice")
	})
	step("scale up and down", func(*testing.T) {
		f.Run("scale", Model, "5")
		f.AwaitReady(Model, 5)
		f.Run("scale", Model, "2")
		f.AwaitReady(Model, 2)
		f.Run("scale", Model, "auto")
		f.AwaitReady(Model, 3)
	})
	step("a replica is drained", func(*testing.T) {
		gone := f.Ready(Model)[0].ID
		f.Run("drain", gone)
		f.Await("another replica in its place", func() bool {
			ready := f.Ready(Model)
			return len(ready) == 3 && !slices.ContainsFunc(f.Replicas(), func(r control.ReplicaStatus) bool { return r.ID == gone })
		})
	})
	step("all engines are replaced", func(t *testing.T) {
		t.Helper()
		before := f.Ready(Model)[0].Revision
		f.Apply(File("3", ", env: {A: b}}"))
		f.Await("another revision", func() bool {
			ready := f.Ready(Model)
			return len(ready) == 3 && len(f.Replicas()) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Revision == before })
		})
		require.Len(t, f.Processes("sim"), 3)
	})
	step("a revision that fails is taken back", func(*testing.T) {
		good := f.Ready(Model)[0].Revision
		f.Apply(bad())
		f.Await("the roll is taken back", func() bool {
			ready := f.Ready(Model)
			return len(ready) == 3 && len(f.Replicas()) == 3 && ready[0].Revision == good && f.phase() == control.RolloutRolledBack
		})
		f.Apply(File("3", ", env: {A: b}}"))
		f.Await("complete", func() bool { return f.phase() == control.RolloutComplete })
	})
	load.End()

	// Streams that have begun break with their engine; plain requests move to another one.
	plain := f.Traffic("chat", 4, false)
	plain.More(20)
	t.Run("an engine is killed and comes back", func(t *testing.T) {
		victim := f.Ready(Model)[1]
		require.NoError(t, syscall.Kill(f.Engine(victim), syscall.SIGKILL))
		f.Await("it is back", func() bool {
			i := slices.IndexFunc(f.Ready(Model), func(r control.ReplicaStatus) bool { return r.ID == victim.ID })
			return i >= 0 && f.Ready(Model)[i].Restarts == 1
		})
	})
	if o.Hosts[0].Partition != nil {
		t.Run("a host is cut off, given up, and comes back", func(t *testing.T) {
			name := f.Ready(Model)[0].Hosts[0]
			host := o.Hosts[slices.IndexFunc(o.Hosts, func(m Machine) bool { return m.Name == name })]
			require.NoError(t, host.Partition(true))
			f.Await("replicas elsewhere", func() bool {
				ready := f.Ready(Model)
				return len(ready) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Hosts[0] == name })
			})
			plain.More(20)
			require.NoError(t, host.Partition(false))
			f.Await("nothing runs twice", func() bool { return len(f.Processes("sim")) == 3 })
			f.AwaitReady(Model, 3)
		})
	}
	plain.More(20)
	plain.End()
}

// bad is a fleet file whose engines end at once.
func bad() string {
	return fmt.Sprintf(`apiVersion: mobula/v1
kind: Fleet
platform: {static: {hostTimeout: %s}}
models:
  - name: %s
    aliases: [chat]
    replicas: 3
    engine: {kind: sim, args: [--no-such-flag]}
`, HostTimeout, Model)
}

// urls are where the replicas serve, sorted.
func (f *Fleet) urls() []string {
	var urls []string
	for _, r := range f.Ready(Model) {
		urls = append(urls, r.URL+" "+r.ID)
	}
	slices.Sort(urls)
	return urls
}

// phase is that of the model's rollout.
func (f *Fleet) phase() control.Phase {
	f.t.Helper()
	for _, m := range f.Models() {
		if m.Name == Model {
			return m.Rollout
		}
	}
	return ""
}

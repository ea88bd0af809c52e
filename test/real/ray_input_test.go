//go:build real

package real

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/raycluster"
	"github.com/mobula-serve/mobula/test/fleet"
)

// testBadInput: what goes wrong is said where the user looks, nothing of others is touched and nothing left.
func (s *raySuite) testBadInput(t *testing.T) {
	c, binary := s.c, s.binary
	c.python(`
import ray
ray.init(namespace="theirs", log_to_driver=False)
@ray.remote(num_cpus=0)
class Counter:
    def pid(self):
        import os
        return os.getpid()
for namespace in "theirs", "mobula":
    ray.get(Counter.options(name="counter", namespace=namespace, lifetime="detached").remote().pid.remote())
`)
	foreign := func() []rayThing {
		return slices.DeleteFunc(c.must("actors"), func(a rayThing) bool { return a.Name != "counter" })
	}
	theirs := foreign()
	require.Len(t, theirs, 2)
	good := simModel(binary, "2", "")
	f := &rayInput{rayFleet: c.fleet(t, binary, ""), good: good}

	t.Run("refused when it is applied", func(t *testing.T) {
		wrong := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(wrong, []byte(strings.Repeat("bad0", 12)), 0o600))
		file := c.file("", good)
		for _, tt := range []struct {
			name, file string
			want       []string
		}{
			{"not Ray's dashboard but its agent", strings.Replace(file, ":8265", ":52365", 1), []string{":52365", "dashboard"}},
			{"not Ray's dashboard but GCS", strings.Replace(file, ":8265", ":6379", 1), []string{":6379"}},
			{"wrong token", strings.Replace(file, c.token, wrong, 1), []string{"denies access", "tokenFile"}},
			{"no token", strings.Replace(file, "tokenFile: "+c.token+", ", "", 1), []string{"denies access", "tokenFile"}},
			{"custom resource", c.file("", good+"    ray: {resources: {lynx: 1}}\n"), []string{"lynx"}},
			{"too many GPUs", strings.Replace(file, "gpus: 1", "gpus: 3", 1), []string{"3 GPUs"}},
			{"label", strings.Replace(file, "gpus: 1", "gpus: 1, hostLabels: {zone: mars}", 1), []string{"zone", "mars"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				message := f.refused(tt.file)
				t.Log(message)
				for _, want := range tt.want {
					require.Contains(t, message, want)
				}
				require.NotContains(t, message, "%!")
			})
		}
	})
	t.Run("told when it is described", func(t *testing.T) {
		vllm := strings.Replace(strings.Replace(good, "kind: sim, command: ["+binary+"], args: [--itl, 5ms]", "kind: vllm", 1), "replicas: 2", "replicas: 1", 1)
		const environment = "runtime environment could not be made"
		python := filepath.Join(os.Getenv("MOBULA_REAL_DIR"), "venv/bin/python")
		for _, tt := range []struct {
			name, file string
			want       []string
		}{
			{"no such interpreter", c.file("interpreter: /opt/none/python, ", good), []string{"/opt/none/python", "platform.ray.interpreter"}},
			{"an interpreter without Ray", c.file("interpreter: "+python+", ", good), []string{"No module named 'ray'", "platform.ray.interpreter"}},
			{"an interpreter that is none", c.file("interpreter: /bin/false, ", good), []string{"/bin/false"}},
			{"no vllm", c.file("", vllm), []string{"no command vllm"}},
			{environment, c.file("", good+"    ray: {runtimeEnv: {working_dir: 'https://127.0.0.1:9/none.zip'}}\n"), []string{environment, "127.0.0.1"}},
			{"resource that a node may bring", c.file("autoscaling: true, ", good+"    ray: {resources: {lynx: 1}}\n"), []string{"lynx"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				f.Apply(tt.file)
				reason := f.told(tt.want...)
				t.Log(reason)
				require.Contains(t, f.Run("describe", "model", fleet.Model), reason)
				require.Equal(t, tt.name == environment, strings.Contains(reason, environment))
				f.Run("delete", "--all", "--yes")
			})
		}
		c.nothingLeft(t)
	})
	t.Run("name taken", f.testNameTaken)
	t.Run("launcher killed half-way", f.testLauncherKilled)
	require.Equal(t, theirs, foreign(), "what is not ours")
	c.clear()
}

// rayInput is a fleet that gets bad input; good is a model of two replicas that would be well.
type rayInput struct {
	*rayFleet
	good string
}

// refused applies what can't be, and gives what the user is told.
func (f *rayFleet) refused(file string) string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "fleet.yaml")
	require.NoError(f.t, os.WriteFile(path, []byte(file), 0o600))
	_, err := f.TryRun("apply", "-f", path, "--wait=false")
	require.Error(f.t, err)
	return err.Error()
}

// told waits until a replica's reason has the texts.
func (f *rayFleet) told(texts ...string) (reason string) {
	f.t.Helper()
	f.Await(fmt.Sprintf("told %q", texts), func() bool {
		for _, r := range f.Replicas() {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(r.Reason, text) }) {
				reason = r.Reason
				return true
			}
		}
		return false
	})
	return reason
}

// gate writes an interpreter for launchers that does what the lines say before it runs Ray's own, which is $python.
func (f *rayFleet) gate(t *testing.T, lines string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "python")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/bash\npython="+filepath.Join(f.c.bin, "python")+"\n"+lines+"\nexec $python \"$@\"\n"), 0o700))
	return path
}

// testNameTaken: an actor of somebody else's has the name that a replica would have. It stays.
func (f *rayInput) testNameTaken(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	f.Apply(f.c.file("interpreter: "+f.gate(t, "until [ -e "+open+" ]; do sleep 0.1; done")+", ", strings.Replace(f.good, "replicas: 2", "replicas: 1", 1)))
	f.Await("a replica has its name", func() bool { return len(f.Replicas()) == 1 })
	taken := f.Replicas()[0].ID
	name := raycluster.ActorName(rayOwner, taken)
	f.c.python(`
import ray
ray.init(namespace="mobula", log_to_driver=False)
@ray.remote(num_cpus=0)
class Other:
    def pid(self):
        return 1
ray.get(Other.options(name="` + name + `", lifetime="detached").remote().pid.remote())
`)
	other := f.actor(f.Replicas()[0])
	require.NoError(t, os.WriteFile(open, nil, 0o600))
	t.Log(f.told(name, "not Mobula's"))
	f.Run("delete", "--all", "--yes")
	f.Await("it is gone", func() bool { return len(f.Replicas()) == 0 })
	require.Equal(t, other.PID, f.c.actorNamed(name).PID, "it was somebody else's")
	f.c.python(`
import ray
ray.init(namespace="mobula", log_to_driver=False)
ray.kill(ray.get_actor("` + name + `"), no_restart=True)
`)
	f.c.nothingLeft(t)
}

// actorNamed gives the actor of that name; its zero value when there is none.
func (c *rayLab) actorNamed(name string) rayThing {
	all := c.must("actors")
	if i := slices.IndexFunc(all, func(a rayThing) bool { return a.Name == name }); i >= 0 {
		return all[i]
	}
	return rayThing{}
}

// testLauncherKilled: a launcher that dies after its first step leaves nothing that the next one doesn't complete.
func (f *rayInput) testLauncherKilled(t *testing.T) {
	killed := filepath.Join(t.TempDir(), "killed")
	interpreter := f.gate(t, `if mkdir `+killed+`; then
	coproc launcher { exec $python -u "$@"; }
	pid=$launcher_PID
	while read -r line <&"${launcher[0]}"; do echo "$line"; case $line in started*) kill -KILL $pid; exit 9 ;; esac; done
fi`)
	f.Apply(f.c.file("interpreter: "+interpreter+", ", strings.Replace(f.good, "replicas: 2", "replicas: 4", 1)))
	f.AwaitReady(fleet.Model, 4)
	require.DirExists(t, killed)
	require.Len(t, f.c.pids(), 4)
	f.Deleted()
}

// testTwoControlPlanes: a second control plane of the same owner is told so, or the first is; no engine is lost.
func (s *raySuite) testTwoControlPlanes(t *testing.T) {
	c, good := s.c, simModel(s.binary, "2", "")
	t.Cleanup(c.clear) // neither of them does anything before the other has been quiet for a minute
	f := c.fleet(t, s.binary, c.file("", good))
	f.AwaitReady(fleet.Model, 2)
	before, served := c.pids(), f.Ready(fleet.Model)[0].ID
	second := c.fleet(t, s.binary, "")
	path := filepath.Join(t.TempDir(), "fleet.yaml")
	other := strings.Replace(c.file("", strings.Replace(good, "replicas: 2", "replicas: 1", 1)), fleet.Model, "org/other", 1)
	require.NoError(t, os.WriteFile(path, []byte(other), 0o600))
	_, err := second.TryRun("apply", "-f", path, "--wait=false")
	const told = "uses owner " + rayOwner + " on this cluster too"
	f.Await("told", func() bool {
		ours, _ := f.TryRun("events")
		theirs, _ := second.TryRun("events")
		return strings.Contains(ours+theirs+fmt.Sprint(err), told)
	})
	require.Subset(t, c.pids(), before, "no engine of the first one was lost")
	f.AwaitServes("chat", served)
}

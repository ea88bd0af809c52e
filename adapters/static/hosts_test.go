package static_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/state"
)

func TestHostsConform(t *testing.T) {
	conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
		tb.Helper()
		net := newNetwork()
		one, two := net.add("host-1", 4, 4), net.add("host-2", 4, 4)
		f := newFleet(tb, net).run().join(one, two)
		return conformance.PlacerSubject{
			Placer: f.Hosts, Discoverer: f.Discoverer(),
			Model:      mobula.Model{Name: "org/model", Resources: mobula.Resources{GPUs: new(1)}},
			Impossible: &mobula.Model{Name: "huge", Resources: mobula.Resources{GPUs: new(5)}},
			Crash:      net.crash,
			Lose: func(on bool) {
				f.store.broken(func(int) (bool, bool) { return on, false })
			},
			Restart: func() (adapters.Placer, adapters.Discoverer) {
				f.run()
				return f.Hosts, f.Discoverer()
			},
			Running: net.running,
		}
	})
}

func TestSilentHost(t *testing.T) {
	net := newNetwork()
	one, two := net.add("host-1", 1, 0), net.add("host-2", 1, 0)
	f := newFleet(t, net).run().join(one, two)
	f.apply(deployment("m", "r", 2, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	before := f.status()

	one.partition(true)
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	require.Len(t, f.endpoints(), 2, "a silent host removes no endpoint")
	for _, r := range f.status() {
		if r.State == mobula.StateSuspect {
			require.Equal(t, "host host-1 is silent: connection refused", r.Reason)
		}
	}
	f.run() // our own start in the meantime changes nothing
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	require.Equal(t, 1, f.states()[mobula.StateSuspect])
	require.Len(t, f.endpoints(), 2)

	one.partition(false)
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	require.Equal(t, ids(before), ids(f.status()))
	require.Equal(t, ids(before), net.running())
}

func TestHostThatIsGivenUpAndReturns(t *testing.T) {
	for name, tc := range map[string]struct {
		room  int // GPUs of the other host
		stays bool
	}{
		"its replica goes when the successor serves":        {room: 2},
		"its replica stays when the successor has no place": {room: 1, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			net := newNetwork()
			one, two := net.add("host-1", 1, 0), net.add("host-2", tc.room, 0)
			f := newFleet(t, net)
			f.timeout = time.Second
			f.run().join(one, two)
			f.apply(deployment("m", "r", 2, 1))
			f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
			before := f.status()
			onOne := one.tasks()[0].Replica

			one.partition(true)
			f.await(func() bool { return f.find(onOne).State == mobula.StateDraining })
			f.await(func() bool {
				states := f.states()
				return states[mobula.StateReady] == tc.room && states[mobula.StatePending] == 2-tc.room
			})
			require.Contains(t, f.find(onOne).Reason, "given up")
			e := f.endpoint(onOne)
			require.NotNil(t, e, "the router decides whether it answers")
			require.Equal(t, !tc.stays, e.Draining, "it serves until its successor does")

			f.run() // it is remembered
			f.await(func() bool { return f.states()[mobula.StateReady] == tc.room })
			require.Equal(t, mobula.StateDraining, f.find(onOne).State)

			one.partition(false)
			f.await(func() bool {
				all := f.status()
				return len(all) == 2 && f.states()[mobula.StateReady] == 2 && slices.Equal(ids(all), net.running())
			})
			require.Equal(t, tc.stays, slices.Equal(ids(before), net.running()))
			require.Equal(t, tc.stays, len(one.tasks()) == 1)
			require.Len(t, f.endpoints(), 2)
		})
	}
}

func TestNoHostIsGivenUpWhenNoneAnswers(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net)
	f.timeout = time.Nanosecond
	f.run().join(one)
	f.apply(deployment("m", "r", 1, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	before := f.status()
	one.partition(true)
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	time.Sleep(100 * time.Millisecond) // some ticks: it may be wrong without failing, never the other way round
	require.Equal(t, ids(before), ids(f.status()))
}

func TestForgottenHost(t *testing.T) {
	net := newNetwork()
	one, two := net.add("host-1", 1, 0), net.add("host-2", 2, 0)
	f := newFleet(t, net).run().join(one, two)
	f.apply(deployment("m", "r", 2, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	one.partition(true)
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	require.NoError(t, f.Forget(t.Context(), "host-1"))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 && len(two.tasks()) == 2 })
	require.Len(t, f.endpoints(), 2)
	hosts, err := f.Hosts.Hosts(t.Context())
	require.NoError(t, err)
	require.Len(t, hosts, 1)
}

func TestPendingReplicaGetsRoom(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net).run()
	f.apply(deployment("m", "r", 2, 1)) // before any host has joined
	f.await(func() bool { return f.states()[mobula.StatePending] == 2 })
	require.Equal(t, "no host has joined: start mobula agent on one", f.status()[0].Reason)
	require.True(t, f.status()[0].NoRoom)
	f.join(one)
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 && f.states()[mobula.StatePending] == 1 })

	two := net.add("host-2", 1, 0)
	two.state.Devices[0].Unhealthy = "XID 79"
	f.join(two)
	f.await(func() bool {
		return slices.ContainsFunc(f.status(), func(r mobula.Replica) bool {
			return r.Reason == "needs 1 GPU on one host: host-1 has 0 free, host-2 has 0 free (1 unhealthy)"
		})
	})
	two.edit(func() { two.state.Devices[0].Unhealthy = "" })
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
}

func TestReasonsOfTheAgent(t *testing.T) {
	net := newNetwork()
	net.manual = true
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net).run().join(one)
	f.apply(deployment("m", "r", 1, 1))
	f.await(func() bool { return len(one.tasks()) == 1 && f.states()[mobula.StateStarting] == 1 })
	id := one.tasks()[0].ID
	one.set(id, agent.TaskReady, "")
	f.await(func() bool { return f.endpoint(id) != nil })
	one.set(id, agent.TaskWaiting, "exit status 1: CUDA out of memory")
	f.await(func() bool { return f.find(id).Reason == "exit status 1: CUDA out of memory" })
	require.Equal(t, mobula.StateStarting, f.find(id).State)
	require.Empty(t, f.endpoints())
	one.set(id, agent.TaskFailed, "died 5 times: CUDA out of memory")
	f.await(func() bool { return f.find(id).State == mobula.StateFailed })
	require.Equal(t, "died 5 times: CUDA out of memory", f.find(id).Reason)
}

func TestHostThatRefusesItsTasks(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	one.refuses = errors.New("507: no space left on device")
	f := newFleet(t, net).run().join(one)
	f.apply(deployment("m", "r", 1, 1))
	f.await(func() bool {
		all := f.status()
		return len(all) == 1 && all[0].Reason == "host host-1 does not take its tasks: 507: no space left on device"
	})
	require.Equal(t, mobula.StatePending, f.status()[0].State)
	require.False(t, f.status()[0].NoRoom)
	one.edit(func() { one.refuses = nil })
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
}

func TestEngineOfSeveralHosts(t *testing.T) {
	net := newNetwork()
	one, two := net.add("host-1", 4, 0), net.add("host-2", 4, 0)
	f := newFleet(t, net).run().join(one, two)
	d := deployment("m", "r", 1, 8)
	d.Model.Resources.Hosts = 2
	f.apply(d)
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	r := f.status()[0]
	require.Equal(t, []string{"host-1", "host-2"}, r.Hosts)
	require.Equal(t, []string{"0,1,2,3", "0,1,2,3"}, r.Devices)
	require.Equal(t, "http://host-1/"+r.ID+".0", r.URL)

	two.set(r.ID+".1", agent.TaskWaiting, "killed")
	f.await(func() bool {
		a, b := one.tasks()[0], two.tasks()[0]
		return a.Round == 1 && b.Round == 1 && f.states()[mobula.StateReady] == 1
	})
	require.Equal(t, r.ID, f.status()[0].ID)
	require.Equal(t, 1, f.status()[0].Restarts)

	two.partition(true)
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	two.partition(false)
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	require.NoError(t, f.Remove(t.Context(), d.Key))
	f.await(func() bool { return len(net.running()) == 0 && len(f.status()) == 0 })
}

func TestLostMemoryAdoptsWhatRuns(t *testing.T) {
	net := newNetwork()
	one, two := net.add("host-1", 2, 0), net.add("host-2", 2, 0)
	f := newFleet(t, net).run().join(one, two)
	f.apply(deployment("m", "r", 2, 1))
	f.apply(deployment("other", "r", 1, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 3 })
	before := f.status()
	f.stop()

	f.store = &faultyStore{Store: state.NewInMemory()}
	f.run().join(one, two)
	f.await(func() bool { return len(f.endpoints()) == 3 })
	require.Equal(t, 3, f.states()[mobula.StateDraining], "they are there, and nobody's")
	f.apply(deployment("m", "r", 2, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	for _, r := range f.status() {
		if r.Model == "m" {
			require.Contains(t, ids(before), r.ID)
		}
	}
	require.Equal(t, ids(before), net.running(), "the other one's time is not over")
	f.apply(deployment("m", "r", 2, 1, f.status()[0].ID)) // what is told meanwhile doesn't stop it either
	require.Equal(t, ids(before), net.running())

	// The orphan goes when its time is over.
	require.NoError(t, f.Update(mobula.Static{HostTimeout: mobula.Duration(time.Millisecond)}))
	f.timeout = time.Millisecond
	f.run()
	f.await(func() bool { return len(net.running()) == 2 && len(f.status()) == 2 })
}

func TestJoin(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net).run().join(one)
	ctx := t.Context()
	require.NoError(t, f.Join(ctx, "host-1", one.address), "joining again")
	require.ErrorIs(t, f.Join(ctx, "host-1", "elsewhere:8200"), static.ErrHostTaken)
	require.Error(t, f.Join(ctx, "", "elsewhere:8200"))
	require.Error(t, f.Join(ctx, "host-2", "elsewhere"))

	f.apply(deployment("m", "r", 1, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	one.edit(func() { // it moves
		delete(net.agents, one.address)
		one.address = "elsewhere:8200"
		net.agents[one.address] = one
	})
	require.NoError(t, f.Join(ctx, "host-1", one.address))
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	hosts, err := f.Hosts.Hosts(ctx)
	require.NoError(t, err)
	require.Equal(t, "elsewhere:8200", hosts[0].Address)
	f.run() // it is remembered
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
}

func TestOnlyAllowedHosts(t *testing.T) {
	net := newNetwork()
	gpu, cpu := net.add("gpu-1", 1, 1), net.add("cpu-1", 0, 4)
	f := newFleet(t, net).run().join(gpu, cpu)
	require.NoError(t, f.Update(mobula.Static{Hosts: []string{"gpu-*"}}))
	f.apply(deployment("m", "r", 2, 0))
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 && f.states()[mobula.StatePending] == 1 })
	require.Empty(t, cpu.tasks())
	require.NoError(t, f.Update(mobula.Static{}))
	f.await(func() bool { return f.states()[mobula.StateReady] == 2 })
	require.Len(t, cpu.tasks(), 1)
}

func TestAgentWithoutMemoryIsToldAgain(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net).run().join(one)
	f.apply(deployment("m", "r", 1, 1))
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	before := net.running()
	one.partition(true) // its start ends the connections
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	one.edit(func() { one.state.Epoch, one.state.Tasks, one.state.Instance, one.state.Seq = 0, nil, "second", 0 })
	one.partition(false)
	f.await(func() bool { return slices.Equal(before, net.running()) && f.states()[mobula.StateReady] == 1 })
}

func TestDiscovererOfHostsConforms(t *testing.T) {
	conformance.Discoverer(t, func(tb testing.TB) conformance.Subject {
		tb.Helper()
		net := newNetwork()
		one := net.add("host-1", 0, 4)
		f := newFleet(tb, net).run().join(one)
		f.apply(deployment("m", "r", 1, 0))
		f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
		n := 0
		return conformance.Subject{
			Discoverer: f.Discoverer(),
			Want:       f.endpoints(),
			Change: func(tb testing.TB) []mobula.Endpoint {
				tb.Helper()
				want := f.endpoints()
				n++
				want[0].Draining = n%2 == 1
				d := deployment("m", "r", 1, 0)
				if want[0].Draining {
					d.Drain = []string{want[0].ID}
				}
				f.apply(d)
				return want
			},
		}
	})
}

func TestWhatStopsKeepsItsPlaceUntilItHasStopped(t *testing.T) {
	for name, gpus := range map[string]int{"a GPU": 1, "a slot": 0} {
		t.Run(name, func(t *testing.T) {
			net := newNetwork()
			one := net.add("host-1", gpus, 1)
			one.slow = true
			f := newFleet(t, net).run().join(one)
			f.apply(deployment("m", "r1", 1, gpus))
			f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
			old := f.status()[0].ID

			require.NoError(t, f.Remove(t.Context(), deployment("m", "r1", 0, gpus).Key))
			f.apply(deployment("m", "r2", 1, gpus))
			f.await(func() bool {
				tasks := one.tasks()
				return len(tasks) == 1 && tasks[0].State == agent.TaskStopping
			})
			f.run() // a new start knows it, too
			f.await(func() bool { return f.find(old).State == mobula.StateDraining })
			require.Empty(t, f.endpoints())
			require.Equal(t, 1, f.states()[mobula.StatePending])
			log, err := f.Logs(t.Context(), old, 1, false)
			require.NoError(t, err, "the log of what stops can still be read")
			text, err := io.ReadAll(log)
			require.NoError(t, err)
			require.Equal(t, "log of "+old+"\n", string(text))

			one.edit(func() { one.slow, one.state.Tasks = false, nil })
			f.await(func() bool { return f.states()[mobula.StateReady] == 1 && len(f.status()) == 1 })
		})
	}
}

func TestLogsAndFilesOfWhatHasNoHost(t *testing.T) {
	net := newNetwork()
	one := net.add("host-1", 1, 0)
	f := newFleet(t, net).run()
	f.apply(deployment("m", "r", 1, 1))
	id := f.status()[0].ID
	_, err := f.Logs(t.Context(), id, 1, false)
	require.ErrorContains(t, err, "has not started: no host has joined")
	_, err = f.Fetch(t.Context(), id, "s3://bucket/lora")
	require.ErrorContains(t, err, "has no host: no host has joined")

	f.join(one)
	f.await(func() bool { return f.states()[mobula.StateReady] == 1 })
	path, err := f.Fetch(t.Context(), id, "s3://bucket/lora")
	require.NoError(t, err)
	require.Equal(t, "s3://bucket/lora", path)
	one.partition(true)
	f.await(func() bool { return f.states()[mobula.StateSuspect] == 1 })
	_, err = f.Logs(t.Context(), id, 1, false)
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	_, err = f.Fetch(t.Context(), id, "s3://bucket/lora")
	require.ErrorIs(t, err, adapters.ErrUnavailable)
}

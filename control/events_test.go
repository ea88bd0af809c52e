package control

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
)

func TestEventsOfHosts(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	asked := mobula.Host{Name: "h", Silent: "has not answered yet"}
	well := mobula.Host{Name: "h", Heard: noon, Devices: make([]mobula.Device, 2)}
	timeless := mobula.Host{Name: "h", Devices: make([]mobula.Device, 2)}
	silent := mobula.Host{Name: "h", Heard: noon, Silent: "connection refused"}
	for name, tc := range map[string]struct {
		before []mobula.Host
		after  mobula.Host
		want   []Event
	}{
		"new":                   {nil, asked, []Event{{Reason: "HostJoined", Message: "host h is there, and is asked what it has"}}},
		"new and known well":    {nil, well, []Event{{Reason: "HostJoined", Message: "host h is there with 2 GPUs"}}},
		"answers at first":      {[]mobula.Host{asked}, well, []Event{{Reason: "HostAnswers", Message: "it has 2 GPUs"}}},
		"never answers":         {[]mobula.Host{asked}, asked, nil},
		"falls silent":          {[]mobula.Host{well}, silent, []Event{{Reason: "HostSilent", Message: "connection refused", Warning: true}}},
		"is back":               {[]mobula.Host{silent}, well, []Event{{Reason: "HostBack", Message: "it answers again"}}},
		"goes on as it was":     {[]mobula.Host{well}, well, nil},
		"tells no times":        {nil, timeless, []Event{{Reason: "HostJoined", Message: "host h is there with 2 GPUs"}}},
		"goes on without times": {[]mobula.Host{timeless}, timeless, nil},
		"stays silent":          {[]mobula.Host{silent}, silent, nil},
		"silent in other words": {[]mobula.Host{silent}, mobula.Host{Name: "h", Heard: noon, Silent: "no route to host"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range tc.want {
				tc.want[i].Object = "host/h"
			}
			require.Empty(t, cmp.Diff(tc.want, changes(&observation{hosts: tc.before}, &observation{hosts: []mobula.Host{tc.after}})))
		})
	}
}

func TestWhatFailsAgainAndAgainPushesOutNothing(t *testing.T) {
	var es events
	es.add(Event{Object: "fleet", Reason: "Applied", Message: "generation 1"})
	for range maxEvents {
		for _, replica := range []string{"r1", "r2"} {
			es.add(Event{Object: "model/m", Reason: "LoRAFailed", Message: "not found on " + replica})
		}
	}
	require.Len(t, es.list, 3)
	require.Equal(t, "Applied", es.list[0].Reason)
	require.Equal(t, Event{Seq: 1 + 2*maxEvents, Object: "model/m", Reason: "LoRAFailed", Message: "not found on r2", Count: maxEvents}, es.list[2])
	require.Equal(t, es.list[1:], es.after(2*maxEvents-1), "one that follows them sees each once, as it is now")
}

func TestEventsOfReplicas(t *testing.T) {
	at := func(state mobula.State, url string, restarts int) mobula.Replica {
		return mobula.Replica{ID: "r", State: state, URL: url, Restarts: restarts, Reason: "why"}
	}
	ready := at(mobula.StateReady, "http://a", 0)
	for name, tc := range map[string]struct {
		before, after mobula.Replica
		want          string
	}{
		"is ready":                  {at(mobula.StateStarting, "", 0), ready, "ReplicaReady"},
		"is ready elsewhere":        {at(mobula.StateStarting, "", 0), at(mobula.StateReady, "http://b", 1), "ReplicaReady"},
		"goes on as it was":         {ready, ready, ""},
		"was moved between looks":   {ready, at(mobula.StateReady, "http://b", 1), "ReplicaMoved"},
		"was restarted where it is": {ready, at(mobula.StateReady, "http://a", 1), "ReplicaRestarted"},
		"starts again":              {ready, at(mobula.StateStarting, "", 1), "ReplicaRestarted"},
		"has failed":                {ready, at(mobula.StateFailed, "", 1), "ReplicaFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, replicaChange(&tc.before, &tc.after).Reason)
		})
	}
}
